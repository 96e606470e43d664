"""Models larger than memory on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cli.errors import ExitCode
from cli.main import run
from supernets import free_memory
from tests.toy_moe_job import write_experts, write_text

TEXT = ("--max-length", "24")


def nas(*words: object) -> int:
    return run(["experts", *map(str, words)])


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line; before it there is nothing but our own progress."""
    *before, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(other.startswith(("calibrate: ", "reduce: ", "judge ")) for other in before), before
    return line


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stream")
    write_experts(root / "model")
    write_text(root / "text.txt")
    return root


def test_a_model_larger_than_memory_is_calibrated_and_reduced_layer_by_layer(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = ("stats", job / "model", "--data", job / "text.txt", *TEXT, "--output")
    reduce = ("reduce", job / "model", "--stats", tmp_path / "whole", "--data", job / "text.txt", *TEXT, "--output")
    assert nas(*stats, tmp_path / "whole") == ExitCode.OK
    monkeypatch.setattr(free_memory, "available_memory", lambda: 100_000)
    capsys.readouterr()
    for command in (stats, reduce):
        assert nas(*command, tmp_path / "new") == ExitCode.RESOURCES
        message = only_error(capsys)
        assert message.startswith(
            f"error: the weights of {job / 'model'} take 0.0 GiB in 32 bits, and 0.0 GiB of memory"
        )
        assert message.endswith("are free; nas experts stats and reduce hold one layer at a time with --stream")
        assert not (tmp_path / "new").exists()
    assert nas(*stats, tmp_path / "stats", "--stream") == ExitCode.OK
    for name in ("statistics.json", "statistics.safetensors"):
        assert (tmp_path / "stats" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    capsys.readouterr()
    assert nas(*reduce, tmp_path / "half", "--stream", "-f", "json") == ExitCode.OK
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["layout"], row["experts"]) == ("uniform", "4 of 8")
    assert row["nll before"] != row["nll reduced"]
    monkeypatch.undo()
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert sum(parameter.numel() for parameter in stock.parameters()) == row["parameters"] < row["parameters before"]


def test_available_memory_is_what_the_system_and_the_container_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = free_memory.available_memory()
    assert found is None or 2**20 < found < 2**50
    monkeypatch.setattr(free_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "_CGROUP_LIMIT", tmp_path / "memory.max")
    assert free_memory.available_memory() != 8192, "no such file: the whole memory, or nothing"
    (tmp_path / "meminfo").write_text("MemTotal:  64 kB\nMemAvailable:    8 kB\n")
    for limit, available in (("max\n", 8192), ("1000\n", 1000), ("1000000\n", 8192)):
        (tmp_path / "memory.max").write_text(limit)
        assert free_memory.available_memory() == available
    monkeypatch.setattr(free_memory, "available_memory", lambda: None)
    free_memory.require_memory(str(tmp_path), "")


def changed(job: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    write_experts(folder)
    change(folder)
    return folder


def with_nan(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.gate.weight"][:] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damaged(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing that could be read")


def with_damaged_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


WRONG: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "NaN router": (with_nan, "gives NaN or infinite logits", "holds NaN or infinity; the checkpoint is damaged"),
    "quantised": (quantised, "are quantised", "are quantised"),
    "no weights": (without_weights, "holds no model.safetensors", "holds no model.safetensors"),
    "damaged index": (with_damaged_index, "is no index of safetensors", "is no index of safetensors"),
    "damaged": (damaged, "cannot read", "fetch or save the checkpoint anew"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_checkpoints(case: str, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, of_stats, of_reduce = WRONG[case]
    model = changed(job, tmp_path / "model", change)
    capsys.readouterr()
    output = ("--output", tmp_path / "new", "--stream")
    assert nas("stats", model, "--data", job / "text.txt", *TEXT, *output) == ExitCode.BAD_INPUT
    assert of_stats in only_error(capsys)
    assert nas("reduce", model, "--operator", "weight-norm", *output) == ExitCode.BAD_INPUT
    assert of_reduce in only_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_statistics_of_another_model_are_refused(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same shape, which only its routers tell."""
    other = write_experts(tmp_path / "other", seed=7)
    statistics = ("--data", job / "text.txt", *TEXT, "--output", tmp_path / "stats")
    assert nas("stats", other, *statistics, "--stream") == ExitCode.OK
    capsys.readouterr()
    reduced = ("--operator", "reap", "--stats", tmp_path / "stats", "--output", tmp_path / "new")
    for how in ((), ("--stream",)):
        assert nas("reduce", job / "model", *reduced, *how) == ExitCode.BAD_INPUT
        assert "are of another model: its router of layer 0 answers otherwise" in only_error(capsys)
        assert not (tmp_path / "new").exists()


def test_a_repair_needs_the_whole_model(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repair = ("--operator", "weight-norm", "--repair", "router-kd", "--data", job / "text.txt", *TEXT)
    assert nas("reduce", job / "model", *repair, "--output", tmp_path / "new", "--stream") == ExitCode.BAD_INPUT
    assert "repair router-kd trains the model as a whole" in only_error(capsys)
    assert not (tmp_path / "new").exists()
