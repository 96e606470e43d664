"""From a supernet that was tuned on plain text to a classifier: one network of it, fine-tuned alone on a task.

The way of the Mixture-of-Supernets paper (arXiv 2306.04845) with BERT: the supernet knows no task, and what a search
finds in it is fine-tuned once.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.searching import OpenSupernet
from nas.tuning import open_task
from supernets.evaluation import Quality, evaluate, resolve_precision
from supernets.family import Layout
from supernets.finetune import TuneProgress, TuneSettings, tune
from supernets.space import Architecture
from supernets.supernet import Supernet
from supernets.task import VALIDATION, Task, TaskSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapted:
    """A classifier in evaluation mode, and its quality on the validation examples of its task."""

    network: nn.Module
    task: Task
    quality: Quality


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
        ValueError: the data cannot be used, the layout cannot express the network, or a teacher is missing.
    """
    classification, _ = open_task(task, str(opened.folder))
    network = with_new_head(opened.supernet.extract(architecture, layout), classification, tuning.seed)
    trained = Supernet.fixed(network)
    tune(trained, classification, tuning, teacher_logits_NC=teacher_logits_NC, on_progress=on_progress)
    precision = resolve_precision(tuning.precision, tuning.device)
    quality = evaluate(trained, classification, VALIDATION, device=tuning.device, precision=precision)
    return Adapted(network=trained.unwrap().cpu().eval(), task=classification, quality=quality)


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
