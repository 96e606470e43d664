"""The export stage: from a front to a stand-alone checkpoint that has been reloaded and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.expert_reduction import repaired
from nas.model_card import model_card
from nas.quality import known_spread
from nas.searching import OpenSupernet
from predictors.measure import measured_versions
from studies.errors import LimitError, VerificationError
from studies.pareto import ParetoFront, signed
from studies.records import Evaluation, Value, content_hash
from studies.store import StudyStore
from studies.study_book import Artifact
from supernets.checkpoint import PROVENANCE_FILE, load_classifier, load_teacher_logits, write_network
from supernets.evaluation import Quality, evaluate, fitting_batch_size, predict_logits, resolve_precision
from supernets.family import Layout
from supernets.finetune import TuneProgress, TuneSettings, tune
from supernets.recipe import Recipe, distilled
from supernets.supernet import Supernet
from supernets.task import TRAIN, VALIDATION

EXPERT_RECOVERY = "distillation"
"""The repair by which networks with fewer experts recover, at its own learning rate."""

_PADDED_TOLERANCE = 1e-5
"""Of the largest logit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which network of a front is exported: the one of a number or rank if given, else the knee.

    Attributes:
        number: the evaluation of this number, on the front or not; limits do not matter then.
        rank: position along the front within the limits, 1 is the best in the first objective.
        limits: objective key → largest allowed value.
    """

    number: int | None = None
    rank: int | None = None
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """What `export_network` writes.

    Attributes:
        folder: where the checkpoint goes; must not exist.
        recovery_steps: optimiser steps of distillation for this network alone, before it is written; what they give
            is kept only if it is at least as good on validation as what went in.
        recovery_learning_rate: of those steps.
    """

    folder: Path
    study_name: str
    layout: Layout = "free"
    recovery_steps: int = 0
    recovery_learning_rate: float = 2e-4
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A verified checkpoint.

    Attributes:
        values: the stored values of the network plus its own quality, of provenance ``exported``.
        inherited: quality on validation before recovery.
        quality: quality on validation as written.
        recovery_kept: whether recovery was asked for and did not make the network worse.
    """

    folder: Path
    layout: Layout
    evaluation: Evaluation
    parameters: int
    inherited: Quality
    quality: Quality
    recovery_kept: bool


def select(front: ParetoFront, evaluations: Sequence[Evaluation], selection: Selection) -> Evaluation:
    """The network a selection means.

    Raises:
        ValueError: no such evaluation or rank, or an empty front.
        LimitError: nothing on the front keeps the limits.
    """
    if selection.number is not None:
        found = [e for e in evaluations if e.number == selection.number and e.status == "done"]
        if not found:
            raise ValueError(f"the study has no finished evaluation number {selection.number}; see nas front")
        return found[0]
    if not len(front):
        raise ValueError(
            "no measured network is left to choose from: search first or relax the limits; for the layout uniform, "
            "make the supernet with --uniform"
        )
    front = within_limits(front, selection.limits)
    if selection.rank is not None:
        if not 1 <= selection.rank <= len(front):
            raise ValueError(f"the front has ranks 1 to {len(front)}, not {selection.rank}")
        return _ordered(front)[selection.rank - 1]
    return front.knee()


def _ordered(front: ParetoFront) -> list[Evaluation]:
    """In the order in which `nas front` shows them."""
    objective = front.objectives[0]
    return sorted(front.evaluations, key=lambda e: (signed(objective, front.value(e, objective).number), e.number))


def within_limits(front: ParetoFront, limits: Mapping[str, float]) -> ParetoFront:
    """The part of a front that keeps limits on any stored value: objective key, or name for all of that name.

    A network without such a value may not keep the limit, and is left out.

    Raises:
        ValueError: no network has a value.
        LimitError: nothing keeps them; says what comes nearest.
    """
    for key, limit in limits.items():
        numbers = {e.number: number for e in front.evaluations if (number := _largest(front, e, key)) is not None}
        if not numbers:
            known = ", ".join(dict.fromkeys(v.objective for e in front.evaluations for v in e.values))
            raise ValueError(f"the study has no measured values for {key}; its networks have {known}")
        kept = tuple(e for e in front.evaluations if e.number in numbers and numbers[e.number] <= limit)
        if not kept:
            raise LimitError(
                f"no network of the front has {key} <= {limit:g}; the smallest measured is {min(numbers.values()):.4g}"
            )
        front = replace(front, evaluations=kept)
    return front


def _largest(front: ParetoFront, evaluation: Evaluation, key: str) -> float | None:
    """The value of an objective key, or the largest of an objective name; None where it has none."""
    keys = dict.fromkeys(v.objective for v in evaluation.values if key in (v.objective, v.objective.partition(":")[0]))
    return max((v.number for one in keys if (v := front.allowed.latest(evaluation, one))), default=None)


def export_network(
    opened: OpenSupernet,
    evaluation: Evaluation,
    request: ExportRequest,
    store: StudyStore,
    *,
    on_progress: Callable[[TuneProgress], None] | None = None,
) -> Exported:
    """Extract a network, let it recover if asked to, write it, and prove that it reloads to the same outputs.

    Raises:
        ValueError: the layout cannot express the network, the folder exists, or the supernet is one of plain text,
            whose head nothing has trained.
        VerificationError: the checkpoint computes something else; nothing is left behind.
    """
    supernet, task = opened.supernet, opened.task
    if not task.trains_head:
        raise ValueError(
            f"a supernet of {task.settings.kind} has an untrained head: fine-tune the network on a task with nas adapt"
        )
    architecture = supernet.space.decode(evaluation.genotype)
    supernet.model.cpu().eval()  # a search may have left it elsewhere; exports are proved on the processor
    network = supernet.extract(architecture, request.layout)
    inputs = dict(next(task.batches(VALIDATION, 8)).inputs)
    _check_extraction(opened, network, evaluation, inputs, request.layout)
    at_once = fitting_batch_size(task, supernet.config)
    inherited = quality = evaluate(network, task, VALIDATION, batch_size=at_once)
    recovery_kept = False
    if request.recovery_steps:
        recovered = recover(opened, deepcopy(network), request, on_progress)
        after = evaluate(recovered, task, VALIDATION, batch_size=at_once)
        recovery_kept = after.error <= inherited.error
        network, quality = (recovered, after) if recovery_kept else (network, inherited)
    weights_hash = content_hash([supernet.hash, evaluation.genotype, request.recovery_steps, request.seed])
    value = Value(
        objective="error",
        number=quality.error,
        spread=known_spread(quality.standard_error),
        n=quality.examples,
        provenance="exported",
        weights_hash=weights_hash,
        data_hash=task.data_hash(VALIDATION),
        seed=request.seed,
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    provenance = _provenance(opened, evaluation, request, value, parameters) | {"recovery_kept": recovery_kept}
    write_network(
        network,
        request.folder,
        opened.tokenizer,
        family=supernet.family,
        layout=request.layout,
        card=model_card(provenance, quality),
        provenance=provenance,
        check_inputs=inputs,
        files=supernet.side_files(architecture),
    )
    return Exported(
        folder=request.folder,
        layout=request.layout,
        evaluation=record_export(evaluation, request, store),
        parameters=parameters,
        inherited=inherited,
        quality=quality,
        recovery_kept=recovery_kept,
    )


def is_export_of(folder: Path, opened: OpenSupernet, evaluation: Evaluation, request: ExportRequest) -> bool:
    """Whether a folder already holds what a request would write; exports appear complete or not at all."""
    try:
        found = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    wanted = {
        "study": request.study_name,
        "genotype": list(evaluation.genotype),
        "supernet_hash": opened.supernet.hash,
        "recovery_steps": request.recovery_steps,
        "seed": request.seed,
        "layout": request.layout,
    }
    return all(found.get(name) == value for name, value in wanted.items())


def record_export(evaluation: Evaluation, request: ExportRequest, store: StudyStore) -> Evaluation:
    """Store the quality and the place of a written checkpoint, each once; returns the evaluation with all its values.

    It may be repeated: a kill can come between writing a checkpoint and this.
    """
    provenance = json.loads((request.folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    value = Value(**provenance["values"][-1])
    if value not in evaluation.values:
        evaluation = store.add_values(request.study_name, evaluation.genotype, [value])
    description = {key: provenance[key] for key in ("parameters", "recovery_steps", "seed")}
    record_checkpoint(evaluation, request.folder, description, request.study_name, store)
    return evaluation


def record_checkpoint(
    evaluation: Evaluation, folder: Path, description: Mapping[str, Any], study_name: str, store: StudyStore
) -> None:
    """Store the place of a written checkpoint, once."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if (str(folder), digest) not in {(one.uri, one.sha256) for one in store.artifacts(study_name)}:
        artifact = Artifact(
            genotype=evaluation.genotype,
            kind="checkpoint",
            uri=str(folder),
            sha256=digest,
            description=dict(description),
        )
        store.put_artifact(study_name, artifact)


def _check_extraction(
    opened: OpenSupernet, network: nn.Module, evaluation: Evaluation, inputs: Mapping[str, Tensor], layout: Layout
) -> None:
    """The extracted network and the active sub-network must agree bit for bit.

    A padded one computes more of each router's rows at once, which may round differently.
    """
    supernet = opened.supernet
    with torch.no_grad():
        with supernet.active(supernet.space.decode(evaluation.genotype)):
            expected = supernet(**inputs).logits
        found = network(**inputs).logits
    worst = (found - expected).abs().max().item()
    allowed = _PADDED_TOLERANCE * expected.abs().max().item() if layout == "padded" else 0.0
    if not worst <= allowed:
        raise VerificationError(f"the extracted network differs from the sub-network by up to {worst:.2e}")


def recover(
    opened: OpenSupernet,
    network: nn.Module,
    request: ExportRequest,
    on_progress: Callable[[TuneProgress], None] | None = None,
) -> nn.Module:
    """Train one extracted network for a few steps, distilling from the supernet's teacher (or its largest network)."""
    if opened.supernet.experts:
        repaired(network, opened.supernet.model, opened.task, EXPERT_RECOVERY, request.recovery_steps)
        return network
    tuning = opened.record["tuning"]
    settings = TuneSettings(
        steps=request.recovery_steps,
        batch_size=tuning["batch_size"],
        learning_rate=request.recovery_learning_rate,
        recipe=distilled(Recipe(**tuning["recipe"])),
        order_fraction=-1.0,
        freeze_embeddings=tuning["freeze_embeddings"],
        device=request.device,
        precision=tuning["precision"],
        seed=request.seed,
    )
    trained = Supernet.fixed(network)
    tune(trained, opened.task, settings, teacher_logits_NC=_teacher_logits(opened, settings), on_progress=on_progress)
    return trained.unwrap().cpu().eval()


def _teacher_logits(opened: OpenSupernet, settings: TuneSettings) -> Tensor | None:
    """What the supernet was distilled from on the training examples; asked again if the data have changed since.

    Where it was distilled from nothing, what its largest network answers; None where the recipe has no use for either.
    """
    if not settings.recipe.needs_teacher:
        return None
    kept = load_teacher_logits(opened.folder)
    if kept is not None and opened.record.get("taught_on") == opened.task.data_hash(TRAIN):
        return kept
    teacher = opened.record.get("teacher")
    device = "cpu" if teacher is None else settings.device  # the supernet stays where exports are proved
    model: Any = opened.supernet
    if teacher is not None:
        model = load_classifier(teacher, opened.task.labels).model.to(device)
    precision = resolve_precision(settings.precision, device)
    return predict_logits(model, opened.task, TRAIN, device=device, precision=precision)[0]


def _provenance(
    opened: OpenSupernet, evaluation: Evaluation, request: ExportRequest, value: Value, parameters: int
) -> dict[str, Any]:
    """Everything that is needed to say where the numbers and the weights come from."""
    return {
        **origin(opened, evaluation, request.study_name),
        "parameters": parameters,
        "task": opened.record["task"],
        "recovery_steps": request.recovery_steps,
        "seed": request.seed,
        "values": [asdict(v) for v in (*evaluation.values, value)],
    }


def origin(opened: OpenSupernet, evaluation: Evaluation, study_name: str) -> dict[str, Any]:
    """Which network of which supernet and study a checkpoint was, and what it was made with."""
    supernet = opened.supernet
    return {
        "supernas": _own_version(),
        "base_model": opened.record["base_model"],
        "study": study_name,
        "evaluation": evaluation.number,
        "genotype": list(evaluation.genotype),
        "architecture": supernet.space.decode(evaluation.genotype).to_json(),
        "space_fingerprint": supernet.space.fingerprint,
        "supernet_hash": supernet.hash,
        "versions": measured_versions(),
    }


def _own_version() -> str:
    """The installed version; a checkout need not be installed."""
    try:
        return version("supernas")
    except PackageNotFoundError:
        return "not installed"
