"""Elastic mixture-of-experts layers: one stock block, many smaller ones.

A smaller layer is a block of the model's *own* class with fewer experts, so that gate rules (softmax or sigmoid,
renormalised or not, router groups, biases) stay the model's own code and active, extracted and reloaded networks agree
bit for bit. Its weights are leading slices of the full layer's (experts in order of importance), or what a reduction
operator made of them, together with the rows of the router that it keeps or an expert map behind the whole router.

Shapes: E experts of the full layer, r of the reduced one, D model width, F expert width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from supernets.elastic import Cut, slice_view
from supernets.expert_bank import MoeLayer, router_name
from supernets.modeling import moe as modeling
from supernets.reduction import CalibratedLayer, ExpertPlan, ReducedBank, reduction
from supernets.routing_statistics import RoutingStatistics
from supernets.space import EXPERT_WIDTH, EXPERTS, OPERATOR, TOP_K, Architecture, LayerChoice, SearchSpace
from supernets.weights import Seam, Slot, TrainedSource

CACHED_LAYERS = 8
"""A layer's cache holds at most as many bytes as so many full layers."""

MASKED = -1e9
"""Bias of a router's row that no token may choose."""

Sizes = dict[str, int]
"""What `supernets.modeling.moe` reads for one layer."""

FUSED = ("experts.gate_up_proj", "experts.down_proj")
"""The experts' weights in a block; a bias is called after its weight."""

_BIASES = ("bias", "e_score_correction_bias")


class ElasticExperts(nn.Module):
    """Takes the place of a stock block: holds the same children, runs as the layer of the active architecture."""

    def __init__(
        self,
        layer: MoeLayer,
        config: Any,
        seam: Seam,
        cuts: Mapping[str, tuple[Cut, ...]],
        statistics: RoutingStatistics | None = None,
        *,
        protect: bool = False,
    ) -> None:
        """`cuts` are those of the model's parameters, by name; `protect` keeps super experts."""
        super().__init__()
        for name, child in layer.block.named_children():
            self.add_module(name, child)
        self._stock = (layer.block,)  # in a tuple, where torch does not look for children
        self.layer, self.config, self.seam = layer, config, seam
        self.cuts = {n: cuts[f"{layer.name}.{n}"] for n, _ in _tensors_of(layer.block) if f"{layer.name}.{n}" in cuts}
        self.slots = {
            name: Slot(f"{layer.name}.{name}", self.cuts[name], self.cuts.get(f"{name}_bias", ()))
            for name in FUSED
            if name in self.cuts
        }
        self.statistics, self.protect = statistics, protect
        self._plans: dict[tuple[str, int], ExpertPlan] = {}
        self._blocks: dict[tuple[tuple[str, int], ...], nn.Module] = {}
        self._numel: dict[tuple[tuple[str, int], ...], int] = {}
        self._kept: OrderedDict[LayerChoice, tuple[tuple[object, ...], dict[str, Tensor]]] = OrderedDict()

    def forward(self, hidden_states: Tensor) -> Any:
        """What the stock block takes and returns."""
        architecture = self.seam.asked
        if architecture is None:
            return self._stock[0](hidden_states)
        block = self.block(architecture.by_index[self.layer.index]).train(self.training)
        return functional_call(block, self.tensors(architecture), (hidden_states,))

    def train(self, mode: bool = True) -> ElasticExperts:
        """Also sets the mode of the stock block, which is no child."""
        self._stock[0].training = mode
        super().train(mode)
        return self

    def restored(self) -> nn.Module:
        """The stock block."""
        return self._stock[0].train(self.training)

    # -- sizes --------------------------------------------------------------------------------------------------

    @cached_property
    def full(self) -> Sizes:
        """Sizes of the full layer."""
        return {"experts": self.layer.count, "top_k": self.layer.top_k}

    def sizes(self, choice: LayerChoice) -> Sizes:
        """Sizes of the layer of an architecture."""
        sizes = dict(self.full)
        for name, axis in (("experts", EXPERTS), ("top_k", TOP_K), ("width", EXPERT_WIDTH)):
            if (size := choice.kept(axis)) is not None:
                sizes[name] = size
        plan = self.plan(choice)
        return sizes if plan is None else sizes | _map_sizes(plan)

    def plan(self, choice: LayerChoice) -> ExpertPlan | None:
        """What an operator makes of the layer; None where no operator is chosen or all experts are kept."""
        operator, count = choice.name(OPERATOR), choice.kept(EXPERTS)
        if operator is None or count is None or count == self.layer.count:
            return None
        if (operator, count) not in self._plans:
            with self._exact():
                self._plans[operator, count] = reduction(operator).plan(self._calibrated(), count)
        return self._plans[operator, count]

    def record(self, choice: LayerChoice) -> dict[str, Any]:
        """What became of the layer's experts: all of them ranked, the kept ones first, and how they were reduced."""
        plan, count = self.plan(choice), self.sizes(choice)["experts"]
        if plan is None:
            size, groups = self.layer.count // self.layer.router_groups, self.layer.router_groups
            kept = [group * size + place for group in range(groups) for place in range(count // groups)]
            how: dict[str, Any] = {"operator": None}
        else:
            kept, statistics = list(plan.representatives), self.statistics
            how = {"operator": plan.operator, "groups": plan.groups, "routes": plan.routes}
            how["statistics"] = None if statistics is None else statistics.digest
        ranking = [*kept, *(expert for expert in range(self.layer.count) if expert not in set(kept))]
        return {"original_layer": self.layer.index, "kept": count, "ranking": ranking, **how}

    def block(self, choice: LayerChoice) -> nn.Module:
        """The smaller block without weights, on the meta device."""
        sizes = self.sizes(choice)
        key = tuple(sizes.items())
        if key not in self._blocks:
            self._blocks[key] = empty_block(self._stock[0], self.config, sizes)
        return self._blocks[key]

    def count_parameters(self, choice: LayerChoice) -> int:
        """Exact number of parameters of the smaller block."""
        key = tuple(self.sizes(choice).items())
        if key not in self._numel:
            self._numel[key] = sum(parameter.numel() for parameter in self.block(choice).parameters())
        return self._numel[key]

    def idle_parameters(self, choice: LayerChoice) -> int:
        """How many of them belong to experts that one token does not choose."""
        sizes, experts = self.sizes(choice), self.block(choice).experts
        bank = experts.experts if isinstance(experts, modeling.MappedExperts) else experts
        numel = sum(parameter.numel() for parameter in cast("nn.Module", bank).parameters())
        return numel // sizes["experts"] * (sizes["experts"] - sizes["top_k"])

    # -- weights ------------------------------------------------------------------------------------------------

    def fused(self) -> Iterator[tuple[Slot, Tensor, Tensor | None]]:
        """The fused weights of the full layer's experts with their biases, and where they belong."""
        parameters = dict(self.named_parameters())
        for name, slot in self.slots.items():
            yield slot, parameters[name], parameters.get(f"{name}_bias")

    def tensors(self, architecture: Architecture) -> dict[str, Tensor]:
        """Parameters and buffers of the smaller block by name.

        Without gradients they are kept until the full layer's change, in a cache of `CACHED_LAYERS` layers' bytes. What
        a source with parameters of its own answers hangs on more than this layer, and is kept there.
        """
        choice = architecture.by_index[self.layer.index]
        blended = isinstance(self.seam.source, TrainedSource) and self.plan(choice) is None
        if torch.is_grad_enabled() or blended:
            return self._made(architecture)
        wanted = replace(choice, units=tuple(unit for unit in choice.units if unit[0] in (EXPERTS, EXPERT_WIDTH)))
        stamp = tuple((id(t), t._version, t.data_ptr()) for _, t in _tensors_of(self))
        kept = self._kept.get(wanted)
        if kept is None or kept[0] != stamp:
            self._kept[wanted] = kept = (stamp, self._made(architecture))
            self._forget_oldest()
        self._kept.move_to_end(wanted)
        return kept[1]

    def forget(self) -> None:
        """Drop everything derived from weights, after they changed in a way that torch does not count."""
        self.release()
        self._plans.clear()

    def release(self) -> None:
        """Drop kept weights; what was decided by them stays."""
        self._kept.clear()

    def padded(self, architecture: Architecture, count: int) -> dict[str, Tensor]:
        """The tensors of a block of `count` >= r experts of which the added ones are zero and never chosen.

        Works only where the router has a bias. Each group of the router gets equally many.
        """
        choice = architecture.by_index[self.layer.index]
        router, tensors = router_name(self), self.tensors(architecture)
        assert "router" not in self.sizes(choice), "an expert map cannot be padded"
        kept, groups = self.sizes(choice)["experts"], self.layer.router_groups
        padded = dict(tensors)
        for name, tensor in tensors.items():
            if name.startswith(("experts.", f"{router}.")):
                fill = MASKED if name.removeprefix(f"{router}.") in _BIASES else 0.0
                parts = tensor.view(groups, kept // groups, *tensor.shape[1:])
                extra = parts.new_full((groups, (count - kept) // groups, *tensor.shape[1:]), fill)
                padded[name] = torch.cat([parts, extra], dim=1).flatten(0, 1)
        return padded

    def _made(self, architecture: Architecture) -> dict[str, Tensor]:
        choice = architecture.by_index[self.layer.index]
        plan = self.plan(choice)
        if plan is None:
            return self._cut(architecture)
        with self._exact():
            reduced = reduction(plan.operator).apply(plan, self._calibrated())
        width = choice.kept(EXPERT_WIDTH)
        return block_tensors(self.layer, reduced if width is None else narrowed(reduced, width))

    def _cut(self, architecture: Architecture) -> dict[str, Tensor]:
        """Leading slices; those of the experts' own weights come through the seam."""
        made = dict(_tensors_of(self))
        for name, cuts in self.cuts.items():
            if not name.startswith(FUSED):
                made[name] = slice_view(made[name], cuts, architecture)
        for name, (slot, full_weight, full_bias) in zip(self.slots, self.fused(), strict=True):
            made[name], bias = self.seam.source.weights(slot, full_weight, full_bias, architecture)
            if bias is not None:
                made[f"{name}_bias"] = bias
        return made

    def _exact(self) -> AbstractContextManager[object]:
        """Reductions compute in the weights' own precision, also where the forward pass that needs them does not."""
        return torch.autocast(self.layer.router.weight.device.type, enabled=False)

    def _calibrated(self) -> CalibratedLayer:
        return CalibratedLayer.of(self.layer, self.statistics, protect=self.protect)

    def _forget_oldest(self) -> None:
        most = CACHED_LAYERS * sum(tensor.nbytes for _, tensor in _tensors_of(self))
        owned = {tensor.untyped_storage().data_ptr() for _, tensor in _tensors_of(self)}

        def own_bytes(tensors: dict[str, Tensor]) -> int:
            return sum(t.nbytes for t in tensors.values() if t.untyped_storage().data_ptr() not in owned)

        while len(self._kept) > 1 and sum(own_bytes(tensors) for _, tensors in self._kept.values()) > most:
            self._kept.popitem(last=False)


def check_counts(space: SearchSpace, layer: MoeLayer, statistics: RoutingStatistics | None) -> None:
    """ValueError where a space asks for expert counts or operators that a layer cannot have."""
    operators = [reduction(name) for name in space.labels.get(OPERATOR, ())]
    for operator in operators:
        if operator.needs_data and statistics is None:
            raise ValueError(f"the operator {operator.name} goes by routing statistics; calibrate the model first")
    merges = bool(operators) and all(operator.keeps_router for operator in operators)
    for choice in space.choices:
        if choice.axis == EXPERTS and choice.layer in (None, layer.index):
            illegal = [
                count
                for count in choice.options
                if count < layer.least_count or (count % layer.router_groups and not merges)
            ]
            if illegal:
                raise ValueError(
                    f"{choice.name} offers {illegal[0]} experts, but the router of layer {layer.index} needs at least "
                    f"{layer.least_count}, and equally many in each of its {layer.router_groups} groups"
                )


def build_block(layer: MoeLayer, config: Any, reduced: ReducedBank, top_k: int) -> nn.Module:
    """A stand-alone block with a reduced layer's weights, in evaluation mode, to put in the place of `layer.block`.

    Args:
        layer: the full layer, whose router and shared experts are copied.
        config: the model's configuration; the block looks up there how to run.
        reduced: what an operator made of the layer's experts.
        top_k: experts per token, at most as many as there are.
    """
    sizes = {"experts": reduced.plan.count, "top_k": top_k}
    if reduced.bank.width != layer.bank().width:
        sizes["width"] = reduced.bank.width
    block = empty_block(layer.block, config, sizes | _map_sizes(reduced.plan))
    tensors = {name: tensor.detach().clone() for name, tensor in block_tensors(layer, reduced).items()}
    block.load_state_dict(tensors, strict=True, assign=True)
    return block.eval()


def empty_block(stock: nn.Module, config: Any, sizes: Sizes) -> nn.Module:
    """A block of the stock block's class with other sizes, on the meta device."""
    with torch.device("meta"):
        block: nn.Module = modeling.build_block(type(stock), config, sizes)
    return block


def block_tensors(layer: MoeLayer, reduced: ReducedBank) -> dict[str, Tensor]:
    """Parameters and buffers by name of the block that a reduction leaves; shared experts are the layer's own."""
    plan, router = reduced.plan, f"{router_name(layer.block)}."
    mapped = plan.routes is not None
    tensors = {name: tensor for name, tensor in _tensors_of(layer.block) if not name.startswith("experts.")}
    prefix = "experts.experts." if mapped else "experts."
    tensors |= {f"{prefix}{name}": tensor for name, tensor in layer.stored(reduced.bank).items()}
    if plan.routes is None:
        rows = torch.tensor(plan.representatives, device=layer.router.weight.device)
        tensors |= {name: tensor[rows] for name, tensor in tensors.items() if name.startswith(router)}
        return tensors
    constants = [row for row, route in enumerate(plan.routes) if route is None]
    targets = [plan.count + constants.index(e) if route is None else route for e, route in enumerate(plan.routes)]
    tensors["experts.expert_map"] = torch.tensor(targets, device=layer.router.weight.device)
    if constants:
        assert reduced.constants_ED is not None, f"{plan.operator} routes to constants that it does not give"
        tensors["experts.constants"] = reduced.constants_ED[constants].to(layer.router.weight.dtype)
    return tensors


def narrowed(reduced: ReducedBank, width: int) -> ReducedBank:
    """The same experts with their first `width` inner units only."""
    bank = reduced.bank

    def rows(tensor: Tensor) -> Tensor:
        return torch.cat([half[:, :width] for half in tensor.chunk(2, dim=1)], dim=1)

    bias = None if bank.gate_up_bias_E2F is None else rows(bank.gate_up_bias_E2F)
    narrow = replace(
        bank, gate_up_E2FD=rows(bank.gate_up_E2FD), down_EDF=bank.down_EDF[..., :width], gate_up_bias_E2F=bias
    )
    return replace(reduced, bank=narrow)


def _map_sizes(plan: ExpertPlan) -> Sizes:
    """What a router that keeps its rows adds to the sizes of a layer."""
    if plan.routes is None:
        return {}
    constants = plan.routes.count(None)
    return {"router": plan.experts, **({"constants": constants} if constants else {})}


def _tensors_of(block: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    return [*block.named_parameters(), *block.named_buffers()]
