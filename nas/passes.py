"""Forward passes of sub-networks inside the supernet, one for all qualities that are asked of it.

Shapes: B examples of a batch, N of the split or of a sample of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from studies.records import Genotype
from supernets.evaluation import autocast
from supernets.supernet import Supernet
from supernets.task import UNLABELLED, Batch, Task

Keep = Callable[[Tensor, Batch, int], Tensor]
"""From a task's answers in float32, which mostly are logits, the batch on its device and its number to what is kept:
one row an example."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Runs sub-networks over a split, keeping of every batch what was asked for.

    Attributes:
        indices: examples that are looked at; None for all.
    """

    supernet: Supernet
    task: Task
    split: str
    batch_size: int
    device: str
    precision: Literal["float32", "bfloat16"]
    indices: Sequence[int] | None = None
    _keep: dict[str, Keep] = field(default_factory=dict, init=False, repr=False)
    _latest: dict[Genotype, tuple[dict[str, Tensor], Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def examples(self) -> int:
        """How many examples a pass sees."""
        return self.task.size(self.split) if self.indices is None else len(self.indices)

    def want(self, name: str, keep: Keep) -> None:
        """Ask for something to be kept of every pass from now on."""
        self._keep[name] = keep
        self._latest.clear()

    def kept(self, name: str, genotype: Genotype) -> tuple[Tensor, Tensor]:
        """What was asked for under a name, and the labels, in the order of the examples.

        Only the latest genotype's pass is remembered.
        """
        if genotype not in self._latest:
            self._latest.clear()
            self._latest[genotype] = self._run(genotype)
        kept, labels = self._latest[genotype]
        return kept[name], labels

    @torch.no_grad()
    def _run(self, genotype: Genotype) -> tuple[dict[str, Tensor], Tensor]:
        supernet = self.supernet
        supernet.model.eval()
        kept: dict[str, list[Tensor]] = {name: [] for name in self._keep}
        positions, labels = [], []
        batches = self.task.batches(self.split, self.batch_size, indices=self.indices)
        with supernet.active(supernet.space.decode(genotype)), autocast(self.precision, self.device):
            for number, batch in enumerate(batches):
                on_device = batch.to(self.device)
                answers, known = self.task.answers(supernet, on_device)
                for name, keep in self._keep.items():
                    kept[name].append(keep(answers.float(), on_device, number).cpu())
                positions.append(batch.indices)
                labels.append(torch.full((len(batch),), UNLABELLED) if known is None else known.cpu())
        order = torch.cat(positions).argsort()
        return {name: torch.cat(parts)[order] for name, parts in kept.items()}, torch.cat(labels)[order]
