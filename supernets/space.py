"""Search spaces over elastic transformers: choices, genotypes and architectures. Imports no torch.

A genotype is one option index per choice. Its canonical form sets the genes that decide nothing to 0 (those of dropped
layers, and how experts are reduced where none is), so that two encodings of the same network are one. Every canonical
genotype is legal: divisibility, multiples of 16 and no fewer experts than a token chooses are properties of the
options, not checks made later.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

from studies.records import Genotype, content_hash

DEPTH = "depth"
HEADS = "heads"
FFN_WIDTH = "ffn_width"
EXPERTS = "experts"
EXPERT_WIDTH = "expert_width"
KV_GROUPS = "kv_groups"
OPERATOR = "operator"
TOP_K = "top_k"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerChoice:
    """One kept layer of an architecture.

    Attributes:
        index: position in the largest network.
        units: (axis, kept units) pairs in axis order, such as ``(("ffn_width", 768), ("heads", 6))``.
        names: the same for axes whose options are names, such as ``(("operator", "reap"),)``; left out where the
            axis decides nothing.
    """

    index: int
    units: tuple[tuple[str, int], ...]
    names: tuple[tuple[str, str], ...] = ()

    def kept(self, axis: str) -> int | None:
        """Units kept on an axis, or None where the layer does not vary on it."""
        for name, size in self.units:
            if name == axis:
                return size
        return None

    def name(self, axis: str) -> str | None:
        """The option chosen on an axis with names, or None where the layer does not vary on it."""
        return dict(self.names).get(axis)

    def to_json(self) -> dict[str, Any]:
        """Axis → units or name."""
        return {**dict(self.units), **dict(self.names)}


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
        return len({(layer.units, layer.names) for layer in self.layers}) == 1

    @property
    def key(self) -> str:
        """Canonical text, the same for equal networks; used in operation keys and reports."""
        return ";".join(f"{x.index}:" + ",".join(f"{k}={v}" for k, v in x.to_json().items()) for x in self.layers)

    def to_json(self) -> list[dict[str, Any]]:
        """One object per kept layer, ``{"index": 0, "heads": 12, ...}``."""
        return [{"index": layer.index, **layer.to_json()} for layer in self.layers]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One gene: an axis, the layer it belongs to (None: shared by all layers) and its options in ascending order.

    Attributes:
        moot: (axis, units) of the same layer with which the gene decides nothing, such as ``("experts", 64)`` for the
            operator that reduces 64 experts.
    """

    axis: str
    options: tuple[int, ...]
    layer: int | None = None
    moot: tuple[str, int] | None = None

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
        labels: axis whose options have no order → their names; option *i* stands for the *i*-th name, from 1.
    """

    family: str
    num_layers: int
    layer_order: tuple[int, ...]
    choices: tuple[Choice, ...]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

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
            named = self.labels.get(choice.axis)
            if named is not None and choice.options[-1] > len(named):
                raise ValueError(f"{choice.name} offers option {choice.options[-1]} of {len(named)} names")
        for genes in self._genes_of_layer:
            self._check_layer(dict(genes))

    def _check_layer(self, genes: Mapping[str, int]) -> None:
        """ValueError where the genes of one layer, by axis, do not fit together."""
        chosen = {axis: self.choices[gene] for axis, gene in genes.items()}
        for choice in chosen.values():
            if choice.moot and (choice.moot[0] not in chosen or chosen[choice.moot[0]].layer != choice.layer):
                raise ValueError(f"{choice.name} is moot by {choice.moot[0]}, which must be a choice beside it")
        if EXPERTS in chosen and TOP_K in chosen and chosen[EXPERTS].options[0] < chosen[TOP_K].options[-1]:
            raise ValueError(
                f"{chosen[EXPERTS].name} goes down to {chosen[EXPERTS].options[0]} experts, but {chosen[TOP_K].name} "
                f"up to {chosen[TOP_K].options[-1]}: a token cannot choose more experts than there are"
            )

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
        return sum(prod(self._variants(i, depth) for i in range(len(self.choices))) for depth in depths)

    def _variants(self, gene: int, depth: int) -> int:
        """By how much a gene, with those that it makes moot, multiplies the networks of a depth."""
        choice = self.choices[gene]
        if not self._is_active(gene, depth) or choice.moot:
            return 1
        variants = dict.fromkeys(choice.options, 1)
        for other in self.choices:
            if other.moot and (other.moot[0], other.layer) == (choice.axis, choice.layer):
                variants = {s: n * (1 if s == other.moot[1] else len(other.options)) for s, n in variants.items()}
        return sum(variants.values())

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
        """The one genotype that stands for the same network: genes that decide nothing are 0."""
        valid = self.validate(genotype)
        return tuple(index if on else 0 for index, on in zip(valid, self.active_genes(valid), strict=True))

    def active_genes(self, genotype: Genotype) -> tuple[bool, ...]:
        """Per gene, whether it decides anything for this genotype."""
        kept = set(self.layer_order[: self.depth_of(genotype)])
        moot = {gene for gene, decider, index in self.moot_genes if genotype[decider] == index}
        return tuple(
            (choice.layer is None or choice.layer in kept) and gene not in moot
            for gene, choice in enumerate(self.choices)
        )

    @cached_property
    def moot_genes(self) -> tuple[tuple[int, int, int], ...]:
        """(gene, deciding gene, index): the first decides nothing where the second has that index."""
        places = {(choice.axis, choice.layer): i for i, choice in enumerate(self.choices)}
        found = []
        for gene, choice in enumerate(self.choices):
            if choice.moot:
                decider = places[choice.moot[0], choice.layer]
                if choice.moot[1] in self.choices[decider].options:
                    found.append((gene, decider, self.choices[decider].options.index(choice.moot[1])))
        return tuple(found)

    def decode(self, genotype: Sequence[int]) -> Architecture:
        """The architecture a genotype stands for."""
        valid = self.canonical(genotype)
        kept = sorted(self.layer_order[: self.depth_of(valid)])
        return Architecture(tuple(self._decode_layer(layer, valid) for layer in kept))

    def _decode_layer(self, layer: int, genotype: Genotype) -> LayerChoice:
        active = self.active_genes(genotype)
        chosen = [(axis, g, self.choices[g].options[genotype[g]]) for axis, g in self._genes_of_layer[layer]]
        return LayerChoice(
            index=layer,
            units=tuple((axis, size) for axis, _, size in chosen if axis not in self.labels),
            names=tuple((axis, self.labels[axis][i - 1]) for axis, g, i in chosen if axis in self.labels and active[g]),
        )

    def encode(self, architecture: Architecture) -> Genotype:
        """The canonical genotype of an architecture; ValueError if this space does not contain it."""
        genotype = [0] * len(self.choices)
        if self._depth_gene is not None:
            genotype[self._depth_gene] = _option_index(self.choices[self._depth_gene], len(architecture.layers))
        for layer in architecture.layers:
            for axis, gene in self._genes_of_layer[layer.index]:
                size, name = layer.kept(axis), layer.name(axis)
                if name is not None and name in self.labels.get(axis, ()):
                    size = self.labels[axis].index(name) + 1
                elif size is None and (axis not in self.labels or name is not None):
                    raise ValueError(f"layer {layer.index} of the architecture says nothing about {axis} that is known")
                genotype[gene] = 0 if size is None else _option_index(self.choices[gene], size)
        if self.decode(genotype) != architecture:
            raise ValueError(f"this space does not contain the architecture {architecture.key}")
        return self.canonical(genotype)

    @property
    def largest(self) -> Genotype:
        """Every gene that decides anything at its last option."""
        return self.canonical([len(choice.options) - 1 for choice in self.choices])

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
        """Every distinct network one option step away in one gene; options with names are all one step apart."""
        seen = {self.canonical(genotype)}
        for gene, choice in enumerate(self.choices):
            steps = (genotype[gene] - 1, genotype[gene] + 1)
            for index in range(len(choice.options)) if choice.axis in self.labels else steps:
                if 0 <= index < len(choice.options):
                    other = self.canonical((*genotype[:gene], index, *genotype[gene + 1 :]))
                    if other not in seen:
                        seen.add(other)
                        yield other

    def uniform(self) -> Iterator[Genotype]:
        """Networks whose kept layers all have the same sizes, smallest first; one per combination of options."""
        sizes: dict[str, set[int]] = {}
        for choice in self.choices:
            sizes[choice.axis] = sizes.get(choice.axis, set(choice.options)) & set(choice.options)
        axes = sorted(sizes, key=lambda axis: axis != DEPTH)
        seen: set[Genotype] = set()
        for values in product(*(sorted(sizes[axis]) for axis in axes)):
            combination = dict(zip(axes, values, strict=True))
            genotype = self.canonical([choice.options.index(combination[choice.axis]) for choice in self.choices])
            if genotype not in seen:
                seen.add(genotype)
                yield genotype

    def axes_of(self, layer: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(axis, options) of everything that varies in a layer, in axis order."""
        return tuple((axis, self.choices[gene].options) for axis, gene in self._genes_of_layer[layer])

    def features(self, genotype: Genotype) -> tuple[float, ...]:
        """Per layer: kept (0 or 1), then every axis scaled by its largest option, 0 where the layer is dropped.

        An axis with names has one 0 or 1 per name instead, all 0 where it decides nothing. The full per-layer vector of
        the predictors: no two canonical genotypes share it.
        """
        architecture = self.decode(genotype)
        vector: list[float] = []
        for layer in range(self.num_layers):
            choice = architecture.by_index.get(layer)
            vector.append(0.0 if choice is None else 1.0)
            for axis, gene in self._genes_of_layer[layer]:
                if axis in self.labels:
                    name = None if choice is None else choice.name(axis)
                    vector += [float(name == self.labels[axis][i - 1]) for i in self.choices[gene].options]
                else:
                    vector.append(0.0 if choice is None else (choice.kept(axis) or 0) / self.choices[gene].options[-1])
        return tuple(vector)

    def reordered(self, layer_order: Sequence[int]) -> SearchSpace:
        """The same choices with another importance order of the layers."""
        return replace(self, layer_order=tuple(layer_order))

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the space: equal exactly if every genotype means the same network."""
        return content_hash(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        choices = [
            {"axis": c.axis, "layer": c.layer, "options": list(c.options), **({"moot": list(c.moot)} if c.moot else {})}
            for c in self.choices
        ]
        labels = {"labels": {axis: list(names) for axis, names in self.labels.items()}} if self.labels else {}
        shape = {"family": self.family, "num_layers": self.num_layers, "layer_order": list(self.layer_order)}
        return {**shape, "choices": choices, **labels}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SearchSpace:
        """Read what `to_json` wrote; ValueError on missing or malformed fields."""
        try:
            choices = tuple(
                Choice(**{**c, "options": tuple(c["options"]), "moot": tuple(c["moot"]) if "moot" in c else None})
                for c in content["choices"]
            )
            labels = {str(axis): tuple(names) for axis, names in content.get("labels", {}).items()}
            order, layers = tuple(content["layer_order"]), int(content["num_layers"])
            return cls(str(content["family"]), layers, order, choices, labels)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a search space: {error}; expected what SearchSpace.to_json writes") from error


def _option_index(choice: Choice, size: int) -> int:
    if size not in choice.options:
        raise ValueError(f"{choice.name} offers {choice.options}, not {size}")
    return choice.options.index(size)
