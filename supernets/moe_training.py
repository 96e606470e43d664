"""Train a mixture-of-experts language model: next-token loss, balanced experts, and a top-k that may vary.

Load balance is asked of every layer by itself (Switch Transformer, arXiv 2101.03961, eq. 4-6). The auxiliary loss of
transformers adds up the tokens of expert i over all layers first, so that layers which collapse onto different experts
look balanced to it; therefore it is not used here.

With `MoeTrainingSettings.least_top_k` every layer draws its own top-k at every step, uniformly up to the model's
(Matryoshka MoE, arXiv 2509.26520): afterwards fewer experts per token cost less quality.

Shapes: B sequences, T tokens of each, V vocabulary, N = B*T, E experts, k choices per token.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from studies.records import content_hash
from supernets.expert_bank import MoeLayer, moe_layers
from supernets.recipe import learning_rate_factor
from supernets.training_state import TrainingState, load_state, save_state


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeTrainingSettings:
    """How a mixture of experts is trained.

    Attributes:
        balance: weight of the load-balancing loss, whose least value is the top-k.
        least_top_k: smallest top-k that a layer may draw while training; None keeps the model's.
        save_seconds: how often the training state is written, where there is a file for it.
    """

    steps: int
    learning_rate: float = 4e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 0.1
    max_gradient_norm: float = 1.0
    balance: float = 0.01
    least_top_k: int | None = None
    seed: int = 0
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.learning_rate > 0:
            raise ValueError(f"the learning rate must be positive, got {self.learning_rate}")

    @property
    def fingerprint(self) -> str:
        """Identity of everything that decides the trained weights, data aside."""
        return content_hash({name: value for name, value in asdict(self).items() if name != "save_seconds"})


@dataclass(frozen=True, slots=True)
class MoeTrainingProgress:
    """Where the training stands; the loss is the mean next-token loss in nats since the last report."""

    step: int
    steps: int
    loss: float
    seconds: float


def train_moe(
    model: nn.Module,
    batch_at: Callable[[int], Tensor],
    settings: MoeTrainingSettings,
    *,
    state_file: Path | None = None,
    identity: str = "",
) -> Iterator[MoeTrainingProgress]:
    """Train in place, reporting about 20 times; the model is left in evaluation mode.

    Args:
        model: a causal language model of transformers.
        batch_at: step → token ids, int64 (B, T); a function of the step alone, so that a resumed run is the same run.
        state_file: where an interrupted run goes on; it stays when the run is complete, until the caller has saved
            the model and removes it.
        identity: what the data and the first weights are, so that another run's state is refused.

    Raises:
        ValueError: the model has no mixture-of-experts layer, or fewer choices per token than `least_top_k`.
        ArithmeticError: the loss is not finite.
    """
    layers = moe_layers(model)
    optimizer = _optimizer(model, settings)
    parameters = dict(model.named_parameters())
    state = TrainingState(identity=content_hash([settings.fingerprint, identity]))
    if state_file is not None and state_file.exists():
        state = load_state(state_file, model, optimizer, parameters, state.identity)
    model.train()
    begun, first, saved = time.monotonic(), state.seconds, time.monotonic()
    every, losses = max(1, settings.steps // 20), list[float]()
    for step in range(state.step, settings.steps):
        with _varied_top_k(layers, settings, step):
            losses.append(_step(model, batch_at(step), optimizer, settings, step, layers))
        state.step, state.seconds = step + 1, first + time.monotonic() - begun
        if state_file is not None and time.monotonic() - saved > settings.save_seconds:
            save_state(state_file, state, model, optimizer, parameters)
            saved = time.monotonic()
        if state.step % every == 0 or state.step == settings.steps:
            yield MoeTrainingProgress(state.step, settings.steps, sum(losses) / len(losses), state.seconds)
            losses.clear()
    if state_file is not None:
        save_state(state_file, state, model, optimizer, parameters)
    model.eval()


def next_token_loss(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Mean cross entropy in nats per predicted token."""
    return functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten())


def load_balance(router_logits_NE: Tensor, top_k: int) -> Tensor:
    """``E Σ_e f_e P_e`` of one layer: f_e choices per token that go to expert e, P_e its mean probability.

    It is `top_k` where both are even, and larger the more the two agree on few experts.
    """
    probabilities_NE = router_logits_NE.float().softmax(-1)
    chosen_Nk = probabilities_NE.topk(top_k, dim=-1).indices
    experts = router_logits_NE.shape[-1]
    share_E = torch.bincount(chosen_Nk.flatten(), minlength=experts) / len(router_logits_NE)
    return experts * (share_E * probabilities_NE.mean(0)).sum()


@contextmanager
def top_k_of(layers: Sequence[MoeLayer], top_k: Sequence[int]) -> Iterator[None]:
    """Let every layer choose another number of experts per token for a while; ValueError beyond its experts."""
    before = [layer.top_k for layer in layers]
    for layer, count in zip(layers, top_k, strict=True):
        if not 1 <= count <= layer.count:
            raise ValueError(f"layer {layer.index} has {layer.count} experts; top-k must be in 1..{layer.count}")
    try:
        for layer, count in zip(layers, top_k, strict=True):
            layer.router.top_k = count
        yield
    finally:
        for layer, count in zip(layers, before, strict=True):
            layer.router.top_k = count


@contextmanager
def _varied_top_k(layers: Sequence[MoeLayer], settings: MoeTrainingSettings, step: int) -> Iterator[None]:
    least = settings.least_top_k
    if least is None:
        yield
        return
    if most := [layer.top_k for layer in layers if layer.top_k < least]:
        raise ValueError(f"least_top_k {least} is above the model's top-k {most[0]}; lower it")
    rng = random.Random(f"{settings.seed}:{step}")
    with top_k_of(layers, [rng.randint(least, layer.top_k) for layer in layers]):
        yield


def _step(
    model: nn.Module,
    ids_BT: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: MoeTrainingSettings,
    step: int,
    layers: Sequence[MoeLayer],
) -> float:
    """One optimiser step; the next-token loss."""
    warmup = math.ceil(settings.warmup_fraction * settings.steps)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * learning_rate_factor(step, settings.steps, warmup)
    output: Any = model(input_ids=ids_BT, output_router_logits=True, use_cache=False)
    loss = next_token_loss(output.logits, ids_BT)
    balances = [load_balance(z, layer.top_k) for z, layer in zip(output.router_logits, layers, strict=True)]
    (loss + settings.balance * torch.stack(balances).mean()).backward()  # type: ignore[no-untyped-call]
    if not math.isfinite(number := float(loss.detach())):
        raise ArithmeticError(
            f"the loss of step {step} is {number}; lower the learning rate ({settings.learning_rate})"
        )
    nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad()
    return number


def _optimizer(model: nn.Module, settings: MoeTrainingSettings) -> torch.optim.Optimizer:
    """AdamW; norms and biases do not decay. The fused form needs one pass over the weights."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
