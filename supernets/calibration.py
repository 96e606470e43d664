"""One forward pass over calibration text that fills `RoutingStatistics`, with nothing kept but sums and a sample.

The experts of an observed layer run here instead of in transformers, once for each of a layer's chosen experts, since
the stock modules never show what one expert answers; router, block and everything else stay the model's own.

Shapes: T tokens of a batch, k choices per token, N = T*k rows sorted by expert, E experts, D model width, S sums,
R sampled tokens.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from supernets.expert_bank import MoeLayer, moe_layers
from supernets.routing_statistics import POWERS, LayerStatistics, RoutingStatistics, tensors_of

Batch = Mapping[str, Tensor]
"""``input_ids`` (B, L) and, where some tokens are padding, ``attention_mask`` (B, L)."""
SAMPLE = 256
"""Tokens per layer whose inputs are kept, for operators that compare what experts answer to the same token."""


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    task: str = "",
    layers: Collection[int] | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
) -> RoutingStatistics:
    """Run the model over some text and count what its routers and experts do; padding is not counted.

    Args:
        model: a causal language model with mixture-of-experts layers, left as it was.
        batches: text of the task, or of everything.
        task: what the text is about, for people.
        layers: the layers to observe; all by default. Operators that are ``sequential`` want one after another.
        sample: tokens per layer whose inputs are kept.
        seed: draws the sample.

    Raises:
        ValueError: the model has no experts, there is no text or too little, a router is not finite.
    """
    wanted = [layer for layer in moe_layers(model) if layers is None or layer.index in layers]
    observers = [Observer(layer, sample) for layer in wanted]
    if layers is not None and (unknown := set(layers) - {layer.index for layer in wanted}):
        raise ValueError(
            f"layers {sorted(unknown)} have no experts to observe; those that do are "
            f"{[layer.index for layer in moe_layers(model)]}"
        )
    draws = torch.Generator().manual_seed(seed)
    with observing(model, observers):
        for batch in batches:
            tokens = Tokens.of(batch, draws)
            for observer in observers:
                observer.tokens = tokens
            run(model, batch)
    found = {observer.layer.index: observer.statistics() for observer in observers}
    return RoutingStatistics(layers=found, depth=depth_of(model), task=task)


def calibration_ratio(model: nn.Module, batches: Sequence[Batch], *, repeats: int = 5) -> float:
    """How many times as long as a plain forward pass calibration takes: the median of paired runs."""
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                run(model, batch)
        middle = time.perf_counter()
        calibrate(model, batches)
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return median(ratios)


def run(model: nn.Module, batch: Batch) -> None:
    """The forward pass without the head and without a cache."""
    body: Any = getattr(model, "base_model", model)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    body(**inputs, use_cache=False)


def depth_of(model: nn.Module) -> int:
    """Layers of the decoder, dense ones counted."""
    config: Any = model.config
    return int(config.num_hidden_layers)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Which of a batch's T tokens count, and the (T,) random keys by which the sample is drawn."""

    valid_T: Tensor | None
    keys_T: Tensor

    @classmethod
    def of(cls, batch: Batch, draws: torch.Generator) -> Tokens:
        """From a batch; `draws` must see all batches in the same order to draw the same sample."""
        mask = batch.get("attention_mask")
        valid_T = None if mask is None or bool(mask.all()) else mask.bool().reshape(-1)
        return cls(valid_T, torch.rand(batch["input_ids"].numel(), generator=draws))


class Observer:
    """Counts what happens in one layer while it is observed."""

    def __init__(self, layer: MoeLayer, sample: int) -> None:
        self.layer = layer
        self.sample = sample
        self.tokens: Tokens
        self._residual_TD: Tensor
        self._logits_TE: Tensor
        self._keys_R = torch.zeros(0)
        self._sums: LayerStatistics | None = None

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Observe the layer's forward passes within the block."""
        experts = self.layer.experts
        handles = [
            model.get_submodule(self.layer.residual_name).register_forward_pre_hook(self._see_residual),
            self.layer.router.register_forward_hook(self._see_router),
        ]
        experts.forward = self._forward
        try:
            yield
        finally:
            del experts.forward
            for handle in handles:
                handle.remove()

    def statistics(self) -> LayerStatistics:
        """What was seen.

        Raises:
            ValueError: fewer tokens than experts, or numbers that are not finite.
        """
        index, count = self.layer.index, self.layer.count
        seen = 0 if self._sums is None else int(self._sums.tokens)
        if self._sums is None or seen < count:
            raise ValueError(f"the calibration text has {seen} tokens for {count} experts; give it more text")
        found = LayerStatistics(**{name: tensor.cpu() for name, tensor in tensors_of(self._sums).items()})
        if not bool(found.logit_gram_EE.isfinite().all()):
            raise ValueError(f"the router of layer {index} gives NaN or infinite logits; the checkpoint is damaged")
        if not bool(found.power_sums_SE.isfinite().all()):
            raise ValueError(f"experts of layer {index} answer NaN or infinite numbers; load the model in 32 bits")
        return found

    def _see_residual(self, _: object, arguments: tuple[Tensor, ...]) -> None:
        self._residual_TD = arguments[0].flatten(0, -2)

    def _see_router(self, _: object, __: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
        self._logits_TE = output[0].flatten(0, -2)

    def _forward(self, x_TD: Tensor, chosen_Tk: Tensor, gates_Tk: Tensor) -> Tensor:
        """Instead of the forward pass of the experts."""
        order_N = chosen_Tk.flatten().argsort(stable=True)
        token_N, expert_N = order_N // chosen_Tk.shape[1], chosen_Tk.flatten()[order_N]
        rows_ND, parts = x_TD[token_N], []
        first = 0
        for expert, rows in enumerate(torch.bincount(expert_N, minlength=self.layer.count).tolist()):
            if rows:
                parts.append(self.layer.outputs(expert, rows_ND[first : first + rows]))
                first += rows
        out_ND = torch.cat(parts)
        weighted_ND = out_ND * gates_Tk.flatten()[order_N, None]
        y_TD = torch.zeros_like(x_TD).index_add_(0, token_N, weighted_ND.to(x_TD.dtype))
        self._see_experts(_Seen(x_TD, chosen_Tk, gates_Tk, order_N, out_ND, y_TD))
        return y_TD

    def _see_experts(self, seen: _Seen) -> None:
        residual_TD = self._residual_TD.float()
        cosine_T = functional.cosine_similarity(residual_TD, residual_TD + seen.y_TD.float(), dim=1)
        logits_TE, keys_T = self._logits_TE.float(), self.tokens.keys_T
        weight_T = (1 - cosine_T).clamp(min=0)
        if (valid_T := self.tokens.valid_T) is not None:
            seen, logits_TE, keys_T = seen.only(valid_T), logits_TE[valid_T], keys_T[valid_T]
            weight_T = weight_T[valid_T]
        if not len(logits_TE):
            return
        batch = _batch_statistics(seen, logits_TE, weight_T)
        self._sums = batch if self._sums is None else _sum(self._sums, batch)
        self._keys_R = torch.cat([self._keys_R, keys_T])
        kept_R = self._keys_R.topk(min(self.sample, len(self._keys_R))).indices
        self._keys_R = self._keys_R[kept_R]
        self._sums = replace(self._sums, **{name: getattr(self._sums, name)[kept_R] for name in _SAMPLED})


@contextmanager
def observing(model: nn.Module, observers: Iterable[Observer]) -> Iterator[None]:
    """Evaluation mode with all observers attached; both are undone at the end."""
    training = model.training
    model.eval()
    with ExitStack() as stack:
        for observer in observers:
            stack.enter_context(observer.attached(model))
        try:
            yield
        finally:
            model.train(training)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One pass through the experts of a layer; rows N are in the order of `order_N` into the flattened choices."""

    x_TD: Tensor
    chosen_Tk: Tensor
    gates_Tk: Tensor
    order_N: Tensor
    out_ND: Tensor
    y_TD: Tensor

    def only(self, valid_T: Tensor) -> _Seen:
        """The same without the other tokens."""
        k = self.chosen_Tk.shape[1]
        keep_N = valid_T[self.order_N // k]
        position_T = valid_T.cumsum(0) - 1
        kept_N = self.order_N[keep_N]
        order_N = position_T[kept_N // k] * k + kept_N % k
        return _Seen(
            x_TD=self.x_TD[valid_T],
            chosen_Tk=self.chosen_Tk[valid_T],
            gates_Tk=self.gates_Tk[valid_T],
            order_N=order_N,
            out_ND=self.out_ND[keep_N],
            y_TD=self.y_TD[valid_T],
        )


_SAMPLED = ("sample_RD", "sample_logits_RE", "sample_chosen_Rk", "sample_gates_Rk")


def _batch_statistics(seen: _Seen, logits_TE: Tensor, weight_T: Tensor) -> LayerStatistics:
    """Of one batch; every token is in the sample."""
    (tokens, count), k = logits_TE.shape, seen.chosen_Tk.shape[1]
    expert_N, out_ND = seen.chosen_Tk.flatten()[seen.order_N], seen.out_ND.float()
    gates_Tk = seen.gates_Tk.float()
    gate_N = gates_Tk.flatten()[seen.order_N]
    share_N = (gates_Tk / gates_Tk.sum(1, keepdim=True).clamp(min=1e-20)).flatten()[seen.order_N]
    norm_N = torch.linalg.vector_norm(out_ND, dim=1)
    easy_ep_N = gate_N * norm_N * weight_T[seen.order_N // k]
    values_SN = torch.stack([*(share_N**alpha * norm_N**beta for alpha, beta in POWERS), gate_N, easy_ep_N])
    sums_SE = values_SN.new_zeros(len(values_SN), count, dtype=torch.float64)
    sums_SE.index_add_(1, expert_N, values_SN.double())
    sums_ED, largest_E = _segments(out_ND, torch.bincount(expert_N, minlength=count).tolist())
    hits_TE = torch.zeros_like(logits_TE).scatter_(1, seen.chosen_Tk, 1.0)
    return LayerStatistics(
        tokens=torch.tensor(tokens, dtype=torch.float64),
        power_sums_SE=sums_SE[: len(POWERS)],
        gate_sums_E=sums_SE[-2],
        easy_ep_E=sums_SE[-1],
        output_sums_ED=sums_ED,
        largest_outputs_E=largest_E,
        pairs_EE=(hits_TE.T @ hits_TE).double(),
        logit_sums_E=logits_TE.double().sum(0),
        logit_gram_EE=(logits_TE.T @ logits_TE).double(),
        sample_RD=seen.x_TD.float(),
        sample_logits_RE=logits_TE,
        sample_chosen_Rk=seen.chosen_Tk,
        sample_gates_Rk=gates_Tk,
    )


def _segments(out_ND: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """(E, D) sum and (E,) largest absolute element of each expert's rows."""
    sums_ED = out_ND.new_zeros(len(counts), out_ND.shape[1], dtype=torch.float64)
    largest_E = out_ND.new_zeros(len(counts), dtype=torch.float64)
    first = 0
    for expert, rows in enumerate(counts):
        if rows:
            out_RD = out_ND[first : first + rows]
            sums_ED[expert] = out_RD.sum(0)
            low, high = torch.aminmax(out_RD)
            largest_E[expert] = torch.maximum(-low, high)
            first += rows
    return sums_ED, largest_E


def _sum(one: LayerStatistics, other: LayerStatistics) -> LayerStatistics:
    """Of two disjoint sets of tokens; the samples one after the other."""
    merged = {}
    for name, tensor in tensors_of(one).items():
        another = getattr(other, name)
        if name in _SAMPLED:
            merged[name] = torch.cat([tensor, another])
        else:
            merged[name] = torch.maximum(tensor, another) if name == "largest_outputs_E" else tensor + another
    return LayerStatistics(**merged)
