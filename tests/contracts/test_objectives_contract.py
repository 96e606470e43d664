"""What every file in `nas/objectives` promises."""

from __future__ import annotations

import math
from random import Random

import pytest

from nas.objective import OBJECTIVES, BoundObjective, bind
from tests.toy_bindings import tiny_bindings

NAMES = OBJECTIVES.names()


@pytest.fixture(scope="module")
def bound() -> dict[str, BoundObjective]:
    bindings = tiny_bindings()
    return {name: bind(name, bindings) for name in NAMES}


def test_the_shipped_objectives_are_found() -> None:
    assert set(NAMES) >= {"error", "latency", "macs", "memory", "parameters"}


@pytest.mark.parametrize("name", NAMES)
def test_values_are_finite_named_and_with_a_unit(name: str, bound: dict[str, BoundObjective]) -> None:
    space, objective = tiny_bindings().supernet.space, bound[name].objective
    assert objective.name == objective.key == name
    assert objective.unit
    for genotype in (space.smallest, space.middle, space.largest):
        value = bound[name].evaluate(genotype)
        assert value.objective == objective.key
        assert math.isfinite(value.number)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_values_in_any_order(name: str, bound: dict[str, BoundObjective]) -> None:
    again = tiny_bindings()
    rng = Random(0)
    genotypes = [again.supernet.space.sample(rng) for _ in range(5)]
    first = [bound[name].evaluate(genotype) for genotype in genotypes]
    other = bind(name, again)
    assert [other.evaluate(genotype) for genotype in reversed(genotypes)] == first[::-1]


@pytest.mark.parametrize("name", NAMES)
def test_an_exact_cost_grows_with_every_gene(name: str, bound: dict[str, BoundObjective]) -> None:
    if not bound[name].exact:
        return
    space = tiny_bindings().supernet.space
    for gene in range(len(space)):
        smaller = space.canonical((*space.largest[:gene], space.largest[gene] - 1, *space.largest[gene + 1 :]))
        smaller_cost, largest_cost = (bound[name].evaluate(g).number for g in (smaller, space.largest))
        assert smaller_cost < largest_cost or name == "memory"
        assert smaller_cost <= largest_cost


@pytest.mark.parametrize("name", NAMES)
def test_unknown_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="depht"):
        bind(f"{name}:depht=3", tiny_bindings())
