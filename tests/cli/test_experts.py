"""Experts through the command line: statistics, one reduction, a search, its front, an export; and wrong input."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.errors import ExitCode
from cli.main import run
from nas.tuning import open_task
from studies.store import StudyStore
from supernets.checkpoint import load_exported, read_supernet_record
from supernets.data.encoding import DEFAULT_MAX_LENGTH
from supernets.routing_statistics import RoutingStatistics
from supernets.task import TaskSettings
from tests.toy_job import write_checkpoint
from tests.toy_moe_job import write_experts, write_switch, write_text

TEXT = ("--max-length", "24")
SPACE = ("--expert-options", "4", "--top-k-options", "2", "--operator", "reap", "--operator", "uncurl")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text, statistics and a finished search."""
    root = tmp_path_factory.mktemp("experts")
    write_experts(root / "model")
    write_text(root / "text.txt")
    done("stats", root / "model", "--data", root / "text.txt", *TEXT, "--output", root / "stats")
    searched(root, "work", "--stats", root / "stats", "--budget", "8", "--objective", "latency", "--finalists", "2")
    return root


def searched(root: Path, output: str, *arguments: object) -> None:
    given = ("--data", root / "text.txt", *TEXT, *SPACE, "--objective", "nll", "--objective", "memory")
    machine = ("--precision", "float32", "--sequence", "8", "--rounds", "2")
    done("search", root / "model", *given, *machine, "--output", root / output, *arguments)


def done(*arguments: object) -> None:
    assert run(["experts", *map(str, arguments)]) == ExitCode.OK


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    code = run([*map(str, arguments), "-f", "json"])
    out, err = capsys.readouterr()
    assert code == ExitCode.OK, err
    found: list[dict[str, Any]] = json.loads(out)
    return found


def storage(job: Path) -> tuple[str, str]:
    return "--storage", f"sqlite:///{job / 'work' / 'study.db'}"


def test_statistics_say_who_is_used(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--data", job / "text.txt", *TEXT, "--output", tmp_path / "stats")
    first, second = rows(capsys, "experts", "stats", job / "model", *arguments)
    assert (first["layer"], second["layer"]) == (0, 1)
    assert first["experts"] == 8
    assert first["tokens"] > 500
    shares_E = RoutingStatistics.load(tmp_path / "stats").layers[0].counts_E / (2 * first["tokens"])
    assert float(shares_E.sum()) == pytest.approx(1.0)
    assert (first["its share"], first["share of that"]) == pytest.approx((float(shares_E.max()), float(shares_E.min())))
    assert shares_E[first["most used"]] == shares_E.max() > shares_E.min() == shares_E[first["least used"]]
    names = ("statistics.json", "statistics.safetensors")
    assert all((tmp_path / "stats" / n).read_bytes() == (job / "stats" / n).read_bytes() for n in names[1:])


def test_a_reduction_is_a_stock_checkpoint_where_it_can(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    arguments = ("--stats", job / "stats", "--keep", "50%", "--output", tmp_path / "half")
    (row,) = rows(capsys, "experts", "reduce", job / "model", *arguments)
    assert (row["layout"], row["experts"]) == ("uniform", "4 of 8")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert stock.config.num_experts == 4
    assert sum(parameter.numel() for parameter in stock.parameters()) == row["parameters"] < row["parameters before"]
    lines = [json.loads(line) for line in (tmp_path / "half" / "experts.jsonl").read_text().splitlines()]
    full, small = load_file(job / "model" / "model.safetensors"), load_file(tmp_path / "half" / "model.safetensors")
    assert torch.equal(
        small["model.layers.0.mlp.gate.weight"], full["model.layers.0.mlp.gate.weight"][lines[0]["ranking"][:4]]
    )


def test_a_merge_is_repaired_and_brings_its_code(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ("--data", job / "text.txt", *TEXT)
    arguments = ("--operator", "uncurl", "--keep", "3", "--repair", "router-kd", "--steps", "20", *text)
    output = tmp_path / "merged"
    (row,) = rows(capsys, "experts", "reduce", job / "model", "--stats", job / "stats", *arguments, "--output", output)
    assert (row["layout"], row["experts"]) == ("free", "3 of 8")
    assert row["nll before"] > 0
    assert row["nll repaired"] != row["nll reduced"]
    record = json.loads((output / "supernas.json").read_text())
    assert record["repair_losses"][-1] < record["repair_losses"][0]
    network = load_exported(output)
    assert sum(parameter.numel() for parameter in network.parameters()) == row["parameters"]


def test_data_free_reductions_need_no_statistics(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--operator", "weight-norm", "--keep", "6", "--output", tmp_path / "six")
    (row,) = rows(capsys, "experts", "reduce", job / "model", *arguments)
    assert row["experts"] == "6 of 8"


def test_an_expert_that_no_token_reaches_goes_first(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_experts(tmp_path / "model", "deepseek_v3")
    state = load_file(model / "model.safetensors")
    state["model.layers.1.mlp.gate.e_score_correction_bias"][5] = -1e9
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    arguments = ("--data", job / "text.txt", *TEXT, "--output", tmp_path / "stats")
    (row,) = rows(capsys, "experts", "stats", model, *arguments)
    assert (row["dead"], row["least used"], row["share of that"]) == ("5", 5, 0)
    for operator in ("reap", "uncurl"):
        reduced = ("--stats", tmp_path / "stats", "--keep", "6", "--operator", operator)
        rows(capsys, "experts", "reduce", model, *reduced, "--output", tmp_path / operator)
        assert all(tensor.isfinite().all() for tensor in load_exported(tmp_path / operator).state_dict().values())
    line = json.loads((tmp_path / "reap" / "experts.jsonl").read_text())
    assert 5 not in line["ranking"][:6]


def test_the_layouts_of_all_candidates_are_in_sql(job: Path) -> None:
    with StudyStore.open(storage(job)[1]) as store:
        evaluations, layouts = store.evaluations("study"), store.layouts("study")
        (calibration,) = store.calibrations(store.study("study").supernet_hash)
    assert set(layouts) == {evaluation.genotype for evaluation in evaluations if evaluation.status == "done"}
    assert calibration.uri == str(job / "work" / "supernet")
    reduced = [layer for layers in layouts.values() for layer in layers if layer.operator]
    assert {layer.operator for layer in reduced} <= {"reap", "uncurl"}
    assert reduced
    for layer in reduced:
        assert len(layer.kept) == layer.experts < 8
        assert (layer.operator == "uncurl") == bool(layer.merged)
    with sqlite3.connect(job / "work" / "study.db") as connection:
        assert connection.execute("SELECT count(*) FROM moe_layer").fetchone() == (2 * len(layouts),)


def test_the_front_draws_layouts(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["front", *storage(job)]) == ExitCode.OK
    knee = capsys.readouterr().out
    assert "(perplexity " in knee
    assert ", the knee:\n  0 " in knee
    assert run(["front", *storage(job), "--layouts"]) == ExitCode.OK
    every = capsys.readouterr().out
    shown = rows(capsys, "front", *storage(job))
    assert every.count("\nnetwork ") == len(shown)
    assert all(row["latency provenance"] == "extracted" for row in shown)


def test_a_network_of_the_front_is_exported_reloaded_and_judged(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (first, *_) = rows(capsys, "front", *storage(job), "--sort", "memory")
    arguments = [*storage(job), "--number", str(first["number"]), "--output", str(tmp_path / "small"), "--recover", "2"]
    assert run(["export", *arguments]) == ExitCode.OK
    capsys.readouterr()
    text = ("--data", job / "text.txt", *TEXT, "--task", "language-modelling", "--label", "", "--metric", "nll")
    (judged,) = rows(capsys, "eval", tmp_path / "small", *text, "--rounds", "2", "--sequence", "8")
    assert judged["perplexity"] > 1
    card = (tmp_path / "small" / "README.md").read_text()
    assert "AutoModelForCausalLM" in card
    assert "text-generation" in card


def test_a_search_resumes_and_a_supernet_is_searched_as_any_other(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(job / "work", tmp_path / "work")
    shutil.copy(job / "text.txt", tmp_path / "text.txt")
    supernet = str(tmp_path / "work" / "supernet")
    names = ["--storage", f"sqlite:///{tmp_path / 'work' / 'study.db'}", "--study-name", "other"]
    quality = ["--objective", "divergence", "--objective", "active-parameters", "--max-memory-gib", "1"]
    settings = ["--precision", "float32", "--low-fidelity", "0.5", "--warm-start", "study", "--algorithm", "nsga2"]
    for budget in ("3", "5"):
        assert run(["search", supernet, *names, *quality, *settings, "--budget", budget]) == ExitCode.OK
    with StudyStore.open(names[1]) as store:
        done = [e for e in store.evaluations("other") if e.status == "done"]
        assert len(done) >= 5
        assert store.study("other").constraints == {"memory": 1024.0}
        assert set(store.layouts("other")) == {e.genotype for e in done}
    assert run(["search", supernet, *names, "--seed", "3"]) == ExitCode.BAD_INPUT
    assert "study 'other' was made with" in capsys.readouterr().err


def without_gate(folder: Path) -> Path:
    """A router that gives nothing but NaN."""
    write_experts(folder)
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.gate.weight"][:] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def quantised(folder: Path) -> Path:
    write_experts(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def blank(path: Path, content: str = " \n") -> Path:
    path.write_text(content)
    return path


Arguments = Callable[[Path, Path], list[object]]
STATS: dict[str, tuple[Arguments, str]] = {
    "not an MoE": (
        lambda j, t: [write_checkpoint(t / "bert"), "--data", j / "text.txt"],
        "is no language model, which mixtures of experts are",
    ),
    "dense": (
        lambda j, t: [write_experts(t / "dense", mlp_only_layers=[0, 1]), "--data", j / "text.txt"],
        "has no mixture-of-experts layer",
    ),
    "encoder and decoder": (
        lambda j, t: [write_switch(t / "switch"), "--data", j / "text.txt"],
        "is an encoder with a decoder (switch_transformers), but a supernet is made of one stack of layers; "
        "supported are encoders and decoder-only language models: bert, deepseek_v2, deepseek_v3, ",
    ),
    "empty text": (lambda j, t: [j / "model", "--data", blank(t / "e.txt")], "holds no text"),
    "short text": (lambda j, t: [j / "model", "--data", blank(t / "s.txt", "two words")], "not even one block of 24"),
    "few blocks": (lambda j, t: [j / "model", "--data", blank(t / "s.txt", "word " * 10)], "too few to hold some out"),
    "no text": (lambda j, t: [j / "model", "--data", t / "none.txt"], "none.txt does not exist"),
    "NaN router": (
        lambda j, t: [without_gate(t / "nan"), "--data", j / "text.txt"],
        "gives NaN or infinite logits; the checkpoint is damaged",
    ),
    "quantised": (lambda j, t: [quantised(t / "q"), "--data", j / "text.txt"], "are quantised"),
    "no checkpoint": (lambda j, t: [t / "none", "--data", j / "text.txt"], "there is no checkpoint folder at"),
}


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line; before it there is nothing but our own progress."""
    *before, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(other.startswith(("calibrate: ", "search: ", "measure: ")) for other in before), before
    return line


@pytest.mark.parametrize("case", STATS)
def test_bad_input_to_stats(case: str, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = STATS[case]
    given = list(map(str, arguments(job, tmp_path)))
    capsys.readouterr()
    assert run(["experts", "stats", *given, *TEXT, "--output", str(tmp_path / "new")]) == ExitCode.BAD_INPUT
    assert message in only_error(capsys)
    assert not (tmp_path / "new").exists()


REDUCE: dict[str, tuple[list[str], str]] = {
    "below top-k": (["--keep", "1"], "cannot keep 1 of 8 experts in every layer: its router needs at least 2"),
    "above all": (["--keep", "9"], "cannot keep 9 of 8 experts"),
    "no number": (["--keep", "half"], "a number of experts per layer or a share such as 50%, got 'half'"),
    "operator": (["--operator", "magic"], "unknown expert reduction 'magic'; known are"),
    "repair": (["--repair", "magic", "--data", "TEXT"], "unknown repair 'magic'; known are"),
    "repair without text": (["--repair", "router-kd"], "repair router-kd needs text to learn from; give it with"),
    "no statistics": (["--stats", "nowhere"], "nowhere holds no routing statistics"),
    "unreduced": (["--stats", ""], "goes by routing statistics"),
    "no step": (["--repair", "router-kd", "--data", "TEXT", "--steps", "0"], "a repair takes at least 1 step, got 0"),
    "protected unseen": (["--operator", "weight-norm", "--protect", "--stats", ""], "found by routing statistics"),
}


@pytest.mark.parametrize("case", REDUCE)
def test_bad_input_to_reduce(case: str, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = REDUCE[case]
    given = [str(job / "text.txt") if word == "TEXT" else word for word in arguments]
    if given[-2:] == ["--stats", ""]:
        given = given[:-2]
    elif "--stats" not in given:
        given += ["--stats", str(job / "stats")]
    code = run(["experts", "reduce", str(job / "model"), *given, *TEXT, "--output", str(tmp_path / "new")])
    assert code == ExitCode.BAD_INPUT
    assert message in only_error(capsys)
    assert not list(tmp_path.iterdir())


def test_other_verbs_say_what_a_language_model_needs(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = blank(tmp_path / "d.tsv", "text\tlabel\n" + "".join(f"word {i}\t{i % 2}\n" for i in range(30)))
    assert run(["tune", str(job / "model"), "--data", str(labelled), "-o", str(tmp_path / "t")]) == ExitCode.BAD_INPUT
    assert "is a language model, not an encoder to fine-tune; see nas experts search" in only_error(capsys)
    assert run(["eval", str(job / "model"), "--data", str(labelled)]) == ExitCode.BAD_INPUT
    assert "is a language model; judge it by another --task" in only_error(capsys)
    encoder = str(write_checkpoint(tmp_path / "bert"))
    capsys.readouterr()
    words = blank(tmp_path / "w.txt", " ".join(f"w{i % 91 + 5}" for i in range(400)))
    text = ["--data", str(words), "--task", "language-modelling", "--max-length", "8"]
    assert run(["tune", encoder, *text, "-o", str(tmp_path / "t")]) == ExitCode.BAD_INPUT
    assert "an encoder learns classes, which the task language-modelling has not" in only_error(capsys)


def test_what_was_reduced_already_is_not_reduced_again(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done("reduce", job / "model", "--stats", job / "stats", "--operator", "mone", "--output", tmp_path / "mapped")
    capsys.readouterr()
    again = ["--operator", "weight-norm", "--output", str(tmp_path / "again")]
    assert run(["experts", "reduce", str(tmp_path / "mapped"), *again]) == ExitCode.BAD_INPUT
    assert "has layers of different sizes already" in only_error(capsys)


def test_statistics_of_another_model_are_refused(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_experts(tmp_path / "other", num_experts=4)
    capsys.readouterr()
    arguments = ["--stats", str(job / "stats"), "--output", str(tmp_path / "new")]
    assert run(["experts", "reduce", str(other), *arguments]) == ExitCode.BAD_INPUT
    assert "are of a model with other experts (layers [0, 1] with [8], not [0, 1] with [4])" in only_error(capsys)
    for foreign in (write_experts(tmp_path / "alike", seed=1), write_experts(tmp_path / "wider", hidden_size=32)):
        capsys.readouterr()
        assert run(["experts", "reduce", str(foreign), *arguments]) == ExitCode.BAD_INPUT
        assert "are of another model: its router of layer 0 answers otherwise" in only_error(capsys)


def test_all_verbs_cut_text_alike(tmp_path: Path) -> None:
    """What calibration holds out, judging holds out: blocks of 512 tokens, though model and tokenizer take 4,096."""
    model = write_experts(tmp_path / "long", max_position_embeddings=4096)
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 4096}))
    words = blank(tmp_path / "words.txt", " ".join(f"w{i}" for i in range(4000)))
    task, tokenizer = open_task(TaskSettings(kind="language-modelling", data=str(words), text=("text",)), str(model))
    assert tokenizer.model_max_length == 4096
    assert task.length_quantiles("train", 1) == (DEFAULT_MAX_LENGTH,)


def test_the_seed_of_a_search_does_not_move_its_split(job: Path) -> None:
    """Statistics, reductions and judging know no seed, so the text is always parted by the same one."""
    searched(job, "seeded", "--stats", job / "stats", "--budget", "2", "--seed", "3", "--finalists", "0")
    seeded, usual = (read_supernet_record(job / name / "supernet")["task"] for name in ("seeded", "work"))
    assert seeded == usual


def test_counts_that_break_router_groups_are_refused(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grouped = write_experts(tmp_path / "grouped", "deepseek_v3")
    capsys.readouterr()
    arguments = ["--operator", "weight-norm", "--keep", "5", "--output", str(tmp_path / "new")]
    assert run(["experts", "reduce", str(grouped), *arguments]) == ExitCode.BAD_INPUT
    assert "equally many in each of its 2 groups" in only_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--operator", "magic"], ExitCode.BAD_INPUT, "unknown expert reduction 'magic'"),
        (["--multiple-of", "0"], ExitCode.BAD_INPUT, "expert counts are multiples of 1 or more, got 0"),
        (["--also", "height"], ExitCode.BAD_INPUT, "qwen3_moe cannot vary height"),
        (["--expert-options", "3"], ExitCode.BAD_INPUT, "was made with another space"),
        (["--max-memory-mib", "1", "--max-memory-gib", "1"], ExitCode.BAD_INPUT, "the largest memory is said once"),
        (["--max-memory-gib", "1e-9"], ExitCode.LIMITS, "no sub-network can meet memory"),
    ],
)
def test_bad_input_to_search(
    arguments: list[str], code: ExitCode, message: str, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" if "--also" in arguments else job / "work"
    given = [*map(str, ("--data", job / "text.txt", "--stats", job / "stats", *TEXT)), "--study-name", "wrong"]
    space = SPACE if "--expert-options" not in arguments else SPACE[2:]
    command = ["experts", "search", str(job / "model"), *given, *space, *arguments, "--output", str(output)]
    assert run(command) == code
    assert message in only_error(capsys)
    assert not (tmp_path / "new").exists()
