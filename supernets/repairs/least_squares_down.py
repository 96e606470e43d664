"""Least squares: new down-projections, so that each layer answers what the full one did. No gradients.

As MergeMoE (arXiv 2510.14436) fits the experts that it merges, for whatever reduced a layer.

Shapes: T tokens, k choices per token, R rows of one expert, D model width, F expert width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from supernets.calibration import Batch, run
from supernets.expert_bank import MoeLayer, fused_experts, moe_layers
from supernets.least_squares import ridge
from supernets.repair import Repair, RepairSettings, evaluating, require_text


class LeastSquaresDown(Repair):
    """Fits one expert after another to what the layer still misses, on the inputs that the full model's layer has."""

    name = "least-squares-down"

    def parameters(self, student: nn.Module) -> Mapping[str, nn.Parameter]:
        """The experts' down-projections."""
        downs = {id(layer.experts.down_proj) for layer in moe_layers(student)}
        return {name: one for name, one in student.named_parameters() if id(one) in downs}

    @torch.no_grad()
    def repair(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Sequence[Batch],
        settings: RepairSettings | None = None,
    ) -> tuple[float, float]:
        """Mean squared error of the layers' outputs before and after, averaged over layers."""
        require_text(batches)
        with evaluating(student), evaluating(teacher):
            triples = zip(moe_layers(student), moe_layers(teacher), _inputs(teacher, batches), strict=True)
            errors = [_fit(own, full, inputs_TD) for own, full, inputs_TD in triples]
        before, after = (sum(one) / len(errors) for one in zip(*errors, strict=True))
        return before, after


def _inputs(teacher: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """(T, D) of each layer: the tokens that are no padding, as the full model brings them to its block."""
    seen: dict[int, list[Tensor]] = {layer.index: [] for layer in moe_layers(teacher)}
    handles = []
    for layer in moe_layers(teacher):

        def see(_: object, arguments: tuple[Tensor, ...], index: int = layer.index) -> None:
            seen[index].append(arguments[0].flatten(0, -2))

        handles.append(layer.block.register_forward_pre_hook(see))
    try:
        for batch in batches:
            run(teacher, batch)
            if "attention_mask" in batch:
                for parts in seen.values():
                    parts[-1] = parts[-1][batch["attention_mask"].flatten().bool()]
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(parts) for parts in seen.values()]


def _fit(own: MoeLayer, full: MoeLayer, inputs_TD: Tensor) -> tuple[float, float]:
    calls: list[tuple[Tensor, Tensor]] = []
    experts = fused_experts(own.block)
    handle = experts.register_forward_pre_hook(lambda _, arguments: calls.append(arguments[1:]))
    try:
        missing_TD = (_output(full.block, inputs_TD) - _output(own.block, inputs_TD)).double()
    finally:
        handle.remove()
    chosen_Tk, gates_Tk = calls[0]
    before, bank = float(missing_TD.square().mean()), own.bank()
    changes_EDF = torch.zeros_like(bank.down_EDF)
    for expert in range(bank.count):
        gate_T = (gates_Tk * (chosen_Tk == expert)).sum(1)
        rows_R = (gate_T != 0).nonzero()[:, 0]
        if len(rows_R):
            inner_RF = bank.inner(expert, inputs_TD[rows_R]).double() * gate_T[rows_R, None]
            change_DF = ridge(inner_RF, missing_TD[rows_R])
            missing_TD[rows_R] -= inner_RF @ change_DF.T
            changes_EDF[expert] = change_DF
    stored: Any = experts
    stored.down_proj += changes_EDF.transpose(1, 2) if stored.is_transposed else changes_EDF
    return before, float(missing_TD.square().mean())


def _output(block: nn.Module, inputs_TD: Tensor) -> Tensor:
    """(T, D)."""
    output = block(inputs_TD[None])
    mixed: Tensor = output[0] if isinstance(output, tuple) else output
    return mixed.flatten(0, -2)


REPAIR = LeastSquaresDown()
