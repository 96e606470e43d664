"""Objectives: one file is one objective, its name is the name on the command line."""
