"""REAP (arXiv 2510.13999): keeps the experts of the largest mean gate times output norm."""

from supernets.expert_pruning import NormScore

REDUCTION = NormScore("reap", b=1, alpha=1, beta=1)
