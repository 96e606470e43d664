"""Pictures of expert layouts, from what a study knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cli.layouts import Layouts
from studies.layout_book import LayerExperts
from studies.records import Evaluation, Study
from studies.store import StudyStore
from supernets.space import DEPTH, EXPERTS, OPERATOR, Choice, SearchSpace
from tests.contracts.test_store_contract import STUDY

SPACE = SearchSpace(
    "moe",
    3,
    (2, 0, 1),
    (
        Choice(axis=DEPTH, options=(2, 3)),
        Choice(axis=EXPERTS, options=(2, 8, 16), layer=1),
        Choice(axis=OPERATOR, options=(1, 2), layer=1, moot=(EXPERTS, 16)),
        Choice(axis=EXPERTS, options=(1, 16), layer=2),
    ),
    {OPERATOR: ("reap", "uncurl")},
)
KNOWN = (1, 0, 1, 1)
LAYERS = [
    LayerExperts(layer=1, operator="uncurl", experts=2, top_k=2, width=8, kept=(0, 1)),
    LayerExperts(layer=2, operator="", experts=16, top_k=2, width=8, kept=tuple(range(16))),
]


@pytest.fixture
def layouts(tmp_path: Path) -> Layouts:
    study = replace(STUDY, space=SPACE.to_json())
    with StudyStore.open(f"sqlite:///{tmp_path / 's.db'}") as store:
        store.create_or_resume(study)
        store.append("demo", [Evaluation(genotype=KNOWN)])
        assert Layouts.of(store, study) is None
        store.put_layouts("demo", {KNOWN: LAYERS})
        found = Layouts.of(store, study)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("genotype", "skyline"), [(KNOWN, "▁█"), ((1, 1, 0, 0), "▄▁"), ((1, 2, 0, 1), "██"), ((0, 0, 0, 1), "·█")]
)
def test_a_skyline_has_one_height_a_layer(layouts: Layouts, genotype: tuple[int, ...], skyline: str) -> None:
    assert layouts.skyline(genotype) == skyline


def test_a_picture_has_one_line_a_layer(layouts: Layouts) -> None:
    assert layouts.picture(KNOWN).splitlines() == [
        "  1 ██               2/16 top-2 uncurl",
        "  2 ████████████████ 16/16 top-2",
    ]
    assert layouts.picture((0, 0, 0, 1)).splitlines()[0].endswith("dropped")


def test_nothing_is_drawn_of_networks_without_experts(tmp_path: Path) -> None:
    study: Study = replace(STUDY, name="plain")
    with StudyStore.open(f"sqlite:///{tmp_path / 'p.db'}") as store:
        store.create_or_resume(study)
        assert Layouts.of(store, study) is None
