"""Flag over environment over file over default, and what a wrong file is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from cli.config import DEFAULT_STORAGE, ConfigOption, StorageOption, read_config, resolved

app = typer.Typer()
group = typer.Typer()
app.add_typer(group, name="study")


@app.command("search")
def search(
    context: typer.Context,
    objective: Annotated[list[str] | None, typer.Option()] = None,
    max_latency_ms: Annotated[float | None, typer.Option()] = None,
    out: Annotated[Path, typer.Option()] = Path("front"),
    storage: StorageOption = DEFAULT_STORAGE,
    config: ConfigOption = None,
) -> None:
    print(json.dumps(resolved(context)))


@group.command("list")
def list_studies(
    context: typer.Context,
    storage: StorageOption = DEFAULT_STORAGE,
    limit: Annotated[int, typer.Option()] = 10,
    config: ConfigOption = None,
) -> None:
    print(json.dumps(resolved(context)))


def settings(*arguments: str, environment: dict[str, str] | None = None) -> dict[str, object]:
    result = CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    content = json.loads(result.output)
    assert isinstance(content, dict)
    return content


@pytest.fixture(params=["toml", "yaml"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"nas.{request.param}"
    if request.param == "toml":
        path.write_text(
            'storage = "sqlite:///file.db"\n'
            '[search]\nobjective = ["error", "latency"]\nmax-latency-ms = 12\n[study.list]\nlimit = 3\n'
        )
    else:
        path.write_text(
            "storage: sqlite:///file.db\n"
            "search: {objective: [error, latency], max-latency-ms: 12}\nstudy: {list: {limit: 3}}\n"
        )
    return path


def test_file_sets_defaults(config: Path) -> None:
    assert settings("search", "--config", str(config)) == {
        "objective": ["error", "latency"],
        "max_latency_ms": 12.0,
        "out": "front",
        "storage": "sqlite:///file.db",
    }
    assert settings("study", "list", "--config", str(config)) == {"limit": 3, "storage": "sqlite:///file.db"}


def test_precedence(config: Path) -> None:
    environment = {"NAS_STORAGE": "sqlite:///environment.db"}
    assert settings("search")["storage"] == DEFAULT_STORAGE
    assert settings("search", "--config", str(config), environment=environment)["storage"] == "sqlite:///environment.db"
    flagged = settings("search", "--storage", "sqlite:///flag.db", "--config", str(config), environment=environment)
    assert flagged["storage"] == "sqlite:///flag.db"


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("nas.ini", "a = 1", "ends in .toml, .yaml or .yml"),
        ("nas.toml", "storage =", "not readable as TOML"),
        ("nas.yaml", "storage: [", "not readable as YAML"),
        ("nas.yaml", "- storage", "must hold settings"),
        ("nas.toml", "storrage = 'x'", "sets 'storrage', unknown to any verb; known: limit"),
        ("nas.toml", "[serach]\nlimit = 3", "sets 'serach', unknown to nas as a verb; known: search, study"),
        ("nas.toml", "[search]\nlimit = 3", "sets 'limit', unknown to search; known: max_latency_ms, objective"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, name: str, text: str, problem: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=r"nas\.") as caught:
        CliRunner().invoke(app, ["search", "--config", str(path)], catch_exceptions=False)
    assert problem in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.toml: No such file"):
        read_config(tmp_path / "absent.toml")


def test_a_value_of_the_wrong_type_names_its_option(tmp_path: Path) -> None:
    (tmp_path / "nas.yaml").write_text("max_latency_ms: soon")
    result = CliRunner().invoke(app, ["search", "--config", str(tmp_path / "nas.yaml")])
    assert result.exit_code == 2
    assert "--max-latency-ms" in result.output
