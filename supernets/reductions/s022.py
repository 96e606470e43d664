"""S(0,2,2), one of the two best task-specific scores of arXiv 2606.15716: its squares summed."""

from supernets.expert_pruning import NormScore

REDUCTION = NormScore("s022", b=0, alpha=2, beta=2)
