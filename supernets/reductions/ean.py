"""EAN: keeps the experts of the largest sum of output norms (in the REAP paper, arXiv 2510.13999)."""

from supernets.expert_pruning import NormScore

REDUCTION = NormScore("ean", b=0, alpha=0, beta=1)
