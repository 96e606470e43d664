"""`nas fit`: the whole job in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.config import ConfigOption, StudyNameOption, record
from cli.options import (
    LatencyOptions,
    LimitOptions,
    ModelArgument,
    OutputOption,
    RunOptions,
    SearchOptions,
    TaskOptions,
    TrainingOptions,
)
from cli.output import Format, FormatOption, write_rows
from cli.watch import Watch


def fit(
    context: typer.Context,
    model: ModelArgument,
    task: TaskOptions,
    limits: LimitOptions,
    latency: LatencyOptions,
    training: TrainingOptions,
    search: SearchOptions,
    run: RunOptions,
    recover: Annotated[int, typer.Option(help="Steps of distillation for every exported network alone.")] = 0,
    output: OutputOption = Path("work"),
    storage: Annotated[
        str | None, typer.Option(envvar="NAS_STORAGE", help="Study database; default OUTPUT/study.db.")
    ] = None,
    study_name: StudyNameOption = None,
    style: FormatOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Tune, measure, search and export; a stopped job goes on where it was.

    Exports the knee of the front, with limits also the best network within them, and the best one that plain
    transformers classes express.
    """
    settings = search.settings(limits, run, study_name)
    tuned = training.request(model, task, run)
    from nas.fit import FitRequest, fit

    searched = search.request(settings, latency, run, record(context))
    request = FitRequest(tune=tuned, search=searched, output=output, storage=storage, recovery_steps=recover)
    with Watch(search.explain) as watch:
        result = fit(request, watch.listener())
    rows = [
        {
            "role": export.role,
            "number": export.evaluation.number,
            "layout": export.layout,
            **{v.objective: v.number for v in export.evaluation.values},
            "folder": str(export.folder),
        }
        for export in result.exports
    ]
    write_rows(rows, style)
    typer.echo(f"all networks: nas front --storage {result.storage} --study-name {result.study_name}", err=True)
