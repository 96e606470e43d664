"""What every file in `nas/algorithms` promises."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.algorithm import ALGORITHMS, AlgorithmSettings, SearchProblem, load_algorithm
from studies.records import Genotype, Objective
from supernets.space import Choice, SearchSpace
from tests.toy_search import drive, reached, toy_costs, toy_problem

NAMES = ALGORITHMS.names()
ROOT = Path(__file__).parents[2]

PRINT_BATCHES = """
import sys
from tests.toy_search import drive, toy_problem
print(drive(toy_problem({1: 6.0}), sys.argv[1], 48))
"""


def one_objective(space: SearchSpace) -> SearchProblem:
    """A search for errors that have to be measured."""
    return SearchProblem(
        space=space,
        objectives=(Objective(name="error", unit="fraction"),),
        exact=lambda genotypes: np.full((len(genotypes), 1), np.nan),
        exact_columns=(False,),
    )


def test_the_shipped_algorithms_are_found() -> None:
    assert set(NAMES) >= {"linas", "nsga2", "random", "tpe"}


@pytest.mark.parametrize("name", NAMES)
def test_proposes_only_new_canonical_genotypes(name: str) -> None:
    problem = toy_problem()
    flat = [genotype for batch in drive(problem, name, 48) for genotype in batch]
    assert all(genotype == problem.space.canonical(genotype) for genotype in flat)
    assert len(set(flat)) == len(flat)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_batches_and_another_seed_others(name: str) -> None:
    first, second, other = (drive(toy_problem(), name, 36, seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first != other


@pytest.mark.parametrize("name", NAMES)
def test_replaying_stored_costs_resumes_exactly_at_every_cut(name: str) -> None:
    problem = toy_problem()
    batches = drive(problem, name, 60)
    stored = {g: row for batch in batches for g, row in zip(batch, toy_costs(problem.space, batch), strict=True)}
    for cut in range(1, len(batches)):
        search = load_algorithm(name)(problem, AlgorithmSettings(seed=0, batch=16))
        proposal = next(search)
        for batch in batches[:cut]:
            assert proposal == batch
            proposal = search.send(np.array([stored[genotype] for genotype in batch]))
        assert proposal == batches[cut]


@pytest.mark.parametrize("name", NAMES)
def test_the_hash_seed_decides_nothing(name: str) -> None:
    command = [sys.executable, "-c", PRINT_BATCHES, name]
    outputs = [
        subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] == f"{drive(toy_problem({1: 6.0}), name, 48)}\n"


@pytest.mark.parametrize("name", NAMES)
def test_is_not_worse_than_random_at_equal_budget(name: str) -> None:
    problem, budget = toy_problem(), 64  # small batches, so that there is something to learn from
    mean = {
        each: np.mean([reached(problem, drive(problem, each, budget, seed=seed, batch=8), budget) for seed in range(3)])
        for each in {name, "random"}
    }
    assert mean[name] >= mean["random"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [3.0, 1.8])
def test_never_proposes_what_provably_breaks_a_limit(name: str, limit: float) -> None:
    problem = toy_problem({1: limit})
    flat = [genotype for batch in drive(problem, name, 24) for genotype in batch]
    assert (toy_costs(problem.space, flat)[:, 1] <= limit).all()


@pytest.mark.parametrize("name", NAMES)
def test_goes_on_after_failures_and_unmet_limits(name: str) -> None:
    problem = toy_problem({0: 0.3})
    search = load_algorithm(name)(problem, AlgorithmSettings(batch=8))
    proposal, seen = next(search), 0
    while seen < 32:
        costs = toy_costs(problem.space, proposal)
        costs[seen % 3 :: 3] = np.inf
        seen += len(proposal)
        proposal = search.send(costs)
        assert proposal
    costs = np.full((len(proposal), 2), np.inf)
    assert search.send(costs)


@pytest.mark.parametrize("name", NAMES)
def test_survives_a_first_batch_that_failed_entirely(name: str) -> None:
    search = load_algorithm(name)(toy_problem(), AlgorithmSettings(batch=8))
    first = next(search)
    assert search.send(np.full((len(first), 2), np.inf))


@pytest.mark.parametrize("name", NAMES)
def test_ends_where_genes_are_moot(name: str) -> None:
    """Two layers of experts whose operator decides nothing while all are kept: 16 networks, each asked for once."""
    genes = (
        Choice(axis="experts", options=(2, 4), layer=0),
        Choice(axis="operator", options=(1, 2, 3), layer=0, moot=("experts", 4)),
    )
    space = SearchSpace("moot", 2, (0, 1), tuple(replace(gene, layer=i) for i in range(2) for gene in genes))
    problem = one_objective(space)
    running, asked = load_algorithm(name)(problem, AlgorithmSettings(batch=4)), list[Genotype]()
    proposal = next(running)
    with suppress(StopIteration):
        while len(asked) < 100:
            asked += proposal
            proposal = running.send(np.array([[sum(genotype) / 10] for genotype in proposal]))
    assert len(asked) == len(set(asked)) == space.size == 16


@pytest.mark.parametrize("name", NAMES)
def test_many_axes_of_their_own_take_no_time(name: str) -> None:
    """No algorithm lists 3^30 uniform networks where every gene has an axis of its own."""
    space = SearchSpace("named", 1, (0,), tuple(Choice(axis=f"a{i}", options=(1, 2, 3), layer=0) for i in range(30)))
    problem = one_objective(space)
    assert len(next(load_algorithm(name)(problem, AlgorithmSettings(batch=4)))) > 0


@pytest.mark.parametrize("name", NAMES)
def test_ends_when_the_space_is_exhausted(name: str) -> None:
    problem = toy_problem({1: 1.4})
    flat = [genotype for batch in drive(problem, name, 1000, batch=8) for genotype in batch]
    assert 0 < len(set(flat)) == len(flat) < 100
