"""Finalists are extracted, timed and entered, once, on the device the search was about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels.device import DeviceBackend
from nas.algorithm import AlgorithmSettings, load_algorithm
from nas.end_to_end import example_inputs, measure_networks, network_specs
from nas.evaluator import Evaluator
from nas.finalists import choose_finalists, remeasure
from nas.objective import Bindings, EvaluationFailed
from nas.problem import build_problem, study_for
from nas.search import run
from nas.settings import SearchSettings
from studies.pareto import ParetoFront
from studies.records import Evaluation, Genotype, Measurement, Objective, Value
from studies.store import StudyStore
from tests.toy_bindings import CONTEXT, tiny_bindings
from tests.toy_device import CallCounter
from tests.toy_task import tiny_supernet


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StudyStore]:
    with StudyStore.open(f"sqlite:///{tmp_path}/s.db") as opened:
        yield opened


def bindings_of(backend: DeviceBackend) -> Bindings:
    return tiny_bindings(table_device=backend.detect().fingerprint)


def searched(bindings: Bindings, store: StudyStore, *objectives: str, **limits: float) -> tuple[ParetoFront, Evaluator]:
    settings = SearchSettings(objectives=objectives, limits=limits, algorithm="random", budget=12, batch=6)
    problem, evaluator = build_problem(settings.objectives, settings.limits, bindings)
    search = load_algorithm("random")(problem, AlgorithmSettings(batch=6))
    study = study_for(settings, problem, bindings, {})
    return run(problem, search, evaluator, store, study), evaluator


def line_front(count: int) -> ParetoFront:
    objectives = (Objective(name="error", unit="fraction"), Objective(name="latency", unit="ms"))
    evaluations = [
        Evaluation(
            genotype=(i,),
            values=(
                Value(objective="error", number=float(i), provenance="computed"),
                Value(objective="latency", number=float((count - i) ** 2), provenance="computed"),
            ),
        )
        for i in range(count)
    ]
    return ParetoFront.of(objectives, evaluations)


def test_finalists_are_spread_and_hold_both_ends_and_the_knee() -> None:
    front = line_front(21)
    for count in (3, 5, 8):
        chosen = [evaluation.genotype for evaluation in choose_finalists(front, count)]
        assert len(chosen) == len(set(chosen)) == count
        assert chosen == sorted(chosen)
        assert {(0,), (20,), front.knee().genotype} <= set(chosen)
    assert len(choose_finalists(front, 99)) == 21
    assert len(choose_finalists(front, 1)) == 1
    with pytest.raises(ValueError, match="at least 1 finalist"):
        choose_finalists(front, 0)


def test_finalists_and_the_full_network_get_measured_latencies_once(store: StudyStore) -> None:
    backend = CallCounter()
    bindings = bindings_of(backend)
    front, evaluator = searched(bindings, store, "error", "latency")
    full, *finalists = remeasure(front, bindings, evaluator, store, "study", backend, count=3)
    assert full.genotype == bindings.supernet.space.largest
    assert [e.genotype for e in finalists] == [e.genotype for e in choose_finalists(front, 3)]
    for evaluation in (full, *finalists):
        value = evaluation.value("latency")
        assert value is not None
        assert (value.provenance, value.context) == ("extracted", CONTEXT.key)
        assert value.number == pytest.approx(2.0)
        assert value.device == backend.detect().fingerprint
    assert {e.genotype for e in store.front("study").evaluations} <= {e.genotype for e in (full, *finalists)}
    calls = len(backend.outputs)
    assert remeasure(front, bindings, evaluator, store, "study", backend, count=3) == [full, *finalists]
    assert len(backend.outputs) == calls


def test_a_full_network_that_fails_becomes_a_failed_row(store: StudyStore) -> None:
    backend = CallCounter()
    bindings = bindings_of(backend)
    front, evaluator = searched(bindings, store, "error", "latency")
    largest = bindings.supernet.space.largest
    assert largest not in {e.genotype for e in store.evaluations("study")}

    class Failing(Evaluator):
        def __call__(self, genotype: Genotype) -> Evaluation:
            raise EvaluationFailed("too large for this machine")

    failing = Failing(evaluator.columns, bindings.supernet.space)
    finalists = remeasure(front, bindings, failing, store, "study", backend, count=2)
    assert [e.genotype for e in finalists] == [e.genotype for e in choose_finalists(front, 2)]
    (failed,) = [e for e in store.evaluations("study") if e.genotype == largest]
    assert (failed.status, failed.failure) == ("failed", "too large for this machine")


def test_a_latency_that_is_only_limited_is_measured_too(store: StudyStore) -> None:
    backend = CallCounter()
    bindings = bindings_of(backend)
    front, evaluator = searched(bindings, store, "error", "macs", latency=1e3)
    evaluations = remeasure(front, bindings, evaluator, store, "study", backend, count=2)
    assert all(evaluation.value("latency") for evaluation in evaluations)


def test_another_device_is_refused_before_anything_is_measured(store: StudyStore) -> None:
    backend = CallCounter()
    bindings = tiny_bindings()
    front, evaluator = searched(bindings, store, "error", "latency")
    with pytest.raises(ValueError, match="measure the finalists on the device of the table"):
        remeasure(front, bindings, evaluator, store, "study", backend)
    assert not backend.outputs


def test_networks_run_extracted_at_every_length_and_known_rows_are_kept() -> None:
    supernet, backend, rows = tiny_supernet(), CallCounter(), list[Measurement]()
    architectures = [supernet.space.decode(g) for g in (supernet.space.smallest, supernet.space.largest)]
    progress: list[tuple[float, int]] = []
    latencies = measure_networks(
        supernet,
        architectures,
        CONTEXT,
        backend,
        on_measured=rows.append,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert [latency.seconds for latency in latencies] == pytest.approx([2e-3, 2e-3])
    specs = [network_specs(supernet, a, CONTEXT) for a in architectures]
    assert [row.op_key for row in rows] == [spec.key for in_turns in zip(*specs, strict=True) for spec in in_turns]
    assert progress == sorted(progress)
    assert progress[-1] == (2, 2)
    calls = len(backend.outputs)
    assert measure_networks(supernet, architectures, CONTEXT, backend, stored=rows) == latencies
    assert len(backend.outputs) == calls


def test_only_so_much_weight_is_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, rows = tiny_supernet(), list[Measurement]()
    monkeypatch.setattr("nas.end_to_end.MOST_BYTES", 1)
    space = supernet.space
    architectures = [space.decode(g) for g in (space.smallest, space.largest, space.smallest)]
    latencies = measure_networks(supernet, architectures, CONTEXT, CallCounter(), on_measured=rows.append)
    assert [row.op_key for row in rows] == [
        spec.key for a in architectures[:2] for spec in network_specs(supernet, a, CONTEXT)
    ]
    assert latencies[0] == latencies[2]


def test_timed_are_the_extracted_network_and_the_smallest_on_the_example() -> None:
    supernet, backend = tiny_supernet(), CallCounter()
    genotype: Genotype = supernet.space.middle
    architecture = supernet.space.decode(genotype)
    measure_networks(supernet, [architecture], CONTEXT.at(4), backend)
    inputs = example_inputs(supernet.config, CONTEXT.at(4), "cpu")
    smallest = supernet.space.decode(supernet.space.smallest)
    with torch.no_grad():
        expected = [supernet.extract(one)(**inputs).logits for one in (smallest, architecture)]
    found = [output.logits for output in backend.outputs if hasattr(output, "logits")]
    seen = [[torch.equal(logits, one) for one in expected].index(True) for logits in found]
    assert {0, 1} == set(seen)


def test_rows_of_a_network_follow_its_shape_and_not_its_weights() -> None:
    first, other, wider = tiny_supernet(seed=0), tiny_supernet(seed=1), tiny_supernet(hidden_size=64)
    architecture = first.space.decode(first.space.largest)
    assert network_specs(first, architecture, CONTEXT) == network_specs(other, architecture, CONTEXT)
    assert network_specs(first, architecture, CONTEXT) != network_specs(wider, architecture, CONTEXT)
    smaller = first.space.decode(first.space.smallest)
    assert network_specs(first, architecture, CONTEXT) != network_specs(first, smaller, CONTEXT)
