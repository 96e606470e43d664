"""Single tensors of a checkpoint by the names that transformers uses in memory.

Folders hold the experts of most models one by one, and Mixtral's under other names; in memory they are fused.

Shapes: E experts, D model width, F expert width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_GATE_UP = (("gate_proj", "up_proj"), ("w1", "w3"))
_DOWN = (("down_proj",), ("w2",))


def _files_of(index: Path) -> dict[str, str]:
    """Tensor → file, as an index of shards says."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is no index of safetensors ({error!r}); save the checkpoint again") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError(f"{index} does not map tensors to files; save the checkpoint again")
    return found


class CheckpointReader:
    """Reads from the safetensors of a folder, one tensor at a time."""

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Opens nothing for long.

        Args:
            folder: the checkpoint.
            dtype: what floating-point tensors become; by default they stay.

        Raises:
            ValueError: there are no safetensors, or damaged ones.
        """
        self.folder = folder
        self.dtype = dtype
        index = folder / "model.safetensors.index.json"
        if index.exists():
            self._files: dict[str, str] = _files_of(index)
        elif (folder / "model.safetensors").exists():
            with self._opened("model.safetensors") as file:
                self._files = dict.fromkeys(file.keys(), "model.safetensors")
        else:
            raise ValueError(f"{folder} holds no model.safetensors; save the checkpoint as safetensors first")

    def count_elements(self) -> int:
        """Of all tensors together, without reading them."""
        total = 0
        for name in sorted(set(self._files.values())):
            with self._opened(name) as file:
                names = file.keys()
                total += sum(prod(file.get_slice(tensor).get_shape()) for tensor in names)
        return total

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """A tensor by its name in memory.

        Raises:
            ValueError: it is missing, quantised, or has another shape.
        """
        for known in (name, name.replace(".mlp.", ".block_sparse_moe.")):
            if known in self._files:
                return self._checked(name, self._read(known), shape)
        base, _, kind = name.rpartition(".")
        for choices in {"gate_up_proj": _GATE_UP, "down_proj": _DOWN}.get(kind, ()):
            for place in (base, base.replace(".mlp.", ".block_sparse_moe.")):
                if f"{place}.0.{choices[0]}.weight" in self._files:
                    return self._fused(name, place, choices, shape)
        raise ValueError(f"{self.folder} has no {name}; quantised or unknown checkpoints cannot be read layer by layer")

    def _fused(self, name: str, place: str, parts: tuple[str, ...], shape: Sequence[int]) -> Tensor:
        """(E, 2F, D) or (E, D, F), filled one matrix at a time."""
        whole: Tensor | None = None
        rows = shape[1] // len(parts)
        for expert in range(shape[0]):
            for position, part in enumerate(parts):
                matrix = self._checked(name, self._read(f"{place}.{expert}.{part}.weight"), (rows, shape[2]))
                if whole is None:
                    whole = torch.empty(tuple(shape), dtype=matrix.dtype)
                whole[expert, position * rows : (position + 1) * rows] = matrix
        assert whole is not None
        return whole

    def _checked(self, name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(
                f"{self.folder} has {name} of shape {tuple(tensor.shape)} where the configuration says {tuple(shape)}"
            )
        if tensor.element_size() == 1 and tensor.dtype != torch.bool:
            raise ValueError(f"{self.folder} has quantised weights ({name} in {tensor.dtype}); load them in 16 bits")
        return tensor.to(self.dtype) if self.dtype is not None and tensor.is_floating_point() else tensor

    def _read(self, stored: str) -> Tensor:
        if stored not in self._files:
            raise ValueError(f"{self.folder} has no {stored}: the checkpoint is incomplete")
        with self._opened(self._files[stored]) as file:
            # As mapped it may lie unaligned, and round differently than a copy.
            tensor: Tensor = file.get_tensor(stored).clone()
            return tensor

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        try:
            with safe_open(self.folder / name, "pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"cannot read {self.folder / name} ({error}); fetch or save the checkpoint anew"
            ) from error
