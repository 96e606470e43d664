"""Variation that varies, selection by NSGA-II's rules."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nas.evolution import Evolution, select, vary
from studies.pareto import non_dominated
from tests.toy_search import toy_costs, toy_space


def test_children_of_equal_parents_mutate_in_about_one_gene() -> None:
    space = toy_space()
    parents = np.array([space.largest] * 4000)
    children = np.array(vary(space, parents, np.random.default_rng(0)))
    kept_deep = children[children[:, 0] == space.largest[0]]
    changed = (kept_deep != space.largest).sum(axis=1)
    assert 0.9 < changed.mean() < 1.1
    assert (kept_deep != space.largest).any(axis=0)[1:].all()


def test_children_are_canonical_and_take_genes_from_both_parents() -> None:
    space, rng = toy_space(), random.Random(1)
    parents = np.array([space.sample(rng) for _ in range(400)])
    children = vary(space, parents, np.random.default_rng(1))
    assert all(child == space.canonical(child) for child in children)
    both = [
        {m for m, c in zip(mother, child, strict=True) if m == c} and child != tuple(mother)
        for mother, child in zip(parents[::2], children, strict=True)
    ]
    assert np.mean([bool(x) for x in both]) > 0.9


def test_a_child_that_grows_deeper_gets_random_layers_not_the_thinnest() -> None:
    space = toy_space()
    parents = np.array([space.smallest, space.smallest] * 3000)
    children = [c for c in vary(space, parents, np.random.default_rng(0)) if space.depth_of(c) == 6]
    last_genes = np.array(children)[:, -2:]
    assert len(children) > 100
    assert set(last_genes.ravel().tolist()) == {0, 1, 2, 3}
    assert 1.2 < last_genes.mean() < 1.8


def test_select_prefers_limits_then_rank_then_spread() -> None:
    costs = np.array([[0.0, 0.0], [1.0, 4.0], [4.0, 1.0], [2.0, 2.9], [2.1, 2.8], [5.0, 5.0]])
    violations = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert set(select(costs, violations, 5, seed=0)) == {1, 2, 3, 4, 5}
    assert set(select(costs, violations, 2, seed=0)) == {1, 2}
    assert set(select(costs, violations, 9, seed=0)) == set(range(6))


def test_select_survives_infinite_and_unknown_costs() -> None:
    costs = np.array([[np.inf, np.inf], [np.nan, 1.0], [1.0, 1.0]])
    assert select(costs, np.array([np.inf, 2.0, 0.0]), 1, seed=0) == [2]


def test_evolution_approaches_the_front_and_never_asks_twice() -> None:
    space, rng = toy_space(), random.Random(0)
    start = list(dict.fromkeys(space.sample(rng) for _ in range(20)))
    evolution = Evolution(space, start, objectives=2, population=20, offspring=10, seed=0)
    asked = []
    for _ in range(25):
        generation = evolution.ask()
        asked += generation
        evolution.tell(toy_costs(space, generation), np.zeros(len(generation)))
    assert len(set(asked)) == len(asked)
    costs = toy_costs(space, asked)
    late = np.flatnonzero(non_dominated(costs)) >= len(start)
    assert late.mean() > 0.7


@pytest.mark.parametrize("population", [4, 20])
def test_evolution_ends_when_everything_was_asked(population: int) -> None:
    space = toy_space(layers=2)
    evolution = Evolution(space, [space.smallest], objectives=2, population=population, offspring=20, seed=0)
    asked = []
    while generation := evolution.ask():
        asked += generation
        evolution.tell(toy_costs(space, generation), np.zeros(len(generation)))
    assert len(set(asked)) == len(asked) > space.size // 2
