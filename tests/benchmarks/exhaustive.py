"""The predictions of every network of a space, where networks that begin alike share what they compute.

The networks form a tree: a node is a kept layer with its sizes, a path from the root is a network. Depth first, every
node's layer runs once per batch, its attention once for all feed-forward widths. Where no deeper network follows, only
the first token's feed-forward block runs, since the classifier reads nothing else.

Shapes: N networks, B examples of a batch, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studies.records import Genotype
from supernets.evaluation import autocast
from supernets.space import FFN_WIDTH, HEADS, Architecture, Choice, LayerChoice, SearchSpace
from supernets.supernet import Supernet
from supernets.task import Batch


@dataclass(slots=True)
class _Node:
    """One kept layer after those on the path to it.

    Attributes:
        row: of the network that ends here, if one does.
        next: the layers that may follow.
    """

    row: int | None = None
    next: dict[LayerChoice, _Node] = field(default_factory=dict)

    @property
    def branches(self) -> Mapping[tuple[int, int | None], list[tuple[LayerChoice, _Node]]]:
        """What follows, by what decides its attention: layer and heads."""
        found: dict[tuple[int, int | None], list[tuple[LayerChoice, _Node]]] = {}
        for layer, node in self.next.items():
            found.setdefault((layer.index, layer.kept(HEADS)), []).append((layer, node))
        return found


class Exhaustive:
    """Every network of `genotypes` at once, on a supernet of the BERT line.

    Args:
        space: of the genotypes; its options are among the supernet's.
    """

    def __init__(
        self, supernet: Supernet, space: SearchSpace, genotypes: Sequence[Genotype], precision: Any = "float32"
    ) -> None:
        self._model: Any = supernet.model.eval()
        self._supernet, self._precision, self._count = supernet, precision, len(genotypes)
        self._layers: Any = supernet.model.get_submodule(supernet.family.layers_name(supernet.model))
        self._root = _Node()
        self._alone: dict[LayerChoice, Architecture] = {}
        for row, genotype in enumerate(genotypes):
            architecture = space.decode(genotype)
            node = self._root
            for layer in architecture.layers:
                node = node.next.setdefault(layer, _Node())
                self._alone.setdefault(layer, architecture)
            node.row = row

    @property
    def layers_run(self) -> int:
        """Feed-forward blocks per batch."""
        pending, count = [self._root], 0
        while pending:
            below = list(pending.pop().next.values())
            count += len(below)
            pending += below
        return count

    @torch.no_grad()
    def classes(self, batch: Batch) -> NDArray[np.uint8]:
        """Predicted class of every network for every example, ``[N, B]``."""
        found_NB = np.empty((self._count, len(batch)), dtype=np.uint8)
        with autocast(self._precision, "cpu"):
            x_BTD, arguments = self._first_input(batch.inputs)
            self._visit(self._root, x_BTD, arguments, found_NB)
        return found_NB

    def _first_input(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """What the model hands to its first layer, embedding and attention mask, however it makes them."""
        seen: list[tuple[Tensor, dict[str, Any]]] = []

        def look(_: object, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.append((positional[0], {"attention_mask": positional[1], **named}))

        first = self._alone[next(iter(self._root.next))]
        handle = self._layers[first.layers[0].index].register_forward_pre_hook(look, with_kwargs=True)
        with self._supernet.active(first):
            self._model(**inputs)
        handle.remove()
        hidden, arguments = seen[0]
        return hidden, {name: value for name, value in arguments.items() if "encoder" not in name}

    def _visit(self, node: _Node, x_BTD: Tensor, arguments: dict[str, Any], found_NB: NDArray[np.uint8]) -> None:
        for (index, _), branch in node.branches.items():
            layer = self._layers[index]
            with self._supernet.active(self._alone[branch[0][0]]):
                attended_BTD = layer.attention(x_BTD, **arguments)[0]
            for choice, following in branch:
                with self._supernet.active(self._alone[choice]):
                    read_BTD = attended_BTD if following.next else attended_BTD[:, :1]
                    y_BTD = layer.feed_forward_chunk(read_BTD)
                if following.row is not None:
                    logits_BC = self._model.classifier(self._model.bert.pooler(y_BTD))
                    found_NB[following.row] = logits_BC.float().argmax(-1).numpy()
                if following.next:
                    self._visit(following, y_BTD, arguments, found_NB)


def every_genotype(space: SearchSpace) -> list[Genotype]:
    """All canonical genotypes of a space whose depth, if it varies, is the first gene; in lexicographic order."""
    found: list[Genotype] = [()]
    for gene, choice in enumerate(space.choices):
        blank = (0,) * (len(space) - gene - 1)
        grown = ((*head, option) for head in found for option in range(len(choice.options)))
        found = [head for head in grown if space.canonical((*head, *blank)) == (*head, *blank)]
    return found


def part_of(space: SearchSpace, heads: Sequence[int], widths: Sequence[int]) -> SearchSpace:
    """The space with only these head counts and widths; every one must be an option of every layer."""
    kept = {HEADS: tuple(heads), FFN_WIDTH: tuple(widths)}
    choices = tuple(
        Choice(axis=c.axis, options=kept.get(c.axis, c.options), layer=c.layer)
        for c in space.choices
        if set(kept.get(c.axis, c.options)) <= set(c.options)
    )
    if len(choices) < len(space.choices):
        raise ValueError(f"not every layer offers heads {tuple(heads)} and widths {tuple(widths)}")
    return SearchSpace(space.family, space.num_layers, space.layer_order, choices)
