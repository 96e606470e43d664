"""Mixture-of-experts layouts: operators, repairs, search, and how far experts may be reduced.

``make bench-moe`` prints what the committed rows say after computing a sample of them again; ``FULL=1`` computes what
is missing, which takes hours and may be cut into sessions: ``--seconds N``. Every row is kept as soon as it is there.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch

from nas.moe_subject import Subject
from supernets.calibration import calibrate
from supernets.checkpoint import load_exported, write_network
from supernets.data.byte_tokenizer import byte_tokenizer
from supernets.expert_bank import moe_layers
from supernets.family import SpaceOptions
from supernets.moe_training import top_k_of
from supernets.supernet import Supernet
from tests.benchmarks import moe_layouts, moe_operators, moe_thresholds
from tests.benchmarks.common import RESULTS, finish, quiet
from tests.benchmarks.moe_bench import EVERYTHING, Bench, Sizes
from tests.benchmarks.moe_jobs import Job, Key, Row, Rows, work
from tests.benchmarks.moe_report import report
from tests.toy_moe import CONFIGS, toy_batches, toy_moe

ROWS = RESULTS / "moe.jsonl"
CACHE = Path("build/moe")
AGREEMENT = 0.02
"""Nats per token by which a row and its repetition may differ: other processors round differently."""
LONG = 4
"""Times as many steps, for one subject."""
LAYOUT_DOMAIN = "python"
EAGER = ("gpt_oss",)
"""Architectures whose attention knows no other implementation on a CPU."""


def subjects() -> dict[str, Subject]:
    """Everything that is trained, by name."""
    base = Subject()
    wide = Subject(experts=32, top_k=4, width=32)
    found = {f"e16-s{seed}": replace(base, seed=seed) for seed in range(5)}
    found |= {f"e32k4-s{seed}": replace(wide, seed=seed) for seed in range(3)}
    found["e16-long"] = replace(base, steps=LONG * base.steps)
    narrow = replace(base, top_k=4, width=32)
    found |= {"top-4": narrow, "top-1-to-4": replace(narrow, least_top_k=1)}
    for experts in (2, 4, 8, 32, 64):
        found |= {f"e{experts}-s{seed}": replace(base, experts=experts, seed=seed) for seed in range(3)}
    return found


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which rows there are to be.

    Attributes:
        texts: a folder of domain texts that is there already.
        fine_tuning: steps; None takes the repair's own.
    """

    subjects: Mapping[str, Subject]
    cache: Path = CACHE
    sizes: Sizes = field(default_factory=Sizes)
    texts: Path | None = None
    budget: int = moe_layouts.BUDGET
    shares: tuple[int, ...] = moe_operators.SHARES
    fine_tuning: int | None = None

    def bench(self, name: str) -> Callable[[], Bench]:
        """Makes or returns the bench of a subject; only the last one stays in memory."""
        return lambda: _bench(self.cache, self.subjects[name], self.sizes, self.texts)

    def jobs(self) -> Iterator[Job]:
        """The rows, in the order of what is most wanted; subjects are trained as their first row comes."""
        first, *_ = self.subjects
        yield moe_operators.ratio_job(first, self.bench(first))
        yield moe_operators.averaging_job(first, self.bench(first))
        for name, subject in self.subjects.items():
            bench = self.bench(name)
            if name.startswith(("e16-", "e32k4-")):
                yield from moe_operators.jobs(name, bench, shares=self.shares, thorough=name == first)
            if subject.top_k == 4:
                yield from top_k_jobs(name, bench)
            if name == first:
                yield from moe_operators.planted_jobs(name, bench)
            if name.startswith("e16-s"):
                for scope in (EVERYTHING, LAYOUT_DOMAIN):
                    yield from moe_layouts.jobs(name, bench, scope, budget=self.budget)
            if subject.top_k == 2 and subject.seed < 3 and subject.steps == self.subjects[first].steps:
                yield from moe_thresholds.jobs(name, bench, subject.experts, subject.top_k, steps=self.fine_tuning)
        yield from logit_jobs()


@lru_cache(maxsize=1)
def _bench(cache: Path, subject: Subject, sizes: Sizes, texts: Path | None) -> Bench:
    return Bench(cache, subject, sizes, texts)


def top_k_jobs(name: str, bench: Callable[[], Bench]) -> Iterator[Job]:
    """The loss of a subject at every top-k, to compare trainings with and without a varied one."""

    def run(top_k: int) -> Row:
        opened = bench()
        with top_k_of(moe_layers(opened.model), [top_k] * opened.layers):
            return moe_operators.found(opened.judge(opened.model, EVERYTHING))

    for top_k in (1, 2, 3, 4):
        yield Job({"part": "top-k", "subject": name, "top_k": top_k}, partial(run, top_k))


def logit_jobs() -> Iterator[Job]:
    """Every architecture through calibration, reduction, export and reload, pruned and merged."""
    for kind in CONFIGS:
        for operator in ("reap", "uncurl"):
            key: Key = {"part": "logits", "architecture": kind, "operator": operator}
            yield Job(key, partial(reloaded, kind, operator))


def reloaded(kind: str, operator: str) -> Row:
    """Largest difference between the logits of a reduced network and of its export, loaded again."""
    model, (batch, *_) = cast("Any", toy_moe(kind)), toy_batches()
    if kind not in EAGER:
        model.set_attn_implementation("sdpa")  # which another process takes by default
    statistics = calibrate(model, toy_batches())
    options = SpaceOptions(expert_options=2, operators=(operator,))
    supernet = Supernet.wrap(model, options=options, statistics=statistics)
    network: Any = supernet.extract(supernet.space.decode(supernet.space.smallest))
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        folder = Path(scratch) / "export"
        write_network(
            network,
            folder,
            byte_tokenizer(),
            family=supernet.family,
            layout="free",
            card="",
            provenance={},
            check_inputs=batch,
        )
        difference = load_exported(folder)(**batch).logits - network(**batch).logits
    return {"difference": float(difference.abs().max())}


def check_sample(plan: Plan, rows: Rows) -> None:
    """Compute a row of the operators' table again; ends the program if the two disagree."""
    done = [job for job in plan.jobs() if job in rows and job.key["part"] == "operators"]
    if not done:
        raise SystemExit("there are no rows yet; compute some: make bench-moe FULL=1")
    job = done[len(done) // 2]
    stored, again = (sum(row["loss"]) / len(row["loss"]) / 1000 for row in (rows.row(job), job.run()))
    print(f"sample: {' '.join(map(str, job.key.values()))}: stored {stored:.4f}, again {again:.4f}")
    if abs(again - stored) > AGREEMENT:
        raise SystemExit(f"the repetition differs by {abs(again - stored):.4f}, more than {AGREEMENT}")


def main() -> None:
    """Read the options, compute what is asked for, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="compute the rows that are missing")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no new row after so long")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    quiet()
    plan, rows = Plan(subjects=subjects()), Rows(ROWS)
    if given.full:
        print(f"{work(plan.jobs(), rows, given.seconds)} rows are left", flush=True)
    else:
        check_sample(plan, rows)
    finish(report(rows))


if __name__ == "__main__":
    main()
