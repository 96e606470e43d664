"""NAEE (arXiv 2402.14800), greedily: removes, one after another, the expert that the layer's output misses least.

The paper tries all subsets of the wanted size; that is possible for eight experts only.

Shapes: R sampled tokens, E experts, k choices per token, D model width, C candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from supernets.expert_pruning import RankedPruning
from supernets.reduction import CalibratedLayer


class Naee(RankedPruning):
    """Keeps the experts whose routed output, with the model's own gate over them, is closest to that of all."""

    name = "naee"

    def order(self, layer: CalibratedLayer) -> Sequence[int]:
        """The protected ones, then the others from the last to the first removed; all router groups shrink in turn."""
        output, removed = RoutedOutput(layer), list[int]()
        while candidates := _removable(layer, removed):
            gone_CE = torch.zeros(len(candidates), layer.count, dtype=torch.bool)
            gone_CE[:, removed] = True
            gone_CE[range(len(candidates)), candidates] = True
            removed.append(candidates[int(output.damages(gone_CE).argmin())])
        left = [expert for expert in range(layer.count) if expert not in removed]
        return [*sorted(left, key=lambda expert: expert not in layer.protected), *reversed(removed)]


class RoutedOutput:
    """What the routed experts add to the sampled tokens, known by the products of their answers."""

    def __init__(self, layer: CalibratedLayer) -> None:
        self._gate, self._logits_RE = layer.gate, layer.statistics.sample_logits_RE
        outputs_RED = layer.sample_outputs_ERD.transpose(0, 1).double()
        self._gram_REE = outputs_RED @ outputs_RED.transpose(1, 2)
        gates_Rk, chosen_Rk = self._gate(self._logits_RE, torch.zeros(layer.count, dtype=torch.bool))
        self._whole_RE = torch.zeros(self._logits_RE.shape, dtype=torch.float64)
        self._whole_RE.scatter_(1, chosen_Rk, gates_Rk.double())

    def damages(self, gone_CE: Tensor) -> Tensor:
        """(C,): squared distance to the output of all experts, over all tokens, where the marked experts are gone."""
        tokens, count = self._logits_RE.shape
        gone_NE = gone_CE[:, None].expand(-1, tokens, -1).reshape(-1, count)
        gates_Nk, chosen_Nk = self._gate(self._logits_RE.repeat(len(gone_CE), 1), gone_NE)
        change_NE = -self._whole_RE.repeat(len(gone_CE), 1)
        change_NE.scatter_add_(1, chosen_Nk, gates_Nk.double())
        change_RCE = torch.unflatten(change_NE, 0, (len(gone_CE), tokens)).transpose(0, 1)
        return ((change_RCE @ self._gram_REE) * change_RCE).sum((0, 2))


def _removable(layer: CalibratedLayer, removed: list[int]) -> list[int]:
    """The experts of the fullest router groups that are not protected, while the router has more than it needs."""
    left = [expert for expert in range(layer.count) if expert not in removed]
    if len(left) <= layer.least_count:
        return []
    size = layer.count // layer.router_groups
    in_group = [sum(expert // size == group for expert in left) for group in range(layer.router_groups)]
    return [one for one in left if one not in layer.protected and in_group[one // size] == max(in_group)]


REDUCTION = Naee()
