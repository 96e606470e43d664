"""The expert part of an architecture: what each layer keeps of its mixture of experts. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from supernets.space import EXPERT_WIDTH, EXPERTS, OPERATOR, TOP_K, Architecture

_COUNT_FIELDS = ("n_routed_experts", "num_local_experts", "num_experts")
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertLayer:
    """The experts of one kept layer.

    Attributes:
        index: position in the largest network.
        experts: routed experts that are kept.
        top_k: how many of them a token chooses.
        width: inner width of a routed expert.
        shared: inner width of all always-on experts together.
        operator: how the experts were reduced; None where all are kept, or the first ones by a stored order.
    """

    index: int
    experts: int
    top_k: int
    width: int
    shared: int = 0
    operator: str | None = None

    def chosen(self, architecture: Architecture) -> ExpertLayer:
        """What an architecture, which keeps this layer, makes of it."""
        layer = architecture.by_index[self.index]
        return ExpertLayer(
            index=self.index,
            experts=layer.kept(EXPERTS) or self.experts,
            top_k=layer.kept(TOP_K) or self.top_k,
            width=layer.kept(EXPERT_WIDTH) or self.width,
            shared=self.shared,
            operator=layer.name(OPERATOR),
        )


@dataclass(frozen=True, slots=True)
class MoELayout:
    """The mixture-of-experts layers of a network, in forward order; dense layers are left out."""

    layers: tuple[ExpertLayer, ...]

    @classmethod
    def of_config(cls, config: Any) -> MoELayout:
        """The layout that the configuration of a pre-trained model describes."""
        experts = next(int(getattr(config, name)) for name in _COUNT_FIELDS if hasattr(config, name))
        width = int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
        shared = int(getattr(config, "shared_expert_intermediate_size", 0))
        shared = shared or width * int(getattr(config, "n_shared_experts", None) or 0)
        own = getattr(config, "supernas_layers", None) or [{}] * config.num_hidden_layers
        layers = [
            ExpertLayer(
                index=i,
                experts=own[i].get("experts", experts),
                top_k=own[i].get("top_k", int(config.num_experts_per_tok)),
                width=own[i].get("width", width),
                shared=shared,
            )
            for i in range(config.num_hidden_layers)
            if _is_sparse(config, i)
        ]
        return cls(tuple(layers))

    @property
    def indices(self) -> frozenset[int]:
        """Which layers are mixtures of experts."""
        return frozenset(layer.index for layer in self.layers)

    def of(self, architecture: Architecture) -> MoELayout:
        """The layout of a sub-network, this one being the largest network's."""
        kept = [layer.chosen(architecture) for layer in self.layers if layer.index in architecture.by_index]
        return MoELayout(tuple(kept))

    @property
    def is_uniform(self) -> bool:
        """Whether all layers have the same sizes, whichever way they were reduced."""
        return len({(x.experts, x.top_k, x.width, x.shared) for x in self.layers}) <= 1

    def picture(self, largest: MoELayout) -> str:
        """One line per layer of the largest network: a bar of the kept experts, counts, top-k, width and operator."""
        kept = {layer.index: layer for layer in self.layers}
        return "\n".join(_line(full, kept.get(full.index)) for full in largest.layers)

    def to_json(self) -> list[dict[str, Any]]:
        """One object per layer; `from_json` reads them back."""
        return [asdict(layer) for layer in self.layers]

    @classmethod
    def from_json(cls, content: Sequence[Mapping[str, Any]]) -> MoELayout:
        """Read what `to_json` wrote; ValueError on missing or unknown fields."""
        try:
            return cls(tuple(ExpertLayer(**layer) for layer in content))
        except TypeError as error:
            raise ValueError(f"not an expert layout: {error}; expected what MoELayout.to_json writes") from error


def bar(kept: int, full: int, width: int = 16) -> str:
    """A share as `width` characters filled from the left, in steps of an eighth of a character."""
    eighths = round(8 * width * kept / full)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(width)


def _is_sparse(config: Any, index: int) -> bool:
    """Whether a layer is a mixture of experts: the rules of DeepSeek and of Qwen; all are in other models."""
    if index < int(getattr(config, "first_k_dense_replace", None) or 0):
        return False
    return index not in (getattr(config, "mlp_only_layers", None) or ()) and not (
        (index + 1) % int(getattr(config, "decoder_sparse_step", 1))
    )


def _line(full: ExpertLayer, kept: ExpertLayer | None) -> str:
    if kept is None:
        return f"{full.index:>3} {bar(0, full.experts)} dropped"
    parts = [f"{full.index:>3} {bar(kept.experts, full.experts)} {kept.experts}/{full.experts} top-{kept.top_k}"]
    parts += [f"width {kept.width}"] if kept.width != full.width else []
    parts += [kept.operator] if kept.operator else []
    return " ".join(parts)
