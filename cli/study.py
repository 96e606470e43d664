"""`nas study list|show|delete`: what the database holds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from cli.config import DEFAULT_STORAGE, ConfigOption, StorageOption
from cli.output import Format, FormatOption, write_rows
from studies.records import Study

if TYPE_CHECKING:
    from studies.store import StudyStore

app = typer.Typer(help="List, show and delete the studies of a database.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="Name of the study.", show_default=False)]


@app.command("list")
def list_studies(
    storage: StorageOption = DEFAULT_STORAGE, style: FormatOption = Format.TABLE, config: ConfigOption = None
) -> None:
    """List the studies with their progress."""
    from studies.store import StudyStore

    with StudyStore.open(storage, create=False) as store:
        write_rows([_summary(store, study) for study in store.studies()], style)


@app.command("show")
def show_study(
    name: NameArgument,
    storage: StorageOption = DEFAULT_STORAGE,
    style: FormatOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Show what a study is about and how far it is."""
    from studies.store import StudyStore

    with StudyStore.open(storage, create=False) as store:
        study = store.study(name)
        summary = _summary(store, study)
    details = {
        **summary,
        "seed": study.seed,
        "space": study.space_fingerprint,
        "supernet": study.supernet_hash,
        "data": study.data_hash,
        "latency_table": study.latency_table_hash,
        **{f"limit {objective}": limit for objective, limit in sorted(study.constraints.items())},
        **{f"setting {key}": value for key, value in sorted(study.settings.items())},
        **{f"version {package}": number for package, number in sorted(study.versions.items())},
    }
    if style is Format.TABLE:
        write_rows([{"field": field, "value": value} for field, value in details.items()])
    else:
        write_rows([details], style)


@app.command("delete")
def delete_study(
    name: NameArgument,
    storage: StorageOption = DEFAULT_STORAGE,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = None,
) -> None:
    """Delete a study and its evaluations; measurements of the device stay."""
    from studies.store import StudyStore

    with StudyStore.open(storage, create=False) as store:
        count = len(store.evaluations(store.study(name).name))
        if not yes:
            typer.confirm(f"Delete study {name!r} with {count} evaluations?", abort=True)
        store.delete(name)
    typer.echo(f"deleted study {name!r}", err=True)


def pick(store: StudyStore, name: str | None) -> Study:
    """The named study, or the only one there is; ValueError names the candidates otherwise."""
    if name is not None:
        return store.study(name)
    studies = store.studies()
    if len(studies) != 1:
        names = ", ".join(study.name for study in studies) or "none"
        raise ValueError(f"--study-name is needed unless the database holds exactly one study; it holds: {names}")
    return studies[0]


def _summary(store: StudyStore, study: Study) -> dict[str, object]:
    counts = Counter(evaluation.status for evaluation in store.evaluations(study.name))
    return {
        "name": study.name,
        "algorithm": study.algorithm,
        "objectives": " ".join(objective.key for objective in study.objectives),
        "done": counts["done"],
        "failed": counts["failed"],
        "budget": study.budget,
        "created": f"{study.created_utc:%Y-%m-%d %H:%M}" if study.created_utc else "",
    }
