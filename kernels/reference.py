"""Plain torch version of every operation: what is timed on a CPU, and the oracle of faster kernels.

Shapes: B batch, S sequence, D hidden, H heads, G key/value groups, K head_dim, I inner = H*K, F feed-forward width,
V vocabulary, R rows, C cached tokens, T = C + S, L = 2*K, M sources of a blend, X inputs, Y outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.moe_layer import build_moe
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


class Attention(nn.Module):
    """Scaled dot-product attention of new tokens to cached ones and to each other, as `op_cost.attention` counts."""

    cached_BCGL: Tensor

    def __init__(self, heads: int, groups: int, head_dim: int, batch: int, cached: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.groups, self.head_dim, self.causal = heads, groups, head_dim, causal
        self.register_buffer("cached_BCGL", torch.randn(batch, cached, groups, 2 * head_dim))

    def forward(self, x_BSI: Tensor) -> Tensor:
        """(B, S, (H + 2G) * K), queries before keys before values, to (B, S, H * K)."""
        inner, shared = self.heads * self.head_dim, self.groups * self.head_dim
        q_BSI, k_BSI, v_BSI = torch.split(x_BSI, [inner, shared, shared], dim=-1)
        k_BCGK, v_BCGK = self.cached_BCGL.chunk(2, dim=-1)
        (batch, new, _), cached = x_BSI.shape, k_BCGK.shape[1]
        q_BHSK = q_BSI.reshape(batch, new, self.heads, -1).transpose(1, 2)
        k_BGTK = torch.cat([k_BCGK, k_BSI.reshape(batch, new, self.groups, -1)], dim=1).transpose(1, 2)
        v_BGTK = torch.cat([v_BCGK, v_BSI.reshape(batch, new, self.groups, -1)], dim=1).transpose(1, 2)
        seen_ST = None
        if self.causal and new > 1:
            seen_ST = torch.ones(new, cached + new, dtype=torch.bool, device=x_BSI.device).tril(cached)
        mixed_BHSK = functional.scaled_dot_product_attention(
            q_BHSK, k_BGTK, v_BGTK, attn_mask=seen_ST, enable_gqa=self.groups < self.heads
        )
        return mixed_BHSK.transpose(1, 2).flatten(-2)


class Blend(nn.Module):
    """``W = sum_m coefficients[m] * weights[m]``."""

    def __init__(self, inputs: int, outputs: int, sources: int) -> None:
        super().__init__()
        self.weights_MYX = nn.Parameter(torch.randn(sources, outputs, inputs))

    def forward(self, coefficients_M: Tensor) -> Tensor:
        """(M,) to (Y, X)."""
        blended_YX: Tensor = torch.tensordot(coefficients_M, self.weights_MYX, dims=1)
        return blended_YX


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
            case "attention":
                sizes, causal = (size["heads"], size["groups"], size["head_dim"]), "causal" in size
                module = Attention(*sizes, spec.context.batch, spec.context.cached, causal)
            case "moe":
                module = build_moe(spec)
            case "norm":
                module = (nn.LayerNorm if size["parameters"] == 2 else nn.RMSNorm)(size["hidden"])
            case "blend":
                module = Blend(size["in"], size["out"], size["sources"])
            case _:
                raise ValueError(f"there is no reference operation of kind {spec.kind!r}; give its own runner instead")
    return module.to(_dtype(spec)).eval()


def build_input(spec: OpSpec, *, seed: int = 0) -> Tensor:
    """A random input of one operation on the CPU, of the shape that its module in this file takes."""
    size, batch, (sequence,) = spec.size, spec.context.batch, spec.context.sequences
    generator = torch.Generator().manual_seed(seed)
    if spec.kind == "embedding":
        return torch.randint(size["vocab"], (batch, sequence), generator=generator)
    match spec.kind:
        case "linear":
            shape: tuple[int, ...] = (size["rows"], size["in"])
        case "attention":
            shape = (batch, sequence, (size["heads"] + 2 * size["groups"]) * size["head_dim"])
        case "blend":
            shape = (size["sources"],)
        case _:
            shape = (batch, sequence, size["hidden"])
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
