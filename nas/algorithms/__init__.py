"""Search algorithms: one file is one algorithm, its name is the name on the command line."""
