"""Search spaces against brute force, on spaces small enough to enumerate."""

from __future__ import annotations

import json
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.records import Genotype
from supernets.space import DEPTH, EXPERTS, FFN_WIDTH, HEADS, OPERATOR, TOP_K, Choice, SearchSpace


def options(most: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(1, most), min_size=1, max_size=3).map(lambda sizes: tuple(sorted(sizes)))


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Spaces with and without depth, shared genes, per-layer genes and layers that do not vary."""
    layers = draw(st.integers(1, 3))
    choices = []
    if draw(st.booleans()):
        choices.append(Choice(axis=DEPTH, options=draw(options(layers))))
    if draw(st.booleans()):
        choices.append(Choice(axis=HEADS, options=draw(options(4))))
    for layer in range(layers):
        if draw(st.booleans()):
            choices.append(Choice(axis=FFN_WIDTH, options=draw(options(64)), layer=layer))
        if draw(st.booleans()):
            choices += draw(expert_choices(layer))
    order = draw(st.permutations(range(layers)))
    return SearchSpace("toy", layers, tuple(order), tuple(choices), {OPERATOR: ("reap", "ream", "mone")})


@st.composite
def expert_choices(draw: st.DrawFn, layer: int) -> list[Choice]:
    """Counts, and names that decide nothing beside one count, which the space may have or not."""
    counts = draw(options(8))
    moot = (EXPERTS, draw(st.sampled_from([*counts, 9])))
    return [
        Choice(axis=EXPERTS, options=counts, layer=layer),
        Choice(axis=OPERATOR, options=draw(options(3)), layer=layer, moot=moot),
    ]


@st.composite
def spaces_with_genotypes(draw: st.DrawFn) -> tuple[SearchSpace, Genotype]:
    space = draw(spaces())
    return space, tuple(draw(st.integers(0, len(choice.options) - 1)) for choice in space.choices)


def every_genotype(space: SearchSpace) -> list[Genotype]:
    return list(product(*(range(len(choice.options)) for choice in space.choices)))


@given(spaces_with_genotypes())
def test_canonical_is_idempotent_and_keeps_the_network(case: tuple[SearchSpace, Genotype]) -> None:
    space, genotype = case
    canonical = space.canonical(genotype)
    assert space.canonical(canonical) == canonical
    assert space.decode(canonical) == space.decode(genotype)


@given(spaces_with_genotypes())
def test_encode_inverts_decode(case: tuple[SearchSpace, Genotype]) -> None:
    space, genotype = case
    architecture = space.decode(genotype)
    assert space.encode(architecture) == space.canonical(genotype)
    assert len(architecture.layers) == space.depth_of(genotype)


@given(spaces())
def test_equal_networks_have_equal_canonical_genotypes_keys_and_features(space: SearchSpace) -> None:
    """Size, canonical form, key and feature vector tell apart exactly the distinct networks."""
    genotypes = every_genotype(space)
    networks = {space.decode(genotype) for genotype in genotypes}
    assert space.size == len(networks)
    assert len({space.canonical(genotype) for genotype in genotypes}) == len(networks)
    assert len({network.key for network in networks}) == len(networks)
    vectors = {space.features(space.canonical(genotype)) for genotype in genotypes}
    assert len(vectors) == len(networks)
    assert all(0 <= number <= 1 for vector in vectors for number in vector)


@given(spaces())
def test_json_round_trip(space: SearchSpace) -> None:
    again = SearchSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert again.fingerprint == space.fingerprint


@given(spaces_with_genotypes(), st.integers(0, 1000), st.sampled_from([None, 0.0, 1.0]))
def test_mutation_changes_the_network_and_stays_canonical(
    case: tuple[SearchSpace, Genotype], seed: int, rate: float | None
) -> None:
    space, genotype = case[0], case[0].canonical(case[1])
    mutant = space.mutate(genotype, random.Random(seed), rate)
    assert mutant == space.canonical(mutant)
    can_change = any(
        matters and len(choice.options) > 1
        for choice, matters in zip(space.choices, space.active_genes(genotype), strict=True)
    )
    assert (mutant != genotype) == can_change


@given(spaces())
def test_neighbours_are_distinct_canonical_and_never_the_genotype_itself(space: SearchSpace) -> None:
    for genotype in {space.canonical(g) for g in every_genotype(space)}:
        found = list(space.neighbours(genotype))
        assert len(set(found)) == len(found)
        assert genotype not in found
        assert all(other == space.canonical(other) for other in found)


@given(spaces())
def test_neighbours_in_which_the_same_genes_matter_are_mutual(space: SearchSpace) -> None:
    for genotype in {space.canonical(g) for g in every_genotype(space)}:
        for other in space.neighbours(genotype):
            if space.active_genes(other) == space.active_genes(genotype):
                assert genotype in set(space.neighbours(other))


@given(spaces())
def test_uniform_lists_exactly_the_uniform_networks_of_shared_options(space: SearchSpace) -> None:
    """Where every layer has the axis; a layer without its own gene cannot be resized."""
    axes = {tuple(axis for axis, _ in layer.units) for layer in space.decode(space.largest).layers}
    if space.depth_of(space.largest) < space.num_layers or len(axes) != 1:
        return
    shared = {axis: set.intersection(*(set(c.options) for c in space.choices if c.axis == axis)) for axis in space.axes}
    expected = {
        space.canonical(genotype)
        for genotype in every_genotype(space)
        if space.decode(genotype).is_uniform
        and all(size in shared[axis] for axis, size in space.decode(genotype).layers[0].units)
    }
    listed = list(space.uniform())
    assert len(set(listed)) == len(listed)
    assert set(listed) == expected


@given(spaces(), st.integers(0, 1000))
def test_samples_are_canonical_and_a_function_of_the_seed(space: SearchSpace, seed: int) -> None:
    first, second = (space.sample(random.Random(seed)) for _ in range(2))
    assert first == second == space.canonical(first)


def small_space(**changes: object) -> SearchSpace:
    fields: dict[str, object] = {
        "family": "toy",
        "num_layers": 2,
        "layer_order": (1, 0),
        "choices": (Choice(axis=DEPTH, options=(1, 2)), Choice(axis=HEADS, options=(2, 4), layer=0)),
    }
    return SearchSpace(**{**fields, **changes})  # type: ignore[arg-type]


def test_depth_keeps_the_most_important_layers_in_forward_order() -> None:
    space = small_space(num_layers=3, layer_order=(2, 0, 1), choices=(Choice(axis=DEPTH, options=(1, 2, 3)),))
    kept = [[layer.index for layer in space.decode((gene,)).layers] for gene in range(3)]
    assert kept == [[2], [0, 2], [0, 1, 2]]


def test_a_gene_of_a_dropped_layer_does_not_count() -> None:
    space = small_space()
    assert space.canonical((0, 1)) == (0, 0)
    assert space.size == 3


def test_largest_smallest_and_middle() -> None:
    space = small_space()
    assert (space.smallest, space.middle, space.largest) == ((0, 0), (1, 1), (1, 1))
    assert [layer.index for layer in space.decode(space.smallest).layers] == [1]


def test_another_layer_order_is_another_space() -> None:
    assert small_space().fingerprint != small_space().reordered((0, 1)).fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_order": (0, 0)}, "layer_order must be a permutation of 0..1"),
        ({"choices": (Choice(axis=HEADS, options=(2,)),) * 2}, "every choice must have its own name"),
        ({"choices": (Choice(axis=HEADS, options=(2,), layer=2),)}, "layer2.heads is outside the 2 layers"),
        ({"choices": (Choice(axis=DEPTH, options=(3,)),)}, "depth 3 exceeds the 2 layers"),
        (
            {"choices": (Choice(axis=OPERATOR, options=(1, 3)),), "labels": {OPERATOR: ("reap", "ream")}},
            "operator offers option 3 of 2 names",
        ),
        (
            {"choices": (Choice(axis=OPERATOR, options=(1,), layer=0, moot=(EXPERTS, 8)),)},
            "layer0.operator is moot by experts, which must be a choice beside it",
        ),
        (
            {"choices": (Choice(axis=EXPERTS, options=(1, 4)), Choice(axis=TOP_K, options=(1, 2)))},
            "goes down to 1 experts, but top_k up to 2: a token cannot choose more experts than there are",
        ),
    ],
)
def test_impossible_spaces_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_space(**changes)


@pytest.mark.parametrize("sizes", [(), (4, 2), (2, 2), (0, 2)])
def test_impossible_options_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="options of heads must be distinct positive integers in ascending order"):
        Choice(axis=HEADS, options=sizes)


@pytest.mark.parametrize(
    ("genotype", "message"), [((0,), "has 2 genes, got 1"), ((0, 2), "layer0.heads has 2 options, got index 2")]
)
def test_impossible_genotypes_are_refused(genotype: Genotype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_space().decode(genotype)


def test_an_architecture_of_another_space_is_refused() -> None:
    wider = small_space(choices=(Choice(axis=DEPTH, options=(1, 2)), Choice(axis=HEADS, options=(2, 8), layer=0)))
    with pytest.raises(ValueError, match=r"layer0.heads offers \(2, 4\), not 8"):
        small_space().encode(wider.decode(wider.largest))
    with pytest.raises(ValueError, match="does not contain the architecture"):
        small_space().encode(small_space(layer_order=(0, 1)).decode((0, 0)))


@pytest.mark.parametrize("content", [{}, {"family": "toy", "num_layers": 1, "layer_order": [0], "choices": [1]}])
def test_json_of_something_else_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a search space"):
        SearchSpace.from_json(content)


def expert_space() -> SearchSpace:
    """One layer of 2 or 8 experts; how they are reduced has names."""
    choices = (
        Choice(axis=EXPERTS, options=(2, 8), layer=0),
        Choice(axis=OPERATOR, options=(1, 2, 3), layer=0, moot=(EXPERTS, 8)),
    )
    return SearchSpace("toy", 1, (0,), choices, {OPERATOR: ("reap", "ream", "mone")})


def test_a_name_that_decides_nothing_is_left_out() -> None:
    space = expert_space()
    assert [space.decode(genotype).key for genotype in every_genotype(space)] == [
        "0:experts=2,operator=reap",
        "0:experts=2,operator=ream",
        "0:experts=2,operator=mone",
        *["0:experts=8"] * 3,
    ]
    assert space.size == 4
    assert space.features((0, 1)) == (1.0, 0.25, 0.0, 1.0, 0.0)
    assert space.features((1, 0)) == (1.0, 1.0, 0.0, 0.0, 0.0)


def test_names_are_one_step_apart() -> None:
    space = expert_space()
    assert sorted(space.neighbours((0, 0))) == [(0, 1), (0, 2), (1, 0)]


def test_an_unknown_name_is_refused() -> None:
    space = expert_space()
    other = SearchSpace("toy", 1, (0,), space.choices, {OPERATOR: ("reap", "dern", "mone")})
    with pytest.raises(ValueError, match="layer 0 of the architecture says nothing about operator that is known"):
        space.encode(other.decode((0, 1)))


def test_spaces_without_names_keep_their_fingerprint() -> None:
    """Studies refer to it."""
    assert set(small_space().to_json()) == {"family", "num_layers", "layer_order", "choices"}
    assert all(set(choice) == {"axis", "layer", "options"} for choice in small_space().to_json()["choices"])
