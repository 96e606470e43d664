"""Plain torch version of every operation: what is timed on a CPU, and the oracle of faster kernels.

Shapes: B batch, S sequence, D hidden, H heads, K head_dim, I inner = H*K, F feed-forward width, V vocabulary, R rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.op_spec import OpSpec

LAYER_NORM_EPS = 1e-12
TOKEN_TYPES = 2


class AttentionBlock(nn.Module):
    """``LayerNorm(x + output(attention(query(x), key(x), value(x))))``, without a mask."""

    def __init__(self, hidden: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(hidden, inner) for _ in range(3))
        self.output = nn.Linear(inner, hidden)
        self.norm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        q_BHSK, k_BHSK, v_BHSK = (
            project(x_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed_BHSK = functional.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK)
        normed_BSD: Tensor = self.norm(x_BSD + self.output(mixed_BHSK.transpose(1, 2).flatten(-2)))
        return normed_BSD


class FeedForwardBlock(nn.Module):
    """``LayerNorm(x + down(GELU(up(x))))`` with the exact GELU."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(hidden, width), nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        normed_BSD: Tensor = self.norm(x_BSD + self.down(functional.gelu(self.up(x_BSD))))
        return normed_BSD


class EmbeddingBlock(nn.Module):
    """LayerNorm of word + position + token-type embeddings, all tokens of type 0."""

    def __init__(self, hidden: int, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, hidden)
        self.position = nn.Embedding(positions, hidden)
        self.token_type = nn.Embedding(TOKEN_TYPES, hidden)
        self.norm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """(B, S) integers below V to (B, S, D)."""
        positions_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
        types_BS = torch.zeros_like(ids_BS)
        normed_BSD: Tensor = self.norm(self.word(ids_BS) + self.position(positions_S) + self.token_type(types_BS))
        return normed_BSD


def build_module(spec: OpSpec, *, seed: int = 0) -> nn.Module:
    """The module of one operation on the CPU in its dtype, with random weights that depend on the seed only.

    Raises:
        ValueError: there is no reference for this kind.
    """
    size, (sequence,) = spec.size, spec.context.sequences
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match spec.kind:
            case "attention_block":
                module: nn.Module = AttentionBlock(size["hidden"], size["heads"], size["head_dim"])
            case "feed_forward":
                module = FeedForwardBlock(size["hidden"], size["width"])
            case "embedding":
                module = EmbeddingBlock(size["hidden"], size["vocab"], sequence)
            case "linear":
                module = nn.Linear(size["in"], size["out"])
            case _:
                raise ValueError(f"there is no reference operation of kind {spec.kind!r}; give its own runner instead")
    return module.to(_dtype(spec)).eval()


def build_input(spec: OpSpec, *, seed: int = 0) -> Tensor:
    """A random input of one operation on the CPU: (B, S) ids for an embedding, (R, in) or (B, S, D) otherwise."""
    size, batch, (sequence,) = spec.size, spec.context.batch, spec.context.sequences
    generator = torch.Generator().manual_seed(seed)
    if spec.kind == "embedding":
        return torch.randint(size["vocab"], (batch, sequence), generator=generator)
    shape = (size["rows"], size["in"]) if spec.kind == "linear" else (batch, sequence, size["hidden"])
    return torch.randn(shape, generator=generator).to(_dtype(spec))


def build(spec: OpSpec, device: str = "cpu", *, seed: int = 0) -> Callable[[], Tensor]:
    """A call that runs one operation on random weights and inputs in inference mode; ready to be timed."""
    module, x = build_module(spec, seed=seed).to(device), build_input(spec, seed=seed).to(device)

    @torch.inference_mode()
    def run() -> Tensor:
        output: Tensor = module(x)
        return output

    return run


def _dtype(spec: OpSpec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, spec.context.dtype)
    return dtype
