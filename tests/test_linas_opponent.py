"""The LINAS opponent's shortcuts change no number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pymoo.core.population import Population
from pymoo.core.termination import NoTermination
from pymoo.operators.selection.rnd import RandomSelection
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

from supernets.space import Choice, SearchSpace
from tests.benchmarks.race.opponents._arrays import ArrayEvolution, Members
from tests.benchmarks.race.opponents._linas import ALPHAS, _inner, best_alpha, working_mutation
from tests.benchmarks.race.opponents._pymoo import IntegerProblem, genotypes_of, set_costs

SPACE = SearchSpace(
    "plain", 6, tuple(range(6)), tuple(Choice(axis="width", layer=i, options=tuple(range(1, 8))) for i in range(6))
)


def test_the_ridge_of_linas_is_what_a_grid_search_finds() -> None:
    rng = np.random.default_rng(0)
    features, weights = rng.integers(0, 2, (57, 9)).astype(float), rng.normal(size=9)
    labels = 50 + features @ weights + rng.normal(size=57)
    grid = GridSearchCV(Ridge(), {"alpha": ALPHAS}, scoring="neg_mean_absolute_percentage_error").fit(features, labels)
    alpha, error = best_alpha(features, labels)
    assert alpha == grid.best_params_["alpha"]
    assert error == pytest.approx(-grid.best_score_)


class _Breeding:
    """A mating for pymoo's own algorithms: their tournaments, and the children that the evolution on arrays makes."""

    def __init__(self, original: Any, shadow: ArrayEvolution) -> None:
        self._selection, self._shadow = original.selection, shadow

    def do(self, problem: Any, population: Any, count: int, *, random_state: Any, **others: Any) -> Any:
        self._shadow._rng = random_state
        genes = population.get("X").astype(int)
        known, children = set(map(tuple, genes.tolist())), list[tuple[int, ...]]()
        while len(children) < count:
            pairs = math.ceil((count - len(children)) / 2)
            parents = self._selection.do(
                problem, population, pairs, 2, to_pop=False, random_state=random_state, **others
            )
            for child in map(tuple, self._shadow._vary(genes[parents.T]).tolist()):
                if child not in known and len(children) < count:
                    known.add(child)
                    children.append(child)
        return Population.new("X", np.array(children))


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("limited", [False, True])
def test_the_evolution_on_arrays_is_that_of_pymoo(objectives: int, limited: bool) -> None:
    """The same children and the same survivors in every generation, with pymoo's own classes as the oracle."""
    problem, weights_GM = IntegerProblem(SPACE, objectives), np.random.default_rng(1).normal(size=(6, objectives))
    theirs, ours, shadow = (_inner(objectives, working_mutation(SPACE)) for _ in range(3))
    theirs.mating = _Breeding(theirs.mating, ArrayEvolution(shadow, problem, seed=0))
    theirs.setup(problem, termination=NoTermination(), seed=7)
    evolution = ArrayEvolution(ours, problem, seed=7)
    for _ in range(12):
        infills, genes_KG = theirs.ask(), evolution.ask()
        assert [tuple(row) for row in genes_KG.tolist()] == genotypes_of(infills)
        costs_KM = np.sin(genes_KG @ weights_GM).round(1)
        violations_K = (
            np.maximum(genes_KG @ np.sqrt(np.arange(2, 8)) - 45.0, 0.0) if limited else np.zeros(len(genes_KG))
        )
        set_costs(infills, costs_KM, violations_K)
        theirs.tell(infills=infills)
        evolution.tell(costs_KM, violations_K)
        assert [tuple(row) for row in evolution.population.tolist()] == genotypes_of(theirs.pop)


def test_children_are_distributed_as_those_of_pymoo() -> None:
    """Per gene, the same mean and spread within the error of 6,000 children."""
    problem, rng = IntegerProblem(SPACE, 2), np.random.default_rng(1)
    genes = rng.integers(0, 7, (20, 6))
    original, inner = (_inner(2, working_mutation(SPACE)) for _ in range(2))
    original.mating.selection = RandomSelection()
    theirs = np.vstack(
        [original.mating.do(problem, Population.new("X", genes), 50, random_state=rng).get("X") for _ in range(120)]
    )
    evolution, alike = ArrayEvolution(inner, problem, seed=3), Members.new(genes, np.zeros((20, 2)), np.zeros(20))
    litters = [evolution._children(alike) for _ in range(120)]
    assert all(len(np.unique(each, axis=0)) == 50 for each in litters)
    ours = np.vstack(litters)
    assert ((ours >= 0) & (ours <= 6)).all()
    assert ours.mean(axis=0) == pytest.approx(theirs.mean(axis=0), abs=5 * 2.2 / 6000**0.5)
    assert ours.std(axis=0) == pytest.approx(theirs.std(axis=0), abs=0.1)
