"""A super-network that is not ours: what it must offer to be searched, and how it becomes columns of a search."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kernels.op_spec import Context, OpSpec
from nas.objective import REFUSALS, BoundObjective, EvaluationFailed, Identity
from predictors.latency_table import LatencyTable
from studies.records import Genotype, Objective, Value
from supernets.space import SearchSpace

Score = float | tuple[float, float]
"""A number in its objective's unit, alone or with its standard error."""

_ASKED = 20
"""Random networks that are asked which exact costs there are, where the smallest and the largest refuse."""

LATENCY = Objective(name="latency", unit="ms")


@runtime_checkable
class CustomProblem(Protocol):
    """What a search needs of any super-network.

    It may also offer `HasExactCosts`, `HasOperators` and `HasNetworks`.

    Attributes:
        space: the genotypes.
        objectives: all that `evaluate` and `exact` answer; a `reference` gives a hypervolume its corner.
        weights_hash: identity of the weights; `studies.records.content_hash` makes one of any JSON content.
        data_hash: identity of the data that `evaluate` measures on.
    """

    space: SearchSpace
    objectives: Sequence[Objective]
    weights_hash: str
    data_hash: str

    def evaluate(self, genotype: Genotype) -> Mapping[str, Score]:
        """Objective key → measured score of a canonical genotype, the same whenever it is called.

        RuntimeError, ValueError, ArithmeticError or a score that is not finite make a failed row; the search goes on.
        """
        ...


@runtime_checkable
class HasExactCosts(Protocol):
    """Costs that are known without running anything, such as parameters: they are computed, never predicted."""

    def exact(self, genotype: Genotype) -> Mapping[str, float]:
        """Objective key → cost of a canonical genotype; the same keys for all."""
        ...


@runtime_checkable
class HasOperators(Protocol):
    """The operations a network consists of: they add the objective ``latency``, composed of their measured times."""

    def all_operators(self, context: Context) -> Sequence[OpSpec]:
        """Every operation that any network has; `kernels.op_cost.custom` makes one."""
        ...

    def operators(self, genotype: Genotype, context: Context) -> Sequence[OpSpec]:
        """The operations of one network, repeats included."""
        ...

    def build(self, spec: OpSpec) -> Callable[[], object]:
        """The call that runs one operation, to be timed."""
        ...


@runtime_checkable
class HasNetworks(Protocol):
    """Whole networks to be timed: they correct the sum of operations, and the best are measured at last."""

    def network(self, genotype: Genotype, context: Context) -> Callable[[], object]:
        """The call that runs one forward pass of an extracted network."""
        ...


def load_problem(text: str) -> CustomProblem:
    """Import and make the problem that ``package.module:name`` means; modules of the present folder are found.

    Raises:
        ValueError: not such a text, no such module or name, or not a problem.
    """
    module_name, colon, name = text.partition(":")
    if not (module_name and colon and name):
        raise ValueError(f"a problem reads package.module:Class, got {text!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except (ImportError, SyntaxError, TypeError) as error:  # TypeError: a relative name
        raise ValueError(f"cannot import {module_name!r} for the problem {text!r}: {error}") from error
    if not hasattr(module, name):
        raise ValueError(f"module {module_name!r} has no {name!r}; a problem reads package.module:Class")
    make = getattr(module, name)
    problem = _made(make, text) if callable(make) else make
    if not isinstance(problem, CustomProblem):
        wanted = ("space", "objectives", "weights_hash", "data_hash", "evaluate")
        missing = [attribute for attribute in wanted if not hasattr(problem, attribute)]
        raise ValueError(f"{text} is no search problem: it lacks {', '.join(missing)}")
    return problem


def _made(make: Callable[..., Any], text: str) -> Any:
    """The problem that a class or function makes without arguments."""
    try:
        signature(make).bind()
    except TypeError as error:
        raise ValueError(f"{text} must be made without arguments: {error}; name a function that gives them") from error
    return make()


class CustomColumns:
    """Binds the objectives of a problem; every network is evaluated once for all of them.

    Args:
        table: measured operations, if latency is asked for.
    """

    def __init__(self, problem: CustomProblem, context: Context, table: LatencyTable | None = None) -> None:
        self._problem, self._context, self._table = problem, context, table
        self._exact = self._exact_keys()
        self._latest: tuple[Genotype, Mapping[str, Score]] | None = None

    def bind(self, text: str) -> BoundObjective:
        """The column of an objective by key, or by name where only one has it; ValueError names the known ones."""
        known = available(self._problem)
        found = [o for o in known if o.key == text] or [o for o in known if o.name == text]
        if len(found) != 1:
            keys = ", ".join(objective.key for objective in known)
            raise ValueError(f"the problem has the objectives {keys}, not {text!r}")
        (objective,) = found
        if objective.key == LATENCY.key and objective.key not in self._listed:
            return BoundObjective(objective=objective, exact=True, evaluate=self._latency)
        if objective.key in self._exact:
            return BoundObjective(objective=objective, exact=True, evaluate=lambda g: self._computed(objective, g))
        identity = Identity(weights_hash=self._problem.weights_hash, data_hash=self._problem.data_hash, context="")
        return BoundObjective(
            objective=objective, exact=False, evaluate=lambda g: self._measured(objective, g), reuse=identity
        )

    @property
    def _listed(self) -> set[str]:
        return {objective.key for objective in self._problem.objectives}

    def _exact_keys(self) -> set[str]:
        """What the first network that has exact costs says; a problem may refuse the smallest."""
        space, rng = self._problem.space, random.Random(0)
        for genotype in (space.smallest, space.largest, *(space.canonical(space.sample(rng)) for _ in range(_ASKED))):
            with suppress(*REFUSALS):
                return set(self._exact_costs(genotype))
        return set(self._exact_costs(space.smallest))

    def _exact_costs(self, genotype: Genotype) -> Mapping[str, float]:
        return self._problem.exact(genotype) if isinstance(self._problem, HasExactCosts) else {}

    def _computed(self, objective: Objective, genotype: Genotype) -> Value:
        costs = self._exact_costs(genotype)
        if objective.key not in costs:
            raise EvaluationFailed(f"exact gave no {objective.key}")
        number = float(costs[objective.key])
        return Value(objective=objective.key, number=number, provenance="computed")

    def _measured(self, objective: Objective, genotype: Genotype) -> Value:
        if self._latest is None or self._latest[0] != genotype:
            self._latest = (genotype, self._problem.evaluate(genotype))
        score = self._latest[1].get(objective.key)
        if score is None:
            raise EvaluationFailed(f"evaluate gave no {objective.key}")
        number, spread = score if isinstance(score, tuple) else (score, None)
        return Value(
            objective=objective.key,
            number=float(number),
            spread=None if spread is None or not math.isfinite(spread) else float(spread),
            provenance="supernet",
            weights_hash=self._problem.weights_hash,
            data_hash=self._problem.data_hash,
        )

    def _latency(self, genotype: Genotype) -> Value:
        assert isinstance(self._problem, HasOperators)
        assert self._table is not None, "latency is bound with a table"
        seconds = self._table.predict(self._problem.operators(genotype, self._context), self._context).seconds
        return Value(
            objective=LATENCY.key,
            number=1e3 * seconds,
            provenance="predicted",
            spread=None if self._table.error is None else 1e3 * seconds * self._table.error,
            device=self._table.device,
            context=self._context.key,
        )


def available(problem: CustomProblem) -> tuple[Objective, ...]:
    """What a problem can be searched for: its own objectives, and latency where it says what to time."""
    listed = tuple(problem.objectives)
    timed = isinstance(problem, HasOperators) and LATENCY.key not in {objective.key for objective in listed}
    return (*listed, LATENCY) if timed else listed
