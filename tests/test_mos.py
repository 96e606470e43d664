"""The study of supernet quality: its figures against other ways to compute them, and the whole of it in miniature."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from supernets.family import SpaceOptions
from tests.benchmarks import mos, mos_arms, mos_bench, mos_statistics
from tests.benchmarks.mos_arms import ARMS, plain_twin
from tests.benchmarks.mos_report import best_mixture, draw, recommend, report
from tests.benchmarks.mos_statistics import Study, kendall, spearman
from tests.toy_job import ToyJob

Rows = dict[tuple[Any, ...], dict[str, Any]]
PLAIN, MIXED = "instatune", "instatune + neuron"
GOOD = "sandwich"


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mos_statistics, "DRAWS", 60)


def made_up_rows(networks: int = 40, twice: int = 12, seed: int = 0) -> Rows:
    """Arm `GOOD` ranks nearly as the truth, and far below it; the others rank badly, the mixture at half the gap."""
    rng = np.random.default_rng(seed)
    truth = 0.6 + 0.3 * rng.random(networks)
    rows: Rows = {
        ("truth", i, 0): {"accuracy": float(truth[i]), "loss": float(1 - truth[i]), "seconds": 1.0}
        for i in range(networks)
    }
    for i in range(twice):
        again = float(truth[i] + 0.002 * rng.normal())
        rows["truth", i, 1] = {"accuracy": again, "loss": 1 - again, "seconds": 1.0}
    latency = 10 + 40 * rng.random(networks)
    rows["costs",] = {name: [float(x) for x in latency] for name in ("parameters", "macs", "latency")}
    for name, gap, noise, pace in ((GOOD, 0.1, 0.005, 1.4), (PLAIN, 0.08, 0.1, 1.4), (MIXED, 0.04, 0.1, 1.75)):
        rows["pace", name] = {"ratios": [pace], "memory_bytes": 2**20}
        for at in range(3):
            found = [float(x) for x in truth - gap + noise * rng.normal(size=networks)]
            onward = [{"network": 0, "curve": [[0, 1.0, 0.0], [20, 1.0, 0.5], [40, 1.0, 1.0]]}] if at == 0 else []
            row = {"accuracies": found, "losses": [1 - x for x in found], "steps": [7], "seconds": 2.0}
            rows["arm", name, at] = row | {"onward": onward}
    return rows


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.integers(0, 99))
def test_rank_correlations_are_scipys(values: list[int], seed: int) -> None:
    other = np.random.default_rng(seed).integers(0, 6, size=len(values))
    constant = len(set(values)) == 1 or len(set(other.tolist())) == 1
    expected = [0.0 if constant else how(values, other).statistic for how in (kendalltau, spearmanr)]
    assert [kendall(values, other), spearman(values, other)] == pytest.approx(expected)


def test_figures_of_made_up_rows() -> None:
    rows = made_up_rows()
    study = Study.of(rows)
    for arm, gap in ((GOOD, 0.1), (PLAIN, 0.08), (MIXED, 0.04)):
        mean, low, high = study.gap(arm)
        assert low < mean < high
        assert mean == pytest.approx(gap, abs=0.03)
        assert study.loss_gap(arm) == pytest.approx(mean)
    assert study.gap(GOOD)[2] - study.gap(GOOD)[1] < study.gap(PLAIN)[2] - study.gap(PLAIN)[1]
    taus = [kendalltau(study.alone_N, one_N).statistic for one_N in study.inherited[GOOD]]
    assert study.tau(GOOD)[0] == pytest.approx(np.mean(taus))
    assert study.tau_difference(GOOD, PLAIN)[1] > 0
    assert study.steps_to_alone(GOOD) == 40
    assert (study.ceiling() or 0) > 0.9
    closed = study.closed(GOOD)
    assert closed is not None
    assert closed[1] > 0
    assert best_mixture(study) == (MIXED, PLAIN)
    assert recommend(study) == GOOD
    assert study.gap_ratio(MIXED, PLAIN)[0] == pytest.approx(study.gap(MIXED)[0] / study.gap(PLAIN)[0])
    by_loss = study.by_loss()  # a made-up loss is one minus the accuracy
    assert by_loss.ceiling() == study.ceiling()
    assert by_loss.tau(PLAIN) == pytest.approx(study.tau(PLAIN))
    assert by_loss.gap(PLAIN)[0] == pytest.approx(study.loss_gap(PLAIN))
    difference = study.gap_difference(MIXED, PLAIN)
    assert difference[0] == pytest.approx(study.gap(MIXED)[0] - study.gap(PLAIN)[0])
    assert difference[2] < 0
    volumes = [study.hypervolumes_S(arm) for arm in (MIXED, PLAIN)]
    assert study.hypervolume_wins(MIXED, PLAIN) == sum(volumes[0] >= volumes[1])


def test_no_gap_has_no_ratio() -> None:
    study = Study.of(made_up_rows())
    better = replace(study, alone_N=study.alone_N - 0.3)
    assert np.isnan(better.gap_ratio(MIXED, PLAIN)).all()
    assert better.gap_difference(MIXED, PLAIN) == pytest.approx(study.gap_difference(MIXED, PLAIN))


def test_longer_training_is_compared_with_longer_training() -> None:
    rows, longer = made_up_rows(), {GOOD: "single-path-distilled, 4 x", MIXED: "single-path-distilled + layer, 4 x"}
    for (kind, name, *seed), row in [item for item in rows.items() if item[0][1:] and item[0][1] in longer]:
        rows[kind, longer[name], *seed] = row
    study = Study.of(rows)
    assert best_mixture(study) == (MIXED, PLAIN)
    assert best_mixture(study, 4) == (longer[MIXED], longer[GOOD])
    assert recommend(study) == GOOD


def test_a_part_of_the_networks_is_scored_as_if_the_others_were_never_there() -> None:
    rows = made_up_rows(networks=10, twice=5)
    left = {key: row for key, row in rows.items() if key[0] != "truth" or key[1] % 2 == 0}
    part, alone = Study.of(rows).part(slice(0, None, 2)), Study.of(left)
    assert part.networks == alone.networks
    for figure in (Study.gap, Study.tau, Study.loss_gap):
        assert figure(part, MIXED) == figure(alone, MIXED)
    assert part.ceiling() == alone.ceiling()
    assert part.proxies() == alone.proxies()
    assert part.hypervolumes_S(MIXED).tolist() == alone.hypervolumes_S(MIXED).tolist()


@pytest.mark.parametrize(
    "kinds", [{"truth"}, {"truth", "pace"}, {"truth", "pace", "arm"}, {"truth", "pace", "arm", "costs"}]
)
def test_a_report_of_what_there_is_ends_with_its_keys(
    kinds: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = {key: row for key, row in made_up_rows().items() if key[0] in kinds and (key[0], key[-1]) != ("truth", 1)}
    report(rows)
    last = capsys.readouterr().out.splitlines()[-1]
    found = json.loads(last.removeprefix("RESULT "))
    assert list(found) == [
        "recipes",
        "proxies",
        "noise_ceiling_tau",
        "gap_ratio",
        "hypervolume_wins",
        "step_ratio",
        "recommended",
    ]
    for figures in found["recipes"].values():
        assert list(figures) == ["gap", "gap_sd", "tau", "spearman", "steps_to_alone", "seconds"]
    draw(rows, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")


def test_every_mixture_has_a_twin_and_every_arm_is_done_for_every_seed() -> None:
    assert all(ARMS[plain_twin(name)] == replace(arm, mixture={}, halves=False) for name, arm in ARMS.items())
    keys = list(mos.keys())
    assert len(set(keys)) == len(keys) == 60 + 15 + 1 + len(ARMS) * 4
    for at, key in enumerate(keys):
        assert key[0] != "arm" or ("pace", key[1]) in keys[:at]


def test_the_study_in_miniature(
    fitted: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that is done is kept, nothing is done twice, and a repetition of it agrees."""
    sizes = {
        "SUPERNET_BATCH_SIZE": 8,
        "NETWORKS": 4,
        "TWICE": 2,
        "SEEDS": 1,
        "ALONE_STEPS": 2,
        "JUDGED": 4,
        "BUDGET": 3,
        "PACED_STEPS": 4,
    }
    for module in (mos, mos_arms, mos_bench):
        for name, value in {**sizes, "ONWARD_NETWORKS": 1, "ONWARD_EVERY": 2, "CACHE": tmp_path}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(mos_bench, "SPACE", SpaceOptions(head_options=2, width_options=2))
    chosen = {name: ARMS[name] for name in ("instatune", "instatune + layer", "instatune, 2 supernets")}
    for module in (mos, mos_arms):
        monkeypatch.setattr(module, "ARMS", chosen)
    bench, path = mos_bench.Bench.open(fitted.workspace.teacher, fitted.data, tmp_path), tmp_path / "rows.jsonl"
    assert mos.work(bench, path, 0.0, slice(None)) == len(list(mos.keys())) == 4 + 2 + 1 + 3 * 2
    assert mos.work(bench, path, 10.0, slice(None)) == 0
    written = path.read_text()
    again = mos_bench.Bench.open(fitted.workspace.teacher, fitted.data, tmp_path)
    assert again.identity == bench.identity
    assert mos.work(again, path, 10.0, slice(None)) == 0
    assert path.read_text() == written
    rows = mos.stored_rows(path)
    assert {row["setting"] for row in rows.values()} == {bench.identity}
    halves = rows["arm", "instatune, 2 supernets", 0]
    assert len(halves["steps"]) == 2
    assert len(halves["accuracies"]) == 4
    assert all(row["onward"][0]["curve"][-1][0] == 2 for key, row in rows.items() if key[0] == "arm")
    mos.check_sample(again, rows)
    assert capsys.readouterr().out.count("sample: ") == 3
    changed = {key: row | {"accuracy": row["accuracy"] + 0.5} for key, row in rows.items() if key[0] == "truth"}
    with pytest.raises(SystemExit, match="the repetition differs by"):
        mos.check_sample(again, changed)
    report(rows)
    assert '"step_ratio": ' in capsys.readouterr().out
