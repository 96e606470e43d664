"""`nas adapt`: one network of a supernet of plain text as a classifier."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cli.choice import ChoiceOptions
from cli.config import DEFAULT_STORAGE, ConfigOption, StorageOption, StudyNameOption
from cli.options import LimitOptions, RunOptions, TaskOptions
from cli.output import write_rows
from cli.watch import Watch


def adapt(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the checkpoint; must not exist.")],
    task: TaskOptions,
    choice: ChoiceOptions,
    limits: LimitOptions,
    run: RunOptions,
    steps: Annotated[int, typer.Option(help="Optimiser steps of this network alone.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Its peak, after warm-up.")] = 2e-4,
    plain_text: Annotated[
        list[str] | None, typer.Option(help="Where the supernet's text is now, if not where it was while tuning.")
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    study_name: StudyNameOption = None,
    config: ConfigOption = None,
) -> None:
    """Fine-tune one network of a supernet of plain text on a task and write it, verified as by nas export."""
    from nas.adapting import AdaptRequest, export_adapted
    from studies.store import StudyStore
    from supernets.finetune import TuneSettings
    from supernets.recipe import plain_recipe

    tuning = TuneSettings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        recipe=plain_recipe(),
        order_fraction=-1.0,
        device=run.device,
        precision=run.precision,
        seed=run.seed,
        watched_examples=0,
    )
    with StudyStore.open(storage, create=False) as store, Watch() as watch:
        study, opened, evaluation = choice.find(store, study_name, limits, plain_text)
        request = AdaptRequest(
            folder=output, study_name=study.name, task=task.settings(), tuning=tuning, layout=choice.layout
        )
        done = export_adapted(opened, evaluation, request, store, on_progress=partial(watch.tuned, "network"))
    row = {
        "folder": str(output),
        "number": evaluation.number,
        "layout": choice.layout,
        "parameters": sum(parameter.numel() for parameter in done.network.parameters()),
        "error": done.quality.error,
        "verified": True,
    }
    write_rows([row])
