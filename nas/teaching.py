"""The teacher of a supernet: where it comes from, how good it is, and what it answers. N examples, C classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.tune_request import TuneRequest
from nas.workspace import Workspace, write_whole
from supernets.checkpoint import head_labels, input_limit, load_classifier, load_tokenizer, save_classifier
from supernets.evaluation import Precision, evaluate, predict_logits, resolve_precision
from supernets.finetune import TuneProgress, TuneSettings, tune
from supernets.recipe import plain_recipe
from supernets.supernet import Supernet
from supernets.task import TRAIN, VALIDATION, Task

if TYPE_CHECKING:
    from torch import Tensor

UNTAUGHT_SHARE = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """A fine-tuned full model.

    Attributes:
        source: its checkpoint.
        metrics: on validation; the baseline of everything that follows.
        logits_NC: on the training examples, float32.
    """

    source: str
    metrics: dict[str, float]
    logits_NC: Tensor


def given_teacher(request: TuneRequest) -> str | None:
    """The checkpoint that can answer before anything is trained: the teacher asked for, or a model with a head."""
    if request.teacher is not None:
        return request.teacher
    return request.model if head_labels(request.model) is not None else None


def require_teacher(request: TuneRequest, task: Task, tokenizer: Any) -> None:
    """ValueError if the teacher asked for has no head, or does not read the tokens that the task's model reads."""
    if (source := request.teacher) is None:
        return
    if head_labels(source) is None:
        raise ValueError(f"the teacher {source} has no classification head: fine-tune it on the task first")
    if load_tokenizer(source).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"the teacher {source} has another vocabulary than {request.model}, whose tokens it would be given; "
            "choose a teacher with the same tokenizer"
        )
    if task.settings.max_length and task.settings.max_length > (most := input_limit(source)):
        raise ValueError(
            f"the teacher {source} takes inputs of at most {most} tokens, the task's have up to "
            f"{task.settings.max_length}; lower the maximum length"
        )


def needs_training(request: TuneRequest) -> bool:
    """Whether a teacher has to be fine-tuned first."""
    return request.tuning.recipe.needs_teacher and given_teacher(request) is None


def teacher_settings(request: TuneRequest) -> TuneSettings:
    """The supernet's steps and optimiser, on hard labels alone, nothing elastic."""
    return replace(request.tuning, recipe=plain_recipe(), order_fraction=-1.0)


def order_after_learning(request: TuneRequest) -> TuneSettings:
    """The tuning settings, with a head start of the full network where its first weights do not know the task.

    Importance measured on a random head would be noise, so such a network trains alone for `UNTAUGHT_SHARE` of the
    steps before its units are put in order. Settings that never reorder stay as they are.
    """
    knows_task = head_labels(request.model) is not None or (request.start == "teacher" and needs_training(request))
    share = request.tuning.order_fraction
    return request.tuning if knows_task or share != 0 else replace(request.tuning, order_fraction=UNTAUGHT_SHARE)


def start_from_teacher(request: TuneRequest, supernet: Supernet, task: Task, workspace: Workspace) -> None:
    """Give a supernet the weights of the teacher that was fine-tuned for it, if that is where it shall start."""
    if request.start == "teacher" and needs_training(request):
        learnt = load_classifier(str(workspace.teacher), task.labels).model.state_dict()
        supernet.model.load_state_dict({**supernet.model.state_dict(), **learnt})


def find_teacher(
    request: TuneRequest,
    task: Task,
    tokenizer: Any,
    workspace: Workspace,
    on_progress: Callable[[TuneProgress], None] | None = None,
) -> Teacher | None:
    """The teacher of a request, fine-tuned now if there is none yet; None where the recipe needs none.

    Raises:
        ValueError: the one in the workspace was fine-tuned from another model, on other data or with other settings.
    """
    if not request.tuning.recipe.needs_teacher:
        return None
    source = given_teacher(request)
    if source is None:
        source = str(workspace.teacher)
        if not workspace.teacher.exists():
            _train(request, task, tokenizer, workspace, on_progress)
            write_whole(workspace.teacher_question, _question(request, task))
        require_own(request, task, workspace)
        workspace.training_state("teacher").unlink(missing_ok=True)
    settings = request.tuning
    model: Any = load_classifier(source, task.labels).model.to(settings.device)
    precision = resolve_precision(settings.precision, settings.device)
    metrics = evaluate(model, task, VALIDATION, device=settings.device, precision=precision).metrics
    logits, _ = predict_logits(model, task, TRAIN, device=settings.device, precision=precision)
    return Teacher(source=source, metrics=metrics, logits_NC=logits)


def located(source: str) -> str:
    """A checkpoint that other working directories find as well: a folder's whole path, a name as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def _question(request: TuneRequest, task: Task) -> dict[str, Any]:
    """What decides the weights of a teacher."""
    return {
        "model": located(request.model),
        "data": task.data_hash(TRAIN),
        "class weights": task.settings.class_weights,
        "settings": teacher_settings(request).fingerprint,
    }


def require_own(request: TuneRequest, task: Task, workspace: Workspace) -> None:
    """Refuse a teacher of another question; one that was stopped before its question was written passes."""
    path = workspace.teacher_question
    if not path.exists():
        return
    found, asked = json.loads(path.read_text(encoding="utf-8")), _question(request, task)
    if differing := [name for name in asked if found.get(name) != asked[name]]:
        raise ValueError(
            f"the teacher in {workspace.teacher} was fine-tuned with other {' and '.join(differing)}; use the same, or "
            "another output folder"
        )


def _train(
    request: TuneRequest,
    task: Task,
    tokenizer: Any,
    workspace: Workspace,
    on_progress: Callable[[TuneProgress], None] | None,
) -> None:
    network = Supernet.fixed(load_classifier(request.model, task.labels, request.tuning.seed).model)
    state = workspace.training_state("teacher")
    tune(network, task, teacher_settings(request), state_file=state, on_progress=on_progress)
    save_classifier(network.unwrap(), workspace.teacher, tokenizer)


def with_answers(task: Task, source: str | None, device: str = "cpu", precision: Precision = "auto") -> Task:
    """The task with a teacher's answers where examples have no label; the task itself where all have one."""
    if source is None or not any(split.unlabelled for split in task.summary().splits.values()):
        return task
    model: Any = load_classifier(source, task.labels).model.to(device)
    how: dict[str, Any] = {"device": device, "precision": resolve_precision(precision, device)}
    answers = {split: predict_logits(model, task, split, **how)[0].argmax(-1).tolist() for split in task.splits}
    return task.labelled_by(answers)
