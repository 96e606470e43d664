"""Turns objectives and limits, as the user wrote them, into a search problem and its evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from nas.algorithm import Costs, SearchProblem, few_uniform
from nas.evaluator import Evaluator, ValueLookup
from nas.objective import REFUSALS, Bindings, BoundObjective, bind, parse_objective
from nas.settings import SearchSettings
from studies.errors import LimitError
from studies.pareto import signed
from studies.records import Genotype, Objective, Study, content_hash
from studies.store import LIMITED_FROM_BELOW
from supernets.space import SearchSpace

_MOST_LISTED = 10_000
"""Genotypes that are looked at one by one."""

Bind = Callable[[str], BoundObjective]
"""Makes a column of an objective as the user wrote it; ValueError for an unknown one."""


def build_problem(
    objectives: Sequence[str],
    limits: Mapping[str, float],
    bindings: Bindings,
    store: ValueLookup | None = None,
) -> tuple[SearchProblem, Evaluator]:
    """Bind objectives and limits to a supernet; see `assemble`."""
    return assemble(objectives, limits, bindings.supernet.space, partial(bind, bindings=bindings), store)


def assemble(
    objectives: Sequence[str],
    limits: Mapping[str, float],
    space: SearchSpace,
    bind_one: Bind,
    store: ValueLookup | None = None,
    *,
    sizes: bool = True,
) -> tuple[SearchProblem, Evaluator]:
    """Bind objectives and limits.

    Args:
        sizes: whether options are sizes, so that no network costs less than the smallest or a uniform one, and none
            more than the largest.
        objectives: ``name`` or ``name:setting=value,...``, at least one.
        limits: objective text → largest allowed value in its unit (smallest for a maximised one). A bare name limits
            every objective of that name; what is no objective is evaluated too, but only limited.
        store: where other studies may have left qualities of the same weights on the same data.

    Raises:
        ValueError: an unknown objective, one named twice, or a limit that is not a finite number.
        LimitError: no sub-network can meet a limit that is known exactly.
    """
    if not objectives:
        raise ValueError("a search needs at least one objective, such as error")
    searched = [bind_one(text) for text in objectives]
    limited, limits_by_key = _bind_limits(searched, limits, bind_one)
    columns = [_with_reference(bound, space.largest) if sizes else bound for bound in (*searched, *limited)]
    keys = [bound.objective.key for bound in columns]
    if len(set(keys)) < len(keys):
        raise ValueError(f"every objective may be named once, got {', '.join(keys)}")
    problem = SearchProblem(
        space=space,
        objectives=tuple(bound.objective for bound in columns[: len(searched)]),
        limited=tuple(bound.objective for bound in columns[len(searched) :]),
        limits={i: signed(columns[i].objective, limits_by_key[k]) for i, k in enumerate(keys) if k in limits_by_key},
        exact=ExactCosts(columns),
        exact_columns=tuple(bound.exact for bound in columns),
        noise=tuple(bound.noise for bound in columns),
    )
    _check_limits(problem, sizes)
    return problem, Evaluator(tuple(columns), space, store)


def full_evaluator(problem: SearchProblem, bindings: Bindings, store: ValueLookup | None = None) -> Evaluator:
    """Evaluates the same columns with qualities on all of the split, however much of it the search looks at."""
    whole = replace(bindings, examples=None)
    return Evaluator(tuple(bind(column.key, whole) for column in problem.columns), problem.space, store)


class ExactCosts:
    """Costs ``[genotypes, columns]`` of the exact columns, NaN in the others; every genotype is computed once."""

    def __init__(self, columns: Sequence[BoundObjective]) -> None:
        self._columns = tuple(columns)
        self._rows: dict[Genotype, list[float]] = {}

    def __call__(self, genotypes: Sequence[Genotype]) -> Costs:
        """Rows in the order of the (canonical) genotypes."""
        for genotype in genotypes:
            if genotype not in self._rows:
                self._rows[genotype] = [self._cost(column, genotype) for column in self._columns]
        return np.array([self._rows[genotype] for genotype in genotypes]).reshape(-1, len(self._columns))

    @staticmethod
    def _cost(column: BoundObjective, genotype: Genotype) -> float:
        """+inf where there is none: such a network is never asked for, or fails for its reason when it is."""
        if not column.exact:
            return math.nan
        try:
            cost = signed(column.objective, column.evaluate(genotype).number)
        except REFUSALS:
            return math.inf
        return cost if math.isfinite(cost) else math.inf


def constraints(problem: SearchProblem) -> dict[str, float]:
    """The problem's limits as a `Study` stores them: objective key → value in the objective's unit."""
    return {problem.columns[i].key: signed(problem.columns[i], limit) for i, limit in problem.limits.items()}


def study_for(
    settings: SearchSettings, problem: SearchProblem, bindings: Bindings, versions: Mapping[str, str]
) -> Study:
    """The study of a search: everything that must agree when it is resumed."""
    data_hash = bindings.task.data_hash(bindings.split)
    if bindings.examples is not None:
        data_hash += f":examples={bindings.examples},seed={bindings.seed}"
    data_hash += f":{bindings.precision}"
    if problem.limited:
        data_hash += f":{content_hash(bindings.context.key)[:4]}"
    table_hash = "" if bindings.table is None else bindings.table.hash
    return new_study(settings, problem, bindings.weights_hash, data_hash, table_hash, versions)


def new_study(
    settings: SearchSettings,
    problem: SearchProblem,
    weights_hash: str,
    data_hash: str,
    latency_table_hash: str,
    versions: Mapping[str, str],
) -> Study:
    """The study of a search over weights, data and a latency table known by their hashes."""
    return Study(
        name=settings.study_name,
        space_fingerprint=problem.space.fingerprint,
        supernet_hash=weights_hash,
        data_hash=data_hash,
        objectives=problem.objectives,
        algorithm=settings.algorithm_key,
        seed=settings.seed,
        budget=settings.budget,
        constraints=constraints(problem),
        latency_table_hash=latency_table_hash,
        space=problem.space.to_json(),
        settings={**settings.to_json(), **_limited_from_below(problem)},
        versions=dict(versions),
    )


def _limited_from_below(problem: SearchProblem) -> dict[str, list[str]]:
    found = [column.key for column in problem.limited if column.goal == "max"]
    return {LIMITED_FROM_BELOW: found} if found else {}


def _bind_limits(
    searched: Sequence[BoundObjective], limits: Mapping[str, float], bind_one: Bind
) -> tuple[list[BoundObjective], dict[str, float]]:
    """What is only limited, and every limit by objective key."""
    limited: list[BoundObjective] = []
    by_key: dict[str, float] = {}
    for text, limit in limits.items():
        if not math.isfinite(limit):
            raise ValueError(f"the limit of {text} must be a finite number, got {limit}")
        name, settings = parse_objective(text)
        matching = [b.objective for b in searched if b.objective.name == name and not settings]
        matching = matching or [b.objective for b in searched if b.objective.key == _key(name, settings)]
        if not matching:
            limited.append(bind_one(text))
            matching = [limited[-1].objective]
        by_key.update({objective.key: limit for objective in matching})
    return limited, by_key


def _key(name: str, settings: Mapping[str, str]) -> str:
    return Objective(name=name, unit="", settings=tuple(sorted(settings.items()))).key


def _with_reference(bound: BoundObjective, largest: Genotype) -> BoundObjective:
    """An exact objective without a reference counts up to the largest network, if that has a cost."""
    if bound.objective.reference is not None or not bound.exact:
        return bound
    try:
        reference = bound.evaluate(largest).number
    except REFUSALS:
        return bound
    if not math.isfinite(reference):
        return bound
    return replace(bound, objective=replace(bound.objective, reference=reference))


def _check_limits(problem: SearchProblem, sizes: bool) -> None:
    """Refuse an exact limit that provably no network meets; where options are no sizes, all have to be looked at."""
    if not (cheapest := _cheapest(problem.space, sizes)):
        return
    for column, limit in problem.limits.items():
        if problem.exact_columns[column]:
            best = float(problem.exact(cheapest)[:, column].min())
            if best > limit:
                objective = problem.columns[column]
                raise LimitError(
                    f"no sub-network can meet {objective.key} {signed(objective, limit):g} {objective.unit};"
                    f" the best is {signed(objective, best):.4g} {objective.unit}: relax the limit"
                    " or make a supernet with smaller networks"
                )


def _cheapest(space: SearchSpace, sizes: bool) -> list[Genotype]:
    """Networks among which the cheapest must be; empty where the space is too large to say."""
    if sizes:
        return list(dict.fromkeys((space.smallest, *few_uniform(space))))
    options = [range(len(choice.options)) for choice in space.choices]
    if math.prod(map(len, options)) > _MOST_LISTED:
        return []
    return list(dict.fromkeys(map(space.canonical, product(*options))))
