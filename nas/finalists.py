"""Re-measures the best of a search end to end: what is shown at last is measured, not predicted."""

from __future__ import annotations

from collections.abc import Callable

from kernels.device import DeviceBackend
from kernels.op_spec import Context
from kernels.timing import TimingSettings
from nas.end_to_end import NetworkLatency, measure_networks
from nas.evaluator import Evaluator
from nas.objective import Bindings, context_from
from nas.search import evaluated
from studies.pareto import ParetoFront
from studies.records import Evaluation, Objective, Value
from studies.store import StudyStore

FINALISTS = 8


def choose_finalists(front: ParetoFront, count: int = FINALISTS) -> list[Evaluation]:
    """Up to `count` members of a front: its ends, its knee (from three on), then whoever is farthest from those."""
    if count < 1:
        raise ValueError(f"at least 1 finalist is measured, got {count}")
    if len(front) <= count:
        return list(front.evaluations)
    chosen = list(dict.fromkeys([0, len(front) - 1, front.evaluations.index(front.knee())]))[:count]
    while len(chosen) < count:
        chosen.append(max(range(len(front)), key=lambda i: min(abs(i - other) for other in chosen)))
    return [front.evaluations[i] for i in sorted(chosen)]


def remeasure(
    front: ParetoFront,
    bindings: Bindings,
    evaluator: Evaluator,
    store: StudyStore,
    study_name: str,
    backend: DeviceBackend,
    *,
    count: int = FINALISTS,
    settings: TimingSettings | None = None,
    on_progress: Callable[[float, int], None] | None = None,
) -> list[Evaluation]:
    """Time finalists and the full network as extracted models, and add the latencies to the study.

    Every latency the search looked at gets a value of provenance ``extracted`` with the same device and context as
    the predicted one. What is already in the store is not measured again, so that an interrupted call can be repeated.

    Returns:
        The full network's evaluation, if it did not fail, then the finalists' in the order of the front, with the new
        values.

    Raises:
        ValueError: this machine is not the device of the latency table.
    """
    device = backend.detect().fingerprint
    if bindings.table is not None and bindings.table.device != device:
        raise ValueError(
            f"the latency table is of device {bindings.table.device}, this is {device};"
            " measure the finalists on the device of the table"
        )
    space = bindings.supernet.space
    genotypes = dict.fromkeys([space.largest, *(finalist.genotype for finalist in choose_finalists(front, count))])
    stored = {evaluation.genotype: evaluation for evaluation in store.evaluations(study_name)}
    columns = [column.objective for column in evaluator.columns]
    if space.largest not in stored:  # the search need not have proposed it
        (stored[space.largest],) = store.append(study_name, [evaluated(columns, evaluator, space.largest)])
    chosen = [stored[genotype] for genotype in genotypes if stored[genotype].status == "done"]
    for objective in (column for column in columns if column.name == "latency"):
        context = context_from(objective.name, dict(objective.settings), bindings.context)
        latencies = measure_networks(
            bindings.supernet,
            [space.decode(evaluation.genotype) for evaluation in chosen],
            context,
            backend,
            settings=settings,
            stored=store.measurements(device),
            on_measured=lambda row: store.put_measurements([row]),
            on_progress=on_progress,
        )
        values = [_value(objective, latency, device, context) for latency in latencies]
        chosen = [_with_value(store, study_name, *pair) for pair in zip(chosen, values, strict=True)]
    return chosen


def _value(objective: Objective, latency: NetworkLatency, device: str, context: Context) -> Value:
    return Value(
        objective=objective.key,
        number=1e3 * latency.seconds,
        spread=1e3 * latency.seconds_iqr,
        n=latency.repeats,
        provenance="extracted",
        device=device,
        context=context.key,
    )


def _with_value(store: StudyStore, study_name: str, evaluation: Evaluation, value: Value) -> Evaluation:
    """The evaluation with a value, added once."""
    if value in evaluation.values:
        return evaluation
    return store.add_values(study_name, evaluation.genotype, [value])
