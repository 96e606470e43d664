"""Many genotypes at once, against the space that handles them one by one."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from supernets.genes import GeneTable
from supernets.space import DEPTH, Choice, SearchSpace
from tests.toy_search import toy_space


def plain_space() -> SearchSpace:
    """Shared genes, no depth, one gene without a choice."""
    options = ((1, 2, 4), (3,), (5, 6))
    return SearchSpace("plain", 1, (0,), tuple(Choice(axis=f"a{i}", options=o) for i, o in enumerate(options)))


def named_space() -> SearchSpace:
    """Layers whose third gene has named options and is moot beside the last option of the second."""
    choices = [Choice(axis="depth", options=(1, 2))]
    for layer in range(2):
        choices.append(Choice(axis="experts", options=(2, 4, 8), layer=layer))
        choices.append(Choice(axis="operator", options=(1, 2, 3), layer=layer, moot=("experts", 8)))
        choices.append(Choice(axis="top_k", options=(1, 2), layer=layer))
    return SearchSpace("named", 2, (1, 0), tuple(choices), {"operator": ("reap", "uncurl", "mone")})


SPACES = (toy_space(3), toy_space(2).reordered((1, 0)), plain_space(), named_space())


@pytest.mark.parametrize("space", SPACES)
def test_everything_is_every_network_once(space: SearchSpace) -> None:
    found = GeneTable(space).everything()
    encodings = product(*(range(len(choice.options)) for choice in space.choices))
    assert set(found) == {space.canonical(genotype) for genotype in encodings}
    assert len(found) == space.size


@pytest.mark.parametrize("space", SPACES)
def test_active_genes_and_features_tell_networks_apart(space: SearchSpace) -> None:
    table = GeneTable(space)
    genotypes = table.everything()[:400]
    genes = table.matrix(genotypes)
    assert table.active(genes).tolist() == [list(space.active_genes(genotype)) for genotype in genotypes]
    features = table.features(genes)
    assert features.shape == (len(genotypes), len(table.groups_F))
    assert len(np.unique(features.round(9), axis=0)) == len(genotypes)


def test_features_do_not_see_genes_of_dropped_layers() -> None:
    space = toy_space(3)
    table, rng = GeneTable(space), np.random.default_rng(0)
    genes = table.uniform_draw(rng, 50)
    canonical = table.matrix([space.canonical(row) for row in genes.tolist()])
    assert table.features(genes).tolist() == table.features(canonical).tolist()


@pytest.mark.parametrize("space", SPACES)
def test_draws_and_children_are_valid_and_children_differ_little(space: SearchSpace) -> None:
    table, rng = GeneTable(space), np.random.default_rng(1)
    parents = table.matrix(table.distinct(table.uniform_draw(rng, 4)))
    for genes in (table.uniform_draw(rng, 30), table.graded_draw(rng, 30), table.children(parents, rng, 30)):
        assert genes.shape == (30, len(space))
        assert all(space.validate(row) for row in genes.tolist())
    one = table.matrix([space.largest])
    moved = (table.children(one, rng, 200) != one).sum(axis=1)
    assert 0 < moved.mean() < 3


def test_graded_networks_reach_the_ends_of_the_range() -> None:
    space = toy_space(6)
    table, rng = GeneTable(space), np.random.default_rng(2)
    graded, uniform = (draw(rng, 20).sum(axis=1) for draw in (table.graded_draw, table.uniform_draw))
    assert np.ptp(graded) > 1.5 * np.ptp(uniform)
    assert np.corrcoef(graded, np.arange(20))[0, 1] > 0.9


def test_distinct_genotypes_are_canonical_in_order_of_appearance() -> None:
    space = toy_space(2)
    rng = random.Random(0)
    encodings = [[rng.randrange(len(choice.options)) for choice in space.choices] for _ in range(60)]
    expected = list(dict.fromkeys(space.canonical(encoding) for encoding in encodings))
    assert GeneTable(space).distinct(np.array(encodings)) == expected


def test_tallies_count_like_genes_wherever_they_lie() -> None:
    space = SearchSpace(
        "toy",
        3,
        (0, 1, 2),
        (
            Choice(axis=DEPTH, options=(2, 3)),
            *(Choice(axis="width", layer=layer, options=(16, 32)) for layer in range(3)),
            Choice(axis="heads", layer=0, options=(1, 2, 4)),
        ),
    )
    table = GeneTable(space)
    scale = 2 / np.sqrt(3)
    found = table.tallies(table.matrix([(1, 0, 1, 1, 2), (1, 1, 1, 0, 0), (0, 1, 0, 1, 0)]))
    assert np.allclose(found, scale * np.array([[1, 2], [1, 2], [1, 1]]))
    drawn = table.uniform_draw(np.random.default_rng(0), 20_000)
    drawn[:, 0] = 1
    assert np.allclose(table.tallies(drawn).std(axis=0), 1.0, atol=0.02)
