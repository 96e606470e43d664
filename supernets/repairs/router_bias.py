"""A bias on every router logit, learned like Router-KD: the repair with the fewest numbers.

After the router-logit offsets of arXiv 2510.14853, learned once and offline. Most routers have no bias. Theirs is
written into the weight, along the mean input m: with ``W + δ mᵀ/‖m‖²`` an average token meets the bias δ exactly, and
the model stays loadable by its stock class.

Shapes: E router outputs, D model width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from supernets.calibration import Batch, run
from supernets.expert_bank import moe_layers
from supernets.repair import Repair, RepairSettings, descend, divergence, require_text, router_parameters, thawed


class RouterBias(Repair):
    """Distils into one number per router output."""

    name = "router-bias"
    defaults = RepairSettings(steps=60, learning_rate=5e-3)

    def parameters(self, student: nn.Module) -> Mapping[str, nn.Parameter]:
        """The routers' biases, and the weights of those without."""
        found = router_parameters(student)
        biases = {name.removesuffix("bias") for name in found if name.endswith("bias")}
        return {name: one for name, one in found.items() if name.endswith("bias") or name[:-6] not in biases}

    def repair(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Sequence[Batch],
        settings: RepairSettings | None = None,
    ) -> tuple[float, ...]:
        """One loss per step, taken before the step."""
        require_text(batches)
        settings = settings or self.defaults
        routers = [layer.router for layer in moe_layers(student)]
        means = _mean_inputs(student, routers, batches)
        offsets: list[nn.Parameter] = []
        with ExitStack() as stack:
            for router, mean_D in zip(routers, means, strict=True):
                if isinstance(getattr(router, "bias", None), nn.Parameter):
                    offsets.append(router.bias)
                else:
                    along = _Along(mean_D / mean_D.square().sum(), len(router.weight))
                    stack.enter_context(_written_into(router, along))
                    offsets.append(along.offset_E)
            stack.enter_context(thawed(student, {str(i): one for i, one in enumerate(offsets)}))
            return descend(
                offsets, batches, lambda batch: divergence(student, teacher, batch, settings.temperature), settings
            )


class _Along(nn.Module):
    """A weight [E, D] plus what one number per row adds along a direction."""

    def __init__(self, direction_D: Tensor, rows: int) -> None:
        super().__init__()
        self.direction_D = direction_D
        self.offset_E = nn.Parameter(torch.zeros(rows, dtype=direction_D.dtype))

    def forward(self, weight_ED: Tensor) -> Tensor:
        return weight_ED + torch.outer(self.offset_E, self.direction_D)


@contextmanager
def _written_into(router: nn.Module, along: _Along) -> Iterator[None]:
    parametrize.register_parametrization(router, "weight", along)
    try:
        yield
    finally:
        parametrize.remove_parametrizations(router, "weight")


@torch.no_grad()
def _mean_inputs(student: nn.Module, routers: Sequence[nn.Module], batches: Sequence[Batch]) -> list[Tensor]:
    """(D,) mean input of each router over all tokens that are no padding."""
    sums: list[Tensor | int] = [0] * len(routers)
    handles, counted, mask_T = [], 0, torch.empty(0)
    for position, router in enumerate(routers):

        def add(_: object, arguments: tuple[Tensor, ...], position: int = position) -> None:
            x_TD = arguments[0].flatten(0, -2)
            sums[position] = sums[position] + mask_T.to(x_TD) @ x_TD

        handles.append(router.register_forward_pre_hook(add))
    try:
        for batch in batches:
            mask_T = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).flatten()
            counted += int(mask_T.sum())
            run(student, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.as_tensor(one) / max(1, counted) for one in sums]


REPAIR = RouterBias()
