"""`nas demo`: the main job on real input."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.output import Format, write_rows
from cli.watch import Watch


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the demonstration.")] = Path("demo"),
) -> None:
    """Fit a real sentence encoder to this machine, for movie reviews; fifteen minutes on two cores."""
    from nas.demo import DemoSettings, run_demo

    with Watch() as watch:
        result = run_demo(output, DemoSettings(), lambda text: typer.echo(text, err=True), watch.show)
    baselines = [
        {"network": "full model, fine-tuned", "test_accuracy": result.baseline_test_accuracy},
        {"network": "full model, distilled", "test_accuracy": result.distilled_test_accuracy},
    ]
    write_rows(baselines, Format.TABLE, "Baselines")
    write_rows(result.front, Format.TABLE, "Front (inherited weights, measured latency)")
    write_rows(result.exports, Format.TABLE, "Exported checkpoints (recovered, reloaded, verified)")
    typer.echo(f"RESULT {json.dumps(asdict(result))}")
