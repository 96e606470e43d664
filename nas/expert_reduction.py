"""One reduction, the same in every layer, from a checkpoint to a smaller checkpoint, without a search."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.expert_stage import BATCH_SIZE, OnDone, load_experts, stored_statistics, training_batches
from nas.model_card import reduction_card
from nas.tuning import open_task
from predictors.measure import measured_versions
from supernets.checkpoint import write_network
from supernets.evaluation import Quality, evaluate
from supernets.expert_bank import MoeLayer, moe_layers
from supernets.family import Layout
from supernets.reduction import reduction
from supernets.repair import repair_named
from supernets.routing_statistics import RoutingStatistics
from supernets.space import EXPERTS, OPERATOR, Architecture, Choice, SearchSpace
from supernets.supernet import Supernet, family_for
from supernets.task import VALIDATION, Task, TaskSettings

CHECKED_TOKENS = 64
"""Of the first text, by which a written checkpoint is compared where no text is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReductionRequest:
    """What `reduce_checkpoint` makes.

    Attributes:
        keep: ``12`` experts per layer, or ``50%`` of them.
        statistics: folder of routing statistics; not needed by operators that need no data.
        repair: a file name in `supernets/repairs`; needs text.
        task: text to repair with (its training part) and to judge by (its validation part).
        steps: of the repair; None leaves the repair's own number.
        protect: super experts must stay.
    """

    model: str
    folder: Path
    operator: str
    keep: str
    statistics: str | None = None
    repair: str | None = None
    task: TaskSettings | None = None
    steps: int | None = None
    protect: bool = False

    def __post_init__(self) -> None:
        operator = reduction(self.operator)
        if operator.needs_data and self.statistics is None:
            raise ValueError(f"operator {self.operator} goes by routing statistics; give those of nas experts stats")
        if self.protect and self.statistics is None:
            raise ValueError("super experts are found by routing statistics; give those of nas experts stats")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"a repair takes at least 1 step, got {self.steps}")
        if self.repair is not None:
            repair_named(self.repair)
            if self.task is None:
                raise ValueError(f"repair {self.repair} needs text to learn from; give it with --data")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduced:
    """A verified checkpoint.

    Attributes:
        experts: per mixture-of-experts layer, before and after.
        quality: on validation text, before, after reduction and after repair; only what there is.
    """

    folder: Path
    layout: Layout
    experts: tuple[int, int]
    parameters: tuple[int, int]
    quality: Mapping[str, Quality]


def reduce_checkpoint(request: ReductionRequest, on_step: OnDone | None = None) -> Reduced:
    """Reduce every layer alike, repair, write and verify; stock classes load the result where they can.

    Raises:
        ValueError: unusable checkpoint, statistics or text, or a count that the routers do not allow.
        VerificationError: the checkpoint computes something else; nothing is left behind.
    """
    loaded = load_experts(request.model)
    text = None if request.task is None else open_task(request.task, request.model)[0]
    statistics = None if request.statistics is None else stored_statistics(request.statistics, loaded.model)
    supernet, architecture, experts = reduced_space(request, loaded.model, statistics)
    layout = stock_layout(supernet, architecture)
    network = supernet.extract(architecture, layout)
    quality = {} if text is None else {"before": _judge(supernet, text), "reduced": _judge(network, text)}
    losses: tuple[float, ...] = ()
    if request.repair is not None and text is not None:
        losses = repaired(network, supernet.model, text, request.repair, request.steps, on_step)
        quality["repaired"] = _judge(network, text)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    provenance = provenance_of(request, supernet, architecture, parameters, quality) | {"repair_losses": losses}
    write_network(
        network,
        request.folder,
        loaded.tokenizer,
        family=supernet.family,
        layout=layout,
        card=reduction_card(provenance),
        provenance=provenance,
        check_inputs=check_inputs(supernet.config, text),
        files=supernet.side_files(architecture),
    )
    before = supernet.count_parameters(supernet.space.decode(supernet.space.largest))
    return Reduced(
        folder=request.folder, layout=layout, experts=experts, parameters=(before, parameters), quality=quality
    )


def repaired(
    network: nn.Module,
    teacher: nn.Module,
    task: Task,
    repair: str,
    steps: int | None = None,
    on_step: OnDone | None = None,
) -> tuple[float, ...]:
    """Heal a reduced network in place on the training text, one batch a step, all batches in turn; the losses."""
    chosen = repair_named(repair)
    settings = chosen.defaults if steps is None else replace(chosen.defaults, steps=steps)
    batches = islice(cycle(training_batches(task)), settings.steps)
    return chosen.repair(network, teacher, _Watched(batches, on_step), settings)


class _Watched(list[dict[str, Any]]):
    """Batches that say how far whoever reads them is."""

    def __init__(self, batches: Iterable[dict[str, Any]], on_step: OnDone | None) -> None:
        super().__init__(batches)
        self._on_step = on_step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for done, batch in enumerate(super().__iter__()):
            if self._on_step:
                self._on_step(done + 1, len(self))
            yield batch


def kept_count(keep: str, layer: MoeLayer) -> int:
    """Experts that are kept of a layer: ``12``, or ``50%`` to the nearest number that its router allows.

    Raises:
        ValueError: neither of both.
    """
    if re.fullmatch(r"\d+", keep):
        return int(keep)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", keep)
    if not match or not 0 < float(match[1]) <= 100:
        raise ValueError(f"what is kept is a number of experts per layer or a share such as 50%, got {keep!r}")
    groups = layer.router_groups
    nearest = max(1, round(layer.count * float(match[1]) / 100 / groups)) * groups
    return max(layer.least_count, nearest)


def reduced_space(
    request: ReductionRequest, model: nn.Module, statistics: RoutingStatistics | None
) -> tuple[Supernet, Architecture, tuple[int, int]]:
    """A supernet of two networks, the smaller one of them, and experts per layer before and after.

    Raises:
        ValueError: the routers do not allow the count.
    """
    layers = moe_layers(model)
    full, kept = layers[0].count, kept_count(request.keep, layers[0])
    if not layers[0].least_count <= kept <= full:
        raise ValueError(
            f"cannot keep {kept} of {full} experts in every layer: its router needs at least "
            f"{layers[0].least_count} for {layers[0].top_k} per token"
        )
    config: Any = model.config
    choices = [Choice(axis=EXPERTS, options=tuple(sorted({kept, full})), layer=layer.index) for layer in layers]
    choices += [Choice(axis=OPERATOR, options=(1,), layer=layer.index, moot=(EXPERTS, full)) for layer in layers]
    depth = int(config.num_hidden_layers)
    family = family_for(config.model_type).name
    space = SearchSpace(family, depth, tuple(range(depth)), tuple(choices), {OPERATOR: (request.operator,)})
    supernet = Supernet.wrap(model, space, statistics=statistics, protect=request.protect)
    return supernet, space.decode(space.smallest), (full, kept)


def stock_layout(supernet: Supernet, architecture: Architecture) -> Layout:
    """Uniform, which stock classes load, where that can express the network."""
    try:
        supernet.configured(architecture, "uniform")
    except ValueError:
        return "free"
    return "uniform"


def _judge(network: Any, task: Task) -> Quality:
    return evaluate(network, task, VALIDATION, batch_size=BATCH_SIZE)


def check_inputs(config: Any, task: Task | None) -> dict[str, Any]:
    """By which a written checkpoint is compared: the first validation texts, or else the first tokens there are."""
    if task is not None:
        return dict(next(task.batches(VALIDATION, BATCH_SIZE)).inputs)
    length = min(CHECKED_TOKENS, int(config.max_position_embeddings))
    return {"input_ids": torch.arange(length)[None] % config.vocab_size}


def provenance_of(
    request: ReductionRequest,
    supernet: Supernet,
    architecture: Architecture,
    parameters: int,
    quality: Mapping[str, Quality],
) -> dict[str, Any]:
    """Everything that is needed to say where the weights come from."""
    return {
        "base_model": request.model,
        "operator": request.operator,
        "repair": request.repair,
        "protect": request.protect,
        "statistics": "" if supernet.statistics is None else supernet.statistics.digest,
        "architecture": architecture.to_json(),
        "parameters": parameters,
        "quality": {stage: asdict(one) for stage, one in quality.items()},
        "versions": measured_versions(),
    }
