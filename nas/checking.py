"""What a job looks like before anything is spent on it: the data, what is elastic, time and memory."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.op_spec import Context
from nas.objective import MIB
from nas.planning import decided_steps, training_estimate
from nas.teaching import given_teacher, needs_training
from nas.tune_request import TuneRequest
from nas.tuning import prepare
from supernets.checkpoint import head_labels
from supernets.estimate import Estimate
from supernets.supernet import Supernet
from supernets.task import TaskSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceFacts:
    """How large a supernet's space is.

    Attributes:
        networks: distinct sub-networks.
        options: gene → its options.
        parameters: of the smallest and of the largest network.
    """

    networks: int
    options: dict[str, tuple[int, ...]]
    parameters: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What tuning would work with.

    Attributes:
        has_head: whether the checkpoint already is a classifier; it then is baseline and teacher.
        teacher: the checkpoint that is distilled from, if it is there already.
        trains_teacher: whether one is fine-tuned first.
        mixture_parameters: what experts and routers come to, on top of the model; None for plain weight sharing.
        estimate: of the whole training, the teacher's included.
    """

    summary: TaskSummary
    labels: tuple[str, ...]
    has_head: bool
    teacher: str | None
    trains_teacher: bool
    space: SpaceFacts
    mixture_parameters: int | None
    estimate: Estimate


def check(request: TuneRequest) -> Check:
    """Read the data and the model, and time a few passes; nothing is written.

    Raises:
        ValueError: unusable checkpoint, task or settings.
        ResourceError: not even one batch fits into memory.
    """
    prepared = prepare(request)
    foreseen = training_estimate(request, prepared.supernet, prepared.task)
    steps = decided_steps(request, prepared.task, lambda: foreseen)
    mixture = prepared.supernet.trained_source
    return Check(
        summary=prepared.task.summary(),
        labels=prepared.task.labels,
        has_head=head_labels(request.model) is not None,
        teacher=given_teacher(request) if request.tuning.recipe.needs_teacher else None,
        trains_teacher=needs_training(request),
        space=space_facts(prepared.supernet),
        mixture_parameters=None if mixture is None else sum(parameter.numel() for parameter in mixture.parameters()),
        estimate=foreseen.lasting(steps),
    )


def network_costs(supernet: Supernet, context: Context) -> list[dict[str, object]]:
    """What can be counted of the smallest, the middle and the largest network."""
    rows: list[dict[str, object]] = []
    for name in ("smallest", "middle", "largest"):
        architecture = supernet.space.decode(getattr(supernet.space, name))
        rows.append(
            {
                "network": name,
                "layers": len(architecture.layers),
                "parameters": supernet.count_parameters(architecture),
                "MACs": supernet.count_macs(architecture, context),
                "memory [MiB]": supernet.memory_bytes(architecture, context) / MIB,
            }
        )
    return rows


def space_facts(supernet: Supernet) -> SpaceFacts:
    """Size, options and extremes of a supernet's space."""
    space = supernet.space
    ends = (space.decode(space.smallest), space.decode(space.largest))
    return SpaceFacts(
        networks=space.size,
        options={choice.name: choice.options for choice in space.choices},
        parameters=(supernet.count_parameters(ends[0]), supernet.count_parameters(ends[1])),
    )
