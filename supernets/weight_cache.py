"""Remembers generated weights of a few architectures, for as long as what they were made from has not changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from supernets.space import Architecture

Weights = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, slots=True)
class _Origin:
    """A tensor at a moment: its storage, kept alive so that its address stays its own, and its version."""

    storage: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Origin:
        return cls(tensor.detach(), tensor._version)

    def is_still(self, tensor: Tensor) -> bool:
        return (
            tensor.data_ptr() == self.storage.data_ptr()
            and tensor._version == self.version
            and tensor.dtype == self.storage.dtype
            and tensor.shape == self.storage.shape
        )


class WeightCache:
    """Weights by architecture and slot; the architectures asked for longest ago are dropped first.

    A change in place, an assignment of other tensors and a move to another type or device are all noticed, by the
    tensors' versions and storages. Writing through ``.data`` hides itself from torch and is not noticed: call `clear`.
    """

    def __init__(self, architectures: int) -> None:
        self.architectures = architectures
        self._kept: OrderedDict[Architecture, dict[str, tuple[tuple[_Origin, ...], Weights]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(
        self, slot: str, architecture: Architecture, made_from: Sequence[Tensor], make: Callable[[], Weights]
    ) -> Weights:
        """What `make` answered for a slot and an architecture, asked again if a tensor it was made from changed."""
        slots = self._kept.setdefault(architecture, {})
        self._kept.move_to_end(architecture)
        while len(self._kept) > self.architectures:
            self._kept.popitem(last=False)
        found = slots.get(slot)
        if found is None or not all(map(_Origin.is_still, found[0], made_from)):
            slots[slot] = found = (tuple(map(_Origin.of, made_from)), make())
        return found[1]

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
