"""What training will take, from a few real passes on this machine: time, and memory.

Time of one optimiser step, with `t` and `f` the seconds of a forward and backward pass, and of a forward pass, of the
full network on a batch of mean length, `u` those of the optimiser's update, `r` the mean MACs of the networks that a
step trains relative to the full network's, and `c` those of the candidates it tries:

    t + u                    while the full network trains alone (`TuneSettings.order_fraction` of the steps)
    t * r + f * c + u        afterwards

Passes are timed on a batch of median length and scaled by the mean length over the median. Once come

- measuring importance, L being the layers, since greedy elimination tries every one of k layers and runs the other
  k - 1: ``importance_batches * (t + f * sum over k = 2..L of k * (k - 1) / L)``;
- forward passes over the watched examples, `WATCHES` times for each network that is watched, over the validation
  examples at the end, and over training and validation examples for a strong teacher's answers.

Memory is counted for the longest batch: all weights, a gradient and two Adam moments in float32 for everything that is
trained, and the larger of two that take turns: the activations that autograd keeps for the backward pass of the full
network, counted as it keeps them, and the square roots of second moments, which an update holds for everything that is
trained. The experts and routers of a mixture are weights among others; the weights they generate count as activations.
What the interpreter, the libraries and the allocator take besides is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor, nn

from kernels.op_spec import Context
from studies.errors import ResourceError
from supernets.cost_classes import CostClasses
from supernets.evaluation import autocast, is_out_of_memory, resolve_precision
from supernets.finetune import TuneSettings, make_optimizer, median_macs, trainable, watched
from supernets.space import Architecture
from supernets.supernet import Supernet
from supernets.task import TRAIN, VALIDATION, Batch, Task

SAMPLED_STEPS = 64
"""Steps whose sub-networks are drawn to learn what a step costs on average."""

FORWARD_SHARE = 1 / 3
"""Of a forward and backward pass, by multiply-accumulates."""

TIMED_CALLS = 2
"""Whose mean counts, after one call that warms up."""

WATCHES = 5
"""How often sub-networks are watched while training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a training run will take.

    Attributes:
        steps: optimiser steps it holds for.
        step_passes: forward and backward passes of the full network that a step costs as much as, on average.
        step_seconds: of one of them, on average over the run.
        fixed_seconds: what does not grow with the steps.
        memory_bytes: at the longest batch.
    """

    steps: int
    step_passes: float
    step_seconds: float
    fixed_seconds: float
    memory_bytes: int

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.fixed_seconds + self.steps * self.step_seconds

    def __add__(self, other: Estimate) -> Estimate:
        """One run after another of as many steps: times add up, the larger memory counts."""
        assert self.steps == other.steps, "runs of different lengths have no common step"
        return Estimate(
            steps=self.steps,
            step_passes=self.step_passes + other.step_passes,
            step_seconds=self.step_seconds + other.step_seconds,
            fixed_seconds=self.fixed_seconds + other.fixed_seconds,
            memory_bytes=max(self.memory_bytes, other.memory_bytes),
        )

    def lasting(self, steps: int) -> Estimate:
        """The estimate of the same run with another number of steps."""
        return replace(self, steps=steps)

    def steps_within(self, seconds: float) -> int:
        """Steps that fit into a time.

        Raises:
            ValueError: not even one does; says how long the shortest run takes.
        """
        steps = int((seconds - self.fixed_seconds) / self.step_seconds)
        if steps < 1:
            shortest = self.fixed_seconds + self.step_seconds
            raise ValueError(f"a time budget of {seconds:.0f} s is too short: one step takes {shortest:.0f} s in all")
        return steps

    def steps_costing(self, passes: float) -> int:
        """Steps that cost as much as so many forward and backward passes of the full network, at least one."""
        return max(1, int(passes / self.step_passes))


def estimate(supernet: Supernet, task: Task, settings: TuneSettings) -> Estimate:
    """Time a median batch and count a longest one; weights, gradients, random state and modes stay as they were.

    Raises:
        ResourceError: not even one pass fits into memory; names a smaller batch.
    """
    with _left_alone(supernet, settings.device):
        parameters = trainable(supernet.model.to(settings.device), settings.freeze_embeddings)
        supernet.model.train()
        try:
            activations = _activation_bytes(supernet, task, settings)
            both, forward, update = _timings(supernet, task, settings, parameters)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            smaller = max(1, settings.batch_size // 2)
            raise ResourceError(
                f"out of memory with {settings.batch_size} examples a batch; try --batch-size {smaller}"
            ) from error
        weights = sum(p.numel() * p.element_size() for p in supernet.model.parameters())
        optimised = 4 * sum(p.numel() for p in parameters.values())
    elastic = 1 - max(settings.order_fraction, 0.0)
    trained, tried = _work(supernet, task, settings)
    examples = _forward_examples(supernet, task, settings)
    return Estimate(
        steps=settings.steps,
        step_passes=1 + elastic * (trained - 1 + FORWARD_SHARE * tried),
        step_seconds=both * (1 + elastic * (trained - 1)) + forward * elastic * tried + update,
        fixed_seconds=_order_seconds(supernet, settings, both, forward) + forward * examples / settings.batch_size,
        memory_bytes=weights + 3 * optimised + max(activations, optimised),
    )


@contextmanager
def _left_alone(supernet: Supernet, device: str) -> Iterator[None]:
    """Put back gradients, modes and random state; tensors stay on the device of the training to come."""
    model = supernet.model
    training, wanted = model.training, {p: p.requires_grad for p in model.parameters()}
    try:
        with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
            yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def _activation_bytes(supernet: Supernet, task: Task, settings: TuneSettings) -> int:
    """Bytes that autograd keeps for the backward pass of the longest batch, parameters left out, views counted once."""
    owned = {p.untyped_storage().data_ptr() for p in supernet.model.parameters()}
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    longest = next(task.batches(TRAIN, settings.batch_size))
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        _loss(supernet, task, longest, settings)
    return sum(kept.values())


def _timings(
    supernet: Supernet, task: Task, settings: TuneSettings, parameters: Mapping[str, nn.Parameter]
) -> tuple[float, float, float]:
    """Seconds of forward and backward together, of forward alone, both at mean length, and of an update."""
    batch = _median_batch(task, settings.batch_size)
    (median,), lengths = task.length_quantiles(TRAIN, 1), task.length_quantiles(TRAIN, 100)
    longer = fmean(lengths) / median
    copies = {name: nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
    optimizer = make_optimizer(copies, settings)
    for copy in copies.values():
        copy.grad = torch.zeros_like(copy)

    def both() -> None:
        _loss(supernet, task, batch, settings).backward()  # type: ignore[no-untyped-call]
        supernet.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def forward() -> None:
        _loss(supernet, task, batch, settings)

    def update() -> None:
        nn.utils.clip_grad_norm_(copies.values(), settings.max_gradient_norm)
        optimizer.step()

    device = settings.device
    return longer * _seconds(both, device), longer * _seconds(forward, device), _seconds(update, device)


def _seconds(call: Callable[[], None], device: str) -> float:
    """The mean of `TIMED_CALLS` calls after one that warms up."""
    call()
    _finish(device)
    start = time.perf_counter()
    for _ in range(TIMED_CALLS):
        call()
    _finish(device)
    return (time.perf_counter() - start) / TIMED_CALLS


def _finish(device: str) -> None:
    """Wait for what a GPU has been given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _loss(supernet: Supernet, task: Task, batch: Batch, settings: TuneSettings) -> Tensor:
    on_device = batch.to(settings.device)
    with autocast(resolve_precision(settings.precision, settings.device), settings.device):
        logits = task.logits(supernet, on_device)
    return logits.square().mean() if on_device.labels is None else task.loss(logits, on_device.labels)


def _median_batch(task: Task, batch_size: int) -> Batch:
    """The batch in the middle of the fixed order, which goes from long to short."""
    batches = list(task.batches(TRAIN, batch_size))
    return batches[(len(batches) - 1) // 2]


def _relative_macs(supernet: Supernet, task: Task, architectures: Iterable[Architecture]) -> float:
    """MACs of some networks together over those of the full network, at the median length."""
    context = Context(sequences=task.length_quantiles(TRAIN, 1))
    full = supernet.count_macs(supernet.space.decode(supernet.space.largest), context)
    return sum(supernet.count_macs(architecture, context) for architecture in architectures) / full


def _work(supernet: Supernet, task: Task, settings: TuneSettings) -> tuple[float, float]:
    """MACs of what a step trains, and of the candidates it tries, in full networks; the mean over sampled steps."""
    recipe, space, seed = settings.recipe, supernet.space, settings.seed
    classes = CostClasses(median_macs(supernet, task), seed)
    drawn = [
        candidates
        for step in range(SAMPLED_STEPS)
        for candidates in recipe.sample(space, seed, step, progress=step / SAMPLED_STEPS, classes=classes)
    ]
    trained = sum(_relative_macs(supernet, task, candidates) / len(candidates) for candidates in drawn)
    tried = sum(_relative_macs(supernet, task, candidates) for candidates in drawn if len(candidates) > 1)
    return recipe.trains_full + trained / SAMPLED_STEPS, tried / SAMPLED_STEPS


def _forward_examples(supernet: Supernet, task: Task, settings: TuneSettings) -> float:
    """How many forward passes of the full network, one example each, come on top of the steps."""
    validation = task.size(VALIDATION)
    shown = WATCHES * min(settings.watched_examples, validation)
    examples = shown * _relative_macs(supernet, task, watched(supernet.space).values()) + validation
    return examples + (task.size(TRAIN) + validation if settings.recipe.needs_teacher else 0)


def _order_seconds(supernet: Supernet, settings: TuneSettings, both: float, forward: float) -> float:
    if settings.order_step < 0:
        return 0.0
    layers = supernet.space.num_layers
    removals = sum(k * (k - 1) / layers for k in range(2, layers + 1))
    return settings.importance_batches * (both + forward * removals)
