"""The face: one file a command. Each parses its arguments, calls one function of a job and renders what it returns."""
