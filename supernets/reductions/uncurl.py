"""UNCURL (arXiv 2409.01483): spectral clusters of router logits, inner units aligned, average by usage."""

from collections.abc import Sequence

from torch import Tensor

from supernets.expert_bank import ExpertBank
from supernets.expert_merging import Merging, aligned, average, spectral, weight_features
from supernets.reduction import CalibratedLayer


class Uncurl(Merging):
    """Merges experts whose router logits rise and fall together on the text."""

    def __init__(self, name: str = "uncurl", *, align: bool = True) -> None:
        self.name = name
        self.align = align

    def clusters(self, layer: CalibratedLayer, experts: Sequence[int], count: int) -> Sequence[Sequence[int]]:
        """Of the graph of cosines, scaled to [0, 1]."""
        index = list(experts)
        affinity_EE = (layer.statistics.logit_similarity_EE[index][:, index] + 1) / 2
        return [[index[position] for position in cluster] for cluster in spectral(affinity_EE, count)]

    def merged(self, group: ExpertBank, weights_M: Tensor, layer: CalibratedLayer) -> ExpertBank:
        """The weighted average after alignment to the representative."""
        return average(aligned(group, weight_features(group)) if self.align else group, weights_M)


REDUCTION = Uncurl()
