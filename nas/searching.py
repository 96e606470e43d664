"""The search stage: a supernet, a task and a machine in; a study with its front, re-measured on the machine, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from kernels.device import DeviceBackend, load_backend
from kernels.op_spec import Context
from kernels.timing import TimingSettings
from nas.evaluator import Evaluator
from nas.fidelity import Racing, complete
from nas.finalists import FINALISTS, choose_finalists, remeasure
from nas.forecasting import forecast
from nas.layouts import LayoutRecorder
from nas.measuring import OnMeasured, latency_table, stored_table
from nas.objective import Bindings, context_from, parse_objective
from nas.problem import build_problem, full_evaluator, study_for
from nas.search import SEARCHED, Evaluate, SearchProgress, run
from nas.settings import SearchSettings
from nas.starting import OnGeneration, begin
from nas.stock import uniform_front
from nas.teaching import with_answers
from nas.tuning import LENGTH_QUANTILES, open_task
from predictors.latency_table import LatencyTable
from predictors.measure import measured_versions
from studies.pareto import ParetoFront
from studies.records import MEASURED, Evaluation, Study
from studies.store import StudyStore
from supernets.checkpoint import load_supernet
from supernets.evaluation import Precision, fitting_batch_size, resolve_precision
from supernets.supernet import Supernet
from supernets.task import TRAIN, VALIDATION, Task, TaskSettings

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
        finalists: networks of the front that are measured end to end and on all examples afterwards; with 0 latencies
            stay predicted, and as many as by default are judged on all examples.
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

    def __post_init__(self) -> None:
        if self.evaluation_examples is not None and self.search.low_fidelity is not None:
            raise ValueError("a search measures on a number of examples, or on a share first and then on all: give one")
        if self.finalists < 0:
            raise ValueError(f"finalists are counted from 0, got {self.finalists}")

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
    return OpenSupernet(supernet, with_answers(task, record.get("answers")), tokenizer, record, folder)


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
    on_generation: OnGeneration | None = None,
) -> ParetoFront:
    """Search (or go on searching) a supernet, then measure the finalists end to end and on all of the data.

    The latency table is frozen into the study when it is created; a resumed search reads that one.

    Returns:
        The front of measured values: qualities of the supernet, latencies of extracted networks. Where the networks are
        for another machine, its latencies stay predicted until the same search is run there.
    """
    backend = load_backend(request.device)
    opened.supernet.model.to(request.device)
    bindings = Bindings(
        supernet=opened.supernet,
        task=opened.task,
        context=context_of(request, opened.task),
        table=_table(request, opened, store, backend, on_measured),
        batch_size=fitting_batch_size(opened.task, opened.supernet.config),
        examples=_examples(request, opened.task),
        device=request.device,
        precision=resolve_precision(request.precision, request.device),
        seed=request.search.seed,
    )
    problem, evaluate = build_problem(request.search.objectives, request.search.limits, bindings, store)
    full = full_evaluator(problem, bindings, store)
    study = study_for(request.search, problem, bindings, measured_versions())
    study = replace(study, settings={**request.record, **study.settings})
    study, algorithm = begin(request.search, problem, full, study, store, on_generation)
    _remember(study, bindings, opened, store)
    layouts = LayoutRecorder(opened.supernet, store, study.name, str(opened.folder.resolve()))
    layouts.resume()
    learners, first = [layouts.learn], cast("Evaluate", evaluate)
    if request.search.low_fidelity is not None:
        racing = Racing(problem, evaluate, full)
        learners, first, evaluate = [*learners, racing.learn], racing, full
    front = run(problem, algorithm, first, store, study, on_progress=_told(learners, on_progress))
    if not len(front):
        return front
    forecast(problem, full, store, study.name, request.search.seed)
    front = _Finals(request, opened, bindings, evaluate, full, store, study, backend, on_measured).front(front)
    for evaluation in store.evaluations(study.name):  # finals may have added the largest network
        layouts.learn(evaluation)
    return front


@dataclass(frozen=True, slots=True)
class _Finals:
    """What follows a search: its best are measured as whole networks, and on all of the data.

    Attributes:
        evaluator: measures qualities on as much of the data as the search compares.
        full: measures them on all of it.
    """

    request: SearchRequest
    opened: OpenSupernet
    bindings: Bindings
    evaluator: Evaluator
    full: Evaluator
    store: StudyStore
    study: Study
    backend: DeviceBackend
    on_measured: OnMeasured | None

    def front(self, searched: ParetoFront) -> ParetoFront:
        """The front after the finals of what the search compared."""
        name, table = self.study.name, self.bindings.table
        within = self.store.evaluations_within_limits(name, searched.allowed)
        stock = uniform_front(searched, within, self.opened.supernet)
        timed = self.request.finalists

        def parts(count: int) -> list[tuple[ParetoFront, int]]:
            both = ((searched, count), (stock, min(count, UNIFORM_FINALISTS)))
            return [(part, most) for part, most in both if len(part) and most]

        is_sample = self.bindings.examples is not None
        is_timed = table is not None and table.device == self._here and bool(timed)
        if is_timed:
            self._remeasure(parts(timed))
        if is_sample:
            self._complete(parts(timed or FINALISTS))  # a sample flatters also where nothing is timed
        if table is None and not is_sample:
            return searched
        is_predicted = table is not None and not is_timed
        return self.store.front(name, provenances=SEARCHED if is_predicted else MEASURED)

    @property
    def _here(self) -> str:
        return self.backend.detect().fingerprint

    def _remeasure(self, parts: list[tuple[ParetoFront, int]]) -> None:
        """Latencies of the finalists and of the full network, as whole networks."""
        for part, count in parts:
            remeasure(
                part,
                self.bindings,
                self.evaluator,
                self.store,
                self.study.name,
                self.backend,
                count=count,
                settings=self.request.timing,
                on_progress=self.on_measured,
            )

    def _complete(self, parts: list[tuple[ParetoFront, int]]) -> None:
        """Qualities of the finalists and of the full network on all of the data."""
        chosen = {e.genotype for part, count in parts for e in choose_finalists(part, count)}
        chosen.add(self.bindings.supernet.space.largest)
        stored = [e for e in self.store.evaluations(self.study.name) if e.genotype in chosen and e.status == "done"]
        complete(stored, self.full, self.store, self.study.name, self.on_measured)


def _examples(request: SearchRequest, task: Task) -> int | None:
    """Validation examples per evaluation, the first one where there are two; None for all."""
    if request.search.low_fidelity is None:
        return request.evaluation_examples
    return max(1, round(request.search.low_fidelity * task.size(VALIDATION)))


def _told(
    learners: Sequence[Callable[[Evaluation], None]], on_progress: Callable[[SearchProgress], None] | None
) -> Callable[[SearchProgress], None]:
    """Tells learners of every answered evaluation, then shows progress."""

    def told(progress: SearchProgress) -> None:
        for learn in learners:
            learn(progress.latest)
        if on_progress:
            on_progress(progress)

    return told


def _remember(study: Study, bindings: Bindings, opened: OpenSupernet, store: StudyStore) -> None:
    """Keep what a later call needs: the latency table, and where the supernet lies."""
    if bindings.table is not None:
        store.note(study.name, LATENCY_TABLE_NOTE, bindings.table.to_json())
    store.put_checkpoint(study.supernet_hash, str(opened.folder.resolve()))


def _table(
    request: SearchRequest,
    opened: OpenSupernet,
    store: StudyStore,
    backend: DeviceBackend,
    on_measured: OnMeasured | None,
) -> LatencyTable | None:
    """The table frozen into the study, or that of the target machine; None where no latency is asked for.

    Raises:
        ValueError: the study is about another device than this one or the target.
    """
    frozen = frozen_table(store, request.search.study_name)
    contexts = latency_contexts(request.search, context_of(request, opened.task))
    if frozen is not None:
        remedy = f", or keep its latencies as predictions with --target {frozen.device}"
        require_device(frozen, request.target or backend.detect().fingerprint, request.search.study_name, remedy)
    if frozen is not None or not contexts:
        return frozen
    if request.target not in (None, backend.detect().fingerprint):
        return stored_table(opened.supernet, contexts, store, str(request.target))
    return latency_table(opened.supernet, contexts, store, backend, settings=request.timing, on_progress=on_measured)


def require_device(frozen: LatencyTable, wanted: str, study_name: str, remedy: str = "") -> None:
    """ValueError where a study with that table would go on with the latencies of another device."""
    if frozen.device != wanted:
        raise ValueError(
            f"study {study_name!r} is about device {frozen.device}, asked for is {wanted}: go on there, or start "
            f"another study with --study-name{remedy}"
        )


def frozen_table(store: StudyStore, study_name: str) -> LatencyTable | None:
    """The latency table a study was started with, if there is such a study and it has one."""
    if study_name not in {study.name for study in store.studies()}:
        return None
    content = store.notes(study_name).get(LATENCY_TABLE_NOTE)
    return None if content is None else LatencyTable.from_json(content)


def latency_contexts(settings: SearchSettings, default: Context) -> list[Context]:
    """Every context that an objective or limit asks latencies of, each once."""
    parsed = [parse_objective(text) for text in (*settings.objectives, *settings.limits)]
    found = [context_from(name, own, default) for name, own in parsed if name == "latency"]
    return list({context.key: context for context in found}.values())
