"""The race: its table format, its metrics against brute force, its loop, and every opponent on a tiny table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from nas.algorithm import AlgorithmSettings, Costs, Search
from studies.records import Genotype, Objective
from supernets.space import DEPTH, FFN_WIDTH, Choice, SearchSpace
from tests.benchmarks.race.loop import STALE, trace
from tests.benchmarks.race.metrics import front_changes, progress, volume, yardstick
from tests.benchmarks.race.public import macro_table, open_table
from tests.benchmarks.race.rows import missing
from tests.benchmarks.race.runner import NEEDS, OPPONENTS, load
from tests.benchmarks.race.statistics import best_by_mean, median_or_none, paired
from tests.benchmarks.race.tables import (
    Column,
    Table,
    TableProblem,
    TableSpace,
    nominal_genes,
    plain_space,
    read_table,
    write_table,
)
from tests.benchmarks.race.tasks import SYNTHETIC, Task, contest, tasks
from tests.benchmarks.race.transfer import run_transfer, show_transfers, transfer_hashes, transfer_jobs

ERROR = Objective(name="error", unit="fraction")
LATENCY = Objective(name="latency", unit="ms")
SCORE = Objective(name="score", unit="points", goal="max")
SHORTCUTS = {
    "_pymoo.POPULATION": 10,
    "_pymoo.FREE_GENERATIONS": 5,
    "_linas.POPULATION": 12,
    "_linas.INNER_EVALUATIONS": 60,
    "_linas.directions": lambda objectives: np.eye(objectives),
    "_linas.LOOPS": 8,
    "weaknas._TREES": 5,
}
SLOW = {"qnehvi": 25, "optuna-gp": 21, "linas-published": 24, "linas-repaired": 24}
"""Budgets that reach what is behind their random start."""


def tiny_table(*, nominal: bool = False, missing_rows: int = 0) -> Table:
    """Four genes with three options; error falls and latency rises with every gene."""
    genotypes = np.array(list(product(range(3), repeat=4)))
    rng = np.random.default_rng(5)
    weights = np.array([4.0, 3.0, 2.0, 1.0])
    error = 0.5 - 0.02 * (np.sqrt(genotypes) @ weights) + 0.005 * rng.random(len(genotypes))
    latency = 1.0 + genotypes @ weights[::-1] + rng.random(len(genotypes))
    keep = np.arange(len(genotypes)) >= missing_rows
    columns = (
        Column(objective=ERROR, seen=error[keep], scored=error[keep]),
        Column(objective=LATENCY, seen=latency[keep], scored=latency[keep], exact=not nominal),
        Column(objective=SCORE, seen=-(latency[keep] ** 2), scored=-(latency[keep] ** 2)),
    )
    space = plain_space("tiny", [3] * 4, nominal=[nominal] * 4)
    return Table(name="tiny", space=space, genotypes=genotypes[keep], columns=columns)


class TestTables:
    def test_a_written_table_is_read_back(self, tmp_path: Path) -> None:
        table = tiny_table(nominal=True)
        write_table(tmp_path / "tiny.npz", table)
        again = read_table(tmp_path / "tiny.npz")
        assert again.hash == table.hash
        assert nominal_genes(again.space) == (True,) * 4
        assert [column.objective for column in again.columns] == [ERROR, LATENCY, SCORE]

    def test_conditional_genes_aliases_and_repeats_survive(self, tmp_path: Path) -> None:
        choices = [
            Choice(axis=DEPTH, options=(1, 2)),
            *(Choice(axis=FFN_WIDTH, layer=i, options=(8, 16)) for i in (0, 1)),
        ]
        base = SearchSpace("two", 2, (0, 1), tuple(choices))
        space = TableSpace(base.family, 2, base.layer_order, base.choices, aliases={(1, 1, 0): (1, 0, 1)})
        genotypes = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1)]
        seen_NR = np.arange(15.0).reshape(5, 3) ** 1.5
        column = Column(objective=ERROR, seen=seen_NR, scored=seen_NR.mean(axis=1), noise=0.5)
        table = Table(
            name="two", space=space, genotypes=np.array(genotypes), columns=(column,), reference={"error": 9.0}
        )
        write_table(tmp_path / "two.npz", table)
        again = read_table(tmp_path / "two.npz")
        assert again.hash == table.hash
        assert again.reference == {"error": 9.0}
        assert again.space.size == 5
        assert again.space.canonical((0, 1, 1)) == (0, 1, 0)
        assert again.space.canonical((1, 1, 0)) == (1, 0, 1)
        seeds = [TableProblem(again, ["error"], seed=seed) for seed in (0, 0, 1)]
        drawn = [problem.evaluate(genotypes) for problem in seeds]
        assert (drawn[0] == drawn[1]).all()
        assert (drawn[0] != drawn[2]).any()
        assert all(row in seen_NR[i] for i, row in enumerate(drawn[0][:, 0]))
        assert (seeds[0].scored(genotypes)[:, 0] == seen_NR.mean(axis=1)).all()
        assert seeds[0].problem.noise == (0.5,)

    def test_a_plain_archive_is_a_table(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "plain.npz", arch=[[0, 1], [1, 0], [2, 1]], b=[1.0, 2.0, 3.0], a=[3.0, 1.0, 2.0])
        table = read_table(tmp_path / "plain.npz")
        assert [column.objective.name for column in table.columns] == ["a", "b"]
        assert [len(choice.options) for choice in table.space.choices] == [3, 2]

    def test_what_is_seen_may_differ_from_what_is_scored(self, tmp_path: Path) -> None:
        meta = {"objectives": [{"name": "error", "seen": "split A", "scored": "split B"}]}
        np.savez(
            tmp_path / "split.npz",
            arch=[[0], [1]],
            **{"split A": [1.0, 2.0], "split B": [2.0, 1.0], "meta": json.dumps(meta)},  # type: ignore[arg-type]
        )
        problem = TableProblem(read_table(tmp_path / "split.npz"), ["error"])
        assert problem.evaluate([(0,)]) == [[1.0]]
        assert problem.scored([(0,)]) == [[2.0]]

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"a": [1.0]}, "no matrix `arch`"),
            ({"arch": [[0], [1]], "a": [1.0]}, "has 1 rows, arch has 2"),
            ({"arch": [[0], [0]], "a": [1.0, 2.0]}, "repeat a network"),
            ({"arch": [[0]], "a": [1.0], "meta": '{"objectives": [{"name": "b"}]}'}, "needs the column 'b'"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path: Path, arrays: dict[str, object], message: str) -> None:
        np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            read_table(tmp_path / "bad.npz")

    @pytest.mark.parametrize("name", ["table.npz", "table.json"])
    def test_a_damaged_file_is_said_to_be_one(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(bytes(range(200)))
        with pytest.raises(ValueError, match=r"is no NumPy archive|is not NAS-Bench-Macro"):
            open_table("any", tmp_path / name)

    def test_missing_rows_fail_and_cost_the_worst(self) -> None:
        table = tiny_table(missing_rows=3)
        problem = TableProblem(table, ["error", "latency"])
        costs = problem.evaluate([(0, 0, 0, 0), (2, 2, 2, 2)])
        assert np.isinf(costs[0]).all()
        assert np.isfinite(costs[1]).all()
        exact = problem.problem.exact([(0, 0, 0, 0), (2, 2, 2, 2)])
        assert np.isnan(exact[:, 0]).all()
        assert exact[0, 1] == table.columns[1].seen.max()

    def test_a_maximised_column_enters_negated(self) -> None:
        problem = TableProblem(tiny_table(), ["error", "score"])
        assert (problem.evaluate([(1, 1, 1, 1)])[:, 1] > 0).all()

    def test_macro_is_read(self, tmp_path: Path) -> None:
        entry = {"test_acc": [90.0, 91.0, 92.0], "mean_acc": 91.0, "std": 1.0, "params": 2e6, "flops": 3e6}
        (tmp_path / "macro.json").write_text(json.dumps({"00000000": entry, "22222222": entry}))
        table = open_table("macro", tmp_path / "macro.json")
        assert table.column("error").scored.tolist() == [9.0, 9.0]
        assert table.column("flops").exact
        with pytest.raises(ValueError, match="no objective 'latency'"):
            table.column("latency")
        noisy = macro_table(tmp_path / "macro.json", "macro-noisy").column("error")
        assert noisy.seen.shape == (2, 3)
        assert noisy.noise == pytest.approx(1.0)

    def test_graph_encodings_are_closed(self) -> None:
        pytest.importorskip("nas_bench_graph")
        table = open_table("graph-proteins", None)
        rng = np.random.default_rng(0)
        drawn = [tuple(map(int, (rng.integers(9), *rng.integers(5, size=4)))) for _ in range(200)]
        assert all(table.space.canonical(g) in table.rows or set(g[1:]) == {4} for g in drawn)
        assert table.space.size == len(table.rows) + 9


class TestMetrics:
    def test_share_of_the_hypervolume_against_counting(self) -> None:
        rng = np.random.default_rng(1)
        costs = rng.integers(0, 6, size=(12, 3)).astype(float)
        cells = np.array(list(product(range(6), repeat=3))) + 0.5
        counted = sum(bool((costs <= cell).all(axis=1).any()) for cell in cells)
        assert volume(costs, np.full(3, 6.0)) == pytest.approx(counted)
        stick = yardstick(costs)
        assert stick.hypervolume(costs) == pytest.approx(1.0)
        assert 0 < stick.hypervolume(costs[:3]) <= 1.0

    def test_igd_plus_against_loops(self) -> None:
        rng = np.random.default_rng(2)
        costs = rng.random((30, 2))
        stick, found = yardstick(costs), costs[:6]
        scaled = stick.scaled(found)
        expected = np.mean(
            [
                min(math.sqrt(sum(max(f - p, 0.0) ** 2 for p, f in zip(point, row, strict=True))) for row in scaled)
                for point in stick.front_FM
            ]
        )
        assert stick.igd_plus(found) == pytest.approx(float(expected))
        assert stick.igd_plus(costs) == 0.0
        assert stick.igd_plus(np.full((1, 2), np.inf)) == math.inf

    def test_the_front_along_the_way_against_recomputing(self) -> None:
        rng = np.random.default_rng(3)
        costs = rng.integers(0, 8, size=(60, 2)).astype(float)
        costs[::9] = np.inf
        changes = dict(front_changes(costs))
        front: list[int] = []
        for count in range(1, len(costs) + 1):
            front = sorted(changes.get(count, front))
            expected = [
                i
                for i in range(count)
                if np.isfinite(costs[i]).all()
                and not any((costs[j] <= costs[i]).all() and (costs[j] < costs[i]).any() for j in range(count))
            ]
            assert front == expected

    def test_progress_is_scored_by_the_other_costs(self) -> None:
        seen = np.array([[1.0, 1.0], [0.0, 0.0], [0.5, 2.0]])
        scored = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 2.0]])
        stick = yardstick(scored, seen)
        story = progress(seen, scored, stick)
        assert story.front_at(0) == []
        assert story.front_at(1) == [0]
        assert story.front_at(9) == [1]
        assert story.hypervolume_at(1) == 1.0 > story.hypervolume_at(2) == stick.reachable
        assert story.first_to(1.0) == 1
        assert story.first_to(1.1) is None

    def test_the_reference_lies_a_tenth_beyond_the_front(self) -> None:
        stick = yardstick(np.array([[0.0, 10.0], [5.0, 0.0], [9.0, 9.0]]))
        assert stick.front_FM.tolist() == [[0.0, 1.0], [1.0, 0.0]]
        assert stick.volume == pytest.approx(1.1**2 - 1.0)
        assert stick.found(np.array([[5.0, 0.0]])) == 0.5

    def test_statistics(self) -> None:
        pairs = paired({0: 1.0, 1: 3.0, 2: 2.0}, {0: 0.0, 1: 1.0, 5: 7.0})
        assert (pairs.difference, pairs.error, pairs.wins, pairs.seeds) == (1.5, 0.5, 2, 2)
        assert pairs.in_errors == 3.0
        assert median_or_none([3, None, 5]) == 5
        assert median_or_none([3, None, None]) is None
        assert best_by_mean({"b": {0: 1.0}, "a": {0: 1.0}, "c": {}}) == "a"


def fixed(*batches: Sequence[Genotype]) -> Search:
    for batch in batches:
        yield list(batch)


class TestLoop:
    def test_repeats_are_free_and_the_budget_cuts_a_batch(self) -> None:
        problem = TableProblem(tiny_table(), ["error", "latency"])
        asked: list[Genotype] = []

        def evaluate(genotypes: Sequence[Genotype]) -> Costs:
            asked.extend(genotypes)
            return problem.evaluate(genotypes)

        one, two, three, four = [(i, i, 0, 0) for i in (0, 1, 2)] + [(0, 0, 1, 1)]
        found = trace(problem.problem, fixed([one, one], [one, two], [three, four]), evaluate, 3)
        assert list(found.genotypes) == asked == [one, two, three]
        assert len(found.cpu_ms) == 3
        assert (found.costs == problem.evaluate(asked)).all()

    def test_a_search_that_stands_still_ends(self) -> None:
        problem = TableProblem(tiny_table(), ["error", "latency"])
        proposals = 0

        def stubborn() -> Search:
            nonlocal proposals
            while True:
                proposals += 1
                yield [(0, 0, 0, 0)]

        found = trace(problem.problem, stubborn(), problem.evaluate, 10)
        assert len(found.genotypes) == 1
        assert proposals == STALE + 1


@pytest.mark.parametrize("name", OPPONENTS.names())
@pytest.mark.parametrize("case", ["ordered", "nominal-3", "limited-with-holes"])
@pytest.mark.filterwarnings("ignore")
def test_every_opponent_searches_a_tiny_table(name: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    for constant, value in SHORTCUTS.items():
        monkeypatch.setattr(f"tests.benchmarks.race.opponents.{constant}", value)
    table = tiny_table(nominal=case == "nominal-3", missing_rows=5 if "holes" in case else 0)
    objectives = ["error", "latency", "score"][: 3 if case == "nominal-3" else 2]
    limits = {"latency": 12.0} if "limited" in case else {}
    budget = SLOW.get(name, 40)
    traces = []
    for _ in range(1 if name in SLOW else 2):
        problem = TableProblem(table, objectives, limits, seed=3)
        found = trace(problem.problem, load(name)(problem.problem, AlgorithmSettings(seed=3)), problem.evaluate, budget)
        assert all(genotype == table.space.canonical(genotype) for genotype in found.genotypes)
        assert (12 if name == "linas-published" else 20) < len(found.genotypes) <= budget
        if limits:
            assert (problem.problem.exact(found.genotypes)[:, 1] <= 12.0).all()
        traces.append(found.genotypes)
    assert all(each == traces[0] for each in traces)


def test_contests_are_the_same_for_every_competitor() -> None:
    met, again = (contest(Task(table=SYNTHETIC, kind=kind), 0) for kind in ("-limit", "-limit"))
    assert met.hash == again.hash != contest(Task(table=SYNTHETIC), 0).hash
    assert met.problem.limits


def test_a_new_device_needs_latencies_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tiny_table()
    latency = table.columns[1].seen
    both = tuple(
        Column(objective=Objective(name=f"latency_{name}", unit="ms"), seen=seen, scored=seen)
        for name, seen in (("one", latency), ("two", np.sqrt(latency) + latency % 1))
    )
    columns = (table.columns[0], *both)
    write_table(
        tmp_path / "devices.npz",
        Table(name="devices", space=table.space, genotypes=table.genotypes, columns=columns),
    )
    found, _ = tasks({"devices": str(tmp_path / "devices.npz")})
    jobs = transfer_jobs([task for task in found if task.table == "devices"], seeds=1)
    assert [job.task.name for job in jobs] == ["devices-latency_one", "devices-latency_two"]
    row = run_transfer(jobs[1])
    assert 0.9 < row["few"] <= row["full"] <= 1.0
    hashes = transfer_hashes(jobs)
    assert missing(jobs, {jobs[1].key: row}, hashes) == jobs[:1]
    assert missing(jobs[1:], {jobs[1].key: {**row, "table": "another"}}, hashes) == jobs[1:]
    shares = show_transfers([row])
    assert shares == {"devices-latency_two": pytest.approx(row["few"] / row["full"], abs=1e-5)}
    assert "a new device" in capsys.readouterr().out


def test_evolution_beats_random_on_the_synthetic_space() -> None:
    reached = {"pymoo-nsga2": 0.0, "random": 0.0}
    for name, seed in product(reached, range(3)):
        met = contest(Task(table=SYNTHETIC), seed)
        found = trace(met.problem, load(name)(met.problem, AlgorithmSettings(seed=seed)), met.evaluate, 300)
        reached[name] += met.stick.hypervolume(found.costs)
    assert reached["pymoo-nsga2"] > reached["random"]
