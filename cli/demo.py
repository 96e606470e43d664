"""`nas demo`: the main job on real input."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.watch import Watch


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the demonstration.")] = Path("demo"),
) -> None:
    """Fit a real sentence encoder to this machine, for movie reviews; fifteen minutes on two cores."""
    from nas.demo import DemoSettings, run_demo

    with Watch() as watch:
        result = run_demo(output, DemoSettings(), lambda text: typer.echo(text, err=True), watch.show)
    typer.echo(f"RESULT {json.dumps(asdict(result))}")
