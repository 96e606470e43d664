"""Any interleaving of workers, stalls and late results: each evaluation ends once, with the last claimant's value."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import update

from studies.leases import Lease, WorkQueue, database_now
from studies.records import Evaluation, Objective, Study, Value
from studies.schema import EvaluationRow
from studies.store import StudyStore

MAX_ATTEMPTS = 2
PICK = st.integers(0, 10**6)


class Workers(RuleBasedStateMachine):
    """The model knows, for each evaluation, the valid token (None: not running) and the value it ended with."""

    def __init__(self) -> None:
        super().__init__()
        self.store = StudyStore.open("sqlite://")
        objective = Objective(name="error", unit="fraction")
        study = Study(
            name="demo",
            space_fingerprint="space",
            supernet_hash="weights",
            data_hash="data",
            objectives=(objective,),
            algorithm="random",
            seed=1,
            budget=10,
        )
        self.store.create_or_resume(study)
        self.queue = WorkQueue(self.store, "demo", max_attempts=MAX_ATTEMPTS)
        self.leases: list[Lease] = []
        self.token: dict[int, int | None] = {}
        self.attempts: dict[int, int] = {}
        self.expired: set[int] = set()
        self.ended: dict[int, float | None] = {}

    def teardown(self) -> None:
        self.store.close()

    @rule(gene=st.integers(0, 4))
    def enqueue(self, gene: int) -> None:
        (number,) = self.queue.enqueue([(gene,)])
        self.token.setdefault(number, None)
        self.attempts.setdefault(number, 0)

    @rule(limit=st.integers(1, 3))
    def claim(self, limit: int) -> None:
        for number in [n for n in self.expired if self.attempts[n] == MAX_ATTEMPTS]:
            self.ended[number] = None
            self.expired.remove(number)
        free = sorted(n for n in self.token if n not in self.ended and (self.attempts[n] == 0 or n in self.expired))
        leases = self.queue.claim("worker", limit)
        assert [lease.number for lease in leases] == free[:limit]
        for lease in leases:
            self.attempts[lease.number] += 1
            self.token[lease.number] = lease.token
            self.expired.discard(lease.number)
            assert lease.attempt == self.attempts[lease.number]
        self.leases += leases

    @rule(pick=PICK)
    def stall(self, pick: int) -> None:
        running = sorted(n for n in self.token if self.attempts[n] and n not in self.ended)
        if running:
            number = running[pick % len(running)]
            with self.store.writing() as connection:
                one = update(EvaluationRow).where(EvaluationRow.number == number)
                connection.execute(one.values(lease_until=database_now() - 1.0))
            self.expired.add(number)

    def holds(self, lease: Lease) -> bool:
        return lease.number not in self.ended and self.token[lease.number] == lease.token

    @rule(pick=PICK)
    def renew(self, pick: int) -> None:
        if self.leases:
            lease = self.leases[pick % len(self.leases)]
            assert self.queue.renew([lease]) == [lease] * self.holds(lease)
            if self.holds(lease):
                self.expired.discard(lease.number)

    @rule(pick=PICK, value=st.integers(0, 100))
    def finish(self, pick: int, value: int) -> None:
        if self.leases:
            lease = self.leases[pick % len(self.leases)]
            values = (Value(objective="error", number=float(value), provenance="supernet"),)
            accepted = self.queue.finish([(lease, Evaluation(genotype=lease.genotype, values=values))])
            assert accepted == [lease] * self.holds(lease)
            if accepted:
                self.ended[lease.number] = float(value)
                self.expired.discard(lease.number)

    @invariant()
    def the_store_agrees(self) -> None:
        for evaluation in self.store.evaluations("demo"):
            if evaluation.number not in self.ended:
                assert (evaluation.status in ("pending", "running"), evaluation.values) == (True, ())
            elif (value := self.ended[evaluation.number]) is None:
                assert (evaluation.status, evaluation.values) == ("failed", ())
            else:
                assert (evaluation.status, [v.number for v in evaluation.values]) == ("done", [value])


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=25, stateful_step_count=25)
