"""Operators that reduce the experts of a layer; one file, one operator."""
