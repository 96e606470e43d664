"""The figure of `nas front --plot`: every candidate, the front as a staircase, the knee named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from studies.pareto import ParetoFront, cost_row, signed
from studies.records import MEASURED, Evaluation, Objective

SUFFIXES = (".png", ".svg", ".pdf")


def draw_front(front: ParetoFront, evaluations: Sequence[Evaluation], path: Path, title: str) -> None:
    """Draw the first objective (vertical) against the second; the file appears whole or not at all.

    Raises:
        ValueError: a single objective, a suffix that is not a figure's, or matplotlib missing.
    """
    if len(front.objectives) < 2:
        raise ValueError(f"a figure needs two objectives, study {title!r} has one")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure ends in {', '.join(SUFFIXES)}, got {path}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("figures need matplotlib: pip install 'supernas[plot]'") from error

    y, x = front.objectives[:2]
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=_label(x), ylabel=_label(y), title=title)
    axes.scatter(*_points(front, evaluations, x, y), s=12, color="0.7", label="evaluated", zorder=1)
    xs, ys = _points(front, front.evaluations, x, y)
    if len(front.objectives) == 2:
        order = sorted(range(len(xs)), key=lambda i: signed(x, xs[i]))
        axes.step([xs[i] for i in order], [ys[i] for i in order], where="post", color="C0", linewidth=1, zorder=2)
    measured = [all(front.value(e, o).provenance in MEASURED for o in (x, y)) for e in front.evaluations]
    label = "front" if all(measured) else "front (hollow: predicted)"
    axes.scatter(
        xs, ys, s=36, c=["C0" if real else "white" for real in measured], edgecolors="C0", label=label, zorder=3
    )
    knee = front.knee()
    axes.annotate(
        "knee", (front.value(knee, x).number, front.value(knee, y).number), (6, 6), textcoords="offset points"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(draft, dpi=150)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _points(
    front: ParetoFront, evaluations: Sequence[Evaluation], x: Objective, y: Objective
) -> tuple[list[float], list[float]]:
    """Coordinates, in the objectives' units, of the evaluations that have a value for both."""
    rows = [cost_row(evaluation, (x, y), front.allowed) for evaluation in evaluations]
    known = [row for row in rows if all(map(isfinite, row))]
    return [signed(x, row[0]) for row in known], [signed(y, row[1]) for row in known]


def _label(objective: Objective) -> str:
    return f"{objective.key} [{objective.unit}]"
