"""One file, one way to train a supernet: its name is the name on the command line."""
