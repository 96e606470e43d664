"""What the parts of the mixture-of-experts benchmark share: subjects, text, reduced copies, and how they are judged.

Text for calibration, for search and for the test never meet, and no subject was trained on any of it. A *scope* is one
domain, or `EVERYTHING`: the same number of sequences of each domain.

Shapes: N sequences, T tokens of each, V vocabulary, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from kernels.experts_implementation import register_experts
from nas.domain_texts import DOMAINS, prepare_domain_texts
from nas.moe_subject import LENGTH, Subject, TrainingSequences, prepare_subject
from supernets.calibration import calibrate
from supernets.data.byte_tokenizer import byte_tokenizer
from supernets.elastic_experts import build_block
from supernets.expert_bank import moe_layers
from supernets.reduction import CalibratedLayer, reduce_layer, reduction
from supernets.routing_statistics import RoutingStatistics

EVERYTHING = "everything"
REPAIR_STEP = 1_000_000
"""The first step of the draws for repairs, far from those of the training."""
PROMPT, ANSWER = 64, 12
"""Bytes that are given, and bytes that are to be written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much text everything is measured on, in sequences of a domain."""

    calibration: int = 64
    validation: int = 32
    test: int = 32
    prompts: int = 8

    def of(self, split: str, scope: str) -> int:
        """Sequences of each domain in a scope; calibration and search see as much text whatever the scope."""
        count: int = getattr(self, split)
        shared = scope == EVERYTHING and split in ("calibration", "validation")
        return max(1, count // len(DOMAINS)) if shared else count


@dataclass(frozen=True, slots=True)
class Judgement:
    """How good a model is on test text, against the full model.

    Attributes:
        nll_N: nats per token of each sequence.
        accuracy: share of next bytes predicted.
        overlap: ``Σ_v min(p, p_full)``, which is one minus the total variation, mean over tokens.
        greedy: share of the next `ANSWER` bytes after a prompt that greedy decoding writes as the text does.
    """

    nll_N: Tensor
    accuracy: float
    overlap: float
    greedy: float


class Bench:
    """One trained subject, loaded, with everything that is measured on it."""

    def __init__(self, cache: Path, subject: Subject, sizes: Sizes | None = None, texts: Path | None = None) -> None:
        self.texts = texts or prepare_domain_texts(cache)
        self.subject, self.sizes = subject, sizes or Sizes()
        self.folder = prepare_subject(cache, subject, self.texts)
        self.model = load(self.folder)
        self._full: dict[str, Tensor] = {}

    @cached_property
    def layers(self) -> int:
        """L."""
        return len(moe_layers(self.model))

    def forget(self) -> None:
        """After another model took the place of this bench's."""
        self._full = {}

    def sequences(self, split: str, scope: str) -> Tensor:
        """int64 (N, T), domain after domain."""
        domains = DOMAINS if scope == EVERYTHING else (scope,)
        return torch.cat([self._domain(split, domain)[: self.sizes.of(split, scope)] for domain in domains])

    def batches(self, split: str, scope: str, size: int = 16) -> list[dict[str, Tensor]]:
        """The same as model inputs; sequences of several domains share a batch."""
        ids_NT = self.sequences(split, scope)
        order = torch.arange(len(ids_NT)).view(-1, max(1, len(ids_NT) // len(DOMAINS))).t().flatten()
        mixed_NT = ids_NT[order] if scope == EVERYTHING else ids_NT
        return [{"input_ids": part} for part in torch.split(mixed_NT, size)]

    def statistics(self, scope: str) -> RoutingStatistics:
        """Of one calibration pass; kept on disk."""
        folder = self.folder / f"statistics-{scope}"
        if not folder.is_dir():
            calibrate(self.model, self.batches("calibration", scope), task=scope).save(folder)
        return RoutingStatistics.load(folder)

    def training_batches(self, scope: str, count: int, sequences: int = 8) -> list[dict[str, Tensor]]:
        """Random sequences of the training text, which the subject knows: for repairs and fine-tuning."""
        domains = DOMAINS if scope == EVERYTHING else (scope,)
        subject = replace(self.subject, repeats=max(1, sequences // len(domains)))
        draw = TrainingSequences(self.texts, subject, domains)
        return [{"input_ids": draw(REPAIR_STEP + step)} for step in range(count)]

    def student(self, operator: str, counts: Sequence[int], scope: str, *, protect: bool = False) -> Any:
        """A copy of the model with reduced layers; where the operator wants it, statistics follow the reductions."""
        student = copy.deepcopy(self.model)
        sequential = reduction(operator).sequential
        statistics = None if sequential else self.statistics(scope)
        for layer, count in zip(moe_layers(student), counts, strict=True):
            found = statistics or calibrate(student, self.batches("calibration", scope), layers=[layer.index])
            reduced = reduce_layer(CalibratedLayer.of(layer, found, protect=protect), operator, count)
            student.set_submodule(layer.name, build_block(layer, student.config, reduced, layer.top_k))
        return student.eval()

    @torch.inference_mode()
    def judge(self, model: Any, scope: str, split: str = "test") -> Judgement:
        """On all sequences of a scope."""
        ids_NT = self.sequences(split, scope)
        full_NTV = self._full_log_probabilities(scope, split)
        log_NTV = log_probabilities(model, ids_NT)
        nll_N = functional.nll_loss(log_NTV.transpose(1, 2), ids_NT[:, 1:], reduction="none").mean(1)
        return Judgement(
            nll_N=nll_N,
            accuracy=float((log_NTV.argmax(-1) == ids_NT[:, 1:]).float().mean()),
            overlap=float(torch.minimum(log_NTV, full_NTV).exp().sum(-1).mean()),
            greedy=self._greedy(model, scope, split),
        )

    def _greedy(self, model: Any, scope: str, split: str) -> float:
        per_domain = self.sizes.of(split, scope)
        ids_NT = self.sequences(split, scope)
        chosen_NT = torch.cat([part[: self.sizes.prompts] for part in torch.split(ids_NT, per_domain)])
        written_NA = greedy(model, chosen_NT[:, :PROMPT], ANSWER)
        return float((written_NA == chosen_NT[:, PROMPT : PROMPT + ANSWER]).float().mean())

    def _full_log_probabilities(self, scope: str, split: str) -> Tensor:
        key = f"{split}-{scope}"
        if key not in self._full:
            self._full = {key: log_probabilities(self.model, self.sequences(split, scope))}
        return self._full[key]

    def _domain(self, split: str, domain: str) -> Tensor:
        text = (self.texts / domain / f"{split}.txt").read_text(encoding="utf-8")
        ids = torch.tensor(byte_tokenizer()(text)["input_ids"])
        return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def load(folder: Path) -> Any:
    """A checkpoint with the fastest experts, in evaluation mode."""
    register_experts()
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.set_experts_implementation("supernas")
    return model.eval()


@torch.inference_mode()
def log_probabilities(model: Any, ids_NT: Tensor) -> Tensor:
    """(N, T-1, V) of the next token."""
    parts = [model(input_ids=part, use_cache=False).logits[:, :-1].log_softmax(-1) for part in torch.split(ids_NT, 16)]
    return torch.cat(parts)


@torch.inference_mode()
def greedy(model: Any, prompt_NT: Tensor, count: int) -> Tensor:
    """int64 (N, count): the most probable continuation, byte by byte."""
    written_NA = prompt_NT[:, :0]
    state, ids_NT = None, prompt_NT
    for _ in range(count):
        output = model(input_ids=ids_NT, past_key_values=state, use_cache=True)
        state, ids_NT = output.past_key_values, output.logits[:, -1:].argmax(-1)
        written_NA = torch.cat([written_NA, ids_NT], dim=1)
    return written_NA


def planted(model: Any, index: int, expert: int, factor: float = 20.0) -> Any:
    """Let an expert of a layer write one hidden channel so loudly that the others are drowned out, in place."""
    (layer,) = (one for one in moe_layers(model) if one.index == index)
    with torch.no_grad():
        layer.experts.down_proj[expert, 0] *= factor
    return model


def mean_loss(judgement: Judgement) -> float:
    """Nats per token."""
    return float(judgement.nll_N.mean())
