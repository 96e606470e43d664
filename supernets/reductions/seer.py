"""SEER-MoE's soft count (arXiv 2404.05089): keeps the experts of the largest sum of gates."""

from supernets.expert_pruning import NormScore

REDUCTION = NormScore("seer", b=0, alpha=1, beta=0)
