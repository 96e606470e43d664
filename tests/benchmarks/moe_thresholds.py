"""UNCURL's question (arXiv 2409.01483): by how much may the experts of a trained mixture be reduced?

A model of E experts is reduced to r and fine-tuned for a domain; a model of r experts, trained from scratch with the
same training compute, is fine-tuned equally. The threshold of E is the largest E/r at which the reduced model is at
least as good on test text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from supernets.repair import repair_named
from tests.benchmarks.moe_bench import Bench
from tests.benchmarks.moe_jobs import Job, Key, Row
from tests.benchmarks.moe_operators import Opened, found

PART = "thresholds"
EXPERTS = (8, 16, 32, 64)
FACTORS = (2, 4, 8)
DOMAINS = ("german", "python")
OPERATORS = ("uncurl", "reap")
SCRATCH = "scratch"
FINE_TUNING = "task-fine-tuning"
SEQUENCES = 16
"""Of a batch of fine-tuning."""


def jobs(subject: str, bench: Opened, experts: int, least: int, *, steps: int | None = None) -> Iterator[Job]:
    """All rows of one trained model: fine-tuned as it is, and reduced.

    Args:
        least: fewest experts that its router can work with.
        steps: of the fine-tuning; None takes the repair's own.
    """
    for domain in DOMAINS:
        yield job(subject, bench, domain, SCRATCH, experts, steps)
        for factor in FACTORS if experts in EXPERTS else ():
            if experts // factor >= least:
                for operator in OPERATORS:
                    yield job(subject, bench, domain, operator, experts // factor, steps)


def job(subject: str, bench: Opened, domain: str, operator: str, count: int, steps: int | None) -> Job:
    """One fine-tuned model."""
    key: Key = {"part": PART, "subject": subject, "domain": domain, "operator": operator, "count": count}
    return Job(key, _run(bench, domain, operator, count, steps))


def _run(bench: Opened, domain: str, operator: str, count: int, steps: int | None) -> Callable[[], Row]:
    def run() -> Row:
        opened: Bench = bench()
        student = opened.student("reap" if operator == SCRATCH else operator, [count] * opened.layers, domain)
        repair = repair_named(FINE_TUNING)
        batches = opened.training_batches(domain, steps or repair.defaults.steps, SEQUENCES)
        settings = repair.defaults if steps is None else type(repair.defaults)(steps=steps)
        repair.repair(student, opened.model, batches, settings)
        return {**found(opened.judge(student, domain)), "experts": opened.subject.experts, "seed": opened.subject.seed}

    return run
