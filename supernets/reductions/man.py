"""MAN: keeps the experts of the largest mean output norm (arXiv 2606.15716)."""

from supernets.expert_pruning import NormScore

REDUCTION = NormScore("man", b=1, alpha=0, beta=1)
