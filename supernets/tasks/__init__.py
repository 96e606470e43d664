"""One file, one task: its name is the name on the command line."""
