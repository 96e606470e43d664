"""`nas measure --report` and `nas predict`, and devices that change under a study."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cli.errors import ExitCode
from cli.main import run
from kernels.timing import time_paired
from nas.searching import frozen_table
from studies.store import StudyStore
from tests.toy_job import ToyJob

QUICK = ("--rounds", "2", "--sequence", "8")


@pytest.fixture
def storage(fitted: ToyJob, tmp_path: Path) -> str:
    """A copy of the finished job's studies and measurements."""
    with sqlite3.connect(fitted.workspace.root / "study.db") as source, sqlite3.connect(tmp_path / "s.db") as target:
        source.backup(target)
    source.close()
    target.close()
    return f"sqlite:///{tmp_path / 's.db'}"


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[list[dict[str, Any]], str]:
    """Rows and what was said beside them."""
    code = run([*map(str, arguments), "-f", "json"])
    captured = capsys.readouterr()
    assert code == ExitCode.OK, captured.err
    found: list[dict[str, Any]] = json.loads(captured.out)
    return found, captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run([str(argument) for argument in arguments]) == ExitCode.BAD_INPUT
    return capsys.readouterr().err.splitlines()[-1]


def test_predictions_come_with_bounds_and_their_error(
    fitted: ToyJob, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    supernet = fitted.workspace.supernet
    (measured,), _ = rows(capsys, "measure", supernet, *QUICK, "--storage", storage)
    found, _ = rows(capsys, "predict", supernet, *QUICK, "--storage", storage)
    assert [row["network"] for row in found] == ["smallest", "middle", "largest"]
    assert found[0]["latency [ms]"] == measured["smallest [ms]"]
    assert {row["provenance"] for row in found} == {"predicted"}
    assert {row["error of predictions"] for row in found} == {measured["error of predictions"]}
    for row in found:
        assert row["from [ms]"] < row["latency [ms]"] < row["to [ms]"]
        assert row["device"] == measured["device"]


def test_a_network_has_several_names(fitted: ToyJob, storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    supernet, names = fitted.workspace.supernet, ("--storage", storage)
    exported = min((fitted.workspace.root / "exports").iterdir())
    written = "-".join(map(str, json.loads((exported / "supernas.json").read_text())["genotype"]))
    rows(capsys, "measure", supernet, *QUICK, *names)
    found, _ = rows(capsys, "predict", supernet, *QUICK, *names, "--network", exported, "--network", written)
    assert found[0]["genotype"] == found[1]["genotype"] == written
    assert found[0]["latency [ms]"] == found[1]["latency [ms]"]


def test_a_gpu_that_is_not_here_is_analytic_and_claims_no_bounds(
    fitted: ToyJob, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = rows(capsys, "predict", fitted.workspace.supernet, *QUICK, "--gpu", "a100", "--batch", "4")
    shown = {(row["provenance"], row["device"], row["to [ms]"]) for row in found}
    assert shown == {("analytic", "analytic-a100", None)}
    assert found[0]["latency [ms]"] < found[2]["latency [ms]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "abacus"], "unknown GPU 'abacus'; known are titan-xp"),
        (["--gpu", "a100", "--target", "cpu-1"], "--target and --gpu exclude each other"),
        (["--target", "cpu-other"], "were not measured on cpu-other"),
        (["--gpu", "t4", "--network", "the-best"], "'the-best' means no network: give smallest, middle, largest"),
        (["--gpu", "t4", "--network", "9-9"], "9-9"),
        (["--gpu", "t4", "--sequence", "9999"], "takes up to 32 tokens, got a sequence of 9999"),
    ],
)
def test_bad_input_to_predict(
    arguments: list[str], message: str, fitted: ToyJob, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["predict", fitted.workspace.supernet, *QUICK, "--storage", storage, *arguments]
    if "9-9" in arguments:
        message = "genotype"
    assert message in refused(capsys, *given)


def test_an_export_of_another_space_is_refused(
    fitted: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "supernas.json").write_text(json.dumps({"space_fingerprint": "other", "genotype": [0]}))
    given = ["predict", fitted.workspace.supernet, *QUICK, "--gpu", "t4", "--network", tmp_path]
    assert "is of a space with fingerprint other, this supernet has" in refused(capsys, *given)
    (tmp_path / "supernas.json").write_text("{}")
    assert "does not say which network it is" in refused(capsys, *given)


def test_a_report_times_networks_twice_and_keeps_the_first(
    fitted: ToyJob, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("measure", fitted.workspace.supernet, *QUICK, "--storage", storage)
    rows(capsys, *arguments)
    with StudyStore.open(storage) as store:
        before = [row for device in store.devices() for row in store.measurements(device)]
    found, said = rows(capsys, *arguments, "--report")
    with StudyStore.open(storage) as store:
        assert [row for device in store.devices() for row in store.measurements(device)] == before
    assert len({row["network"] for row in found}) == len(found) >= 3
    for row in found:
        assert row["difference"] == pytest.approx(row["again [ms]"] / row["stored [ms]"] - 1)
    mean = sum(abs(row["difference"]) for row in found) / len(found)
    assert f"mean difference {mean:.1%}, Kendall's tau" in said
    assert f"over {len(found)} networks timed twice" in said


def test_report_and_import_exclude_each_other(fitted: ToyJob, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["measure", fitted.workspace.supernet, *QUICK, "--report", "--import", "m.json"]
    assert "--report times networks here, --import measures nothing here" in refused(capsys, *given)


def test_a_sequence_that_no_position_is_left_for_is_refused_before_anything_is_timed(
    fitted: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = f"sqlite:///{tmp_path / 'new.db'}"
    given = ("measure", fitted.workspace.supernet, "--sequence", "999", "--storage", storage)
    assert "got a sequence of 999" in refused(capsys, *given)
    with StudyStore.open(storage) as store:
        assert not [row for device in store.devices() for row in store.measurements(device)]


def test_an_import_that_is_incomplete_stores_nothing(
    fitted: ToyJob, storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supernet, file = fitted.workspace.supernet, tmp_path / "rows.json"
    rows(capsys, "measure", supernet, *QUICK, "--storage", storage, "--export", file)
    content = json.loads(file.read_text())
    complete = [{**row, "device": "cpu-there"} for row in content["measurements"]]
    file.write_text(json.dumps({**content, "measurements": [*complete, {**complete[0], "device": "cpu-partly"}]}))
    given = ("measure", supernet, *QUICK, "--storage", f"sqlite:///{tmp_path / 'n.db'}", "--import", file)
    assert "were not measured on cpu-partly" in refused(capsys, *given)
    file.write_text(json.dumps({**content, "measurements": complete}))
    (found,), _ = rows(capsys, *given)
    assert found["device"] == "cpu-there"
    with StudyStore.open(f"sqlite:///{tmp_path / 'n.db'}") as store:
        assert store.measurements("cpu-there")
        assert not store.measurements("cpu-partly")


def test_the_second_measurement_of_a_report_has_the_calibration_of_the_store(
    fitted: ToyJob, storage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("measure", fitted.workspace.supernet, *QUICK, "--storage", storage)
    rows(capsys, *arguments)
    told: list[float | None] = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        told.append(kwargs["reference_seconds"])
        return time_paired(*args, **kwargs)

    monkeypatch.setattr("predictors.measure.time_paired", spy)
    rows(capsys, *arguments, "--report")
    with StudyStore.open(storage) as store:
        stored = [row for device in store.devices() for row in store.measurements(device)]
    known = {row.reference_seconds for row in stored if row.op_key.startswith("model[")}
    assert told
    assert set(told) <= known


def test_a_device_that_changed_under_a_study_is_refused_with_both_shown(
    fitted: ToyJob, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with StudyStore.open(storage) as store:
        table = frozen_table(store, "study")
        assert table is not None
        here = table.device
        store.note("study", "latency_table", {**table.to_json(), "device": "cpu-before"})
    said = refused(capsys, "search", fitted.workspace.supernet, *QUICK, "--budget", "99", "--storage", storage)
    assert f"study 'study' is about device cpu-before, asked for is {here}" in said
    assert "--target cpu-before" in said
