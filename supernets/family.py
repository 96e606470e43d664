"""What a family of pre-trained models declares; everything else is generic over these declarations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from torch import nn

from kernels.op_spec import Context, OpSpec
from supernets.elastic import ElasticGroup
from supernets.expert_bank import MoeLayer
from supernets.space import Architecture, SearchSpace

Layout = Literal["free", "uniform", "padded"]
"""``uniform`` checkpoints load with stock classes; ``free`` ones bring their own modelling file.

``padded`` ones load with stock classes, too: layers with fewer experts are filled up with ones that are never chosen.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceOptions:
    """How finely a default search space is cut.

    Attributes:
        min_depth_fraction: the shallowest network keeps at least this share of the layers.
        head_options: how many head counts per layer, evenly spaced up to all heads.
        width_options: how many feed-forward widths per layer, evenly spaced in multiples of 16 up to the full width.
        uniform: one size for all layers instead of one per layer, so that every network has a ``uniform`` layout.
        expert_options: how many expert counts per layer, evenly spaced up to all experts.
        expert_multiple: counts below all experts are multiples of this: 1, what a kernel likes, or the number of
            devices among which experts are divided.
        top_k_options: how many numbers of experts per token, evenly spaced up to the model's own.
        operators: names of the expert reductions to choose from in every layer; none keeps the first experts.
        axes: further axes of the family that vary, such as ``depth``, ``kv_groups`` and ``expert_width`` of a
            mixture-of-experts model.
    """

    min_depth_fraction: float = 1 / 3
    head_options: int = 4
    width_options: int = 6
    uniform: bool = False
    expert_options: int = 8
    expert_multiple: int = 1
    top_k_options: int = 2
    operators: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.expert_multiple < 1:
            raise ValueError(f"expert counts are multiples of 1 or more, got {self.expert_multiple}")

    def to_json(self) -> dict[str, Any]:
        """Plain values; what concerns experts only where it was set, so that records of other models never change."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        usual = SpaceOptions()
        unset = {name for name in _EXPERT_OPTIONS if getattr(self, name) == getattr(usual, name)}
        return {name: value for name, value in values.items() if name not in unset}


_EXPERT_OPTIONS = ("expert_options", "expert_multiple", "top_k_options", "operators", "axes")


class Family(ABC):
    """Declares one line of models. Subclasses are stateless; the file's name is the family's name."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    modeling: ClassVar[ModuleType]
    """Module whose classes ``Supernas<StockClass>`` build free-layout networks; copied into free-layout exports."""

    @abstractmethod
    def layers_name(self, model: nn.Module) -> str:
        """Dotted name of the `ModuleList` of layers, such as ``bert.encoder.layer``."""

    @abstractmethod
    def groups(self, model: nn.Module) -> tuple[ElasticGroup, ...]:
        """The elastic groups of a loaded model."""

    def expert_layers(self, model: nn.Module) -> tuple[MoeLayer, ...]:
        """Mixture-of-experts layers, which become elastic as a whole; none in dense families."""
        return ()

    @abstractmethod
    def default_space(self, config: Any, options: SpaceOptions) -> SearchSpace:
        """A search space every genotype of which is legal for this configuration."""

    @abstractmethod
    def ops(self, config: Any, architecture: Architecture, context: Context) -> tuple[OpSpec, ...]:
        """The operations of one forward pass, once per sequence length of the context."""

    @abstractmethod
    def activation_elements(self, config: Any, architecture: Architecture, context: Context) -> int:
        """Largest number of activation elements alive at once, at the context's longest sequence."""

    @abstractmethod
    def input_limit(self, config: Any) -> int:
        """Longest input in tokens that a model of this configuration takes."""

    @abstractmethod
    def configure(self, config: Any, architecture: Architecture, layout: Layout) -> Any:
        """A copy of the configuration that describes the sub-network.

        Raises ValueError where the layout cannot express the architecture, naming the reason.
        """

    @property
    def modeling_file(self) -> Path:
        """The modelling file that a free-layout export carries."""
        assert self.modeling.__file__ is not None
        return Path(self.modeling.__file__)

    def network_class(self, model_class: type[nn.Module], layout: Layout) -> type[nn.Module]:
        """The class that builds a sub-network of a model of `model_class` (stock class, any wrapper removed)."""
        stock = model_class.__name__.removeprefix("Supernas")
        if layout == "free":
            found = getattr(self.modeling, f"Supernas{stock}", None)
        else:
            import transformers

            found = getattr(transformers, stock, None)
        if found is None:
            raise ValueError(f"family {self.name} has no {layout} network for {model_class.__name__}")
        return found  # type: ignore[no-any-return]


def evenly_spaced(largest: int, count: int, multiple: int) -> tuple[int, ...]:
    """Up to `count` sizes, multiples of `multiple`, evenly spaced from ``largest / count`` up to `largest` itself."""
    sizes = {max(multiple, round(largest * i / count / multiple) * multiple) for i in range(1, count)}
    return tuple(sorted({size for size in sizes if size < largest} | {largest}))
