"""`nas export`: one network of a study as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.choice import ChoiceOptions
from cli.config import DEFAULT_STORAGE, ConfigOption, StorageOption, StudyNameOption
from cli.options import LimitOptions, MovedDataOption, RunOptions
from cli.output import write_rows
from cli.watch import Watch

if TYPE_CHECKING:
    from nas.export import Exported


def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the checkpoint; must not exist.")],
    choice: ChoiceOptions,
    limits: LimitOptions,
    run: RunOptions,
    recover: Annotated[int, typer.Option(help="Steps of distillation for this network alone.")] = 0,
    data: MovedDataOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    study_name: StudyNameOption = None,
    config: ConfigOption = None,
) -> None:
    """Write one network of a study as a stand-alone checkpoint, reloaded and compared before this returns 0.

    With limits and nothing else, it is the best network within them in the first objective.
    """
    from nas.export import ExportRequest, export_network
    from studies.store import StudyStore
    from supernets.staging import require_free

    require_free(output)
    with StudyStore.open(storage, create=False) as store, Watch() as watch:
        study, opened, evaluation = choice.find(store, study_name, limits, data)
        request = ExportRequest(
            folder=output,
            study_name=study.name,
            layout=choice.layout,
            recovery_steps=recover,
            device=run.device,
            seed=run.seed,
        )
        done = export_network(opened, evaluation, request, store, on_progress=watch.recovered)
    write_rows([_row(done)])


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
