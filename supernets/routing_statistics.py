"""What one calibration pass says about the experts of every layer: running sums, no activations but a small sample.

The family of scores ``S_j(b, α, β) = Σ_{t: j chosen} g_j(t)^α ‖f_j(x_t)‖^β / n_j^b`` ("How to Score Experts",
arXiv 2606.15716) needs sums per expert only; its gates g are renormalised over the chosen experts, as in REAP
(arXiv 2510.13999), whatever the model's own gate does. An expert that no token reached scores and answers 0.

Shapes: T tokens seen, E experts, k choices per token, D model width, S sums, R sampled tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from supernets.staging import staged_folder

POWERS = ((0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))
"""(α, β) of the sums that are kept."""
SUPER_QUANTILE, SUPER_SHARE, SUPER_DEPTH = 0.995, 0.1, 0.75
"""Rule of "Super Experts" (arXiv 2507.23279): above this quantile of all experts' largest down-projection outputs and
this share of the largest, in this first part of the layers."""
_TENSORS, _RECORD = "statistics.safetensors", "statistics.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerStatistics:
    """One layer. Sums are float64 over the tokens seen; the sample is float32.

    Attributes:
        tokens: T, as a scalar tensor.
        power_sums_SE: ``Σ g^α ‖f‖^β`` per expert over the tokens that chose it, one row per entry of `POWERS`.
        gate_sums_E: the model's own gates, summed.
        easy_ep_E: EASY-EP's sum ``Σ g ‖f‖ max(0, 1 − cos(h, h + y))``, h the residual stream before the block and y
            what the routed experts add; g the model's own gate (arXiv 2504.06792).
        output_sums_ED: outputs of each expert, summed over the tokens that chose it, not weighted by the gate.
        largest_outputs_E: largest absolute element of an expert's outputs.
        pairs_EE: how many tokens chose both experts; the diagonal counts each one's tokens.
        logit_sums_E: router logits, summed over all tokens.
        logit_gram_EE: products of router logits, summed over all tokens.
        sample_RD: what some tokens, drawn evenly, brought to the block.
        sample_logits_RE: their router logits.
        sample_chosen_Rk: their experts.
        sample_gates_Rk: the model's own gates of these.
    """

    tokens: Tensor
    power_sums_SE: Tensor
    gate_sums_E: Tensor
    easy_ep_E: Tensor
    output_sums_ED: Tensor
    largest_outputs_E: Tensor
    pairs_EE: Tensor
    logit_sums_E: Tensor
    logit_gram_EE: Tensor
    sample_RD: Tensor
    sample_logits_RE: Tensor
    sample_chosen_Rk: Tensor
    sample_gates_Rk: Tensor

    @property
    def count(self) -> int:
        """E."""
        return len(self.gate_sums_E)

    @property
    def counts_E(self) -> Tensor:
        """How many tokens chose each expert."""
        return self.power_sums_SE[0]

    def score(self, b: int, alpha: int, beta: int) -> Tensor:
        """(E,): ``S(b, α, β)``; 0 for an expert without tokens."""
        return self.power_sums_SE[POWERS.index((alpha, beta))] / self._tokens_of_each() ** b

    @property
    def mean_outputs_ED(self) -> Tensor:
        """What each expert answers on average to the tokens that chose it; 0 without tokens."""
        return self.output_sums_ED / self._tokens_of_each()[:, None]

    @property
    def output_variances_E(self) -> Tensor:
        """Mean squared distance of each expert's outputs from their mean; 0 without tokens."""
        mean_squares_E = self.score(1, 0, 2)
        return (mean_squares_E - self.mean_outputs_ED.square().sum(1)).clamp(min=0)

    @property
    def logit_similarity_EE(self) -> Tensor:
        """Cosines between the experts' columns of router logits, over all tokens."""
        return cosines(self.logit_gram_EE)

    def permuted(self, order: list[int]) -> LayerStatistics:
        """The statistics of the same layer with its experts in another order: new expert i is ``order[i]``."""
        index = torch.tensor(order)
        changed: dict[str, Tensor] = {}
        for name, tensor in tensors_of(self).items():
            for dim, letter in enumerate(name.rpartition("_")[2]):
                if letter == "E":
                    tensor = tensor.index_select(dim, index)
            changed[name] = tensor
        changed["sample_chosen_Rk"] = torch.argsort(index)[self.sample_chosen_Rk]
        return LayerStatistics(**changed)

    def _tokens_of_each(self) -> Tensor:
        return self.counts_E.clamp(min=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutingStatistics:
    """All calibrated layers of one model on one text.

    Attributes:
        layers: position among the decoder's layers → what was seen there.
        depth: layers of the decoder, dense ones counted.
        task: what the text is about, for people.
    """

    layers: Mapping[int, LayerStatistics]
    depth: int
    task: str = ""

    def layer(self, index: int) -> LayerStatistics:
        """One layer; ValueError if it was not calibrated."""
        if index not in self.layers:
            raise ValueError(f"layer {index} has no routing statistics; calibrated layers are {sorted(self.layers)}")
        return self.layers[index]

    def super_experts(self) -> frozenset[tuple[int, int]]:
        """(layer, expert) of the few whose outputs dwarf all others', without which models collapse."""
        if not self.layers:
            return frozenset()
        largest = torch.cat([one.largest_outputs_E for one in self.layers.values()])
        bar = max(float(torch.quantile(largest, SUPER_QUANTILE)), SUPER_SHARE * float(largest.max()))
        return frozenset(
            (index, expert)
            for index, one in self.layers.items()
            if index < SUPER_DEPTH * self.depth
            for expert in (one.largest_outputs_E > bar).nonzero()[:, 0].tolist()
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every number, in hexadecimal."""
        digest = hashlib.sha256(json.dumps([self.depth, self.task]).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write a folder of safetensors and JSON; it appears complete or not at all.

        Raises:
            ValueError: the folder exists and is not empty.
        """
        with staged_folder(folder) as staged:
            save_file({name: tensor.contiguous() for name, tensor in self._tensors().items()}, staged / _TENSORS)
            record = {"depth": self.depth, "task": self.task, "layers": sorted(self.layers), "digest": self.digest}
            (staged / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> RoutingStatistics:
        """Read what `save` wrote.

        Raises:
            ValueError: no statistics there, or not the numbers that were written.
        """
        try:
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            tensors = load_file(folder / _TENSORS)
            layers = {
                index: LayerStatistics(**{one.name: tensors[f"{index}.{one.name}"] for one in fields(LayerStatistics)})
                for index in record["layers"]
            }
            statistics = cls(layers=layers, depth=record["depth"], task=record["task"])
            intact = statistics.digest == record["digest"]
        except Exception as error:  # json, safetensors, OSError, KeyError: all mean the same to the user
            raise ValueError(f"{folder} holds no routing statistics ({error}); calibrate again") from error
        if not intact:
            raise ValueError(f"the routing statistics in {folder} are damaged: their hash differs; calibrate again")
        return statistics

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{index}.{name}": tensor for index, one in self.layers.items() for name, tensor in tensors_of(one).items()
        }


def tensors_of(layer: LayerStatistics) -> dict[str, Tensor]:
    """Field name to tensor."""
    return {one.name: getattr(layer, one.name) for one in fields(layer)}


def cosines(gram_EE: Tensor) -> Tensor:
    """(E, E) from all products of vectors; a vector of zeros is like no other."""
    norms_E = gram_EE.diagonal().clamp(min=0).sqrt()
    return gram_EE / torch.outer(norms_E, norms_E).clamp(min=torch.finfo(gram_EE.dtype).tiny)
