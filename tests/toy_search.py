"""A search problem whose answer is known: a small elastic encoder with a closed-form error and latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress

import numpy as np

from nas.algorithm import AlgorithmSettings, Costs, SearchProblem, load_algorithm
from studies.pareto import hypervolume
from studies.records import Genotype, Objective, Study
from supernets.space import DEPTH, FFN_WIDTH, HEADS, Choice, SearchSpace

LAYERS = 6
ERROR = Objective(name="error", unit="fraction", reference=0.6)
LATENCY = Objective(name="latency", unit="ms", reference=10.0)
REFERENCE = (0.6, 10.0)


def toy_space(layers: int = LAYERS) -> SearchSpace:
    """Depth, and heads and feed-forward width per layer; the last layer is the least important."""
    choices = [Choice(axis=DEPTH, options=tuple(range(2, layers + 1)))]
    for layer in range(layers):
        choices.append(Choice(axis=HEADS, layer=layer, options=(2, 4, 6, 8)))
        choices.append(Choice(axis=FFN_WIDTH, layer=layer, options=(128, 256, 512, 1024)))
    return SearchSpace("toy", layers, tuple(range(layers)), tuple(choices))


def toy_costs(space: SearchSpace, genotypes: Sequence[Genotype]) -> Costs:
    """Error falls with diminishing returns in every layer, early layers matter more; latency adds up."""
    rows = []
    for genotype in genotypes:
        capacity, latency = 0.0, 0.5
        for layer in space.decode(genotype).layers:
            heads, width = layer.kept(HEADS) or 0, layer.kept(FFN_WIDTH) or 0
            capacity += (1 - math.exp(-heads / 3) + 1 - math.exp(-width / 300)) * (1.5 - layer.index / LAYERS)
            latency += 0.2 + 0.05 * heads + width / 1024
        rows.append([0.1 + 0.5 * math.exp(-capacity / 4), latency])
    return np.array(rows).reshape(-1, 2)


def toy_problem(limits: Mapping[int, float] | None = None) -> SearchProblem:
    """Latency (column 1) is known exactly, error (column 0) is not."""
    space = toy_space()

    def exact(genotypes: Sequence[Genotype]) -> Costs:
        costs = toy_costs(space, genotypes)
        costs[:, 0] = np.nan
        return costs

    return SearchProblem(
        space=space, objectives=(ERROR, LATENCY), exact=exact, exact_columns=(False, True), limits=limits or {}
    )


def drive(problem: SearchProblem, name: str, budget: int, *, seed: int = 0, batch: int = 16) -> list[list[Genotype]]:
    """Batches an algorithm proposes on the toy costs until the budget is used or nothing new is left."""
    search = load_algorithm(name)(problem, AlgorithmSettings(seed=seed, batch=batch))
    batches = [next(search)]
    with closing(search), suppress(StopIteration):
        while sum(map(len, batches)) < budget:
            batches.append(search.send(toy_costs(problem.space, batches[-1])))
    return batches


def reached(problem: SearchProblem, batches: Sequence[Sequence[Genotype]], budget: int) -> float:
    """Hypervolume of the first `budget` proposals."""
    flat = [genotype for batch in batches for genotype in batch][:budget]
    return hypervolume(toy_costs(problem.space, flat), REFERENCE)


def toy_study(problem: SearchProblem, budget: int, name: str = "toy") -> Study:
    """The record of a study of a toy problem."""
    return Study(
        name=name,
        space_fingerprint=problem.space.fingerprint,
        supernet_hash="w",
        data_hash="d",
        objectives=problem.objectives,
        algorithm="any",
        seed=0,
        budget=budget,
    )
