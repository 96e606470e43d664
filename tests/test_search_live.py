"""The race in a whole space: what a search sees, what it is scored on, and that nothing is evaluated twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels.device import load_backend
from kernels.op_spec import Context
from nas.measuring import latency_table
from nas.searching import open_supernet
from studies.store import StudyStore
from tests.benchmarks import search_live
from tests.benchmarks.search_live import Whole, report, scored, search
from tests.toy_job import QUICK, ToyJob


def test_searches_are_scored_on_the_other_half(
    fitted: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened, context = open_supernet(fitted.workspace.supernet), Context(batch=2, sequences=(8,))
    with StudyStore.open(f"sqlite:///{tmp_path / 'l.db'}") as store:
        table = latency_table(opened.supernet, [context], store, load_backend("cpu"), settings=QUICK)
    whole = Whole.of(opened, tmp_path / "live", table, context)
    assert sorted(whole.halves[0] + whole.halves[1]) == list(range(opened.task.size("validation")))
    traces = {(name, 0): search(whole, name, 0, 8) for name in ("random", "local-search")}
    rows = scored(whole, traces, 8)
    assert [row["algorithm"] for row in rows] == ["random", "local-search"]
    assert max(row["hypervolume"][-1] for row in rows) <= 1.0
    for row in rows:
        shown = {tuple(map(float, costs)) for costs in row["front"]}
        everything = whole.evaluate(traces[row["algorithm"], 0].genotypes, side=1)
        assert shown <= {tuple(map(float, costs)) for costs in everything}
    exact = whole.problem.exact([opened.supernet.space.largest])
    assert np.isnan(exact[0, 0])
    assert exact[0, 1] == whole.latency(opened.supernet.space.largest) > 0

    report(rows)
    assert capsys.readouterr().out.splitlines()[-1].startswith("RESULT ")
    again = Whole.of(opened, tmp_path / "live", table, context)
    monkeypatch.setattr(search_live, "predict_logits", None)  # nothing is evaluated again
    assert search(again, "random", 0, 8).costs.tolist() == traces["random", 0].costs.tolist()
