"""Every verb that computes, through the command line: what it prints, what it leaves, and what wrong input is told."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.errors import ExitCode
from cli.main import run
from cli.options import parse_duration
from studies.store import StudyStore
from tests.toy_job import ToyJob, write_checkpoint, write_data

QUICK = ("--rounds", "2", "--sequence", "8")
SMALL = ("--head-options", "2", "--width-options", "2", "--batch-size", "8")


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == ExitCode.OK, captured.err
    return captured.out


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(output(capsys, *arguments, "-f", "json"))
    return found


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line; before it there is nothing but our own progress."""
    *before, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(other.startswith(("train", "measure: ", "search: ")) for other in before), before
    return line


@pytest.fixture
def storage(fitted: ToyJob, tmp_path: Path) -> str:
    """A copy of the finished job's studies."""
    with sqlite3.connect(fitted.workspace.root / "study.db") as source, sqlite3.connect(tmp_path / "s.db") as target:
        source.backup(target)
    source.close()
    target.close()
    return f"sqlite:///{tmp_path / 's.db'}"


def test_fit_tunes_searches_and_exports(
    fitted: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(fitted.data, "data.tsv")
    arguments = ["fit", fitted.model, "--data", "data.tsv", "--steps", "2", *SMALL, *QUICK, "--uniform"]
    arguments += ["--budget", "3", "--finalists", "1", "--max-parameters", "1e6", "--recover", "1", "-f", "json"]
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == ExitCode.OK, err
    assert "training takes about" in err
    assert "train teacher: 2/2" in err
    exports = json.loads(out)
    assert {role for row in exports for role in row["role"].split(",")} >= {"knee", "best"}
    assert all((tmp_path / row["folder"] / "model.safetensors").is_file() for row in exports)
    with StudyStore.open(f"sqlite:///{tmp_path / 'work' / 'study.db'}") as store:
        settings = store.study("study").settings
    assert settings["batch_size"] == 8
    assert settings["max_parameters"] == 1e6
    assert "storage" not in settings


def test_tune_prints_where_the_supernet_is(fitted: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tune", fitted.model, "--data", fitted.data, *SMALL, "--gamma", "0", "--sampling", "sandwich"]
    printed = output(capsys, *arguments, "--time-budget", "5s", "--output", tmp_path / "work")
    assert Path(printed.strip()) == tmp_path / "work" / "supernet"
    assert not (tmp_path / "work" / "teacher").exists(), "it teaches itself"


def test_space(fitted: ToyJob, capsys: pytest.CaptureFixture[str]) -> None:
    printed = output(capsys, "space", fitted.workspace.supernet)
    assert "layer1.heads" in printed
    assert "20 networks" in printed
    costs = rows(capsys, "space", fitted.workspace.supernet)
    assert [row["network"] for row in costs] == ["smallest", "middle", "largest"]
    assert costs[0]["parameters"] < costs[1]["parameters"] <= costs[2]["parameters"]


def test_measurements_travel(fitted: ToyJob, storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    supernet, file = fitted.workspace.supernet, tmp_path / "m.json"
    here = rows(capsys, "measure", supernet, *QUICK, "--storage", storage, "--export", file)
    there = rows(capsys, "measure", supernet, *QUICK, "--storage", f"sqlite:///{tmp_path / 'n.db'}", "--import", file)
    assert here == there
    assert 0 < here[0]["smallest [ms]"] <= here[0]["largest [ms]"]


def test_search_then_export_then_eval(
    fitted: ToyJob, storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objectives = ("--objective", "error", "--objective", "macs")
    names = ("--storage", storage, "--study-name", "other")
    output(capsys, "search", fitted.workspace.supernet, *objectives, "--algorithm", "random", "--budget", "4", *names)
    found = rows(capsys, "front", *names)
    exported = output(capsys, "export", *names, "--rank", "1", "--output", tmp_path / "best", "--recover", "1")
    assert f" {found[0]['number']}  free" in exported
    (judged,) = rows(capsys, "eval", tmp_path / "best", "--data", fitted.data, *QUICK)
    assert 0 <= judged["accuracy"] <= 1
    assert judged["latency [ms]"] > 0


def test_a_search_explains_itself_and_starts_from_another(
    fitted: ToyJob, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", fitted.workspace.supernet, "--budget", "6", "--explain", "--storage", storage, *QUICK]
    assert run([str(a) for a in (*arguments, "--algorithm", "random", "--study-name", "silent")]) == ExitCode.OK
    assert "does not say what it trusts" in capsys.readouterr().err
    warm = ("--algorithm", "guided", "--study-name", "warm", "--warm-start", "silent", "--low-fidelity", "0.5")
    assert run([str(a) for a in (*arguments, *warm)]) == ExitCode.OK
    explained = capsys.readouterr().err
    assert "generation 0: 0 measured" in explained
    assert "does not say" not in explained
    with StudyStore.open(storage) as store:
        study = store.study("warm")
        assert "known=" in study.algorithm
        assert study.settings["low_fidelity"] == 0.5
        fractions = [v.data_fraction for e in store.front("warm").evaluations for v in e.values if v.data_hash]
    assert set(fractions) == {1.0}


def test_check(fitted: ToyJob, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("check", fitted.model, "--data", fitted.data, *SMALL)
    (facts,) = rows(capsys, *arguments, "--epochs", "2")
    assert facts["train examples"] == "48 (no 24, yes 24)"
    assert facts["training steps"] == 12
    assert facts["teacher"] == "fine-tuned first"
    assert "elastic: layer0.heads" in output(capsys, *arguments)


def test_settings_from_a_file(fitted: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = f'batch_size = 16\n[check]\ndata = ["{fitted.data}"]\nepochs = 5\nuniform = true\n'
    config = text(tmp_path / "nas.toml", content)
    (facts,) = rows(capsys, "check", fitted.model, "--config", config, "--batch-size", "8")
    assert facts["training steps"] == 30
    assert "elastic: ffn_width" in facts


def test_demo_prints_its_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from nas import demo

    result = demo.DemoResult(seconds=1.0, baseline_test_accuracy=0.9, distilled_test_accuracy=0.9, front=(), exports=())
    monkeypatch.setattr(demo, "run_demo", lambda *_: result)
    last = output(capsys, "demo").splitlines()[-1]
    assert json.loads(last.removeprefix("RESULT "))["baseline_test_accuracy"] == 0.9


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("1h30m", 5400), (" 2m5s ", 125)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "1h 30m", "-5m", "5m1h"])
def test_a_wrong_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a duration reads 90s, 20m"):
        parse_duration(text)


def corrupted(job: ToyJob, folder: Path) -> Path:
    shutil.copytree(job.model, folder)
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    return folder


def of_type(job: ToyJob, folder: Path, model_type: str) -> Path:
    shutil.copytree(job.model, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "model_type": model_type}))
    return folder


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


Arguments = Callable[[ToyJob, Path], list[object]]
TUNE: dict[str, tuple[Arguments, ExitCode, str]] = {
    "missing checkpoint": (lambda j, t: [t / "none", "--data", j.data], ExitCode.BAD_INPUT, "no checkpoint folder at"),
    "unknown name": (lambda j, t: ["no-such-model", "--data", j.data], ExitCode.BAD_INPUT, "no-such-model"),
    "empty folder": (lambda j, t: [t, "--data", j.data], ExitCode.BAD_INPUT, "holds no config.json"),
    "corrupt weights": (
        lambda j, t: [corrupted(j, t / "m"), "--data", j.data],
        ExitCode.BAD_INPUT,
        "cannot load the weights of",
    ),
    "model type": (
        lambda j, t: [of_type(j, t / "m", "gpt2"), "--data", j.data],
        ExitCode.BAD_INPUT,
        "model type 'gpt2' is not supported; supported are bert",
    ),
    "missing data": (lambda j, t: [j.model, "--data", t / "no.tsv"], ExitCode.BAD_INPUT, "no.tsv does not exist"),
    "wrong column": (
        lambda j, t: [j.model, "--data", j.data, "--text", "body"],
        ExitCode.BAD_INPUT,
        "has no column 'body'; its columns are ['text', 'label']",
    ),
    "empty column": (
        lambda j, t: [j.model, "--data", text(t / "d.tsv", "text\tlabel\nw1\t\nw2\t\n")],
        ExitCode.BAD_INPUT,
        "column 'label' is empty",
    ),
    "one class": (
        lambda j, t: [j.model, "--data", text(t / "d.tsv", "text\tlabel\nw1\ta\nw2\ta\nw3\ta\n")],
        ExitCode.BAD_INPUT,
        "must hold two classes or more, got ['a']",
    ),
    "unreadable row": (
        lambda j, t: [j.model, "--data", text(t / "d.tsv", "text\tlabel\nw1\ta\nw2\n")],
        ExitCode.BAD_INPUT,
        "d.tsv:3: 1 cells, but the header names 2",
    ),
    "unknown task": (
        lambda j, t: [j.model, "--data", j.data, "--task", "poetry"],
        ExitCode.BAD_INPUT,
        "unknown task 'poetry'; known are language-modelling, masked-language-modelling, text-classification",
    ),
    "two durations": (
        lambda j, t: [j.model, "--data", j.data, "--steps", "5", "--time-budget", "5m"],
        ExitCode.BAD_INPUT,
        "how long to train is said once, got --steps and --time-budget",
    ),
    "short time": (
        lambda j, t: [j.model, "--data", j.data, "--time-budget", "0.0001s"],
        ExitCode.BAD_INPUT,
        "is too short",
    ),
    "alpha": (lambda j, t: [j.model, "--data", j.data, "--alpha", "2"], ExitCode.BAD_INPUT, "must lie in [0, 1]"),
    "device": (lambda j, t: [j.model, "--data", j.data, "--device", "tpu"], ExitCode.BAD_INPUT, "unknown device 'tpu'"),
    "not a number": (
        lambda j, t: [j.model, "--data", j.data, "--steps", "2", "--learning-rate", "1e30"],
        ExitCode.BAD_INPUT,
        "lower the learning rate",
    ),
    "mixed data": (
        lambda j, t: [j.model, "--data", "train=a.tsv", "--data", "b.tsv"],
        ExitCode.BAD_INPUT,
        "--data takes one path, or SPLIT=FILE",
    ),
}


@pytest.mark.parametrize("case", ["missing checkpoint", "corrupt weights", "one class"])
def test_bad_input_to_fit_leaves_nothing(
    case: str, fitted: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, code, message = TUNE[case]
    given = [str(argument) for argument in arguments(fitted, tmp_path)]
    assert run(["fit", *given, "--output", str(tmp_path / "work")]) == code
    assert message in only_error(capsys)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("case", TUNE)
def test_bad_input_to_tune(case: str, fitted: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code, message = TUNE[case]
    given = [str(argument) for argument in arguments(fitted, tmp_path)]
    assert run(["tune", *given, *SMALL, "--output", str(tmp_path / "work")]) == code
    assert message in only_error(capsys)
    assert not (tmp_path / "work" / "supernet").exists()
    assert not (tmp_path / "work" / "teacher").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--algorithm", "magic"], ExitCode.BAD_INPUT, "unknown algorithm 'magic'; known are guided"),
        (["--objective", "beauty"], ExitCode.BAD_INPUT, "unknown objective 'beauty'; known are active-parameters"),
        (["--objective", "latency:batch=x"], ExitCode.BAD_INPUT, "batch, sequence and threads of latency are whole"),
        (["--budget", "0"], ExitCode.BAD_INPUT, "a budget is at least 1 evaluation, got 0"),
        (["--seed", "-1"], ExitCode.BAD_INPUT, "a seed is a whole number from 0 to 2^63 - 1, got -1"),
        (["--seed", str(2**63)], ExitCode.BAD_INPUT, "a seed is a whole number from 0 to 2^63 - 1, got"),
        (["--finalists", "-1"], ExitCode.BAD_INPUT, "finalists are counted from 0, got -1"),
        (["--sequence", "long"], ExitCode.BAD_INPUT, "--sequence reads 64, 16+64 or data, got 'long'"),
        (["--max-latency-ms", "1e-6"], ExitCode.LIMITS, "no sub-network can meet latency 1e-06 ms"),
        (["--max-parameters", "10"], ExitCode.LIMITS, "no sub-network can meet parameters 10"),
        (["--study-name", "study", "--seed", "3"], ExitCode.BAD_INPUT, "study 'study' was made with"),
        (["--data", "elsewhere.tsv"], ExitCode.BAD_INPUT, "elsewhere.tsv does not exist"),
        (["--target", "cpu-other"], ExitCode.BAD_INPUT, "were not measured on cpu-other"),
        (["--problem", "no.such:Thing"], ExitCode.BAD_INPUT, "name what is searched: the folder of a supernet, or"),
        (["--low-fidelity", "2"], ExitCode.BAD_INPUT, "a share of the data between 0 and 1, got 2"),
        (["--low-fidelity", "0.5", "--examples", "3"], ExitCode.BAD_INPUT, "give one"),
        (["--warm-start", "nowhere"], ExitCode.BAD_INPUT, "no study named 'nowhere'"),
    ],
)
def test_bad_input_to_search(
    arguments: list[str], code: ExitCode, message: str, fitted: ToyJob, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = () if "--sequence" in arguments else ("--sequence", "8")
    names = () if "--study-name" in arguments else ("--study-name", "new")
    given = [str(fitted.workspace.supernet), "--rounds", "2", *sequence, *names, *arguments]
    assert run(["search", *given, "--storage", storage]) == code
    assert message in only_error(capsys)
    with StudyStore.open(storage) as store:
        assert [study.name for study in store.studies()] == ["study"]


def test_a_foreign_database_is_left_alone(fitted: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "photos.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    connection.close()
    before = path.read_bytes()
    for verb in (["search"], ["measure"], ["fit", str(fitted.model), "--data", str(fitted.data), "--output"]):
        folder = str(tmp_path / "work") if verb[0] == "fit" else str(fitted.workspace.supernet)
        assert run([*verb, folder, "--storage", f"sqlite:///{path}"]) == ExitCode.STORAGE
        assert "belongs to another program" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--output", "taken"], ExitCode.BAD_INPUT, "taken already exists: choose another output or remove it"),
        (["--rank", "99"], ExitCode.BAD_INPUT, "the front has ranks 1 to"),
        (["--number", "99"], ExitCode.BAD_INPUT, "no finished evaluation number 99"),
        (["--knee", "--rank", "1"], ExitCode.BAD_INPUT, "--knee, --rank and --number exclude each other"),
        (["--max-latency-ms", "1e-6"], ExitCode.LIMITS, "the smallest measured is"),
        (["--supernet", "nowhere"], ExitCode.BAD_INPUT, "nowhere is not a supernet"),
    ],
)
def test_bad_input_to_export(
    arguments: list[str],
    code: ExitCode,
    message: str,
    storage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    given = arguments if "--output" in arguments else [*arguments, "--output", "new"]
    assert run(["export", *given, "--storage", storage]) == code
    assert message in only_error(capsys)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("s.db")) == ["taken"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.RESOURCES, "is full; nothing was written"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), ExitCode.RESOURCES, "is full"),
    ],
)
def test_a_full_disk_leaves_nothing(
    error: Exception,
    code: ExitCode,
    message: str,
    storage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("supernets.checkpoint.verify_network", full)
    assert run(["export", "--storage", storage, "--output", str(tmp_path / "new" / "export")]) == code
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())


def test_a_wrong_export_is_not_delivered(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verifier = text(tmp_path / "verify.py", "import sys; sys.exit('its logits differ')")
    monkeypatch.setattr("supernets.checkpoint._VERIFIER", verifier)
    assert run(["export", "--storage", storage, "--output", str(tmp_path / "new" / "e")]) == ExitCode.VERIFICATION
    assert "does not reproduce the sub-network: its logits differ" in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())


def test_eval_needs_a_head_and_data_that_fit(
    fitted: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", str(fitted.model), "--data", str(fitted.data)]) == ExitCode.BAD_INPUT
    assert "no classification head" in capsys.readouterr().err
    other = write_data(tmp_path / "d.tsv")
    other.write_text(other.read_text().replace("yes", "maybe"))
    head = write_checkpoint(tmp_path / "h", head=True, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    assert run(["eval", str(head), "--data", str(other)]) == ExitCode.BAD_INPUT
    assert "which the classes ['no', 'yes'] lack" in capsys.readouterr().err
