"""The search stage for a super-network that is not ours; see `nas.custom_problem` for what it offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kernels import op_cost
from kernels.device import DeviceBackend, load_backend
from kernels.op_spec import Context, OpSpec
from kernels.timing import TimingSettings
from nas.custom_problem import LATENCY, CustomColumns, CustomProblem, HasNetworks, HasOperators, available
from nas.finalists import choose_finalists
from nas.forecasting import forecast
from nas.measuring import OnMeasured, calibration_genotypes
from nas.objective import parse_objective
from nas.problem import assemble, new_study
from nas.search import SEARCHED, SearchProgress, run
from nas.searching import LATENCY_TABLE_NOTE, SearchRequest, frozen_table, require_device
from nas.starting import OnGeneration, begin
from predictors.latency_table import EndToEndRow, LatencyTable
from predictors.measure import measure, measured_versions
from studies.pareto import ParetoFront
from studies.records import Genotype, Measurement, Value, content_hash
from studies.store import StudyStore


def search_problem(
    request: SearchRequest,
    custom: CustomProblem,
    store: StudyStore,
    *,
    on_measured: OnMeasured | None = None,
    on_progress: Callable[[SearchProgress], None] | None = None,
    on_generation: OnGeneration | None = None,
) -> ParetoFront:
    """Search (or go on searching) a problem; without objectives in the request, for all that it has.

    Returns:
        The front. Where the problem gives whole networks, the latencies of its finalists are measured on them.

    Raises:
        ValueError: what the request asks for has no meaning for this problem.
    """
    _require_meaning(request, custom)
    objectives = request.search.objectives or tuple(objective.key for objective in available(custom))
    settings = replace(request.search, objectives=objectives)
    context = request.context((1,))
    clock = _Clock(custom, context, store, load_backend(request.device), request.timing, on_measured)
    own = {objective.key for objective in custom.objectives}
    asks_latency = LATENCY.key not in own and LATENCY.name in {
        parse_objective(text)[0] for text in (*settings.objectives, *settings.limits)
    }
    table = frozen_table(store, settings.study_name)
    if table is not None:
        require_device(table, clock.device, settings.study_name)
    elif asks_latency and isinstance(custom, HasOperators):
        table = clock.table(custom)
    columns = CustomColumns(custom, context, table)
    problem, evaluate = assemble(settings.objectives, settings.limits, custom.space, columns.bind, store, sizes=False)
    table_hash = "" if table is None else table.hash
    study = new_study(settings, problem, custom.weights_hash, custom.data_hash, table_hash, measured_versions())
    study = replace(study, settings={**request.record, **study.settings})
    study, algorithm = begin(settings, problem, evaluate, study, store, on_generation)
    if table is not None:
        store.note(study.name, LATENCY_TABLE_NOTE, table.to_json())
    front = run(problem, algorithm, evaluate, store, study, on_progress=on_progress)
    if len(front):
        forecast(problem, evaluate, store, study.name, settings.seed)
    if table is None or not len(front):
        return front
    if not isinstance(custom, HasNetworks) or not request.finalists:
        return store.front(study.name, provenances=SEARCHED)
    clock.remeasure(custom, front, study.name, request.finalists)
    return store.front(study.name)


def _require_meaning(request: SearchRequest, custom: CustomProblem) -> None:
    given = {
        "examples": request.evaluation_examples,
        "low fidelity": request.search.low_fidelity,
        "target": request.target,
    }
    if refused := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"a problem of one's own evaluates in its own way: leave out {', '.join(refused)}")
    if len(request.sequences) > 1:
        raise ValueError("operators and networks of a problem are timed at one sequence length: give --sequence once")
    if not custom.weights_hash or not custom.data_hash:
        raise ValueError("a problem needs a weights_hash and a data_hash, or its results could be mixed up with others")


class _Clock:
    """Times the operations and networks of a problem on this machine, each once."""

    def __init__(
        self,
        custom: CustomProblem,
        context: Context,
        store: StudyStore,
        backend: DeviceBackend,
        settings: TimingSettings | None,
        on_measured: OnMeasured | None,
    ) -> None:
        self._custom, self._context, self._store = custom, context, store
        self._backend, self._settings, self._on_measured = backend, settings, on_measured
        self._device = backend.detect()

    @property
    def device(self) -> str:
        """Fingerprint of this machine."""
        return self._device.fingerprint

    def table(self, custom: HasOperators) -> LatencyTable:
        """Measured operations, corrected by a few whole networks where the problem gives them."""
        self._store.put_device(
            self._device.fingerprint,
            {"name": self._device.name, "kind": self._device.kind, **self._device.description},
        )
        specs = list(custom.all_operators(self._context))
        table = LatencyTable.from_measurements(self._stored(), self._device.fingerprint)
        self._measure(table.missing(specs), custom.build)
        table = LatencyTable.from_measurements(self._stored(), self._device.fingerprint)
        genotypes = calibration_genotypes(
            self._custom.space, lambda g: sum(spec.flops for spec in custom.operators(g, self._context))
        )
        operations = [tuple(custom.operators(genotype, self._context)) for genotype in genotypes]
        if missing := table.missing(spec for ops in operations for spec in ops):
            raise ValueError(f"operators names {missing[0].key}, which all_operators does not list")
        if not isinstance(self._custom, HasNetworks):
            return table
        timed = self._networks(self._custom, genotypes)
        return table.fitted(
            [
                EndToEndRow(ops=ops, context=self._context, seconds=row.seconds_median)
                for ops, row in zip(operations, timed, strict=True)
            ]
        )

    def remeasure(self, custom: HasNetworks, front: ParetoFront, study_name: str, count: int) -> None:
        """Time the finalists of a front as whole networks, and add the latencies to the study, each once."""
        genotypes = [evaluation.genotype for evaluation in choose_finalists(front, count)]
        stored = {evaluation.genotype: evaluation for evaluation in self._store.evaluations(study_name)}
        for genotype, row in zip(genotypes, self._networks(custom, genotypes), strict=True):
            value = Value(
                objective=LATENCY.key,
                number=1e3 * row.seconds_median,
                spread=1e3 * row.seconds_iqr,
                n=row.repeats,
                provenance="extracted",
                device=row.device,
                context=self._context.key,
            )
            if value not in stored[genotype].values:
                self._store.add_values(study_name, genotype, [value])

    def _networks(self, custom: HasNetworks, genotypes: Sequence[Genotype]) -> list[Measurement]:
        """Timings of whole networks, in order; known by their place in the space."""
        fingerprint = self._custom.space.fingerprint
        tags = {content_hash([fingerprint, self._custom.weights_hash, genotype]): genotype for genotype in genotypes}
        specs = [op_cost.model(tag, self._context) for tag in tags]
        known = {row.op_key for row in self._stored()}
        missing = [spec for spec in specs if spec.key not in known]
        self._measure(missing, lambda spec: custom.network(tags[spec.tag], self._context))
        rows = {row.op_key: row for row in self._stored()}
        return [rows[spec.key] for spec in specs]

    def _stored(self) -> list[Measurement]:
        return self._store.measurements(self._device.fingerprint)

    def _measure(self, specs: Sequence[OpSpec], runner: Callable[[OpSpec], Callable[[], object]]) -> None:
        measure(
            specs,
            self._backend,
            runner=runner,
            settings=self._settings,
            stored=self._stored(),
            on_measured=lambda one: self._store.put_measurements([one]),
            on_progress=self._on_measured,
        )
