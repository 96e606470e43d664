"""The whole job in one call: tune, measure, search, export. Called again, it goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernels.device import load_backend
from nas.export import ExportRequest, Selection, export_network, is_export_of, record_export, select
from nas.limits import require_possible
from nas.measuring import OnMeasured
from nas.objective import Bindings, parse_objective
from nas.search import SearchProgress
from nas.searching import OpenSupernet, SearchRequest, context_of, open_supernet, search_supernet
from nas.starting import OnGeneration
from nas.stock import uniform_front
from nas.tune_request import TuneRequest
from nas.tuning import TASKS, OnTuned, Prepared, prepare, tune_supernet
from nas.workspace import Workspace
from studies.errors import LimitError
from studies.pareto import ParetoFront
from studies.records import Evaluation
from studies.store import StudyStore
from supernets.estimate import Estimate
from supernets.family import Layout
from supernets.finetune import TuneProgress


@dataclass(frozen=True, kw_only=True, slots=True)
class FitRequest:
    """What `fit` makes.

    Attributes:
        output: the workspace; everything is found there again when the job is resumed.
        storage: database URL; None keeps the study in the workspace.
        recovery_steps: optimiser steps of distillation for every exported network alone.
    """

    tune: TuneRequest
    search: SearchRequest = field(default_factory=SearchRequest)
    output: Path = Path("work")
    storage: str | None = None
    recovery_steps: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Listener:
    """What is told about a running job; each may be left out."""

    on_estimate: Callable[[Estimate], None] | None = None
    on_tuned: OnTuned | None = None
    on_measured: OnMeasured | None = None
    on_searched: Callable[[SearchProgress], None] | None = None
    on_generation: OnGeneration | None = None
    on_recovered: Callable[[TuneProgress], None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FitExport:
    """One exported network.

    Attributes:
        role: ``knee``, ``best`` or ``uniform``; joined by commas where one network is several.
        evaluation: with all its values, those of the checkpoint included.
    """

    role: str
    folder: Path
    layout: Layout
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """Where the results of a job are."""

    supernet: Path
    storage: str
    study_name: str
    front: ParetoFront
    exports: tuple[FitExport, ...]


def fit(request: FitRequest, listener: Listener | None = None) -> FitResult:
    """Do whatever of the job is not done yet.

    Exported are the knee of the front; with limits, the best in the first objective within them (and the knee within
    them); and, if there is one smaller than the whole model, the best that plain transformers classes express.

    Raises:
        ValueError: unusable input, or a workspace that belongs to another request.
        LimitError: no sub-network meets the limits; found before anything is trained where training does not matter.
    """
    _require_head(request.tune.task.kind)
    listener = listener or Listener()
    workspace = Workspace(request.output)
    storage = request.storage or workspace.storage
    prepared = None if workspace.supernet.exists() else prepare(request.tune)
    workspace.root.mkdir(parents=True, exist_ok=True)
    with StudyStore.open(storage) as store:
        if prepared is not None:
            _require_possible(request.search, prepared, store)
        folder = tune_supernet(
            request.tune, workspace, listener.on_tuned, on_estimate=listener.on_estimate, prepared=prepared
        )
        opened = open_supernet(folder)
        front = search_supernet(
            request.search,
            opened,
            store,
            on_measured=listener.on_measured,
            on_progress=listener.on_searched,
            on_generation=listener.on_generation,
        )
        exports = tuple(_exports(request, opened, front, store, workspace, listener))
    return FitResult(
        supernet=folder, storage=storage, study_name=request.search.search.study_name, front=front, exports=exports
    )


def _require_head(kind: str) -> None:
    task_class: Any = TASKS.load(kind)
    if not task_class.trains_head:
        raise ValueError(f"{kind} trains no head to export: run nas tune and nas search, then nas adapt on a task")


def _require_possible(request: SearchRequest, prepared: Prepared, store: StudyStore) -> None:
    backend, limits = load_backend(request.device), request.search.limits
    if request.target not in (None, backend.detect().fingerprint):  # this machine cannot tell what is fast there
        limits = {text: limit for text, limit in limits.items() if parse_objective(text)[0] != "latency"}
    bindings = Bindings(supernet=prepared.supernet, task=prepared.task, context=context_of(request, prepared.task))
    require_possible(limits, bindings, store, backend, request.timing)


def _exports(
    request: FitRequest,
    opened: OpenSupernet,
    front: ParetoFront,
    store: StudyStore,
    workspace: Workspace,
    listener: Listener,
) -> Iterator[FitExport]:
    """Export every chosen network once; what lies there already is not written again."""
    name = request.search.search.study_name
    for (number, layout), roles in _chosen(request.search, opened, front, store).items():
        evaluation = select(front, store.evaluations(name), Selection(number=number))
        wanted = ExportRequest(
            folder=workspace.export(f"{name}-{number}" + ("-uniform" if layout == "uniform" else "")),
            study_name=name,
            layout=layout,
            recovery_steps=request.recovery_steps,
            device=request.search.device,
            seed=request.search.search.seed,
        )
        if is_export_of(wanted.folder, opened, evaluation, wanted):
            evaluation = record_export(evaluation, wanted, store)
        else:
            evaluation = export_network(opened, evaluation, wanted, store, on_progress=listener.on_recovered).evaluation
        yield FitExport(role=",".join(roles), folder=wanted.folder, layout=layout, evaluation=evaluation)


def _chosen(
    request: SearchRequest, opened: OpenSupernet, front: ParetoFront, store: StudyStore
) -> dict[tuple[int, Layout], list[str]]:
    """(evaluation number, layout) → roles."""
    limits, name = request.search.limits, request.search.study_name
    evaluations = store.evaluations(name)
    chosen: dict[tuple[int, Layout], list[str]] = {}

    def choose(role: str, among: ParetoFront, selection: Selection, layout: Layout) -> None:
        chosen.setdefault((select(among, evaluations, selection).number, layout), []).append(role)

    choose("knee", front, Selection(limits=limits), "free")
    if limits:
        choose("best", front, Selection(rank=1, limits=limits), "free")
    stock = uniform_front(front, store.evaluations_within_limits(name, front.allowed), opened.supernet)
    if len(stock):
        with suppress(LimitError):  # the others keep the limits
            choose("uniform", stock, Selection(rank=1 if limits else None, limits=limits), "uniform")
    return chosen
