"""From a supernet that was tuned on plain text to a classifier: one network of it, fine-tuned alone on a task.

The way of the Mixture-of-Supernets paper (arXiv 2306.04845) with BERT: the supernet knows no task, and what a search
finds in it is fine-tuned once.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.export import origin, record_checkpoint
from nas.model_card import model_card
from nas.quality import known_spread
from nas.searching import OpenSupernet
from nas.tuning import absolute_paths, open_task
from studies.records import Evaluation, Value, content_hash
from studies.store import StudyStore
from supernets.checkpoint import write_network
from supernets.evaluation import Quality, evaluate, resolve_precision
from supernets.family import Layout
from supernets.finetune import TuneProgress, TuneSettings, tune
from supernets.space import Architecture
from supernets.staging import require_free
from supernets.supernet import Supernet
from supernets.task import VALIDATION, Task, TaskSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapted:
    """A classifier in evaluation mode, and its quality on the validation examples of its task."""

    network: nn.Module
    task: Task
    quality: Quality


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptRequest:
    """What `export_adapted` writes.

    Attributes:
        folder: where the checkpoint goes; must not exist.
        tuning: as for `adapt`.
    """

    folder: Path
    study_name: str
    task: TaskSettings
    tuning: TuneSettings
    layout: Layout = "free"


def adapt(
    opened: OpenSupernet,
    architecture: Architecture,
    task: TaskSettings,
    tuning: TuneSettings,
    *,
    layout: Layout = "free",
    teacher_logits_NC: Tensor | None = None,
    on_progress: Callable[[TuneProgress], None] | None = None,
) -> Adapted:
    """Cut a network out of a supernet, give it a new head, and fine-tune it.

    Args:
        tuning: its recipe decides the loss; `supernets.recipe.plain_recipe` learns from labels alone, `distilled` from
            a teacher's logits as well.

    Raises:
        ValueError: the supernet has a trained head already, the data cannot be used or hold no classes, the layout
            cannot express the network, or a teacher is missing.
    """
    if opened.task.trains_head:
        raise ValueError(
            f"{opened.folder} was tuned on the task {opened.task.settings.kind}, and its networks are ready: write one "
            "with nas export"
        )
    classification, _ = open_task(task, str(opened.folder))
    if not (classification.trains_head and classification.labels):
        raise ValueError(f"a network is fine-tuned on classes, which the task {task.kind} has not; choose another task")
    network = with_new_head(opened.supernet.extract(architecture, layout), classification, tuning.seed)
    trained = Supernet.fixed(network)
    tune(trained, classification, tuning, teacher_logits_NC=teacher_logits_NC, on_progress=on_progress)
    precision = resolve_precision(tuning.precision, tuning.device)
    quality = evaluate(trained, classification, VALIDATION, device=tuning.device, precision=precision)
    return Adapted(network=trained.unwrap().cpu().eval(), task=classification, quality=quality)


def export_adapted(
    opened: OpenSupernet,
    evaluation: Evaluation,
    request: AdaptRequest,
    store: StudyStore,
    *,
    on_progress: Callable[[TuneProgress], None] | None = None,
) -> Adapted:
    """Fine-tune a network of a study on a task, write it, and prove that it reloads to the same outputs.

    The study keeps the place of the checkpoint, but not its error, which is of another task than the study's.

    Raises:
        ValueError: as `adapt`, or the folder exists.
        VerificationError: the checkpoint computes something else; nothing is left behind.
    """
    require_free(request.folder)
    supernet = opened.supernet
    architecture = supernet.space.decode(evaluation.genotype)
    done = adapt(opened, architecture, request.task, request.tuning, layout=request.layout, on_progress=on_progress)
    provenance = _provenance(opened, evaluation, request, done)
    write_network(
        done.network,
        request.folder,
        opened.tokenizer,
        family=supernet.family,
        layout=request.layout,
        card=model_card(provenance, done.quality),
        provenance=provenance,
        check_inputs=dict(next(done.task.batches(VALIDATION, 8)).inputs),
    )
    description = {key: provenance[key] for key in ("parameters", "adapted_steps", "seed")}
    record_checkpoint(evaluation, request.folder, description, request.study_name, store)
    return done


def _provenance(opened: OpenSupernet, evaluation: Evaluation, request: AdaptRequest, done: Adapted) -> dict[str, Any]:
    """Where weights and numbers come from; of the study's values, the costs, since its qualities are of plain text."""
    tuning, task = request.tuning, done.task
    value = Value(
        objective="error",
        number=done.quality.error,
        spread=known_spread(done.quality.standard_error),
        n=done.quality.examples,
        provenance="exported",
        weights_hash=content_hash([opened.supernet.hash, evaluation.genotype, tuning.fingerprint, task.fingerprint]),
        data_hash=task.data_hash(VALIDATION),
        seed=tuning.seed,
    )
    costs = [value for value in evaluation.values if not value.data_hash]
    settings = replace(task.settings, labels=task.labels, data=absolute_paths(task.settings.data))
    return {
        **origin(opened, evaluation, request.study_name),
        "parameters": sum(parameter.numel() for parameter in done.network.parameters()),
        "task": settings.to_json(),
        "plain_text": opened.record["task"],
        "adapted_steps": tuning.steps,
        "tuning": asdict(tuning),
        "seed": tuning.seed,
        "values": [asdict(one) for one in (*costs, value)],
    }


def with_new_head(network: nn.Module, task: Task, seed: int) -> nn.Module:
    """The same body under a classification head for a task's classes, whose weights are drawn from the seed."""
    model: Any = network
    config = deepcopy(model.config)
    config.id2label, config.label2id = task.id2label, task.label2id
    torch.manual_seed(seed)
    renewed: Any = type(model)(config)
    getattr(renewed, renewed.base_model_prefix).load_state_dict(model.base_model.state_dict())
    classifier: nn.Module = renewed.eval()
    return classifier
