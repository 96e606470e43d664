"""Frequency: keeps the experts that most tokens choose."""

from supernets.expert_pruning import NormScore

REDUCTION = NormScore("frequency", b=0, alpha=0, beta=0)
