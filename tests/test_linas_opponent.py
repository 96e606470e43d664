"""The LINAS opponent's shortcuts change no number."""

from __future__ import annotations

import numpy as np
import pytest
from pymoo.core.population import Population
from pymoo.operators.selection.rnd import RandomSelection
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

from supernets.space import Choice, SearchSpace
from tests.benchmarks.race.opponents._linas import ALPHAS, _inner, best_alpha, working_mutation
from tests.benchmarks.race.opponents._mating import ArrayMating
from tests.benchmarks.race.opponents._pymoo import IntegerProblem


def test_the_ridge_of_linas_is_what_a_grid_search_finds() -> None:
    rng = np.random.default_rng(0)
    features, weights = rng.integers(0, 2, (57, 9)).astype(float), rng.normal(size=9)
    labels = 50 + features @ weights + rng.normal(size=57)
    grid = GridSearchCV(Ridge(), {"alpha": ALPHAS}, scoring="neg_mean_absolute_percentage_error").fit(features, labels)
    alpha, error = best_alpha(features, labels)
    assert alpha == grid.best_params_["alpha"]
    assert error == pytest.approx(-grid.best_score_)


def test_mating_on_arrays_breeds_as_pymoo_does() -> None:
    """Both draw from one distribution: per gene, the same mean and spread within the error of 6,000 children."""
    space = SearchSpace(
        "plain", 6, tuple(range(6)), tuple(Choice(axis="width", layer=i, options=tuple(range(1, 8))) for i in range(6))
    )
    problem, rng = IntegerProblem(space, 2), np.random.default_rng(1)
    parents = Population.new("X", rng.integers(0, 7, (20, 6)))
    original = _inner(2, working_mutation(space)).mating
    original.selection = RandomSelection()
    children = [
        np.vstack([mating.do(problem, parents, 30, random_state=rng).get("X") for _ in range(200)])
        for mating in (original, ArrayMating(original))
    ]
    assert all(len(np.unique(each[:30], axis=0)) == 30 for each in children)
    assert all(((each >= 0) & (each <= 6)).all() for each in children)
    theirs, ours = children
    assert ours.mean(axis=0) == pytest.approx(theirs.mean(axis=0), abs=5 * 2.2 / 6000**0.5)
    assert ours.std(axis=0) == pytest.approx(theirs.std(axis=0), abs=0.1)
