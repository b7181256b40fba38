"""What is wanted of backups, held against what is: objectives, predictions, and when the next backup is due."""
