"""The tuning stage: from a pre-trained checkpoint and a task to a supernet folder, through a teacher where needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from nas.planning import decided_steps, planned_request, recalled, remembered, training_estimate
from nas.teaching import (
    Teacher,
    find_teacher,
    given_teacher,
    located,
    needs_training,
    order_after_learning,
    require_own,
    require_teacher,
    start_from_teacher,
    with_answers,
)
from nas.tune_request import TuneRequest
from nas.workspace import Workspace
from studies.discovery import VariantFolder
from supernets.checkpoint import (
    head_labels,
    input_limit,
    is_language_model,
    load_classifier,
    load_tokenizer,
    read_supernet_record,
    save_supernet,
)
from supernets.data.encoding import length_limit
from supernets.estimate import Estimate
from supernets.evaluation import evaluate, resolve_precision
from supernets.finetune import TuneProgress, tune
from supernets.mixture import Mixture
from supernets.supernet import Supernet
from supernets.task import TRAIN, VALIDATION, Task, TaskSettings
from supernets.training_state import TrainingState

TASKS = VariantFolder(package="supernets.tasks", attribute="TASK", kind="task")

LENGTH_QUANTILES = 5
"""Lengths by which a supernet remembers its training data, for latencies."""

OnTuned = Callable[[str, TuneProgress], None]
"""Receives the name of the network in training (``teacher`` or ``supernet``) and its progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A request's data and model, read and checked, before anything is spent.

    Attributes:
        supernet: not yet trained.
    """

    task: Task
    tokenizer: Any
    supernet: Supernet


def open_task(settings: TaskSettings, source: str) -> tuple[Task, Any]:
    """The task a checkpoint is judged on, and the checkpoint's tokenizer.

    A head's classes are the task's classes, and no input is longer than the model takes.
    """
    tokenizer = load_tokenizer(source)
    labels = head_labels(source)
    if labels is not None and settings.labels is None:
        settings = replace(settings, labels=labels)
    most, task_class = input_limit(source), cast("Any", TASKS.load(settings.kind))
    if settings.max_length is None:
        settings = replace(settings, max_length=min(most, task_class.usual_length or length_limit(tokenizer)))
    elif settings.max_length > most:
        raise ValueError(f"{source} takes inputs of at most {most} tokens, got a maximum of {settings.max_length}")
    task: Task = task_class.open(settings, tokenizer)
    return task, tokenizer


def prepare(request: TuneRequest) -> Prepared:
    """Read the data and the checkpoint of a request.

    Raises:
        ValueError: unusable checkpoint, task or settings.
    """
    if is_language_model(request.model):
        raise ValueError(f"{request.model} is a language model, not an encoder to fine-tune; see nas experts search")
    task, tokenizer = open_task(request.task, request.model)
    if request.tuning.recipe.needs_teacher and not task.trains_head:
        raise ValueError(f"{request.task.kind} has no strong teacher: use --recipe sandwich-distilled, or --gamma 0")
    if not task.labels:
        raise ValueError(f"an encoder learns classes, which the task {request.task.kind} has not; choose another task")
    require_teacher(request, task, tokenizer)
    model = load_classifier(request.model, task.labels, request.tuning.seed).model
    if not task.trains_head:
        _require_square_embeddings(model)
    supernet = Supernet.wrap(model, options=request.space)
    if request.mixture is not None:
        supernet.adopt(Mixture(supernet, request.mixture, seed=request.tuning.seed))
    task = with_answers(task, given_teacher(request), request.tuning.device)
    judged = task.summary().splits[VALIDATION]
    if task.trains_head and judged.unlabelled == judged.examples:
        raise ValueError(f"none of the {judged.examples} examples of {VALIDATION} has a label: nothing could be judged")
    return Prepared(task=task, tokenizer=tokenizer, supernet=supernet)


def _require_square_embeddings(model: Any) -> None:
    """Words are scored by their embeddings, which must then be as wide as what the layers say."""
    width, hidden = model.get_input_embeddings().embedding_dim, model.config.hidden_size
    if width != hidden:
        raise ValueError(
            f"masked words need embeddings as wide as the layers, this model has {width} and {hidden}; choose another "
            "model, or fine-tune it on a task"
        )


def tune_supernet(
    request: TuneRequest,
    workspace: Workspace,
    on_progress: OnTuned | None = None,
    *,
    on_estimate: Callable[[Estimate], None] | None = None,
    prepared: Prepared | None = None,
) -> Path:
    """Make (or finish making) the supernet of a workspace and return its folder.

    A killed run continues from its last saved state; a finished stage is not repeated.

    Args:
        on_estimate: receives what the whole training will take, before it starts; not called for a resumed run.
        prepared: what `prepare` made of the same request; it is trained in place.

    Raises:
        ValueError: unusable checkpoint, task or settings, or a workspace that holds another supernet.
    """
    known, state = recalled(request, workspace), workspace.training_state("supernet")
    if workspace.supernet.exists():
        require_same(read_supernet_record(workspace.supernet).get("request"), request.to_json(), workspace.supernet)
        state.unlink(missing_ok=True)
        return workspace.supernet
    for begun in (workspace.training_state("teacher"), state):
        if begun.exists() and (planned := planned_request(workspace)):
            require_same(planned, request.to_json(), begun)
    prepared = prepared or prepare(request)
    task, supernet = prepared.task, prepared.supernet
    foreseen = cache(partial(training_estimate, request, supernet, task))
    if known is None:
        steps = decided_steps(request, task, foreseen)
        if needs_training(request):
            require_own(request.lasting(steps), task, workspace)
        known = remembered(request, steps, workspace)
    if on_estimate and not any(workspace.training_state(name).exists() for name in ("teacher", "supernet")):
        on_estimate(foreseen().lasting(known.tuning.steps))
    teacher = find_teacher(known, task, prepared.tokenizer, workspace, _named("teacher", on_progress))
    start_from_teacher(known, supernet, task, workspace)
    done = tune(
        supernet,
        task,
        order_after_learning(known),
        teacher_logits_NC=None if teacher is None else teacher.logits_NC,
        state_file=state,
        on_progress=_named("supernet", on_progress),
    )
    record = {"request": request.to_json(), **_record(known, prepared, teacher, done)}
    logits = None if teacher is None else teacher.logits_NC
    save_supernet(supernet, workspace.supernet, prepared.tokenizer, record, logits, has_head=task.trains_head)
    state.unlink(missing_ok=True)
    return workspace.supernet


def _record(request: TuneRequest, prepared: Prepared, teacher: Teacher | None, done: TrainingState) -> dict[str, Any]:
    """What later stages and readers need to know of a finished supernet."""
    tuning, task = request.tuning, prepared.task
    precision = resolve_precision(tuning.precision, tuning.device)
    largest = evaluate(prepared.supernet, task, VALIDATION, device=tuning.device, precision=precision)
    settings = replace(task.settings, labels=task.labels, data=absolute_paths(task.settings.data))
    answered_by = given_teacher(request)
    taught_by = answered_by if teacher is None else teacher.source
    return {
        "task": settings.to_json(),
        "lengths": list(task.length_quantiles(TRAIN, LENGTH_QUANTILES)),
        "base_model": located(request.model),
        "teacher": taught_by and located(taught_by),
        "taught_on": task.data_hash(TRAIN),
        "answers": answered_by and located(answered_by),
        "tuning": asdict(tuning),
        "seconds": done.seconds,
        "validation": {"teacher": teacher and teacher.metrics, "largest": largest.metrics},
    }


def absolute_paths(data: str | Mapping[str, str]) -> str | dict[str, str]:
    """Paths that later stages find from any working directory."""
    if isinstance(data, str):
        return str(Path(data).resolve())
    return {split: str(Path(path).resolve()) for split, path in data.items()}


def _named(name: str, on_progress: OnTuned | None) -> Callable[[TuneProgress], None] | None:
    return None if on_progress is None else lambda progress: on_progress(name, progress)


def require_same(stored: Any, asked: dict[str, Any], folder: Path) -> None:
    """ValueError if a folder's supernet was made for another request."""
    different = [key for key in asked if not isinstance(stored, dict) or stored.get(key) != asked[key]]
    if different:
        raise ValueError(
            f"{folder} was made with another {', '.join(different)}; use the same settings, or another --output"
        )
