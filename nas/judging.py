"""Accuracy and latency of any checkpoint, exported or stock."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.device import load_backend
from kernels.op_spec import Context
from kernels.timing import TimingSettings
from nas.end_to_end import NetworkLatency, measure_network
from nas.tuning import LENGTH_QUANTILES, open_task
from supernets.checkpoint import (
    head_labels,
    is_language_model,
    load_classifier,
    load_exported,
    load_language_model,
)
from supernets.evaluation import Precision, Quality, evaluate, fitting_batch_size, resolve_precision
from supernets.task import SPLITS, TEST, TRAIN, TaskSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeRequest:
    """What is judged, on what.

    Attributes:
        checkpoint: folder or name of a classifier or a language model.
        split: None takes the test split if there is one, otherwise validation.
        sequences: lengths of the latency; empty takes quantiles of the training data.
        trust_remote_code: run code that the checkpoint brings; ours needs no trust.
    """

    checkpoint: str
    task: TaskSettings
    split: str | None = None
    batch: int = 1
    sequences: tuple[int, ...] = ()
    threads: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    precision: Precision = "auto"
    trust_remote_code: bool = False
    timing: TimingSettings | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """How good and how fast a checkpoint is; `context` says under which circumstances the latency holds."""

    split: str
    quality: Quality
    latency: NetworkLatency
    context: Context
    device: str
    parameters: int


def judge(request: JudgeRequest, on_progress: Callable[[float, int], None] | None = None) -> Judgement:
    """Evaluate on a split and time one forward pass by the paired protocol.

    Raises:
        ValueError: neither a classifier nor a language model there, code that is not trusted, or data that do not fit.
    """
    task, _ = open_task(request.task, request.checkpoint)
    split = request.split or (TEST if TEST in task.splits else SPLITS[1])
    network = _load(request, task.labels).to(request.device)
    precision = resolve_precision(request.precision, request.device)
    at_once = fitting_batch_size(task, network.config)
    quality = evaluate(network, task, split, batch_size=at_once, device=request.device, precision=precision)
    lengths = request.sequences or task.length_quantiles(TRAIN, LENGTH_QUANTILES)
    context = Context(batch=request.batch, sequences=lengths, threads=request.threads, dtype=request.dtype)
    backend = load_backend(request.device)
    latency = measure_network(network, context, backend, settings=request.timing, on_progress=on_progress)
    return Judgement(
        split=split,
        quality=quality,
        latency=latency,
        context=context,
        device=backend.detect().name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


def _load(request: JudgeRequest, labels: tuple[str, ...]) -> Any:
    is_text = is_language_model(request.checkpoint)
    if is_text == bool(labels):
        kind = "a language model" if is_text else "no language model"
        raise ValueError(f"{request.checkpoint} is {kind}; judge it by another --task")
    if not is_text and head_labels(request.checkpoint) is None:
        raise ValueError(f"{request.checkpoint} has no classification head to judge; fine-tune it first")
    config = Path(request.checkpoint) / "config.json"
    if config.is_file() and "auto_map" in json.loads(config.read_text(encoding="utf-8")):
        return load_exported(config.parent, trust_remote_code=request.trust_remote_code)
    return (
        load_language_model(request.checkpoint).model if is_text else load_classifier(request.checkpoint, labels).model
    )
