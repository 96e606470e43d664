"""The search stage: a supernet, a task and a machine in; a study with its front, re-measured on the machine, out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.device import load_backend
from kernels.op_spec import Context
from kernels.timing import TimingSettings
from nas.algorithm import load_algorithm
from nas.finalists import remeasure
from nas.measuring import OnMeasured, latency_table
from nas.objective import Bindings, parse_objective
from nas.problem import build_problem, study_for
from nas.search import SearchProgress, run
from nas.settings import SearchSettings
from nas.tuning import TASKS
from predictors.latency_table import LatencyTable
from predictors.measure import measured_versions
from studies.pareto import ParetoFront
from studies.store import StudyStore
from supernets.checkpoint import load_supernet
from supernets.evaluation import Precision, resolve_precision
from supernets.supernet import Supernet
from supernets.task import TRAIN, Task, TaskSettings

LATENCY_TABLE_NOTE = "latency_table"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRequest:
    """What `search_supernet` searches, and under which circumstances.

    Attributes:
        supernet: folder made by the tuning stage.
        batch, sequences, threads, dtype: of the latency context; no sequences means five quantiles of the user's data.
        evaluation_examples: validation examples per evaluation; None takes all.
        finalists: networks of the front that are measured end to end afterwards.
    """

    supernet: Path
    search: SearchSettings
    batch: int = 1
    sequences: tuple[int, ...] = ()
    threads: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    precision: Precision = "auto"
    evaluation_examples: int | None = None
    finalists: int = 8
    timing: TimingSettings | None = None


@dataclass(frozen=True, slots=True)
class OpenSupernet:
    """A loaded supernet with its task, as the later stages need it."""

    supernet: Supernet
    task: Task
    tokenizer: Any
    record: dict[str, Any]


def open_supernet(folder: Path) -> OpenSupernet:
    """Load a supernet folder and open the task it was tuned on; ValueError if either cannot be."""
    supernet, tokenizer, record = load_supernet(folder)
    settings = TaskSettings.from_json(record["task"])
    task_class: Any = TASKS.load(settings.kind)
    return OpenSupernet(supernet, task_class.open(settings, tokenizer), tokenizer, record)


def context_of(request: SearchRequest, task: Task) -> Context:
    """The latency context of a request, lengths taken from the training data where none are given."""
    lengths = request.sequences or tuple(task.length_quantiles(TRAIN, 5))
    return Context(batch=request.batch, sequences=lengths, threads=request.threads, dtype=request.dtype)


def search_supernet(
    request: SearchRequest,
    opened: OpenSupernet,
    store: StudyStore,
    *,
    on_measured: OnMeasured | None = None,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> ParetoFront:
    """Search (or go on searching) a supernet, then measure the finalists end to end.

    The latency table is frozen into the study when it is created; a resumed search reads that one.

    Returns:
        The front of measured values: qualities of the supernet, latencies of extracted networks.
    """
    backend = load_backend(request.device)
    opened.supernet.model.to(request.device)
    context = context_of(request, opened.task)
    settings = request.search
    table = _frozen_table(store, settings.study_name)
    if table is None and _needs_latency(settings):
        table = latency_table(
            opened.supernet, context, store, backend, settings=request.timing, on_progress=on_measured
        )
    bindings = Bindings(
        supernet=opened.supernet,
        task=opened.task,
        context=context,
        table=table,
        examples=request.evaluation_examples,
        device=request.device,
        precision=resolve_precision(request.precision, request.device),
        seed=settings.seed,
    )
    problem, evaluate = build_problem(settings.objectives, settings.limits, bindings)
    study = store.create_or_resume(study_for(settings, problem, bindings, measured_versions()))
    if table is not None:
        store.note(study.name, LATENCY_TABLE_NOTE, table.to_json())
    store.put_checkpoint(study.supernet_hash, str(request.supernet))
    algorithm = load_algorithm(settings.algorithm)(problem, settings.algorithm_settings)
    front = run(problem, algorithm, evaluate, store, study, on_progress=on_progress)
    if table is not None:
        remeasure(
            front,
            bindings,
            evaluate,
            store,
            study.name,
            backend,
            count=request.finalists,
            settings=request.timing,
            on_progress=on_measured,
        )
    return store.front(study.name)


def _frozen_table(store: StudyStore, study_name: str) -> LatencyTable | None:
    if study_name not in {study.name for study in store.studies()}:
        return None
    content = store.notes(study_name).get(LATENCY_TABLE_NOTE)
    return None if content is None else LatencyTable.from_json(content)


def _needs_latency(settings: SearchSettings) -> bool:
    return any(parse_objective(text)[0] == "latency" for text in (*settings.objectives, *settings.limits))
