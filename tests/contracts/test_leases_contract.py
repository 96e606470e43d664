"""Claim, renew and finish on every database: a stale worker changes nothing, a dead one loses nothing."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text, update

from studies.leases import Lease, WorkQueue, database_now
from studies.records import Evaluation, Objective, Study, Value
from studies.schema import EvaluationRow, ObjectiveValueRow
from studies.store import StudyStore

STUDY = Study(
    name="demo",
    space_fingerprint="space",
    supernet_hash="weights",
    data_hash="data",
    objectives=(Objective(name="error", unit="fraction"),),
    algorithm="random",
    seed=1,
    budget=10,
)


def result(lease: Lease, number: float) -> tuple[Lease, Evaluation]:
    value = Value(objective="error", number=number, provenance="supernet")
    return lease, Evaluation(genotype=lease.genotype, values=(value,))


def let_leases_run_out(store: StudyStore) -> None:
    with store.writing() as connection:
        connection.execute(update(EvaluationRow).values(lease_until=database_now() - 1.0))


def numbers(store: StudyStore) -> list[list[float]]:
    return [[value.number for value in evaluation.values] for evaluation in store.evaluations("demo")]


@pytest.fixture
def queue(store: StudyStore) -> WorkQueue:
    store.create_or_resume(STUDY)
    return WorkQueue(store, "demo", max_attempts=3)


@pytest.mark.parametrize("batch", [1, 16, 700])
def test_a_stale_worker_never_overwrites(store: StudyStore, queue: WorkQueue, batch: int) -> None:
    queue.enqueue([(i,) for i in range(batch)])
    stale = queue.claim("stalled", batch)
    let_leases_run_out(store)
    current = queue.claim("successor", batch)
    assert [lease.token for lease in current] == [2] * batch
    assert queue.renew(stale) == []
    assert queue.finish([result(lease, 111.0) for lease in stale]) == []
    assert queue.finish([result(lease, 5.0) for lease in current]) == current
    assert queue.finish([result(lease, 6.0) for lease in current]) == []
    assert queue.finish([result(lease, 111.0) for lease in stale]) == []
    assert numbers(store) == [[5.0]] * batch


def test_what_runs_out_during_a_claim_is_not_tried_too_often(
    store: StudyStore, queue: WorkQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last attempt may end after the claim has looked for those to give up."""
    queue.enqueue([(0,)])
    for _ in range(3):
        assert queue.claim("worker")
        let_leases_run_out(store)
    monkeypatch.setattr(WorkQueue, "_give_up", lambda *_: None)
    assert queue.claim("late") == []


def test_a_stale_result_in_the_same_batch_is_left_out(store: StudyStore, queue: WorkQueue) -> None:
    queue.enqueue([(1,)])
    stale = queue.claim("stalled")
    let_leases_run_out(store)
    current = queue.claim("successor")
    both = [result(stale[0], 111.0), result(current[0], 5.0), result(stale[0], 111.0), result(current[0], 6.0)]
    assert queue.renew([*stale, *current]) == current
    assert queue.finish(both) == current
    assert numbers(store) == [[5.0]]


def test_claims_go_in_order_and_never_overlap(queue: WorkQueue) -> None:
    assert queue.enqueue([(3,), (1,), (3,), (2,)]) == [0, 1, 0, 2]
    assert queue.enqueue([(2,), (4,)]) == [2, 3]
    first, second = queue.claim("a", 3), queue.claim("b", 3)
    assert [lease.genotype for lease in first] == [(3,), (1,), (2,)]
    assert [(lease.genotype, lease.number, lease.attempt, lease.token) for lease in second] == [((4,), 3, 1, 1)]
    assert queue.claim("c", 3) == []


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_two_claims_at_once_do_not_wait_for_each_other(store: StudyStore, queue: WorkQueue) -> None:
    queue.enqueue([(1,), (2,)])
    with store.writing() as connection:
        connection.execute(text("SELECT id FROM evaluation WHERE number = 0 FOR UPDATE"))
        assert [lease.genotype for lease in queue.claim("b", 2)] == [(2,)]


def test_a_renewed_lease_does_not_run_out(store: StudyStore, queue: WorkQueue) -> None:
    queue.enqueue([(1,)])
    leases = queue.claim("a")
    let_leases_run_out(store)
    assert queue.renew(leases) == leases
    assert queue.claim("b") == []


def test_a_late_result_counts_if_nobody_took_over(store: StudyStore, queue: WorkQueue) -> None:
    queue.enqueue([(1,)])
    leases = queue.claim("a")
    let_leases_run_out(store)
    assert queue.finish([result(leases[0], 5.0)]) == leases


def test_an_evaluation_that_kills_its_workers_is_failed(store: StudyStore, queue: WorkQueue) -> None:
    queue.enqueue([(1,)])
    for attempt in (1, 2, 3):
        (lease,) = queue.claim(f"worker {attempt}")
        assert lease.attempt == attempt
        let_leases_run_out(store)
    assert queue.claim("worker 4") == []
    (evaluation,) = store.evaluations("demo")
    assert evaluation.status == "failed"
    assert evaluation.failure.startswith("gave up after 3 attempts")
    assert queue.finish([result(lease, 5.0)]) == []
    assert numbers(store) == [[]]


def test_a_failure_is_a_result(store: StudyStore, queue: WorkQueue) -> None:
    queue.enqueue([(1,), (2,), (3,)])
    a, b, c = queue.claim("a", 3)
    failed = [(x, Evaluation(genotype=x.genotype, status="failed", failure=f"no {x.number}")) for x in (a, b)]
    assert queue.finish([*failed, result(c, 5.0)]) == [a, b, c]
    assert [(e.status, e.failure) for e in store.evaluations("demo")] == [
        ("failed", "no 0"),
        ("failed", "no 1"),
        ("done", ""),
    ]


def test_an_append_overtakes_the_worker(store: StudyStore, queue: WorkQueue) -> None:
    queue.enqueue([(1,), (2,)])
    (lease,) = queue.claim("a")
    _, evaluation = result(lease, 5.0)
    (stored,) = store.append("demo", [evaluation])
    assert (stored.number, stored.status) == (0, "done")
    assert queue.finish([result(lease, 111.0)]) == []
    assert numbers(store) == [[5.0], []]
    with pytest.raises(ValueError, match=r"\(2,\) is still open"):
        store.add_values("demo", (2,), evaluation.values)


def test_a_finish_that_fails_half_way_changes_nothing(
    store: StudyStore, queue: WorkQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue([(1,)])
    leases = queue.claim("a")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("studies.rows.insert_values", crash)
        with pytest.raises(KeyboardInterrupt):
            queue.finish([result(leases[0], 5.0)])
    with store.reading() as connection:
        assert connection.scalars(select(EvaluationRow.status)).all() == ["running"]
        assert connection.scalars(select(ObjectiveValueRow.number)).all() == []
    assert queue.finish([result(leases[0], 5.0)]) == leases


def test_results_must_be_finite_and_for_their_lease(queue: WorkQueue) -> None:
    queue.enqueue([(1,), (2,)])
    a, b = queue.claim("a", 2)
    with pytest.raises(ValueError, match="is nan"):
        queue.finish([result(a, float("nan"))])
    with pytest.raises(ValueError, match=r"lease is for \(1,\), the result for \(2,\)"):
        queue.finish([(a, result(b, 1.0)[1])])


def test_the_clock_is_the_databases_and_goes_on(store: StudyStore) -> None:
    with store.reading() as connection:
        before = connection.scalar(select(database_now()))
        for _ in range(20):
            after = connection.scalar(select(database_now()))
    assert before is not None
    assert after is not None
    assert 1.7e9 < before <= after < before + 600


@pytest.mark.parametrize("settings", [{"lease_seconds": 0.0}, {"max_attempts": 0}])
def test_impossible_settings_are_refused(store: StudyStore, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a lease needs more than 0 seconds and 1 attempt or more"):
        WorkQueue(store, "demo", **settings)  # type: ignore[arg-type]
