"""EASY-EP (arXiv 2504.06792): summed gate times output norm, each token weighing as much as its experts turn it."""

from torch import Tensor

from supernets.expert_pruning import ScoredPruning
from supernets.reduction import CalibratedLayer


class EasyEp(ScoredPruning):
    """Keeps the experts of the highest scores."""

    name = "easy-ep"

    def scores(self, layer: CalibratedLayer) -> Tensor:
        """EASY-EP's sum."""
        return layer.statistics.easy_ep_E


REDUCTION = EasyEp()
