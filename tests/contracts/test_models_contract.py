"""What every file in `predictors/models` promises."""

from __future__ import annotations

import numpy as np
import pytest

from predictors.model import MODELS, load_model
from supernets.genes import GeneTable
from tests.toy_search import toy_costs, toy_space

NAMES = MODELS.names()


def toy_table(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, standardised errors and feature groups of random networks."""
    space = toy_space()
    table = GeneTable(space)
    genotypes = table.distinct(table.uniform_draw(np.random.default_rng(0), count))
    errors = toy_costs(space, genotypes)[:, 0]
    return table.features(table.matrix(genotypes)), (errors - errors.mean()) / errors.std(), table.groups_F


def test_the_shipped_models_are_found() -> None:
    assert set(NAMES) >= {"gaussian-process", "gradient-boosting", "ridge", "svr"}


@pytest.mark.parametrize("name", NAMES)
def test_predicts_far_better_than_the_mean(name: str) -> None:
    features, targets, groups = toy_table(160)
    model = load_model(name)(features[:80], targets[:80], groups, 0)
    assert np.mean((model.predict(features[80:]) - targets[80:]) ** 2) < 0.4 * np.var(targets[80:])


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_predicted_alone_as_in_a_batch_and_again_the_same(name: str) -> None:
    features, targets, groups = toy_table(40)
    first, second = (load_model(name)(features, targets, groups, 7) for _ in range(2))
    batch = first.predict(features)
    assert batch.tolist() == second.predict(features).tolist()
    assert batch == pytest.approx([first.predict(features[i : i + 1])[0] for i in range(len(features))])


@pytest.mark.parametrize("name", NAMES)
def test_constant_features_are_no_obstacle(name: str) -> None:
    features, targets, groups = toy_table(20)
    features[:, :3] = 1.0
    assert np.isfinite(load_model(name)(features, targets, groups, 0).predict(features)).all()
