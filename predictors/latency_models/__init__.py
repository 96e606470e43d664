"""Regressors of latency: one file is one model, its name is the name it is reported by."""
