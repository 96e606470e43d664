"""What every file in `nas/objectives` promises, on an encoder that classifies and on experts that predict text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from random import Random

import pytest

from nas.objective import OBJECTIVES, Bindings, BoundObjective, bind
from tests.toy_bindings import tiny_bindings
from tests.toy_experts import expert_bindings

NAMES = OBJECTIVES.names()
MODELS: dict[str, Callable[[], Bindings]] = {"encoder": tiny_bindings, "experts": cache(expert_bindings)}


@pytest.fixture(scope="module", params=MODELS)
def bindings(request: pytest.FixtureRequest) -> Bindings:
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def bound(bindings: Bindings) -> dict[str, BoundObjective]:
    return {name: bind(name, bindings) for name in NAMES}


def test_the_shipped_objectives_are_found() -> None:
    assert set(NAMES) >= {"active-parameters", "divergence", "error", "latency", "macs", "memory", "nll", "parameters"}


@pytest.mark.parametrize("name", NAMES)
def test_values_are_finite_named_and_with_a_unit(
    name: str, bindings: Bindings, bound: dict[str, BoundObjective]
) -> None:
    space, objective = bindings.supernet.space, bound[name].objective
    assert objective.name == objective.key == name
    assert objective.unit
    for genotype in (space.smallest, space.middle, space.largest):
        value = bound[name].evaluate(genotype)
        assert value.objective == objective.key
        assert math.isfinite(value.number)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_values_in_any_order_and_company(
    name: str, bindings: Bindings, bound: dict[str, BoundObjective]
) -> None:
    again = replace(bindings)
    rng = Random(0)
    genotypes = [again.supernet.space.sample(rng) for _ in range(5)]
    first = [bound[name].evaluate(genotype) for genotype in genotypes]
    other = bind(name, again)
    assert [other.evaluate(genotype) for genotype in reversed(genotypes)] == first[::-1]


@pytest.mark.parametrize("name", NAMES)
def test_an_exact_cost_grows_with_every_gene(name: str, bindings: Bindings, bound: dict[str, BoundObjective]) -> None:
    if not bound[name].exact:
        return
    space = bindings.supernet.space
    costs = []
    for gene, index in enumerate(space.largest):
        if index:
            smaller = space.canonical((*space.largest[:gene], index - 1, *space.largest[gene + 1 :]))
            costs.append([bound[name].evaluate(g).number for g in (smaller, space.largest)])
    assert all(smaller <= largest for smaller, largest in costs)
    assert any(smaller < largest for smaller, largest in costs)
    if "experts" not in space.axes and name != "memory":
        assert all(smaller < largest for smaller, largest in costs)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_settings_are_refused(name: str, bindings: Bindings) -> None:
    with pytest.raises(ValueError, match="depht"):
        bind(f"{name}:depht=3", bindings)
