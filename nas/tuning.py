"""The tuning stage: from a pre-trained checkpoint and a task to a supernet folder, through a teacher where needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.workspace import Workspace
from studies.discovery import VariantFolder
from supernets.family import SpaceOptions
from supernets.task import TRAIN, VALIDATION, Task, TaskSettings

if TYPE_CHECKING:
    from supernets.finetune import TuneProgress, TuneSettings

TASKS = VariantFolder(package="supernets.tasks", attribute="TASK", kind="task")

OnTuned = Callable[[str, "TuneProgress"], None]
"""Receives the name of the network in training (``teacher`` or ``supernet``) and its progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneRequest:
    """What `tune_supernet` makes.

    Attributes:
        model: folder or name of the pre-trained checkpoint.
        tuning: steps, recipe and optimiser; the teacher is trained with the same, on hard labels alone.
        teacher: a fine-tuned checkpoint to distil from; None fine-tunes one (or takes `model`, if it has a head).
    """

    model: str
    task: TaskSettings
    tuning: TuneSettings
    space: SpaceOptions = field(default_factory=SpaceOptions)
    teacher: str | None = None


def open_task(settings: TaskSettings, source: str) -> tuple[Task, Any]:
    """The task a checkpoint is judged on, and the checkpoint's tokenizer; a head's classes are the task's classes."""
    from supernets.checkpoint import head_labels, load_tokenizer

    tokenizer = load_tokenizer(source)
    labels = head_labels(source)
    if labels is not None and settings.labels is None:
        settings = replace(settings, labels=labels)
    task_class: Any = TASKS.load(settings.kind)
    task: Task = task_class.open(settings, tokenizer)
    return task, tokenizer


def tune_supernet(request: TuneRequest, workspace: Workspace, on_progress: OnTuned | None = None) -> Path:
    """Make (or finish making) the supernet of a workspace and return its folder.

    A killed run continues from its last saved state; a finished stage is not repeated.

    Raises:
        ValueError: unusable checkpoint, task or settings, or a workspace that holds another supernet.
    """
    from supernets.checkpoint import load_classifier, read_supernet_record, save_supernet
    from supernets.evaluation import evaluate, resolve_precision
    from supernets.finetune import tune
    from supernets.supernet import Supernet

    asked = _question(request)
    if workspace.supernet.exists():
        _require_same(read_supernet_record(workspace.supernet).get("request"), asked, workspace)
        return workspace.supernet
    task, tokenizer = open_task(request.task, request.model)
    teacher = _teacher(request, task, tokenizer, workspace, on_progress)
    baseline, logits = _judge(teacher, task, request.tuning) if teacher else (None, None)
    loaded = load_classifier(request.model, task.labels, request.tuning.seed)
    supernet = Supernet.wrap(loaded.model, options=request.space)
    state = workspace.training_state("supernet")
    options = {"teacher_logits_NC": logits, "state_file": state}
    done = tune(supernet, task, request.tuning, **options, on_progress=_named("supernet", on_progress))
    device, precision = request.tuning.device, resolve_precision(request.tuning.precision, request.tuning.device)
    largest = evaluate(supernet, task, VALIDATION, device=device, precision=precision)
    record = {
        "request": asked,
        "task": replace(request.task, labels=task.labels).to_json(),
        "base_model": request.model,
        "teacher": teacher,
        "tuning": asdict(request.tuning),
        "seconds": done.seconds,
        "validation": {"teacher": baseline, "largest": largest.metrics},
    }
    save_supernet(supernet, workspace.supernet, tokenizer, record)
    state.unlink(missing_ok=True)
    return workspace.supernet


def _teacher(
    request: TuneRequest, task: Task, tokenizer: Any, workspace: Workspace, on_progress: OnTuned | None
) -> str | None:
    """Where the teacher lies: given, the model itself, or fine-tuned now; None where the recipe needs none."""
    from supernets.checkpoint import head_labels, load_classifier, save_classifier
    from supernets.finetune import plain_recipe, tune
    from supernets.supernet import Supernet

    if not request.tuning.recipe.needs_teacher:
        return None
    if request.teacher is not None:
        return request.teacher
    if head_labels(request.model) is not None:
        return request.model
    if not workspace.teacher.exists():
        loaded = load_classifier(request.model, task.labels, request.tuning.seed)
        network = Supernet.fixed(loaded.model)
        settings = replace(request.tuning, recipe=plain_recipe(), order_fraction=-1.0)
        state = workspace.training_state("teacher")
        tune(network, task, settings, state_file=state, on_progress=_named("teacher", on_progress))
        save_classifier(network.unwrap(), workspace.teacher, tokenizer)
        state.unlink(missing_ok=True)
    return str(workspace.teacher)


def _judge(source: str, task: Task, settings: TuneSettings) -> tuple[dict[str, float], Any]:
    """Validation metrics and training logits [N, C] of a teacher."""
    from supernets.checkpoint import load_classifier
    from supernets.evaluation import evaluate, predict_logits, resolve_precision

    model: Any = load_classifier(source, task.labels).model.to(settings.device)
    how: dict[str, Any] = {
        "device": settings.device,
        "precision": resolve_precision(settings.precision, settings.device),
    }
    return evaluate(model, task, VALIDATION, **how).metrics, predict_logits(model, task, TRAIN, **how)[0]


def _named(name: str, on_progress: OnTuned | None) -> Callable[[TuneProgress], None] | None:
    return None if on_progress is None else lambda progress: on_progress(name, progress)


def _question(request: TuneRequest) -> dict[str, Any]:
    """What decides the supernet, as JSON."""
    tuning = {k: v for k, v in asdict(request.tuning).items() if k not in ("save_seconds", "watched_examples")}
    return {
        "model": request.model,
        "task": request.task.to_json(),
        "tuning": tuning,
        "space": asdict(request.space),
        "teacher": request.teacher,
    }


def _require_same(stored: Any, asked: dict[str, Any], workspace: Workspace) -> None:
    different = [key for key in asked if not isinstance(stored, dict) or stored.get(key) != asked[key]]
    if different:
        raise ValueError(
            f"{workspace.supernet} was made with another {', '.join(different)}; "
            "use the same settings, or another --output"
        )
