"""What is asked of a restored cluster. Each check says what it looked at, how much of it, and what mends what it found."""
