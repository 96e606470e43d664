"""Candidates: everything in a small space, what evolves on predictions in a large one."""

from __future__ import annotations

import numpy as np
import pytest

from nas.algorithm import Costs, SearchProblem
from nas.candidates import Breeder, Pool, fittest
from studies.pareto import hypervolume
from supernets.genes import GeneTable
from supernets.space import SearchSpace
from tests.toy_search import ERROR, LATENCY, REFERENCE, toy_costs, toy_problem, toy_space


def problem_of(space: SearchSpace, limit: float | None = None) -> SearchProblem:
    def exact(genotypes: object) -> Costs:
        costs = toy_costs(space, genotypes)  # type: ignore[arg-type]
        costs[:, 0] = np.nan
        return costs

    limits = {} if limit is None else {1: limit}
    return SearchProblem(
        space=space, objectives=(ERROR, LATENCY), exact=exact, exact_columns=(False, True), limits=limits
    )


def test_a_small_space_is_looked_at_as_a_whole() -> None:
    problem = problem_of(toy_space(2), limit=2.5)
    table = GeneTable(problem.space)

    def predict(pool: Pool) -> Costs:
        return toy_costs(problem.space, pool.genotypes)

    everything = table.everything()
    asked = set(everything[::3])
    pool, costs = Breeder(problem, table).candidates(predict, [], asked, np.random.default_rng(0))
    affordable = {g for g in everything if toy_costs(problem.space, [g])[0, 1] <= 2.5}
    assert set(pool.genotypes) == affordable - asked
    assert costs.tolist() == predict(pool).tolist()
    assert np.isnan(pool.exact_PM[:, 0]).all()


@pytest.mark.parametrize("limit", [None, 4.0])
def test_a_large_space_is_bred_towards_the_predicted_front(limit: float | None) -> None:
    problem = problem_of(toy_space(), limit)
    table, rng = GeneTable(problem.space), np.random.default_rng(0)
    calls: list[int] = []

    def predict(pool: Pool) -> Costs:
        calls.append(len(pool))
        return toy_costs(problem.space, pool.genotypes)

    start = table.distinct(table.uniform_draw(rng, 20))
    breeder = Breeder(problem, table)
    pool, costs = breeder.candidates(predict, start, set(start), rng)
    assert len(set(pool.genotypes)) == len(pool) == len(costs)
    assert not set(pool.genotypes) & set(start)
    assert (problem.violations(costs) == 0).all()
    random = table.distinct(table.uniform_draw(rng, sum(calls)))
    drawn = toy_costs(problem.space, random)
    found, blind = (hypervolume(rows, REFERENCE) for rows in (costs, drawn[problem.violations(drawn) == 0]))
    assert found > blind
    again, more = breeder.candidates(predict, start, set(start), rng)
    assert hypervolume(more, REFERENCE) >= found
    assert again.genotypes != pool.genotypes


def test_candidates_whose_exact_cost_is_not_finite_are_left_out() -> None:
    space = toy_space(2)

    def exact(genotypes: object) -> Costs:
        costs = toy_costs(space, genotypes)  # type: ignore[arg-type]
        costs[:, 0] = np.nan
        costs[costs[:, 1] > 2.5, 1] = np.nan
        return costs

    problem = SearchProblem(space=space, objectives=(ERROR, LATENCY), exact=exact, exact_columns=(False, True))
    breeder = Breeder(problem, GeneTable(space))
    pool, _ = breeder.candidates(lambda p: toy_costs(space, p.genotypes), [], set(), np.random.default_rng(0))
    assert 0 < len(pool) < space.size
    assert np.isfinite(pool.exact_PM[:, 1]).all()


def test_the_fittest_come_layer_by_layer_and_the_last_layer_is_thinned() -> None:
    costs = np.array([[0, 4], [1, 3], [2, 2], [3, 1], [4, 0], [1, 4], [4, 1], [5, 5]], dtype=float)
    problem = toy_problem()
    assert set(fittest(problem, costs, 5)) == {0, 1, 2, 3, 4}
    assert set(fittest(problem, costs, 7)) == {0, 1, 2, 3, 4, 5, 6}
    assert fittest(problem, costs, 3) == [0, 2, 4]
    assert len(fittest(problem, costs, 20)) == 8


def test_limits_come_before_layers_and_the_least_broken_first() -> None:
    costs = np.array([[0.1, 9.0], [0.5, 3.0], [0.2, 7.0], [0.6, 2.0]])
    assert fittest(toy_problem({1: 4.0}), costs, 3) == [1, 3, 2]
