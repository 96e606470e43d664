"""`nas eval`: how good and how fast a checkpoint is."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.config import ConfigOption
from cli.options import LatencyOptions, RunOptions, TaskOptions
from cli.output import Format, FormatOption, write_rows
from cli.watch import Watch


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="Classifier or language model: an export, or any stock checkpoint.")
    ],
    task: TaskOptions,
    latency: LatencyOptions,
    run: RunOptions,
    split: Annotated[str | None, typer.Option(help="train, validation or test; default test if there is one.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code the checkpoint brings; our own needs no trust.")
    ] = False,
    style: FormatOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Measure the quality and the latency of any checkpoint, exported or stock."""
    from nas.judging import JudgeRequest, judge

    request = JudgeRequest(
        checkpoint=checkpoint,
        task=task.settings(),
        split=split,
        batch=latency.batch,
        sequences=latency.sequences(),
        threads=latency.threads,
        dtype=latency.dtype,
        device=run.device,
        precision=run.precision,
        trust_remote_code=trust_remote_code,
        timing=latency.timing(),
    )
    with Watch() as watch:
        found = judge(request, watch.measured)
    row = {
        "split": found.split,
        "examples": found.quality.examples,
        **found.quality.metrics,
        "standard error": found.quality.standard_error,
        "latency [ms]": 1e3 * found.latency.seconds,
        "spread [ms]": 1e3 * found.latency.seconds_iqr,
        "noisy": found.latency.noisy,
        "context": found.context.key,
        "parameters": found.parameters,
        "device": found.device,
    }
    write_rows([row] if style is not Format.TABLE else [{"fact": k, "value": v} for k, v in row.items()], style)
