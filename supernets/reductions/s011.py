"""S(0,1,1), one of the two best task-specific scores of arXiv 2606.15716: summed gate times output norm."""

from supernets.expert_pruning import NormScore

REDUCTION = NormScore("s011", b=0, alpha=1, beta=1)
