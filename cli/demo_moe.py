"""`nas demo-moe`: experts on real input."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.output import Format, write_rows
from cli.watch import Watch


def demo_moe(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the demonstration.")] = Path("demo-moe"),
) -> None:
    """Train a small mixture of experts, then make it smaller for one domain; fifteen minutes on two cores."""
    from nas.moe_demo import MoeDemoSettings, run_moe_demo

    with Watch() as watch:
        result = run_moe_demo(output, MoeDemoSettings(), lambda text: typer.echo(text, err=True), watch.show)
    write_rows(result.uniform, Format.TABLE, "Half the experts of every layer")
    write_rows(result.front, Format.TABLE, "Front (searched operators and counts per layer)")
    write_rows([result.export], Format.TABLE, "Exported checkpoint (reloaded, verified)")
    typer.echo(f"RESULT {json.dumps(asdict(result))}")
