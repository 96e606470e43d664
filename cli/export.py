"""`nas export`: one network of a study as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.config import DEFAULT_STORAGE, ConfigOption, StorageOption, StudyNameOption
from cli.options import LimitOptions, MovedDataOption, RunOptions, data_paths
from cli.output import write_rows
from cli.study import pick
from cli.watch import Watch

if TYPE_CHECKING:
    from nas.export import Exported, Selection


def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the checkpoint; must not exist.")],
    limits: LimitOptions,
    run: RunOptions,
    knee: Annotated[bool, typer.Option("--knee", help="The best compromise within the limits; the default.")] = False,
    rank: Annotated[int | None, typer.Option(help="Place on the front; 1 is the best in the first objective.")] = None,
    number: Annotated[int | None, typer.Option(help="The network of this number, on the front or not.")] = None,
    layout: Annotated[
        Literal["free", "uniform", "padded"],
        typer.Option(help="uniform loads with stock classes; free brings its own; padded fills up layers of experts."),
    ] = "free",
    recover: Annotated[int, typer.Option(help="Steps of distillation for this network alone.")] = 0,
    supernet: Annotated[Path | None, typer.Option(help="Folder of the supernet, if it has moved.")] = None,
    data: MovedDataOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    study_name: StudyNameOption = None,
    config: ConfigOption = None,
) -> None:
    """Write one network of a study as a stand-alone checkpoint, reloaded and compared before this returns 0.

    With limits and nothing else, it is the best network within them in the first objective.
    """
    selection = _selection(knee, rank, number, limits.limits())
    from nas.export import ExportRequest, export_network, select
    from nas.searching import open_supernet
    from nas.stock import uniform_front
    from studies.store import StudyStore
    from supernets.staging import require_free

    require_free(output)
    with StudyStore.open(storage, create=False) as store, Watch() as watch:
        study = pick(store, study_name)
        if problem := study.settings.get("problem"):
            raise ValueError(f"study {study.name!r} searched the problem {problem}, which only its own code can export")
        folder = supernet or Path(store.checkpoint(study.supernet_hash) or "supernet")
        opened = open_supernet(folder, data_paths(data) if data else None)
        front, evaluations = store.front(study.name), store.evaluations(study.name)
        if layout == "uniform":
            front = uniform_front(front, evaluations, opened.supernet)
        evaluation = select(front, evaluations, selection)
        request = ExportRequest(
            folder=output,
            study_name=study.name,
            layout=layout,
            recovery_steps=recover,
            device=run.device,
            seed=run.seed,
        )
        done = export_network(opened, evaluation, request, store, on_progress=watch.recovered)
    write_rows([_row(done)])


def _selection(knee: bool, rank: int | None, number: int | None, limits: dict[str, float]) -> Selection:
    from nas.export import Selection

    if sum((knee, rank is not None, number is not None)) > 1:
        raise ValueError("--knee, --rank and --number exclude each other; give one")
    if limits and not knee and number is None:
        return Selection(rank=rank or 1, limits=limits)
    return Selection(rank=rank, number=number, limits=limits)


def _row(done: Exported) -> dict[str, object]:
    return {
        "folder": str(done.folder),
        "number": done.evaluation.number,
        "layout": done.layout,
        "parameters": done.parameters,
        "error": done.quality.error,
        "error before recovery": done.inherited.error,
        "recovery kept": done.recovery_kept,
        "verified": True,
    }
