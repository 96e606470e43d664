"""MSAN: keeps the experts of the largest mean squared output norm (arXiv 2606.15716)."""

from supernets.expert_pruning import NormScore

REDUCTION = NormScore("msan", b=1, alpha=0, beta=2)
