"""Every operator at every count, with and without repair, for everything and for one domain.

A row holds the loss of every test sequence, so that any two rows of a subject and scope can be compared in pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from nas.domain_texts import DOMAINS
from supernets.calibration import calibrate, calibration_ratio
from supernets.expert_bank import moe_layers
from supernets.expert_merging import average
from supernets.reduction import REDUCTIONS, CalibratedLayer
from supernets.reductions.sub_moe import SubMoe
from supernets.repair import REPAIRS, RepairSettings, repair_named
from supernets.staging import staged_folder
from tests.benchmarks.moe_bench import EVERYTHING, Bench, Judgement, load, planted
from tests.benchmarks.moe_jobs import Job, Key, Row

PART = "operators"
SHARES = (75, 50, 25)
"""Experts that are kept, in percent."""
FULL, NONE, ROUTER_KD = "full", "none", "router-kd"
REPAIRED = ("frequency", "reap", "uncurl", "m-smoe")
"""Operators on which the other repairs are tried."""
FEW_DOMAINS = ("python", "russian")
"""Domains of the other repairs, and of all subjects but the first."""
PLANTED_LAYER = 1
"""One expert: the rule by which super experts are found sees no more among so few."""
PLANTED_STEPS = 200

Opened = Callable[[], Bench]


def jobs(subject: str, bench: Opened, *, shares: Sequence[int] = SHARES, thorough: bool = False) -> Iterator[Job]:
    """All rows of one subject, the most telling first.

    Args:
        bench: makes or returns the subject's bench.
        thorough: also the other domains and repairs.
    """
    domains = DOMAINS if thorough else FEW_DOMAINS
    for scope in (EVERYTHING, *domains):
        yield job(subject, bench, scope, FULL, 100, NONE)
    names = REDUCTIONS.names()
    for repair, scopes, wanted in (
        (NONE, (EVERYTHING,), shares),
        (ROUTER_KD, (EVERYTHING,), shares[1:2]),
        (NONE, domains, shares[1:2]),
        (ROUTER_KD, (EVERYTHING,), (*shares[:1], *shares[2:])),
        (ROUTER_KD, FEW_DOMAINS, shares[1:2]),
        (NONE, domains, (*shares[:1], *shares[2:])),
    ):
        for scope in scopes:
            for share in wanted:
                yield from (job(subject, bench, scope, name, share, repair) for name in names)
    for repair in sorted(set(REPAIRS.names()) - {ROUTER_KD}) if thorough else ():
        for scope in (EVERYTHING, *FEW_DOMAINS):
            yield from (job(subject, bench, scope, name, 50, repair) for name in REPAIRED)


def job(subject: str, bench: Opened, scope: str, operator: str, share: int, repair: str) -> Job:
    """One cell of the table."""
    key: Key = {
        "part": PART,
        "subject": subject,
        "scope": scope,
        "operator": operator,
        "share": share,
        "repair": repair,
    }

    def run() -> Row:
        opened = bench()
        if operator == FULL:
            return found(opened.judge(opened.model, scope))
        student = opened.student(operator, uniform(opened, share), scope)
        if repair != NONE:
            repair_student(opened, student, repair, scope)
        return found(opened.judge(student, scope))

    return Job(key, run)


def uniform(bench: Bench, share: int) -> list[int]:
    """The same count in every layer."""
    return [bench.subject.experts * share // 100] * bench.layers


def repair_student(bench: Bench, student: Any, repair: str, scope: str) -> None:
    """With the repair's own settings, on training text of the scope."""
    method = repair_named(repair)
    batches = bench.training_batches(scope, method.defaults.steps)
    method.repair(student, bench.model, batches)


def found(judgement: Judgement) -> Row:
    """A judgement as a row: losses in thousandths of a nat."""
    return {
        "loss": [round(1000 * value) for value in judgement.nll_N.tolist()],
        "accuracy": round(judgement.accuracy, 5),
        "overlap": round(judgement.overlap, 5),
        "greedy": round(judgement.greedy, 5),
    }


def planted_jobs(subject: str, bench: Opened) -> Iterator[Job]:
    """Half the experts of a subject with planted super experts, which operators may or may not be told to keep."""
    for operator in ("random", "frequency", "reap", "m-smoe"):
        for protect in (0, 1):
            key: Key = {"part": "planted", "subject": subject, "operator": operator, "protect": protect}
            yield Job(key, _planted(bench, operator, bool(protect)))


def _planted(bench: Opened, operator: str, protect: bool) -> Callable[[], Row]:
    def run() -> Row:
        opened = bench()
        loud = _with_super_experts(opened)
        statistics = loud.statistics(EVERYTHING)
        student = loud.student(operator, uniform(loud, 50), EVERYTHING, protect=protect)
        supers = sorted(statistics.super_experts())
        full = loud.judge(loud.model, EVERYTHING)
        return {
            **found(loud.judge(student, EVERYTHING)),
            "full_loss": round(1000 * float(full.nll_N.mean())),
            "super_experts": supers,
            "planted_found": (PLANTED_LAYER, _middle_expert(opened)) in supers,
        }

    return run


def _with_super_experts(bench: Bench) -> Bench:
    """A bench whose model learnt to live with, and to use, what was planted; trained once, kept on disk."""
    loud = copy.copy(bench)
    loud.forget()
    loud.folder = bench.folder / "planted"
    if not loud.folder.is_dir():
        loud.model = planted(copy.deepcopy(bench.model), PLANTED_LAYER, _middle_expert(bench))
        batches = bench.training_batches(EVERYTHING, PLANTED_STEPS, 16)
        repair_named("task-fine-tuning").repair(loud.model, bench.model, batches, RepairSettings(steps=PLANTED_STEPS))
        with staged_folder(loud.folder) as staged:
            loud.model.save_pretrained(staged)
    loud.model = load(loud.folder)
    return loud


def _middle_expert(bench: Bench) -> int:
    """The one of the planted layer that half the others are used less than."""
    counts_E = bench.statistics(EVERYTHING).layer(PLANTED_LAYER).counts_E
    return int(counts_E.argsort()[len(counts_E) // 2])


def ratio_job(subject: str, bench: Opened) -> Job:
    """What calibration costs over a plain forward pass."""

    def run() -> Row:
        opened = bench()
        batches = opened.batches("calibration", EVERYTHING)
        calibrate(opened.model, batches[:1])
        return {"ratio": round(calibration_ratio(opened.model, batches), 4)}

    return Job({"part": "calibration", "subject": subject}, run)


def averaging_job(subject: str, bench: Opened) -> Job:
    """How far Sub-MoE without truncation is from the weighted average, over all groups of half the experts."""

    def run() -> Row:
        opened = bench()
        statistics, operator = opened.statistics(EVERYTHING), SubMoe(rank_share=1.0)
        differences = []
        for one in moe_layers(opened.model):
            layer = CalibratedLayer.of(one, statistics)
            for group in operator.plan(layer, layer.count // 2).groups:
                bank, usage_M = layer.bank.select(group), 1 + layer.statistics.counts_E[list(group)]
                weights_M = usage_M / usage_M.sum()
                merged, mean = operator.merged(bank, weights_M, layer), average(bank, weights_M)
                differences.append((merged.gate_up_E2FD - mean.gate_up_E2FD).norm() / mean.gate_up_E2FD.norm())
                differences.append((merged.down_EDF - mean.down_EDF).norm() / mean.down_EDF.norm())
        return {"difference": float(torch.stack(differences).max())}

    return Job({"part": "averaging", "subject": subject}, run)
