"""The other job on real input: make a mixture of experts smaller for the one domain that it is needed for.

A small mixture is trained on eight domains (`nas.moe_subject`). For one of them half its experts go: alike in every
layer by each of three rules, and by a search of operators and counts per layer; what the search finds is exported and
verified. All losses that are reported are those of test text that nothing has seen before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nas.demo import Say, Watch
from nas.domain_texts import prepare_domain_texts
from nas.expert_reduction import ReductionRequest, reduce_checkpoint
from nas.expert_stage import ExpertRequest, expert_supernet, load_experts, text_statistics
from nas.export import ExportRequest, export_network, record_export
from nas.moe_subject import Subject, domain_task, prepare_subject
from nas.searching import OpenSupernet, SearchRequest, open_supernet, search_supernet
from nas.settings import SearchSettings
from nas.tuning import open_task
from nas.workspace import Workspace
from studies.pareto import ParetoFront
from studies.records import Evaluation
from studies.store import StudyStore
from supernets.checkpoint import load_exported
from supernets.evaluation import evaluate
from supernets.family import SpaceOptions
from supernets.task import TEST, Task, TaskSettings

STUDY = "demo-moe"
UNIFORM = ("reap", "easy-ep", "mone")
"""Reductions that are alike in every layer, at half the experts."""
OPERATORS = ("reap", "easy-ep", "mone")
"""What the search may choose from in every layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeDemoSettings:
    """Budgets of the demonstration."""

    subject: Subject = field(default_factory=lambda: Subject(steps=1500))
    domain: str = "python"
    search_budget: int = 120
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeDemoResult:
    """What ``RESULT`` reports; losses in nats per byte of the domain's test text.

    Attributes:
        uniform: one row for each rule of `UNIFORM`.
        front: losses and sizes of the networks that the search found.
        export: the searched network that is no larger than the smaller uniform one, reloaded.
    """

    seconds: float
    full_test_nll: float
    full_parameters: int
    uniform: tuple[dict[str, Any], ...]
    front: tuple[dict[str, Any], ...]
    export: dict[str, Any]


def run_moe_demo(folder: Path, settings: MoeDemoSettings, say: Say, watch: Watch) -> MoeDemoResult:
    """Run the whole job in a folder; repeated after an interruption, it goes on where it was.

    Raises:
        ValueError: the text cannot be fetched.
    """
    start = time.monotonic()
    texts = prepare_domain_texts(folder / "data")
    model = prepare_subject(
        folder, settings.subject, texts, lambda p: watch(f"train, loss {p.loss:.2f}", p.step, p.steps)
    )
    job = _Job(Workspace(folder), model, domain_task(texts, settings.domain), settings, say, watch)
    full = job.tested(load_experts(str(model)).model)
    say(f"{settings.domain}, all experts: {full:.4f} nats per byte of test text")
    uniform = tuple(job.uniform())
    front = job.search()
    rows = tuple(job.front_rows(front))
    say(f"front of {len(rows)} networks; exporting the best that is no larger than a uniform one")
    return MoeDemoResult(
        full_test_nll=full,
        full_parameters=job.count(job.opened.supernet.space.largest),
        uniform=uniform,
        front=rows,
        export=job.export(front, min(row["parameters"] for row in uniform)),
        seconds=time.monotonic() - start,
    )


@dataclass(frozen=True)
class _Job:
    """The demonstration after training."""

    workspace: Workspace
    model: Path
    text: TaskSettings
    settings: MoeDemoSettings
    say: Say
    watch: Watch

    @cached_property
    def task(self) -> Task:
        """Calibration text, validation text and test text of the domain."""
        return open_task(self.text, str(self.model))[0]

    @cached_property
    def statistics(self) -> str:
        """Folder of the routing statistics on the domain, made once."""
        folder = self.workspace.root / "statistics"
        if not folder.is_dir():
            name = self.settings.domain
            text_statistics(load_experts(str(self.model)).model, self.task, name, self._shown("calibrate")).save(folder)
        return str(folder)

    @cached_property
    def opened(self) -> OpenSupernet:
        """Every layer keeps any even number of experts, by any of the operators."""
        request = ExpertRequest(
            model=str(self.model),
            task=self.text,
            space=SpaceOptions(operators=OPERATORS, expert_options=8, top_k_options=1),
            statistics=self.statistics,
        )
        return open_supernet(expert_supernet(request, self.workspace.supernet))

    def tested(self, network: Callable[..., Any]) -> float:
        """Nats per byte of test text."""
        return evaluate(network, self.task, TEST).metrics["nll"]

    def uniform(self) -> Iterator[dict[str, Any]]:
        """Half the experts of every layer."""
        for operator in UNIFORM:
            folder = self.workspace.export(f"uniform-{operator}")
            if not folder.is_dir():
                reduce_checkpoint(
                    ReductionRequest(
                        model=str(self.model), folder=folder, operator=operator, keep="50%", statistics=self.statistics
                    )
                )
            network = load_exported(folder)
            loss = self.tested(network)
            self.say(f"half the experts of every layer by {operator}: {loss:.4f}")
            parameters = sum(parameter.numel() for parameter in network.parameters())
            yield {"operator": operator, "test_nll": loss, "parameters": parameters, "path": str(folder)}

    def search(self) -> ParetoFront:
        """Loss on validation text against memory; an interrupted search goes on."""
        search = SearchSettings(
            objectives=("nll", "memory"),
            budget=self.settings.search_budget,
            seed=self.settings.seed,
            study_name=STUDY,
        )
        request = SearchRequest(search=search, precision="float32", finalists=0)
        search_supernet(request, self.opened, self.store, on_progress=self._searched)
        return self.store.front(STUDY)

    @cached_property
    def store(self) -> StudyStore:
        """The study's database."""
        return StudyStore.open(self.workspace.storage)

    def front_rows(self, front: ParetoFront) -> Iterator[dict[str, Any]]:
        """By size, the smallest first."""
        supernet = self.opened.supernet
        for evaluation in sorted(front.evaluations, key=lambda one: self.count(one.genotype)):
            with supernet.active(supernet.space.decode(evaluation.genotype)):
                loss = self.tested(supernet)
            yield {
                "number": evaluation.number,
                "validation_nll": _nll(evaluation),
                "test_nll": loss,
                "parameters": self.count(evaluation.genotype),
            }

    def export(self, front: ParetoFront, most: int) -> dict[str, Any]:
        """The network with the least loss on validation of those with at most so many parameters."""
        small = [one for one in front.evaluations if self.count(one.genotype) <= most]
        best = min(small or front.evaluations, key=_nll if small else lambda one: self.count(one.genotype))
        folder = self.workspace.export(f"searched-{best.number}")
        request = ExportRequest(folder=folder, study_name=STUDY)
        if folder.exists():
            record_export(best, request, self.store)
        else:
            export_network(self.opened, best, request, self.store)
        network = load_exported(folder)
        return {
            "path": str(folder),
            "verified": True,
            "test_nll": self.tested(network),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        }

    def count(self, genotype: tuple[int, ...]) -> int:
        """Parameters of a network."""
        return self.opened.supernet.count_parameters(self.opened.supernet.space.decode(genotype))

    def _shown(self, title: str) -> Callable[[float, float], None]:
        return lambda done, total: self.watch(title, done, total)

    def _searched(self, progress: Any) -> None:
        self.watch("search", progress.answered, progress.budget)


def _nll(evaluation: Evaluation) -> float:
    value = evaluation.value("nll")
    assert value is not None, f"evaluation {evaluation.number} has no loss"
    return value.number
