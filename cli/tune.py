"""`nas tune`: the supernet."""

from __future__ import annotations

from pathlib import Path

import typer

from cli.config import ConfigOption
from cli.options import ModelArgument, OutputOption, RunOptions, TaskOptions, TrainingOptions
from cli.watch import Watch


def tune(
    model: ModelArgument,
    task: TaskOptions,
    training: TrainingOptions,
    run: RunOptions,
    output: OutputOption = Path("work"),
    config: ConfigOption = None,
) -> None:
    """Make a supernet of a pre-trained model while fine-tuning it; a stopped run resumes."""
    request = training.request(model, task, run)
    from nas.tuning import tune_supernet
    from nas.workspace import Workspace

    with Watch() as watch:
        folder = tune_supernet(request, Workspace(output), watch.tuned, on_estimate=watch.estimated)
    typer.echo(folder)
