"""Search spaces over elastic transformers: choices, genotypes and architectures. Imports no torch.

A genotype is one option index per choice. Its canonical form sets the genes of dropped layers to 0, so that two
encodings of the same network are one. Every canonical genotype is legal: divisibility and multiples of 16 are
properties of the options, not checks made later.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from studies.records import Genotype, content_hash

DEPTH = "depth"
HEADS = "heads"
FFN_WIDTH = "ffn_width"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerChoice:
    """One kept layer of an architecture.

    Attributes:
        index: position in the largest network.
        units: (axis, kept units) pairs in axis order, such as ``(("ffn_width", 768), ("heads", 6))``.
    """

    index: int
    units: tuple[tuple[str, int], ...]

    def kept(self, axis: str) -> int | None:
        """Units kept on an axis, or None where the layer does not vary on it."""
        for name, size in self.units:
            if name == axis:
                return size
        return None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoded sub-network: its kept layers in forward order. Made only by `SearchSpace.decode`."""

    layers: tuple[LayerChoice, ...]
    by_index: Mapping[int, LayerChoice] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_index", {layer.index: layer for layer in self.layers})

    @property
    def is_uniform(self) -> bool:
        """Whether all kept layers have the same sizes."""
        return len({layer.units for layer in self.layers}) == 1

    @property
    def key(self) -> str:
        """Canonical text, the same for equal networks; used in operation keys and reports."""
        return ";".join(f"{x.index}:" + ",".join(f"{axis}={size}" for axis, size in x.units) for x in self.layers)

    def to_json(self) -> list[dict[str, Any]]:
        """One object per kept layer, ``{"index": 0, "heads": 12, ...}``."""
        return [{"index": layer.index, **dict(layer.units)} for layer in self.layers]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One gene: an axis, the layer it belongs to (None: shared by all layers) and its options in ascending order."""

    axis: str
    options: tuple[int, ...]
    layer: int | None = None

    def __post_init__(self) -> None:
        if not self.options or list(self.options) != sorted(set(self.options)) or self.options[0] < 1:
            raise ValueError(
                f"options of {self.name} must be distinct positive integers in ascending order, got {self.options}"
            )

    @property
    def name(self) -> str:
        """``depth``, ``ffn_width`` or ``layer3.ffn_width``."""
        return self.axis if self.layer is None else f"layer{self.layer}.{self.axis}"


@dataclass(frozen=True)
class SearchSpace:
    """The set of sub-networks of one supernet.

    Attributes:
        family: name of the supernet family it was made for.
        num_layers: layers of the largest network.
        layer_order: layer indices, most important first; depth *d* keeps the first *d* of them, in forward order.
        choices: the genes; at most one has axis ``depth``.
    """

    family: str
    num_layers: int
    layer_order: tuple[int, ...]
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if sorted(self.layer_order) != list(range(self.num_layers)):
            raise ValueError(f"layer_order must be a permutation of 0..{self.num_layers - 1}, got {self.layer_order}")
        names = [choice.name for choice in self.choices]
        if len(set(names)) != len(names):
            raise ValueError(f"every choice must have its own name, got {names}")
        for choice in self.choices:
            if choice.layer is not None and not 0 <= choice.layer < self.num_layers:
                raise ValueError(f"{choice.name} is outside the {self.num_layers} layers of this space")
            if choice.axis == DEPTH and choice.options[-1] > self.num_layers:
                raise ValueError(f"depth {choice.options[-1]} exceeds the {self.num_layers} layers of this space")

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The axes that vary, in alphabetical order, depth excluded."""
        return tuple(sorted({choice.axis for choice in self.choices if choice.axis != DEPTH}))

    @cached_property
    def _depth_gene(self) -> int | None:
        return next((i for i, choice in enumerate(self.choices) if choice.axis == DEPTH), None)

    @cached_property
    def _genes_of_layer(self) -> tuple[tuple[tuple[str, int], ...], ...]:
        """For every layer, (axis, gene index) in axis order; a shared gene serves every layer without its own."""
        table: list[tuple[tuple[str, int], ...]] = []
        for layer in range(self.num_layers):
            genes = {choice.axis: i for i, choice in enumerate(self.choices) if choice.layer is None}
            genes.update({choice.axis: i for i, choice in enumerate(self.choices) if choice.layer == layer})
            genes.pop(DEPTH, None)
            table.append(tuple(sorted(genes.items())))
        return tuple(table)

    def __len__(self) -> int:
        return len(self.choices)

    @cached_property
    def size(self) -> int:
        """Number of distinct networks (canonical genotypes)."""
        depths = self.choices[self._depth_gene].options if self._depth_gene is not None else (self.num_layers,)
        return sum(
            prod(len(choice.options) for i, choice in enumerate(self.choices) if self._is_active(i, depth))
            for depth in depths
        )

    def _is_active(self, gene: int, depth: int) -> bool:
        """Whether a gene other than depth decides anything at a depth."""
        choice = self.choices[gene]
        return choice.axis != DEPTH and (choice.layer is None or choice.layer in self.layer_order[:depth])

    def depth_of(self, genotype: Genotype) -> int:
        """Kept layers of a genotype."""
        if self._depth_gene is None:
            return self.num_layers
        return self.choices[self._depth_gene].options[genotype[self._depth_gene]]

    def validate(self, genotype: Sequence[int]) -> Genotype:
        """Return the genotype as a tuple of ints, or raise ValueError naming the gene that is out of range."""
        if len(genotype) != len(self.choices):
            raise ValueError(f"a genotype of this space has {len(self.choices)} genes, got {len(genotype)}")
        for choice, index in zip(self.choices, genotype, strict=True):
            if not 0 <= int(index) < len(choice.options):
                raise ValueError(f"{choice.name} has {len(choice.options)} options, got index {index}")
        return tuple(int(index) for index in genotype)

    def canonical(self, genotype: Sequence[int]) -> Genotype:
        """The one genotype that stands for the same network: genes of dropped layers are 0."""
        valid = self.validate(genotype)
        kept = set(self.layer_order[: self.depth_of(valid)])
        return tuple(
            index if choice.layer is None or choice.layer in kept else 0
            for choice, index in zip(self.choices, valid, strict=True)
        )

    def active_genes(self, genotype: Genotype) -> tuple[bool, ...]:
        """Per gene, whether it decides anything for this genotype."""
        kept = set(self.layer_order[: self.depth_of(genotype)])
        return tuple(choice.layer is None or choice.layer in kept for choice in self.choices)

    def decode(self, genotype: Sequence[int]) -> Architecture:
        """The architecture a genotype stands for."""
        valid = self.validate(genotype)
        kept = sorted(self.layer_order[: self.depth_of(valid)])
        return Architecture(
            tuple(
                LayerChoice(
                    index=layer,
                    units=tuple((axis, self.choices[g].options[valid[g]]) for axis, g in self._genes_of_layer[layer]),
                )
                for layer in kept
            )
        )

    def encode(self, architecture: Architecture) -> Genotype:
        """The canonical genotype of an architecture; ValueError if this space does not contain it."""
        genotype = [0] * len(self.choices)
        depth = len(architecture.layers)
        if self._depth_gene is not None:
            genotype[self._depth_gene] = _option_index(self.choices[self._depth_gene], depth)
        for layer in architecture.layers:
            for axis, gene in self._genes_of_layer[layer.index]:
                size = layer.kept(axis)
                if size is None:
                    raise ValueError(f"layer {layer.index} of the architecture says nothing about {axis}")
                genotype[gene] = _option_index(self.choices[gene], size)
        if self.decode(genotype) != architecture:
            raise ValueError(f"this space does not contain the architecture {architecture.key}")
        return self.canonical(genotype)

    @property
    def largest(self) -> Genotype:
        """Every gene at its last option."""
        return tuple(len(choice.options) - 1 for choice in self.choices)

    @property
    def smallest(self) -> Genotype:
        """Every gene at its first option."""
        return (0,) * len(self.choices)

    @property
    def middle(self) -> Genotype:
        """The fixed sub-network half-way up every gene, reported during training."""
        return self.canonical([len(choice.options) // 2 for choice in self.choices])

    def sample(self, rng: random.Random) -> Genotype:
        """A canonical genotype with every gene drawn uniformly."""
        return self.canonical([rng.randrange(len(choice.options)) for choice in self.choices])

    def mutate(self, genotype: Genotype, rng: random.Random, rate: float | None = None) -> Genotype:
        """Redraw genes that matter, each with probability `rate` (default one expected), at least one of them."""
        active = [
            gene for gene, matters in enumerate(self.active_genes(genotype))
            if matters and len(self.choices[gene].options) > 1
        ]  # fmt: skip
        if not active:
            return genotype
        rate = 1 / len(active) if rate is None else rate
        chosen = [gene for gene in active if rng.random() < rate] or [rng.choice(active)]
        genes = list(genotype)
        for gene in chosen:
            genes[gene] = rng.choice([i for i in range(len(self.choices[gene].options)) if i != genes[gene]])
        return self.canonical(genes)

    def neighbours(self, genotype: Genotype) -> Iterator[Genotype]:
        """Every distinct network one option step away in one gene."""
        seen = {self.canonical(genotype)}
        for gene, choice in enumerate(self.choices):
            for index in (genotype[gene] - 1, genotype[gene] + 1):
                if 0 <= index < len(choice.options):
                    other = self.canonical((*genotype[:gene], index, *genotype[gene + 1 :]))
                    if other not in seen:
                        seen.add(other)
                        yield other

    def uniform(self) -> Iterator[Genotype]:
        """Networks whose kept layers all have the same sizes, smallest first; one per combination of options."""
        sizes: dict[str, set[int]] = {}
        for choice in self.choices:
            if choice.axis != DEPTH:
                sizes[choice.axis] = sizes.get(choice.axis, set(choice.options)) & set(choice.options)
        depths = self.choices[self._depth_gene].options if self._depth_gene is not None else (self.num_layers,)
        for combination in _combinations({DEPTH: depths, **{axis: tuple(sorted(s)) for axis, s in sizes.items()}}):
            depth = combination.pop(DEPTH)
            layers = tuple(
                LayerChoice(index=layer, units=tuple(sorted(combination.items())))
                for layer in sorted(self.layer_order[:depth])
            )
            yield self.encode(Architecture(layers))

    def axes_of(self, layer: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(axis, options) of everything that varies in a layer, in axis order."""
        return tuple((axis, self.choices[gene].options) for axis, gene in self._genes_of_layer[layer])

    def features(self, genotype: Genotype) -> tuple[float, ...]:
        """Per layer: kept (0 or 1), then every axis scaled by its largest option, 0 where the layer is dropped.

        The full per-layer vector of the predictors: no two canonical genotypes share it.
        """
        architecture = self.decode(genotype)
        vector: list[float] = []
        for layer in range(self.num_layers):
            choice = architecture.by_index.get(layer)
            vector.append(0.0 if choice is None else 1.0)
            for axis, gene in self._genes_of_layer[layer]:
                vector.append(0.0 if choice is None else (choice.kept(axis) or 0) / self.choices[gene].options[-1])
        return tuple(vector)

    def reordered(self, layer_order: Sequence[int]) -> SearchSpace:
        """The same choices with another importance order of the layers."""
        return SearchSpace(self.family, self.num_layers, tuple(layer_order), self.choices)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the space: equal exactly if every genotype means the same network."""
        return content_hash(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {
            "family": self.family,
            "num_layers": self.num_layers,
            "layer_order": list(self.layer_order),
            "choices": [{"axis": c.axis, "layer": c.layer, "options": list(c.options)} for c in self.choices],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SearchSpace:
        """Read what `to_json` wrote; ValueError on missing or malformed fields."""
        try:
            choices = tuple(
                Choice(axis=str(c["axis"]), layer=c["layer"], options=tuple(c["options"])) for c in content["choices"]
            )
            return cls(str(content["family"]), int(content["num_layers"]), tuple(content["layer_order"]), choices)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a search space: {error}; expected what SearchSpace.to_json writes") from error


def _option_index(choice: Choice, size: int) -> int:
    if size not in choice.options:
        raise ValueError(f"{choice.name} offers {choice.options}, not {size}")
    return choice.options.index(size)


def _combinations(options: Mapping[str, Sequence[int]]) -> Iterator[dict[str, int]]:
    if not options:
        yield {}
        return
    first, *rest = options
    for size in options[first]:
        for tail in _combinations({axis: options[axis] for axis in rest}):
            yield {first: size, **tail}
