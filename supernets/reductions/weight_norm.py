"""Keeps the experts of the largest weights: needs no data."""

from torch import Tensor

from supernets.expert_pruning import ScoredPruning
from supernets.reduction import CalibratedLayer


class WeightNorm(ScoredPruning):
    """Keeps the experts of the highest Euclidean norms."""

    name = "weight-norm"
    needs_data = False

    def scores(self, layer: CalibratedLayer) -> Tensor:
        """(E,) norms."""
        return layer.bank.norms()


REDUCTION = WeightNorm()
