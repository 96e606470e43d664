"""What an objective is to the search: a column of numbers, one per genotype, bound to a supernet and a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Literal, cast

from kernels.op_spec import Context
from studies.discovery import VariantFolder
from studies.records import Genotype, Objective, Value

if TYPE_CHECKING:
    from nas.passes import Passes
    from predictors.latency_table import LatencyTable
    from supernets.supernet import Supernet
    from supernets.task import Task

OBJECTIVES = VariantFolder(package="nas.objectives", attribute="build", kind="objective")

MIB = 2**20


REFUSALS = (RuntimeError, ValueError, ArithmeticError)
"""By which an objective says that it cannot be computed for a network."""


class EvaluationFailed(RuntimeError):
    """A sub-network could not be evaluated; the search records the reason and goes on."""


@dataclass(frozen=True, kw_only=True)
class Bindings:
    """What objectives are computed with.

    Attributes:
        context: batch, lengths, threads and dtype that costs hold for, unless an objective states its own.
        table: the frozen latency table of the target device; only `latency` needs one.
        split: the split that qualities are measured on.
        batch_size: examples per forward pass while measuring a quality.
        examples: measure qualities on this many examples of the split, drawn once by `seed`; None takes all.
        device: torch device of the forward passes.
        precision: of the forward passes.
    """

    supernet: Supernet
    task: Task
    context: Context
    table: LatencyTable | None = None
    split: str = "validation"
    batch_size: int = 64
    examples: int | None = None
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    @cached_property
    def weights_hash(self) -> str:
        """`Supernet.hash`, computed once: the weights do not change during a search."""
        return self.supernet.hash

    @cached_property
    def data_hash(self) -> str:
        """`Task.data_hash` of the split, computed once."""
        return self.task.data_hash(self.split)

    @cached_property
    def passes(self) -> Passes:
        """The forward passes that all qualities bound here share."""
        from nas.passes import Passes

        return Passes(
            supernet=self.supernet,
            task=self.task,
            split=self.split,
            batch_size=self.batch_size,
            device=self.device,
            precision=self.precision,
            indices=_sample(self.task.size(self.split), self.examples, self.seed),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a stored quality must agree on to be as good as a new one; see the same fields of `Value`."""

    weights_hash: str
    data_hash: str
    context: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundObjective:
    """One column of the search.

    Attributes:
        exact: whether `evaluate` needs no forward pass, so that algorithms may call it as often as they like.
        evaluate: the value of a canonical genotype; finite, and the same whenever it is called.
        reuse: which values of other studies may be taken over; None where computing is cheaper than looking up.
        noise: upper bound of the standard error of a value; 0 where there is none, or none is known.
    """

    objective: Objective
    exact: bool
    evaluate: Callable[[Genotype], Value]
    reuse: Identity | None = None
    noise: float = 0.0


Build = Callable[[Mapping[str, str], Bindings], BoundObjective]
"""What every file in `nas/objectives` defines as `build`: binds an objective with its own settings."""


def bind(text: str, bindings: Bindings) -> BoundObjective:
    """Bind ``name`` or ``name:setting=value,...``; ValueError for an unknown name or setting."""
    name, settings = parse_objective(text)
    return cast("Build", OBJECTIVES.load(name))(settings, bindings)


def parse_objective(text: str) -> tuple[str, dict[str, str]]:
    """Split ``latency:batch=8,sequence=64`` into its name and settings; ValueError if it does not have that form."""
    name, _, tail = text.strip().partition(":")
    settings: dict[str, str] = {}
    for part in tail.split(",") if tail else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key or not equals or not value or key in settings:
            raise ValueError(f"an objective reads name:setting=value,setting=value, got {text!r}")
        settings[key] = value
    return name, settings


def no_settings(name: str, settings: Mapping[str, str]) -> None:
    """Refuse settings for an objective that has none."""
    if settings:
        raise ValueError(f"objective {name} has no settings, got {', '.join(settings)}")


def only_settings(name: str, settings: Mapping[str, str], *known: str) -> None:
    """Refuse settings that an objective does not know."""
    if unknown := sorted(set(settings) - set(known)):
        plural = "s" * (len(known) > 1)
        raise ValueError(f"objective {name} knows the setting{plural} {', '.join(known)}, not {', '.join(unknown)}")


def context_from(name: str, settings: Mapping[str, str], default: Context) -> Context:
    """The default context with an objective's ``batch``, ``sequence`` (``64`` or ``16+64``), ``threads``, ``dtype``."""
    only_settings(name, settings, "batch", "dtype", "sequence", "threads")
    try:
        lengths = [int(length) for length in settings["sequence"].split("+")] if "sequence" in settings else None
        batch = int(settings.get("batch", default.batch))
        threads = int(settings.get("threads", default.threads))
    except ValueError as error:
        raise ValueError(f"batch, sequence and threads of {name} are whole numbers: {error}") from error
    return Context(
        batch=batch,
        sequences=tuple(lengths or default.sequences),
        threads=threads,
        dtype=settings.get("dtype", default.dtype),
    )


def sorted_settings(settings: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Settings as `Objective` holds them."""
    return tuple(sorted(settings.items()))


def _sample(size: int, examples: int | None, seed: int) -> list[int] | None:
    """Sorted positions of a seeded sample; None for the whole split."""
    if examples is None or examples >= size:
        return None
    if examples < 1:
        raise ValueError(f"a quality needs at least 1 example, got {examples}")
    return sorted(Random(seed).sample(range(size), examples))
