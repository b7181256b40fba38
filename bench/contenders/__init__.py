"""The programs that are compared, each a small class with the same verbs."""
