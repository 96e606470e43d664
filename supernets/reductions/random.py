"""Random experts: what every other operator has to beat."""

from collections.abc import Sequence
from random import Random

from supernets.expert_pruning import RankedPruning, content_order
from supernets.reduction import CalibratedLayer


class RandomPruning(RankedPruning):
    """Keeps experts drawn by a seed; which ones depends on their weights, not on their numbers."""

    name = "random"
    needs_data = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def order(self, layer: CalibratedLayer) -> Sequence[int]:
        """The protected ones, then the others as they were drawn."""
        drawn = content_order(layer)
        Random(f"{self.seed}/{layer.index}").shuffle(drawn)
        return sorted(drawn, key=lambda expert: expert not in layer.protected)


REDUCTION = RandomPruning()
