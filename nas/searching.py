"""The search stage: a supernet, a task and a machine in; a study with its front, re-measured on the machine, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kernels.device import DeviceBackend, load_backend
from kernels.op_spec import Context
from kernels.timing import TimingSettings
from nas.algorithm import load_algorithm
from nas.finalists import FINALISTS, remeasure
from nas.measuring import OnMeasured, latency_table, stored_table
from nas.objective import Bindings, context_from, parse_objective
from nas.problem import build_problem, study_for
from nas.search import SearchProgress, run
from nas.settings import SearchSettings
from nas.stock import uniform_front
from nas.teaching import with_answers
from nas.tuning import LENGTH_QUANTILES, open_task
from predictors.latency_table import LatencyTable
from predictors.measure import measured_versions
from studies.pareto import ParetoFront
from studies.records import MEASURED, Study
from studies.store import StudyStore
from supernets.checkpoint import load_supernet
from supernets.evaluation import Precision, resolve_precision
from supernets.supernet import Supernet
from supernets.task import TRAIN, Task, TaskSettings

LATENCY_TABLE_NOTE = "latency_table"

UNIFORM_FINALISTS = 3
"""Networks that stock classes can express, measured end to end whether on the front or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRequest:
    """What `search_supernet` searches, and under which circumstances.

    Attributes:
        batch, sequences, threads, dtype: of the latency context; no sequences means five quantiles of the user's data.
        device, precision: of the forward passes that measure qualities.
        target: fingerprint of the machine the networks are for, if it is another one whose measurements were imported.
        evaluation_examples: validation examples per evaluation; None takes all.
        finalists: networks of the front that are measured end to end afterwards.
        record: further settings to be stored with the study.
    """

    search: SearchSettings = field(default_factory=SearchSettings)
    batch: int = 1
    sequences: tuple[int, ...] = ()
    threads: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    precision: Precision = "auto"
    target: str | None = None
    evaluation_examples: int | None = None
    finalists: int = FINALISTS
    timing: TimingSettings | None = None
    record: Mapping[str, object] = field(default_factory=dict)

    def context(self, quantiles: tuple[int, ...]) -> Context:
        """The latency context, with the user's lengths where none are asked for."""
        return Context(batch=self.batch, sequences=self.sequences or quantiles, threads=self.threads, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class OpenSupernet:
    """A loaded supernet with its task, as the later stages need it."""

    supernet: Supernet
    task: Task
    tokenizer: Any
    record: dict[str, Any]
    folder: Path


def open_supernet(folder: Path, data: str | Mapping[str, str] | None = None) -> OpenSupernet:
    """Load a supernet folder and open the task it was tuned on; `data` says where that has moved.

    Raises:
        ValueError: the folder is no supernet, or the data cannot be used.
    """
    supernet, tokenizer, record = load_supernet(folder)
    settings = TaskSettings.from_json(record["task"])
    task, _ = open_task(settings if data is None else replace(settings, data=data), str(folder))
    return OpenSupernet(supernet, with_answers(task, record["teacher"]), tokenizer, record, folder)


def context_of(request: SearchRequest, task: Task) -> Context:
    """The latency context of a request, lengths taken from the training data where none are given."""
    return request.context(task.length_quantiles(TRAIN, LENGTH_QUANTILES))


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
        The front of measured values: qualities of the supernet, latencies of extracted networks. Where the networks are
        for another machine, its latencies stay predicted until the same search is run there.
    """
    backend = load_backend(request.device)
    opened.supernet.model.to(request.device)
    settings = request.search
    bindings = Bindings(
        supernet=opened.supernet,
        task=opened.task,
        context=context_of(request, opened.task),
        table=_table(request, opened, store, backend, on_measured),
        examples=request.evaluation_examples,
        device=request.device,
        precision=resolve_precision(request.precision, request.device),
        seed=settings.seed,
    )
    problem, evaluate = build_problem(settings.objectives, settings.limits, bindings, store)
    study = _enter(request, study_for(settings, problem, bindings, measured_versions()), bindings, opened, store)
    algorithm = load_algorithm(settings.algorithm)(problem, settings.algorithm_settings)
    front = run(problem, algorithm, evaluate, store, study, on_progress=on_progress)
    if bindings.table is None or not len(front):
        return front
    if bindings.table.device != backend.detect().fingerprint:
        return store.front(study.name, provenances=MEASURED | {"predicted"})
    stock = uniform_front(front, store.evaluations(study.name), opened.supernet)
    for part, count in ((front, request.finalists), (stock, min(request.finalists, UNIFORM_FINALISTS))):
        if len(part):
            remeasure(
                part,
                bindings,
                evaluate,
                store,
                study.name,
                backend,
                count=count,
                settings=request.timing,
                on_progress=on_measured,
            )
    return store.front(study.name)


def _enter(request: SearchRequest, study: Study, bindings: Bindings, opened: OpenSupernet, store: StudyStore) -> Study:
    """Create or resume the study, with its latency table and everything that was asked for."""
    study = store.create_or_resume(replace(study, settings={**request.record, **study.settings}))
    if bindings.table is not None:
        store.note(study.name, LATENCY_TABLE_NOTE, bindings.table.to_json())
    store.put_checkpoint(study.supernet_hash, str(opened.folder.resolve()))
    return study


def _table(
    request: SearchRequest,
    opened: OpenSupernet,
    store: StudyStore,
    backend: DeviceBackend,
    on_measured: OnMeasured | None,
) -> LatencyTable | None:
    """The table frozen into the study, or that of the target machine; None where no latency is asked for."""
    frozen = _frozen_table(store, request.search.study_name)
    contexts = latency_contexts(request.search, context_of(request, opened.task))
    if frozen is not None or not contexts:
        return frozen
    if request.target not in (None, backend.detect().fingerprint):
        return stored_table(opened.supernet, contexts, store, str(request.target))
    return latency_table(opened.supernet, contexts, store, backend, settings=request.timing, on_progress=on_measured)


def _frozen_table(store: StudyStore, study_name: str) -> LatencyTable | None:
    if study_name not in {study.name for study in store.studies()}:
        return None
    content = store.notes(study_name).get(LATENCY_TABLE_NOTE)
    return None if content is None else LatencyTable.from_json(content)


def latency_contexts(settings: SearchSettings, default: Context) -> list[Context]:
    """Every context that an objective or limit asks latencies of, each once."""
    parsed = [parse_objective(text) for text in (*settings.objectives, *settings.limits)]
    found = [context_from(name, own, default) for name, own in parsed if name == "latency"]
    return list({context.key: context for context in found}.values())
