"""What follows a search, where costs are limited only, nothing is timed, or the networks are for another machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nas.fit import fit
from nas.searching import open_supernet, search_supernet
from nas.stock import uniform_front
from studies.errors import LimitError
from studies.records import Provenance, Value
from studies.store import StudyStore
from tests.toy_job import ToyJob, copied


def test_latency_may_be_limited_without_being_an_objective(fitted: ToyJob, tmp_path: Path) -> None:
    """Few networks of such a front are timed; the exports are chosen among those."""
    output = copied(fitted, tmp_path).workspace.root
    asked = fitted.fit_request(
        output,
        study_name="limited",
        algorithm="random",
        objectives=("divergence", "parameters"),
        limits={"latency": 1e3},
    )
    result = fit(replace(asked, search=replace(asked.search, finalists=1)))
    timed: frozenset[Provenance] = frozenset({"extracted"})
    assert None in [e.value("latency", timed) for e in result.front.evaluations], "not all of the front is timed"
    assert result.exports
    assert all(export.evaluation.value("latency", timed) for export in result.exports)


def test_a_sample_is_judged_on_all_examples_though_nothing_is_timed(fitted: ToyJob, tmp_path: Path) -> None:
    opened = open_supernet(fitted.workspace.supernet)
    asked = fitted.fit_request(algorithm="random", objectives=("error", "macs"), budget=14).search
    with StudyStore.open(f"sqlite:///{tmp_path / 'n.db'}") as store:
        front = search_supernet(replace(asked, evaluation_examples=5, finalists=0), opened, store)
    assert [e.genotype for e in front.evaluations] != [opened.supernet.space.largest]
    assert {front.value(e, front.objectives[0]).data_fraction for e in front.evaluations} == {1.0}


def test_limits_of_another_machine_are_not_judged_by_this_one(
    fitted: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[list[str]] = []

    def spy(limits: dict[str, float], *rest: object) -> None:
        judged.append(list(limits))
        raise LimitError("far enough")

    monkeypatch.setattr("nas.fit.require_possible", spy)
    asked = fitted.fit_request(tmp_path / "elsewhere", limits={"latency": 1e-6, "parameters": 1e9})
    for target in (None, "cpu-elsewhere"):
        with pytest.raises(LimitError, match="far enough"):
            fit(replace(asked, search=replace(asked.search, target=target)))
    assert judged == [["latency", "parameters"], ["parameters"]]


def test_networks_over_a_limit_are_on_no_front_of_stock_networks(fitted: ToyJob, tmp_path: Path) -> None:
    opened = open_supernet(fitted.workspace.supernet)
    asked = fitted.fit_request(algorithm="guided", objectives=("error", "macs"), limits={"macs": 1e12}).search
    with StudyStore.open(f"sqlite:///{tmp_path / 'n.db'}") as store:
        searched = search_supernet(asked, opened, store)
        before = store.evaluations_within_limits("study", searched.allowed)
        stock = uniform_front(searched, before, opened.supernet)
        smallest = stock.evaluations[0].genotype
        store.add_values("study", smallest, [Value(objective="macs", number=1e13, provenance="computed")])
        front = store.front("study")
        within = store.evaluations_within_limits("study", front.allowed)
    assert smallest in {e.genotype for e in before}
    assert smallest not in {e.genotype for e in within}
    assert smallest not in {e.genotype for e in uniform_front(front, within, opened.supernet).evaluations}
