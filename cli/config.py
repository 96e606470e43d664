"""Options that several verbs share, and the one configuration file that may set any of them.

Precedence: flag, then environment (`NAS_STORAGE`, `NAS_STUDY_NAME`, …), then `--config`, then default. The file is
TOML or YAML; top-level settings hold for every verb that knows them, a table named like a verb for that verb alone:

    storage = "sqlite:///reviews.db"
    [search]
    budget = 200
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_STORAGE = "sqlite:///nas.db"
Settings = dict[str, Any]


def read_config(path: Path) -> Settings:
    """Read a TOML or YAML mapping; ValueError names the file and the line that cannot be read."""
    if path.suffix not in (".toml", ".yaml", ".yml"):
        raise ValueError(f"a configuration file ends in .toml, .yaml or .yml, got {path}")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else _parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is not readable as {path.suffix[1:].upper()}: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings such as 'budget: 200', got a {type(content).__name__}")
    return {_as_name(key): value for key, value in content.items()}


def _parse_yaml(text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _as_name(key: object) -> str:
    return str(key).replace("-", "_")


def settings_for(verb: tuple[str, ...], content: Mapping[str, Any]) -> tuple[Settings, Settings]:
    """Split a configuration into (settings for every verb, settings of this verb's own table)."""
    shared = {name: value for name, value in content.items() if not isinstance(value, Mapping)}
    table: Any = content
    for word in verb:
        table = table.get(_as_name(word), {}) if isinstance(table, Mapping) else {}
    own = table if isinstance(table, Mapping) and verb else {}
    return shared, {_as_name(name): value for name, value in own.items()}


def _apply_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's settings the defaults of the verb that is being parsed; unknown names are refused."""
    if path is None or context.resilient_parsing:
        return path
    content, root, verb = read_config(path), context.find_root().command, _words(context)
    shared, own = settings_for(verb, content)
    known = _parameters(context.command)
    verbs = frozenset(map(_as_name, getattr(root, "commands", {})))
    _refuse_unknown(path, set(content) - set(shared), verbs, "nas as a verb")
    _refuse_unknown(path, shared, _parameters(root), "any verb")
    _refuse_unknown(path, own, known, " ".join(verb))
    context.default_map = {name: value for name, value in {**shared, **own}.items() if name in known}
    return path


def _words(context: Any) -> tuple[str, ...]:
    """The verb and its sub-verb, without the program's name."""
    return () if context.parent is None else (*_words(context.parent), str(context.info_name))


def _parameters(command: Any) -> frozenset[str]:
    """Names of a verb's parameters; for a group of verbs, of all verbs below it."""
    if children := getattr(command, "commands", {}):
        return frozenset[str]().union(*map(_parameters, children.values()))
    return frozenset(parameter.name for parameter in command.params) - {"config", "help"}


def _refuse_unknown(path: Path, names: Iterable[str], known: frozenset[str], owner: str) -> None:
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(f"{path} sets {unknown[0]!r}, unknown to {owner}; known: {', '.join(sorted(known))}")


def resolved(context: typer.Context) -> Settings:
    """Every setting of the running verb after flags, environment and configuration, JSON-representable."""
    return {name: _as_json(value) for name, value in sorted(context.params.items()) if name != "config"}


def record(context: typer.Context) -> Settings:
    """What is kept with a study: every setting but the storage, whose URL may hold a password."""
    return {name: value for name, value in resolved(context).items() if name != "storage"}


def _as_json(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML or YAML file with settings.", is_eager=True, callback=_apply_config),
]
StorageOption = Annotated[
    str,
    typer.Option(
        "--storage", envvar="NAS_STORAGE", help="Study database, sqlite:///FILE or postgresql://USER@HOST/NAME"
    ),
]
StudyNameOption = Annotated[
    str | None, typer.Option("--study-name", envvar="NAS_STUDY_NAME", help="Study; may be left out if there is one.")
]
