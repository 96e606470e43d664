"""`nas front`: the Pareto front of a study, as a table, a machine format or a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.config import DEFAULT_STORAGE, ConfigOption, StorageOption, StudyNameOption
from cli.layouts import Layouts
from cli.output import Format, FormatOption, cell, write_rows
from cli.study import pick
from studies.records import MEASURED, Evaluation, Objective, Study

if TYPE_CHECKING:
    from studies.pareto import ParetoFront
    from studies.store import StudyStore

_MOST_NLL = 700.0
"""Nats beyond which a perplexity is no number any more: they are summed rather than per token."""
_SETTLED = 0.03
"""The protocol's `TimingSettings.tolerance`, without loading torch for it."""
REAL, COMPARED, UNSEEN = "measured", "compared by the search", "never evaluated"
"""What the numbers of a front are worth; see `_fronts`."""


def front(
    storage: StorageOption = DEFAULT_STORAGE,
    study_name: StudyNameOption = None,
    style: FormatOption = Format.TABLE,
    plot: Annotated[Path | None, typer.Option(help="Also draw the front into this .png, .svg or .pdf.")] = None,
    predicted: Annotated[
        bool, typer.Option("--predicted", help="Also show, apart, fronts that stand on predicted values.")
    ] = False,
    sort: Annotated[str | None, typer.Option(help="Objective to sort by, best first; default the first.")] = None,
    measured_on: Annotated[str | None, typer.Option(help="Fingerprint of the one device whose costs count.")] = None,
    layouts: Annotated[
        bool, typer.Option("--layouts", help="Draw the experts of every shown network, not of the knee alone.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Show the sub-networks that no other one beats."""
    from studies.store import StudyStore

    with StudyStore.open(storage, create=False) as store:
        study = pick(store, study_name)
        objective = _objective(study, sort)
        fronts = _fronts(store, study, measured_on, predicted)
        evaluations = store.evaluations(study.name) if plot is not None else []
        drawn_experts = Layouts.of(store, study)
    if not any(map(len, fronts.values())):
        raise ValueError(_why_empty(study, predicted))
    if style is Format.TABLE:
        _write_tables(fronts, _Table(study, drawn_experts), objective)
        if drawn_experts is not None:
            _write_layouts(fronts, drawn_experts, objective, layouts)
    else:
        rows = [
            ({"standing": standing} if predicted else {}) | _full_row(found, study, evaluation)
            for standing, found in fronts.items()
            for evaluation in _ranked(found, objective)
        ]
        write_rows(rows, style, study.name)
    if unsettled := _count_unsettled(fronts):
        typer.echo(
            f"{unsettled} latencies did not settle: the middle half of their samples is more than {_SETTLED:.0%} wide "
            "(after ±); time on a quieter machine, or with more --rounds",
            err=True,
        )
    if plot is not None:
        from cli.plot import draw_front

        drawn = fronts[COMPARED if predicted else REAL]
        if not len(drawn):
            raise ValueError(f"nothing to draw: {_why_empty(study, predicted)}")
        draw_front(drawn, evaluations, plot, title=study.name)
        typer.echo(f"figure written to {plot}", err=True)


def _fronts(store: StudyStore, study: Study, device: str | None, predicted: bool) -> dict[str, ParetoFront]:
    """Standing → front. Each compares like with like, and none mixes what is measured with what is predicted.

    Measured: every number was. Compared by the search: qualities measured on one share of the data, latencies from one
    table for all. Never evaluated: every number is predicted.
    """
    fronts = {REAL: store.front(study.name, device=device, provenances=MEASURED)}
    if predicted:
        from nas.search import SEARCHED, compared_share
        from studies.predicted import predicted_front

        evaluated = store.evaluations(study.name)
        share = compared_share(evaluated)
        fronts[COMPARED] = store.front(study.name, device=device, provenances=SEARCHED, data_fraction=share)
        fronts[UNSEEN] = predicted_front(study.objectives, store.predictions(study.name), evaluated, device)
    return fronts


@dataclass(frozen=True, slots=True)
class _Table:
    """What the rows of a table need to know besides the front."""

    study: Study
    layouts: Layouts | None


def _write_tables(fronts: Mapping[str, ParetoFront], table: _Table, objective: Objective) -> None:
    """One table for each front that holds anything, under its standing if there may be several."""
    for standing, found in fronts.items():
        if not len(found):
            continue
        if len(fronts) > 1:
            typer.echo(f"{standing}:")
        title = table.study.name if len(fronts) == 1 else ""
        write_rows([_table_row(found, table, e) for e in _ranked(found, objective)], Format.TABLE, title)


def _write_layouts(fronts: Mapping[str, ParetoFront], layouts: Layouts, objective: Objective, every: bool) -> None:
    """The knee's experts, or those of every network, each once."""
    knees = [found.knee() for found in fronts.values() if len(found)]
    shown = [e for found in fronts.values() for e in _ranked(found, objective)] if every else knees[:1]
    for evaluation in {e.genotype: e for e in shown}.values():
        name = "a network that was never evaluated" if evaluation.number < 0 else f"network {evaluation.number}"
        typer.echo(f"\n{name}{', the knee' if evaluation in knees else ''}:\n{layouts.picture(evaluation.genotype)}")


def _count_unsettled(fronts: Mapping[str, ParetoFront]) -> int:
    """How many latencies of whole networks their samples do not agree on."""
    shown = {
        (e.genotype, value)
        for f in fronts.values()
        for e in f.evaluations
        for o in f.objectives
        if (value := f.value(e, o)).provenance == "extracted"
    }
    return sum(value.spread is not None and value.spread > _SETTLED * value.number for _, value in shown)


def _why_empty(study: Study, predicted: bool) -> str:
    kind, remedy = ("evaluated", "") if predicted else ("measured", "look at what is predicted with --predicted, or ")
    limits = " and within its limits" if study.constraints else ""
    return f"study {study.name!r} has no sub-network {kind} on all of its objectives{limits}; {remedy}run `nas search`"


def _objective(study: Study, sort: str | None) -> Objective:
    """The objective meant by its key, or by its name where that is unambiguous."""
    if sort is None:
        return study.objectives[0]
    found = [o for o in study.objectives if sort in (o.key, o.name)]
    if len(found) != 1:
        keys = ", ".join(o.key for o in study.objectives)
        raise ValueError(f"--sort must name one objective of the study ({keys}), got {sort!r}")
    return found[0]


def _ranked(found: ParetoFront, objective: Objective) -> list[Evaluation]:
    sign = -1 if objective.goal == "max" else 1
    return sorted(found.evaluations, key=lambda e: (sign * found.value(e, objective).number, e.number))


def _table_row(found: ParetoFront, table: _Table, evaluation: Evaluation) -> dict[str, object]:
    """What a reader wants: numbers with their spread, where they come from, and the network."""
    values = [(objective, found.value(evaluation, objective)) for objective in found.objectives]
    return {
        "number": _number(evaluation),
        **{
            f"{o.key} [{o.unit}]": cell(v.number)
            + (f" ± {cell(v.spread)}" if v.spread is not None else "")
            + (f" (perplexity {cell(math.exp(v.number))})" if o.name == "nll" and v.number < _MOST_NLL else "")
            for o, v in values
        },
        "provenance": " ".join(v.provenance for _, v in values),
        **_network(table, evaluation),
        "knee": "*" if evaluation == found.knee() else "",
    }


def _network(table: _Table, evaluation: Evaluation) -> dict[str, object]:
    """The architecture in full, or its experts in short."""
    if table.layouts is not None:
        return {"experts": table.layouts.skyline(evaluation.genotype)}
    return {"architecture": _architecture(table.study, evaluation)}


def _full_row(found: ParetoFront, study: Study, evaluation: Evaluation) -> dict[str, object]:
    """Everything, one column a fact, for programs."""
    row: dict[str, object] = {"number": _number(evaluation)}
    for objective in found.objectives:
        value = found.value(evaluation, objective)
        row |= {
            objective.key: value.number,
            f"{objective.key} unit": objective.unit,
            f"{objective.key} spread": value.spread,
            f"{objective.key} provenance": value.provenance,
            f"{objective.key} device": value.device,
        }
    return row | {
        "architecture": _architecture(study, evaluation),
        "genotype": "-".join(map(str, evaluation.genotype)),
        "knee": evaluation == found.knee(),
    }


def _number(evaluation: Evaluation) -> int | None:
    """None for what the study has no evaluation of."""
    return None if evaluation.number < 0 else evaluation.number


def _architecture(study: Study, evaluation: Evaluation) -> str:
    from supernets.space import SearchSpace

    return SearchSpace.from_json(study.space).decode(evaluation.genotype).key if study.space else ""
