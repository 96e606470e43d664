"""An architecture as a vector for a router: every layer's sizes with masks, scaled by the space. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from supernets.space import Architecture, SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchitectureEncoding:
    """How architectures of one space become vectors.

    Averages over layers would let different networks collide; here no two architectures of the space share a vector,
    and the order of importance of the layers does not enter.

    Attributes:
        ranges: for every layer (axis, smallest option, largest option), in axis order.
    """

    ranges: tuple[tuple[tuple[str, int, int], ...], ...]

    @classmethod
    def of(cls, space: SearchSpace) -> ArchitectureEncoding:
        """The encoding whose scale is that of a space's options."""
        layers = [space.axes_of(layer) for layer in range(space.num_layers)]
        return cls(ranges=tuple(tuple((axis, sizes[0], sizes[-1]) for axis, sizes in axes) for axes in layers))

    def __len__(self) -> int:
        return sum(1 + len(axes) for axes in self.ranges)

    def vector(self, architecture: Architecture) -> tuple[float, ...]:
        """Per layer: 1 or -1 for kept or dropped, then every axis from -1 (smallest option) to 1 (largest).

        Sizes of dropped layers, and of axes with one option, are 0. A kept layer that says nothing about an axis has
        its full size.
        """
        values: list[float] = []
        for layer, axes in enumerate(self.ranges):
            choice = architecture.by_index.get(layer)
            values.append(-1.0 if choice is None else 1.0)
            for axis, smallest, largest in axes:
                size = None if choice is None else choice.kept(axis) or largest
                varies = size is not None and smallest < largest
                values.append(2 * (size - smallest) / (largest - smallest) - 1 if varies and size else 0.0)
        return tuple(values)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ArchitectureEncoding:
        """Read what `to_json` wrote."""
        return cls(ranges=tuple(tuple((axis, low, high) for axis, low, high in axes) for axes in content["ranges"]))
