"""How many steps a training run takes, decided once: from epochs, passes, or what this machine does in a given time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from nas.teaching import needs_training, order_after_learning, teacher_settings
from nas.tune_request import TuneRequest
from nas.workspace import Workspace, write_whole
from supernets.estimate import Estimate, estimate
from supernets.supernet import Supernet
from supernets.task import TRAIN, Task


def recalled(request: TuneRequest, workspace: Workspace) -> TuneRequest | None:
    """The request with its number of steps, if that was decided for this very request before."""
    plan = _plan(workspace)
    return request.lasting(plan["steps"]) if plan.get("request") == request.to_json() else None


def planned_request(workspace: Workspace) -> dict[str, Any] | None:
    """What the run of this workspace was last asked for."""
    return _plan(workspace).get("request")


def _plan(workspace: Workspace) -> dict[str, Any]:
    """What the last run wrote; empty if there was none."""
    try:
        found: dict[str, Any] = json.loads(workspace.plan.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{workspace.plan} is not valid JSON ({error}); delete it") from error
    return found


def decided_steps(request: TuneRequest, task: Task, foreseen: Callable[[], Estimate]) -> int:
    """The number of optimiser steps a request comes to; `foreseen` is asked where a budget decides."""
    duration = request.duration
    if duration is None:
        return request.tuning.steps
    if duration.epochs is not None:
        per_epoch = math.ceil(task.size(TRAIN) / request.tuning.batch_size)
        return max(1, math.ceil(duration.epochs * per_epoch))
    if duration.passes is not None:
        return foreseen().steps_costing(duration.passes)
    assert duration.seconds is not None, "a duration is epochs, seconds or passes"
    return foreseen().steps_within(duration.seconds)


def remembered(request: TuneRequest, steps: int, workspace: Workspace) -> TuneRequest:
    """The request with its number of steps, which a resumed run will recall."""
    write_whole(workspace.plan, {"request": request.to_json(), "steps": steps})
    return request.lasting(steps)


def training_estimate(request: TuneRequest, supernet: Supernet, task: Task) -> Estimate:
    """What a request will take: the supernet's training, and the teacher's where one has to be trained."""
    found = estimate(supernet, task, order_after_learning(request))
    if not needs_training(request):
        return found
    return found + estimate(supernet, task, teacher_settings(request))
