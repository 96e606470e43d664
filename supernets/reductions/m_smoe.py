"""M-SMoE (arXiv 2310.01334): the most used experts absorb those of the most similar router logits."""

from collections.abc import Sequence

from torch import Tensor

from supernets.expert_bank import ExpertBank
from supernets.expert_merging import Merging, aligned, average, nearest, weight_features
from supernets.reduction import CalibratedLayer


class MSmoe(Merging):
    """Merges around dominant experts; `threshold_counts` of `supernets.expert_pruning` allots the paper's counts."""

    name = "m-smoe"

    def clusters(self, layer: CalibratedLayer, experts: Sequence[int], count: int) -> Sequence[Sequence[int]]:
        """The others join the dominant expert of the largest cosine; `experts` come by usage."""
        return nearest(layer.statistics.logit_similarity_EE, experts[:count], experts[count:])

    def merged(self, group: ExpertBank, weights_M: Tensor, layer: CalibratedLayer) -> ExpertBank:
        """The weighted average after alignment to the dominant expert."""
        return average(aligned(group, weight_features(group)), weights_M)


REDUCTION = MSmoe()
