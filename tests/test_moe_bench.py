"""The mixture-of-experts benchmark on a subject of two layers: its rows, its ways to choose, and what it concludes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas.domain_texts import DOMAINS
from nas.moe_subject import LENGTH, Subject, TrainingSequences, prepare_subject
from predictors.latency_table import LatencyTable
from supernets.repair import repair_named
from tests.benchmarks import moe, moe_layouts, moe_operators, moe_thresholds, moe_verdicts
from tests.benchmarks.moe_bench import EVERYTHING, Bench, Sizes, greedy
from tests.benchmarks.moe_jobs import Job, Rows, work
from tests.benchmarks.moe_report import report

SIZES = Sizes(calibration=8, validation=8, test=3, prompts=1)
TINY = Subject(experts=8, top_k=2, width=16, hidden=16, layers=2, steps=40, repeats=1)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for domain in DOMAINS:
        (folder / domain).mkdir()
        for split in ("train", "calibration", "validation", "test"):
            rng = random.Random(f"{domain} {split}")
            words = [f"{domain}{rng.randrange(9)}" for _ in range(300)]
            (folder / domain / f"{split}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="module")
def bench(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("cache"), TINY, SIZES, texts)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("router-kd", "task-fine-tuning"):
        repair = repair_named(name)
        monkeypatch.setattr(type(repair), "defaults", replace(repair.defaults, steps=2, learning_rate=0.1))


# -- rows -------------------------------------------------------------------------------------------------------------


def test_rows_outlive_the_program_and_are_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def twice(number: int) -> dict[str, int]:
        calls.append(number)
        return {"twice": 2 * number}

    def jobs() -> Iterator[Job]:
        for number in range(3):
            yield Job({"part": "numbers", "n": number}, partial(twice, number))

    path = tmp_path / "rows.jsonl"
    assert work(jobs(), Rows(path), 0.0) == 3
    assert work(jobs(), Rows(path), 1e9) == 0
    assert work(jobs(), Rows(path), 1e9) == 0
    assert calls == [0, 1, 2]
    rows = Rows(path)
    assert [(row["n"], row["twice"]) for row in rows.of("numbers")] == [(0, 0), (1, 2), (2, 4)]
    assert list(rows.of("other")) == []
    assert [rows.row(job)["n"] for job in jobs()] == [0, 1, 2]
    assert path.read_text().count('"torch"') == 1  # versions are written once


# -- a subject --------------------------------------------------------------------------------------------------------


def test_a_subject_is_made_once_and_sees_every_domain(bench: Bench, texts: Path) -> None:
    assert prepare_subject(bench.folder.parent, TINY, texts) == bench.folder
    draw = TrainingSequences(texts, replace(TINY, repeats=2))
    assert draw(0).shape == (2 * len(DOMAINS), LENGTH)
    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))


def test_text_of_splits_and_scopes(bench: Bench) -> None:
    assert bench.sequences("test", EVERYTHING).shape == (3 * len(DOMAINS), LENGTH)
    assert bench.sequences("calibration", "python").shape == (8, LENGTH)
    assert bench.sequences("calibration", EVERYTHING).shape == (8, LENGTH)
    mixed = torch.cat([batch["input_ids"] for batch in bench.batches("test", EVERYTHING)])
    assert sorted(mixed.tolist()) == sorted(bench.sequences("test", EVERYTHING).tolist())
    assert torch.equal(mixed[: len(DOMAINS)], bench.sequences("test", EVERYTHING)[::3])


def test_the_full_model_agrees_with_itself(bench: Bench) -> None:
    judged = bench.judge(bench.model, "python")
    assert judged.overlap == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        ids = bench.sequences("test", "python")
        loss = bench.model(input_ids=ids, labels=ids).loss
    assert float(judged.nll_N.mean()) == pytest.approx(float(loss), rel=1e-5)


def test_greedy_writes_what_is_most_probable(bench: Bench) -> None:
    ids = bench.sequences("test", "python")[:2, :10]
    written = greedy(bench.model, ids, 3)
    for _ in range(3):
        with torch.no_grad():
            ids = torch.cat([ids, bench.model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, ids[:, 10:])


def test_keeping_all_experts_changes_nothing(bench: Bench) -> None:
    for operator in ("reap", "uncurl"):
        student = bench.student(operator, [8, 8], "python")
        assert bench.judge(student, "python").nll_N.tolist() == bench.judge(bench.model, "python").nll_N.tolist()


def test_rows_of_operators(bench: Bench) -> None:
    cells = [("full", 100, "none"), ("reap", 50, "none"), ("ream", 50, "none"), ("reap", 50, "router-kd")]
    found = [moe_operators.job("tiny", lambda: bench, "python", *cell).run() for cell in cells]
    losses = [tuple(row["loss"]) for row in found]
    assert all(len(loss) == 3 for loss in losses)
    assert len(set(losses)) == len(losses)
    assert found[0]["overlap"] == 1.0 > max(row["overlap"] for row in found[1:])
    planned = [job.identity for job in moe_operators.jobs("tiny", lambda: bench, thorough=True)]
    assert len(planned) == len(set(planned))


def test_an_average_is_an_average(bench: Bench) -> None:
    assert moe_operators.averaging_job("tiny", lambda: bench).run()["difference"] < 1e-4


def test_planted_experts_are_found_and_can_be_protected(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe_operators, "PLANTED_LAYER", 0)
    monkeypatch.setattr(moe_operators, "PLANTED_STEPS", 1)
    jobs = {(job.key["operator"], job.key["protect"]): job for job in moe_operators.planted_jobs("t", lambda: bench)}
    kept, free = (jobs["random", protect].run() for protect in (1, 0))
    assert kept["planted_found"]
    assert kept["super_experts"] == free["super_experts"]
    assert kept["full_loss"] == free["full_loss"]


def test_fine_tuned_rows(bench: Bench) -> None:
    jobs = {tuple(job.key.values())[2:]: job for job in moe_thresholds.jobs("t", lambda: bench, 8, 2, steps=2)}
    assert set(jobs) == {
        *product(moe_thresholds.DOMAINS, ["scratch"], [8]),
        *product(moe_thresholds.DOMAINS, moe_thresholds.OPERATORS, [4, 2]),
    }
    scratch, reduced = jobs["python", "scratch", 8].run(), jobs["python", "uncurl", 4].run()
    assert scratch["experts"] == reduced["experts"] == 8
    assert scratch["loss"] != reduced["loss"]


# -- layouts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def layouts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> moe_layouts.Layouts:
    """With latencies counted instead of measured."""

    @cache
    def table(found: moe_layouts.Layouts) -> LatencyTable:
        space, supernet = found.space, found.supernet
        choices = product(("reap", "m-smoe", "mone"), range(2, 9), (1, 2))
        every = [space.decode(found.genotype(operator, [n, n], k)) for operator, n, k in choices]
        ops = [op for one in every for op in supernet.ops(one, moe_layouts.CONTEXT)]
        return LatencyTable(device="none", seconds={op.key: 1e-9 * op.flops + 1e-6 for op in ops})

    monkeypatch.setattr(moe_layouts.Layouts, "__hash__", object.__hash__)
    monkeypatch.setattr(moe_layouts.Layouts, "table", property(table))
    monkeypatch.setattr(moe_layouts.Layouts, "measured", lambda self, g: self.exact(g)[:, 2].tolist())
    return moe_layouts.Layouts(bench, "python")


def test_costs_add_up_over_layers(layouts: moe_layouts.Layouts) -> None:
    rng = random.Random(0)
    genotypes = [layouts.space.sample(rng) for _ in range(5)]
    for genotype, row in zip(genotypes, layouts.exact(genotypes), strict=True):
        architecture = layouts.space.decode(genotype)
        seconds = layouts.table.predict(layouts.supernet.ops(architecture, moe_layouts.CONTEXT), moe_layouts.CONTEXT)
        assert row[1] == 4 * layouts.supernet.count_parameters(architecture)
        assert row[2] == pytest.approx(seconds.seconds)
    uniform = layouts.genotype("reap", [4, 4])
    student = layouts.bench.student("reap", [4, 4], "python")
    judged = layouts.bench.judge(student, "python", "validation")
    assert layouts.loss(uniform, "validation") == pytest.approx(float(judged.nll_N.mean()), rel=1e-6)


def test_every_way_offers_layouts_within_its_budget(layouts: moe_layouts.Layouts) -> None:
    rows: dict[str, Any] = {}
    for job in moe_layouts.jobs("tiny", lambda: layouts.bench, "python", budget=12):
        rows[str(job.key["way"])] = job.run()
    assert {way: row["chosen"] for way, row in rows.items()} == {
        "searched": 12,
        "uniform": 14,
        "m-smoe threshold": 7,
        "random": 12,
        "single objective": 3,
    }
    for row in rows.values():
        assert row["bytes"][0] == max(row["bytes"])  # the full network comes first
        assert len(row["genotypes"]) == len(row["test_nll"]) == len(row["seconds"])
        assert all(0 <= volume <= 1 for volume in moe_layouts.hypervolumes(row))


def test_moves_keep_the_sum() -> None:
    rng = random.Random(0)
    counts: tuple[int, ...] = (8, 8, 8, 8)
    for _ in range(200):
        counts = moe_layouts._moved(counts, 2, 16, rng)
        assert sum(counts) == 32
        assert all(2 <= count <= 16 for count in counts)


def test_better_layouts_win() -> None:
    row = {"test_nll": [1.0, 1.5], "bytes": [100, 50], "seconds": [1.0, 0.5]}
    assert moe_layouts.hypervolumes(row) == pytest.approx((0.375, 0.375))
    better = {**row, "way": "searched", "test_nll": [1.0, 1.4]}
    others = [{**row, "way": way} for way in moe_layouts.WAYS[1:]]
    assert moe_layouts.won([better, *others])
    assert not moe_layouts.won([{**better, "seconds": [1.0, 0.7]}, *others])


# -- verdicts ---------------------------------------------------------------------------------------------------------


def _row(subject: str, operator: str, losses: Any, share: int = 50, repair: str = "none") -> dict[str, Any]:
    shared = {"scope": EVERYTHING, "share": share, "repair": repair, "accuracy": 0.5, "overlap": 0.5, "greedy": 0.5}
    return {"subject": subject, "operator": operator, "loss": [round(1000 * x) for x in losses], **shared}


def _table(differences: dict[str, float], noise: float) -> moe_verdicts.Table:
    """Rows of three subjects whose losses share most of their variation."""
    rng = np.random.default_rng(0)
    rows = []
    for subject in ("a", "b", "c"):
        hard_N = rng.normal(2, 1, 50)
        rows.append(_row(subject, "full", hard_N, 100))
        for name, more in differences.items():
            rows.append(_row(subject, name, hard_N + more + rng.normal(0, noise, 50)))
    return moe_verdicts.Table(rows)


def test_pairs_tell_small_differences_from_noise() -> None:
    table = _table({"reap": 0.30, "frequency": 0.35, "random": 0.351}, noise=0.05)

    def versus(better: str, worse: str) -> moe_verdicts.Verdict:
        verdict = table.versus([(EVERYTHING, better, 50, "none")], [(EVERYTHING, worse, 50, "none")])
        assert verdict is not None
        return verdict

    assert versus("reap", "frequency").holds
    assert versus("reap", "frequency").difference == pytest.approx(-0.05, abs=0.02)
    assert not versus("frequency", "reap").holds
    unclear = versus("frequency", "random")
    assert unclear.low < 0 < unclear.high
    assert table.increase((EVERYTHING, "reap", 50, "none")) == pytest.approx(0.3, abs=0.02)
    assert table.versus([(EVERYTHING, "reap", 50, "none")], [(EVERYTHING, "naee", 50, "none")]) is None


def test_a_threshold_is_the_largest_factor_up_to_which_reduced_is_as_good() -> None:
    rng, rows = np.random.default_rng(0), []
    scratch = {2: 1.3, 4: 1.2, 8: 1.1}
    reduced = {(8, 4): 1.0, (8, 2): 1.5, (16, 8): 1.2}
    for seed in range(3):
        hard_N = rng.normal(0, 0.3, 40)
        for count, mean in scratch.items():
            rows.append((count, "scratch", count, seed, hard_N + mean))
        for (experts, count), mean in reduced.items():
            rows.extend((experts, name, count, seed, hard_N + mean) for name in moe_thresholds.OPERATORS)
    keys = ("experts", "operator", "count", "seed")
    found = [
        {**dict(zip(keys, row, strict=False)), "domain": "python", "loss": [1000 * x for x in row[-1]]} for row in rows
    ]
    assert moe_verdicts.thresholds(found) == {8: 2, 16: 1}


_LAYOUT = {"subject": "a", "scope": EVERYTHING, "test_nll": [1.0, 1.5], "bytes": [9, 4], "seconds": [1.0, 0.5]}
_OTHER_ROWS: list[tuple[str, dict[str, Any]]] = [
    ("logits", {"architecture": "mixtral", "difference": 0.0}),
    ("calibration", {"subject": "a", "ratio": 1.25}),
    ("planted", {"operator": "reap", "protect": 1, "loss": [1500], "full_loss": 1000, "planted_found": True}),
    ("averaging", {"subject": "a", "difference": 1e-6}),
    ("top-k", {"subject": "top-4", "top_k": 2, "loss": [1250]}),
    *(("layouts", {**_LAYOUT, "way": way, "half": 0.25}) for way in moe_layouts.WAYS[1:]),
    ("layouts", {**_LAYOUT, "way": "searched", "half": 0.05, "test_nll": [1.0, 1.2]}),
]


def test_the_report_has_the_promised_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    for row in _table({"reap": 0.3, "frequency": 0.4, "random": 0.5}, 0.01).rows:
        key = {name: row[name] for name in ("subject", "scope", "operator", "share", "repair")}
        rows.append(Job({"part": "operators", **key}, dict), row)
    for part, values in _OTHER_ROWS:
        rows.append(Job({"part": part, **{k: v for k, v in values.items() if isinstance(v, str | int)}}, dict), values)
    found = report(rows)
    assert list(found) == [
        "operators",
        "orderings",
        "thresholds",
        "hypervolume_wins",
        "hypervolume_seeds",
        "half_experts_ratio_vs_best_uniform",
        "logit_difference",
        "calibration_ratio",
    ]
    assert found["orderings"] == {
        "frequency < random": True,
        "searched < uniform": True,
        "sub-moe at full rank = average": True,
    }
    assert (found["hypervolume_wins"], found["hypervolume_seeds"]) == (1, 1)
    assert found["half_experts_ratio_vs_best_uniform"] == pytest.approx(0.05 / 0.3, rel=0.1)
    assert (found["logit_difference"], found["calibration_ratio"]) == (0.0, 1.25)
    shown = capsys.readouterr().out
    for text in ("frequency < random", "planted super expert", "experts per token", "volume by bytes", "greedy"):
        assert text in shown


def test_all_jobs_differ_and_subjects_train_alike_where_compared() -> None:
    plan = moe.Plan(subjects=moe.subjects())
    keys = [job.identity for job in plan.jobs()]
    assert len(keys) == len(set(keys))
    assert len({subject.name for subject in plan.subjects.values()}) == len(plan.subjects)
