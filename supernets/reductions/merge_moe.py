"""MergeMoE (arXiv 2510.14436): M-SMoE's groups; gate and up averaged, down fitted to what the group answered.

Shapes: M experts of one group, R sampled tokens, D model width, F expert width.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from supernets.expert_bank import ExpertBank
from supernets.expert_merging import Merging, average, nearest
from supernets.least_squares import ridge
from supernets.reduction import CalibratedLayer


class MergeMoe(Merging):
    """Solves ``W'_D H' ≈ Σ_m w_m W_Dm H_m`` over the sampled tokens, as close to the averaged down as they allow."""

    name = "merge-moe"

    def clusters(self, layer: CalibratedLayer, experts: Sequence[int], count: int) -> Sequence[Sequence[int]]:
        """The others join the most used expert of the largest cosine; `experts` come by usage."""
        return nearest(layer.statistics.logit_similarity_EE, experts[:count], experts[count:])

    def merged(self, group: ExpertBank, weights_M: Tensor, layer: CalibratedLayer) -> ExpertBank:
        """The weighted average with another down-projection."""
        mean = average(group, weights_M)
        wide, merged, sample_RD = group.mapped(Tensor.float), mean.mapped(Tensor.float), layer.statistics.sample_RD
        wanted_RD = sum(weight * wide.outputs(i, sample_RD) for i, weight in enumerate(weights_M.tolist()))
        missing_RD = wanted_RD - merged.outputs(0, sample_RD)
        change_DF = ridge(merged.inner(0, sample_RD), missing_RD)
        return replace(mean, down_EDF=(merged.down_EDF + change_DF).to(mean.down_EDF.dtype))


REDUCTION = MergeMoe()
