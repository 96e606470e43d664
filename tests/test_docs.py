"""What is printed and written about the program is what it does: help texts, commands, links, exit codes, Python."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cli import errors
from cli.config import read_config, settings_for
from cli.errors import ExitCode
from cli.main import app, run
from kernels.device import ENTRY_POINTS
from nas.algorithm import ALGORITHMS
from nas.objective import OBJECTIVES
from nas.tuning import TASKS
from supernets.reduction import REDUCTIONS
from supernets.repair import REPAIRS
from supernets.supernet import FAMILIES
from tests.toy_job import write_checkpoint, write_data
from tests.toy_search import drive, reached, toy_problem

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "help"
UPDATE = "UPDATE_GOLDEN"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
LONG_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def verbs(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every verb of the command line, groups and the program itself included."""
    command = command or typer.main.get_command(app)
    yield words
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from verbs(child, (*words, name))


def golden(words: tuple[str, ...]) -> Path:
    return GOLDEN / f"{'-'.join(('nas', *words))}.txt"


@pytest.mark.parametrize("words", list(verbs()), ids=" ".join)
def test_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with UPDATE_GOLDEN=1 to accept new texts."""
    monkeypatch.setenv("COLUMNS", "100")
    assert run([*words, "--help"]) == 0
    shown = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"
    if os.environ.get(UPDATE):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        golden(words).write_text(shown, encoding="utf-8")
    assert shown == golden(words).read_text(encoding="utf-8"), f"{UPDATE}=1 accepts the new text"


def test_no_help_is_left_over() -> None:
    assert set(GOLDEN.glob("*")) == {golden(words) for words in verbs()}


@cache
def commands() -> dict[tuple[str, ...], Any]:
    """Words → command, groups included."""
    found: dict[tuple[str, ...], Any] = {}
    for words in verbs():
        command = typer.main.get_command(app)
        for word in words:
            command = command.commands[word]  # type: ignore[attr-defined]
        found[words] = command
    return found


def long_options(command: Any) -> dict[str, str]:
    """Option → title of the group it belongs to, empty for the verb's own; ``--help`` aside."""
    options = (parameter for parameter in command.params if parameter.param_type_name == "option")
    return {parameter.opts[0]: parameter.rich_help_panel or "" for parameter in options}


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(title: str) -> str:
    """What `docs/commands.md` says under a heading."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#|\Z)", page("docs/commands.md"), re.M | re.S)
    assert found, f"docs/commands.md has no section {title!r}"
    return re.sub(r"^```.*?^```", "", found[2], flags=re.M | re.S)


GROUPS = ("experts", "study")
"""Words that only gather verbs."""


@pytest.mark.parametrize("words", [w for w in verbs() if w and w[-1] not in GROUPS], ids=" ".join)
def test_every_verb_and_option_has_its_place(words: tuple[str, ...]) -> None:
    said, options = section(" ".join(("nas", *words))), long_options(commands()[words])
    for option, group in options.items():
        where = section(group) if group else said
        assert f"`{option}`" in where
        assert not group or f"[{group}](#{group.lower().replace(' ', '-')})" in said
    assert set(LONG_OPTION.findall(said)) <= set(options)


def test_options_of_the_program_itself() -> None:
    assert all(f"`nas {option}`" in page("docs/commands.md") for option in long_options(commands()[()]))


@pytest.mark.parametrize(
    "title", ["Data and task", "Text", "Experts", "Training", "Machine", "Latency", "Limits", "Search", "Choice"]
)
def test_groups_hold_what_they_should(title: str) -> None:
    known = {o for command in commands().values() for o, group in long_options(command).items() if group == title}
    assert set(re.findall(r"^\| `(--[a-z-]+)`", section(title), re.M)) == known


def shown_commands(path: Path) -> list[list[str]]:
    """The words of every ``nas`` command in a page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("nas ")]


@pytest.mark.parametrize("path", [path for path in PAGES if shown_commands(path)], ids=lambda path: path.name)
def test_shown_commands_parse(path: Path) -> None:
    for words in shown_commands(path):
        typer.main.get_command(app).make_context("nas", [*words], resilient_parsing=True)
        verb = tuple(words[: 2 if words[0] in GROUPS else 1])
        command = commands()[verb]
        with command.make_context(verb[-1], words[len(verb) :]) as context:
            assert not context.args


def test_the_shown_configuration_is_known(tmp_path: Path) -> None:
    found = re.search(r"^```toml\n(.*?)^```", page("docs/commands.md"), re.M | re.S)
    assert found
    (tmp_path / "nas.toml").write_text(found[1])
    content = read_config(tmp_path / "nas.toml")
    shared, _ = settings_for((), content)
    names = {words: {parameter.name for parameter in command.params} for words, command in commands().items()}
    assert set(shared) <= set().union(*names.values())
    for verb in set(content) - set(shared):
        assert set(settings_for((verb,), content)[1]) <= names[verb,]


@pytest.mark.parametrize("text", [page("README.md"), errors.__doc__], ids=["README", "cli.errors"])
def test_exit_codes_are_tabled(text: str) -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.M)] == list(ExitCode)


def test_exit_codes_are_tabled_alike() -> None:
    rows = re.findall(r"^\| \d+ \|.*", page("README.md"), re.M)
    assert rows == re.findall(r"^\| \d+ \|.*", errors.__doc__ or "", re.M)


def anchors(text: str) -> set[str]:
    """Fragments of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        name, _, fragment = link.partition("#")
        target = path if not name else path.parent / name
        assert target.is_file(), link
        assert not fragment or fragment in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_named_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", page("Makefile"), re.M))
    named = set(re.findall(r"(?:^ {4}|`)make ([a-z-]+[a-z])(?![\w…-])", path.read_text(encoding="utf-8"), re.M))
    assert named <= targets


def test_variant_folders_are_listed() -> None:
    said = page("docs/python-api.md")
    for folder in (FAMILIES, TASKS, REDUCTIONS, REPAIRS, ALGORITHMS, OBJECTIVES):
        assert f"| `{folder.package.replace('.', '/')}` | `{folder.attribute}" in said
        assert f"`{folder.group}`" in said
    assert f"`{ENTRY_POINTS}`" in said


def snippets(name: str) -> list[str]:
    """The Python blocks of a page, in order; what they assign to `model_folder` and `data_file` is left out."""
    blocks = re.findall(r"^```python\n(.*?)^```", page(name), re.M | re.S)
    return [re.sub(r"^(model_folder|data_file) = .*$", "", block, flags=re.M) for block in blocks]


@pytest.mark.parametrize("name", ["README.md", "docs/python-api.md"])
def test_shown_python_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names its inputs `model_folder` and `data_file`."""
    monkeypatch.chdir(tmp_path)
    inputs = {
        "model_folder": str(write_checkpoint(tmp_path / "model")),
        "data_file": str(write_data(tmp_path / "data.tsv")),
    }
    blocks = snippets(name)
    assert blocks
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{name}, block {number}", "exec", dont_inherit=True), {"__name__": "shown", **inputs})


def test_the_shown_problem_is_searched_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice: the second time everything is known."""
    (code,) = snippets("docs/any-supernet.md")
    (tmp_path / "digits.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["--problem", "digits:Digits", "--budget", "24", "--rounds", "2", "--finalists", "2", "--explain"]
    shown = []
    for _ in range(2):
        assert run(["search", *arguments]) == 0
        assert "generation 0: 0 measured" in capsys.readouterr().err
        assert run(["front", "-f", "json"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    rows = json.loads(shown[0])
    assert {row["latency provenance"] for row in rows} == {"extracted"}
    assert {row["parameters provenance"] for row in rows} == {"computed"}
    assert min(row["error"] for row in rows) < 0.5, "it has learnt something"
    assert run(["export", "--output", "x"]) == ExitCode.BAD_INPUT
    assert "searched the problem digits:Digits, which only its own code can export" in capsys.readouterr().err


def test_the_shown_algorithm_keeps_its_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    (block,) = (block for block in snippets("docs/python-api.md") if "def search(" in block)
    exec(compile(block, "docs/python-api.md", "exec", dont_inherit=True), names)
    problem = toy_problem()
    random = reached(problem, drive(problem, "random", 64), 64)
    monkeypatch.setattr("tests.toy_search.load_algorithm", lambda _: names["search"])
    first, second, other = (drive(problem, "shown", 64, seed=seed) for seed in (0, 0, 1))
    flat = [genotype for batch in first for genotype in batch]
    assert flat == [problem.space.canonical(genotype) for genotype in dict.fromkeys(flat)]
    assert first == second != other
    assert reached(problem, first, 64) > random
