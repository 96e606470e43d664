"""What an expert reduction is: from a calibrated layer and a count to a smaller bank of experts.

A variant in `supernets/reductions` is one operator; its `REDUCTION` is an instance whose `name` is the file's name.
`plan` decides which experts stay or go together, `apply` computes the weights. Whoever has a loaded model writes

    layer = CalibratedLayer.of(moe_layer, statistics, protect=True)
    reduced = reduce_layer(layer, "reap", count)

An operator that leaves only rows of the router (``plan.routes is None``) fits the model's own block with a smaller
count: row i of the reduced router is row ``plan.representatives[i]`` of the full one. Otherwise the router stays whole
and ``plan.routes`` says where each of its choices leads.

Shapes: E experts of the full layer, D model width, R sampled tokens, k choices per token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import ClassVar, cast

import torch
from torch import Tensor

from studies.discovery import VariantFolder
from supernets.expert_bank import ExpertBank, MoeLayer
from supernets.routing_statistics import LayerStatistics, RoutingStatistics

REDUCTIONS = VariantFolder(package="supernets.reductions", attribute="REDUCTION", kind="expert reduction")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertPlan:
    """Which of a layer's experts stay, merge or go.

    Attributes:
        operator: name of the reduction.
        layer: position among the decoder's layers.
        experts: E, experts of the full layer.
        groups: reduced expert i is made of these originals, its representative first; disjoint.
        routes: per expert of the full layer the reduced expert that answers for it, None for its constant. Without
            routes the router keeps only the representatives' rows, in the order of the groups.
    """

    operator: str
    layer: int
    experts: int
    groups: tuple[tuple[int, ...], ...]
    routes: tuple[int | None, ...] | None = None

    @property
    def count(self) -> int:
        """Experts of the reduced layer."""
        return len(self.groups)

    @property
    def representatives(self) -> tuple[int, ...]:
        """One original per reduced expert."""
        return tuple(group[0] for group in self.groups)

    @property
    def is_identity(self) -> bool:
        """Whether every expert stays as it is, in its place."""
        return self.groups == tuple((expert,) for expert in range(self.experts)) and self.routes is None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReducedBank:
    """The experts of a reduced layer.

    Attributes:
        bank: ``plan.count`` experts.
        plan: what they are made of.
        constants_ED: where ``plan.routes[e]`` is None, what expert e answers to every token; other rows are zero.
    """

    bank: ExpertBank
    plan: ExpertPlan
    constants_ED: Tensor | None = None


Gate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(R, E) logits and marks of the experts that are gone to (R, k) gates and (R, k) choices, by the model's own rule."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibratedLayer:
    """What a reduction reads: the weights of one layer, what calibration saw there, and the rules of its router.

    Attributes:
        index: position among the decoder's layers.
        bank: the full layer's experts.
        gate: how the model's router chooses.
        calibration: None where nothing was measured: enough for operators that need no data.
        least_count: fewest experts that the router can work with.
        router_groups: each of these groups of consecutive experts must keep the same number when rows of the router go.
        protected: experts that must stay as they are, such as super experts.
    """

    index: int
    bank: ExpertBank
    gate: Gate
    calibration: LayerStatistics | None = None
    least_count: int = 1
    router_groups: int = 1
    protected: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def of(cls, layer: MoeLayer, statistics: RoutingStatistics | None, *, protect: bool = False) -> CalibratedLayer:
        """From a loaded model's layer; with `protect`, its super experts must stay."""
        supers = statistics.super_experts() if statistics is not None and protect else frozenset[tuple[int, int]]()
        return cls(
            index=layer.index,
            bank=layer.bank(),
            gate=layer.gate,
            calibration=None if statistics is None else statistics.layer(layer.index),
            least_count=layer.least_count,
            router_groups=layer.router_groups,
            protected=frozenset(expert for index, expert in supers if index == layer.index),
        )

    @property
    def count(self) -> int:
        """E."""
        return self.bank.count

    def most_protected(self, parts: int) -> int:
        """The protected experts of whichever of so many equal parts of the layer has most."""
        size = self.count // parts
        return max(sum(expert // size == part for expert in self.protected) for part in range(parts))

    @property
    def statistics(self) -> LayerStatistics:
        """What calibration saw; ValueError if there was none."""
        if self.calibration is None:
            raise ValueError(f"layer {self.index} has no routing statistics; calibrate the model on some text first")
        return self.calibration

    @cached_property
    def sample_outputs_ERD(self) -> Tensor:
        """What every expert answers to every sampled token, chosen or not; float32."""
        bank, sample_RD = self.bank.mapped(Tensor.float), self.statistics.sample_RD
        return torch.stack([bank.outputs(expert, sample_RD) for expert in range(bank.count)])


class ExpertReduction(ABC):
    """One way to make a layer of fewer experts. Stateless; `plan` and `apply` are deterministic.

    Attributes:
        name: the file's name.
        nested: the groups of a smaller count are groups of every larger one: a prefix of them where the router has no
            groups of its own.
        pruning: every reduced expert is an original one, bit for bit.
        sequential: the operator means statistics to be taken after the layers before were reduced.
        needs_data: it reads statistics.
        keeps_router: the router stays whole, and `ExpertPlan.routes` is given.
    """

    name: str
    nested: ClassVar[bool] = False
    pruning: ClassVar[bool] = False
    sequential: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True
    keeps_router: ClassVar[bool] = False

    def plan(self, layer: CalibratedLayer, count: int) -> ExpertPlan:
        """Decide on `count` experts; all of them is always the identity.

        Raises:
            ValueError: the count is below what the router needs or above what there is, breaks the router's groups, or
                leaves no place for the protected experts; there are no statistics.
        """
        self._check(layer, count)
        if count == layer.count:
            alone = tuple((expert,) for expert in range(count))
            return ExpertPlan(operator=self.name, layer=layer.index, experts=count, groups=alone)
        groups = tuple(tuple(group) for group in self.groups(layer, count))
        assert len(groups) == count, f"{self.name} made {len(groups)} groups of {count}"
        routes = self.routes(layer, groups) if self.keeps_router else None
        return ExpertPlan(operator=self.name, layer=layer.index, experts=layer.count, groups=groups, routes=routes)

    def apply(self, plan: ExpertPlan, layer: CalibratedLayer) -> ReducedBank:
        """The weights of a plan; the identity shares the full layer's."""
        if plan.is_identity:
            return ReducedBank(bank=layer.bank, plan=plan)
        return self.reduce(plan, layer)

    @abstractmethod
    def groups(self, layer: CalibratedLayer, count: int) -> Sequence[Sequence[int]]:
        """`count` < E disjoint groups of experts, each one's representative first."""

    def routes(self, layer: CalibratedLayer, groups: Sequence[Sequence[int]]) -> tuple[int | None, ...]:
        """Where each of the E outputs of the router leads; only asked if `keeps_router`."""
        leads = {expert: i for i, group in enumerate(groups) for expert in group}
        return tuple(leads.get(expert) for expert in range(layer.count))

    def reduce(self, plan: ExpertPlan, layer: CalibratedLayer) -> ReducedBank:
        """The weights of a plan that is not the identity: the representatives, unless the operator knows better."""
        return ReducedBank(bank=layer.bank.select(plan.representatives), plan=plan)

    def _check(self, layer: CalibratedLayer, count: int) -> None:
        place = f"layer {layer.index}"
        if not layer.least_count <= count <= layer.count:
            raise ValueError(
                f"{place} cannot keep {count} experts: its router needs at least {layer.least_count} "
                f"and the layer has {layer.count}"
            )
        if not self.keeps_router and count % layer.router_groups:
            raise ValueError(
                f"{place} cannot keep {count} experts: its router has {layer.router_groups} groups that must keep "
                f"equally many; choose a multiple of {layer.router_groups}"
            )
        parts = 1 if self.keeps_router else layer.router_groups
        # Behind a whole router, experts that are not protected need another one to merge into.
        room = count // parts - (self.keeps_router and not self.pruning)
        if count < layer.count and layer.most_protected(parts) > room:
            raise ValueError(
                f"{place} cannot keep {count} experts: super experts {sorted(layer.protected)} are protected; "
                "keep more, or drop the protection"
            )
        if self.needs_data:
            _ = layer.statistics


@cache
def reduction(name: str) -> ExpertReduction:
    """The operator of a name; ValueError names the known ones."""
    return cast("ExpertReduction", REDUCTIONS.load(name))


def reduce_layer(layer: CalibratedLayer, operator: str, count: int) -> ReducedBank:
    """Plan and apply in one go."""
    chosen = reduction(operator)
    return chosen.apply(chosen.plan(layer, count), layer)
