"""What the jobs of the study of supernet quality share: its setting, its networks, training and judging.

Everything starts from one set of weights: the demo's fine-tuned MiniLM with its units and layers in order of
importance. A network trained alone and a supernet distil from the same recorded answers of that model. Sizes are small
on purpose, so that the whole study takes a few processor hours: inputs of at most 32 tokens, 16 or 32 a batch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.op_spec import Context
from studies.records import content_hash
from supernets.checkpoint import load_classifier, load_tokenizer
from supernets.evaluation import predict_logits, resolve_precision
from supernets.family import SpaceOptions
from supernets.finetune import Tuner, TuneSettings
from supernets.importance import measure_importance
from supernets.recipe import Recipe, distilled
from supernets.space import Architecture, SearchSpace
from supernets.supernet import Supernet
from supernets.task import TRAIN, VALIDATION, Batch, TaskSettings
from supernets.tasks.text_classification import TextClassification

NETWORKS = 60
TWICE = 15
"""Networks whose training alone is repeated with another seed."""
ALONE_STEPS = 200
"""Optimiser steps of a network that is trained alone, and of further training in the search for steps to alone."""
JUDGED = 1000
"""Validation examples on which everything is judged."""
MAX_LENGTH = 32
BATCH_SIZE, SUPERNET_BATCH_SIZE = 16, 32
"""Examples per step of a network that is trained alone, and of a supernet."""
SPACE = SpaceOptions(min_depth_fraction=1 / 6, head_options=12, width_options=12)
CONTEXT = Context(batch=8, sequences=(26,))
"""Of latencies and MACs: eight sentences of median length."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The setting.

    Attributes:
        start: state of the teacher, in order of importance.
        space: with that order of the layers.
        teacher_logits_NC: on the training examples.
        architectures: the networks that are compared.
    """

    task: TextClassification
    base: str
    start: Mapping[str, Tensor]
    space: SearchSpace
    teacher_logits_NC: Tensor
    architectures: tuple[Architecture, ...]
    precision: Literal["float32", "bfloat16"]

    @classmethod
    def open(cls, teacher: Path, data: Path, cache: Path) -> Bench:
        """The setting of a teacher and its data; the ordered weights and the teacher's answers are kept in `cache`."""
        settings = TaskSettings(kind="text-classification", data=str(data), max_length=MAX_LENGTH)
        task = TextClassification.open(settings, load_tokenizer(str(teacher)))
        precision = resolve_precision("auto", "cpu")
        kept = cache / f"start-{precision}.pt"
        if not kept.exists():
            cache.mkdir(parents=True, exist_ok=True)
            partial = kept.with_suffix(".partial")
            torch.save(_ordered_start(task, str(teacher), precision), partial)
            partial.replace(kept)
        content = torch.load(kept, weights_only=True)
        space = _whole(task, str(teacher)).space.reordered(content["order"])
        return cls(
            task=task,
            base=str(teacher),
            start=content["model"],
            space=space,
            teacher_logits_NC=content["logits"],
            architectures=tuple(space.decode(genotype) for genotype in chosen_networks(space)),
            precision=precision,
        )

    @property
    def identity(self) -> str:
        """Hash of everything that decides a row besides its own seed and arm."""
        sizes = [ALONE_STEPS, JUDGED, MAX_LENGTH, BATCH_SIZE]
        keys = [architecture.key for architecture in self.architectures]
        weights = {name: tensor.double().sum().item() for name, tensor in self.start.items()}
        return content_hash([self.task.fingerprint, self.space.fingerprint, sizes, keys, weights])

    def supernet(self, space: SearchSpace | None = None) -> Supernet:
        """A supernet with the weights that everything starts from, over the whole space or a part of it."""
        model = load_classifier(self.base, self.task.labels).model
        model.load_state_dict(self.start)
        return Supernet(model, space or self.space)

    def settings(self, recipe: Recipe, steps: int, seed: int, batch_size: int) -> TuneSettings:
        """The optimiser of every training."""
        return TuneSettings(
            steps=steps,
            batch_size=batch_size,
            recipe=recipe,
            order_fraction=-1.0,
            precision=self.precision,
            seed=seed,
            watched_examples=0,
        )

    def tuner(
        self, net: Supernet, recipe: Recipe, steps: int, seed: int, batch_size: int = SUPERNET_BATCH_SIZE
    ) -> Tuner:
        """A training that distils, where its recipe does, from the one teacher."""
        settings = self.settings(recipe, steps, seed, batch_size)
        return Tuner(net, self.task, settings, teacher_logits_NC=self.teacher_logits_NC)

    def alone(self, architecture: Architecture, net: Supernet, seed: int) -> tuple[Supernet, Tuner]:
        """A network cut out of a supernet, and its training alone."""
        network = Supernet.fixed(net.extract(architecture))
        return network, self.tuner(network, distilled(Recipe()), ALONE_STEPS, seed, BATCH_SIZE)

    def quality(self, network: Callable[..., Any]) -> tuple[float, float]:
        """Mean cross entropy and accuracy on the judged examples."""
        logits, labels = predict_logits(network, self.task, VALIDATION, precision=self.precision, indices=range(JUDGED))
        return self.task.loss(logits, labels).item(), (logits.argmax(-1) == labels).double().mean().item()

    def qualities(self, supernet_of: Callable[[Architecture], Supernet]) -> tuple[list[float], list[float]]:
        """Inherited losses and accuracies of all networks, each asked of the supernet that holds it."""
        found = []
        for architecture in self.architectures:
            net = supernet_of(architecture)
            net.model.eval()
            with net.active(architecture):
                found.append(self.quality(net))
        return [loss for loss, _ in found], [accuracy for _, accuracy in found]


def chosen_networks(space: SearchSpace) -> list[tuple[int, ...]]:
    """The smallest and the largest network, and others drawn gene by gene, which spreads depths evenly."""
    rng = random.Random("networks of the study")
    chosen = dict.fromkeys([space.smallest, space.largest])
    while len(chosen) < NETWORKS:
        chosen[space.sample(rng)] = None
    return list(chosen)


def run_to_end(tuner: Tuner) -> float:
    """Train to the end; returns processor seconds."""
    start = time.process_time()
    for _ in tuner.run():
        pass
    return time.process_time() - start


def train_alone(bench: Bench, number: int, repeat: int) -> Row:
    """The truth about a network: its quality when it is trained alone from the same slices."""
    network, tuner = bench.alone(bench.architectures[number], bench.supernet(), seed=1000 * repeat + number)
    seconds = run_to_end(tuner)
    loss, accuracy = bench.quality(network)
    return {"loss": loss, "accuracy": accuracy, "seconds": seconds}


def steps_to(bench: Bench, net: Supernet, number: int, seed: int, every: int) -> Row:
    """How inherited weights of a network come on when it is trained alone: losses and accuracies along the way."""
    network, tuner = bench.alone(bench.architectures[number], net, seed=5000 + seed)
    curve = [[0, *bench.quality(network)]]
    for progress in tuner.run():
        if progress.step % every == 0:
            network.model.eval()
            curve.append([progress.step, *bench.quality(network)])
    return {"network": number, "curve": curve}


def spread_by_size(bench: Bench, count: int) -> list[int]:
    """Networks at evenly spaced ranks of size."""
    net = bench.supernet()
    by_size = sorted(range(NETWORKS), key=lambda i: net.count_parameters(bench.architectures[i]))
    return [by_size[(2 * i + 1) * NETWORKS // (2 * count)] for i in range(count)]


def half_spaces(space: SearchSpace) -> tuple[SearchSpace, SearchSpace]:
    """The shallow and the deep half of a space."""
    depths = space.choices[0].options
    middle = len(depths) // 2
    return _with_depths(space, depths[:middle]), _with_depths(space, depths[middle:])


def _with_depths(space: SearchSpace, depths: Sequence[int]) -> SearchSpace:
    choices = (replace(space.choices[0], options=tuple(depths)), *space.choices[1:])
    return replace(space, choices=choices)


def _whole(task: TextClassification, base: str) -> Supernet:
    return Supernet.wrap(load_classifier(base, task.labels).model, options=SPACE)


def _ordered_start(task: TextClassification, base: str, precision: Literal["float32", "bfloat16"]) -> dict[str, Any]:
    """Weights in order of importance on four training batches, the order of the layers, and the teacher's answers."""
    net = _whole(task, base)
    logits_NC, _ = predict_logits(net, task, TRAIN, precision=precision)

    def loss(batch: Batch) -> Tensor:
        assert batch.labels is not None
        return task.loss(net(**batch.inputs).logits, batch.labels)

    importance = measure_importance(net, islice(task.batches(TRAIN, 32, seed=0), 4), loss)
    net.reorder(importance.orders)
    return {"model": net.model.state_dict(), "order": list(importance.layer_order), "logits": logits_NC}
