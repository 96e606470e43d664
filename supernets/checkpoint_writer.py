"""Writes the weights of a checkpoint one part at a time, where they never are in memory together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


class ShardWriter:
    """One safetensors file per part; `finish` gives them the names and the index that loaders look for."""

    def __init__(self, folder: Path) -> None:
        """Writes nothing yet."""
        self._folder = folder
        self._parts: list[Path] = []
        self._part_of: dict[str, int] = {}
        self._elements = self._bytes = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write some tensors at once, by their names in the checkpoint."""
        part = self._folder / f"part-{len(self._parts)}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata={"format": "pt"})
        self._part_of |= dict.fromkeys(tensors, len(self._parts))
        self._parts.append(part)
        self._elements += sum(tensor.numel() for tensor in tensors.values())
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self) -> None:
        """Name the parts and write the index."""
        total = len(self._parts)
        names = [f"model-{number + 1:05d}-of-{total:05d}.safetensors" for number in range(total)]
        for part, name in zip(self._parts, names, strict=True):
            part.rename(self._folder / name)
        index = {
            "metadata": {"total_parameters": self._elements, "total_size": self._bytes},
            "weight_map": {name: names[part] for name, part in sorted(self._part_of.items())},
        }
        content = json.dumps(index, indent=2) + "\n"
        (self._folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
