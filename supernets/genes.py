"""Many genotypes of a space at once, as integer matrices: what a search does thousands of times per proposal.

Legend of shapes: P genotypes, G genes, L layers, D options of depth, F features, A alike genes, K options of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from studies.records import Genotype
from supernets.space import DEPTH, SearchSpace

Genes = NDArray[np.int64]
Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

_ONE_HOT_SCALE = 0.5
"""Weight of unordered features beside ordered ones: two options a whole range apart differ about twice as much."""

_MOVED_GENES = 1.5
"""Genes of a child that are moved, on average."""


@dataclass(frozen=True)
class GeneTable:
    """The genes of a space, with the rule that those of dropped layers decide nothing."""

    space: SearchSpace

    @cached_property
    def options_G(self) -> Genes:
        """How many options every gene has."""
        return np.array([len(choice.options) for choice in self.space.choices], dtype=np.int64)

    def matrix(self, genotypes: Sequence[Genotype]) -> Genes:
        """Genotypes as rows ``[P, G]``; P may be 0."""
        return np.array(genotypes, dtype=np.int64).reshape(-1, len(self.space))

    def distinct(self, genes_PG: Genes) -> list[Genotype]:
        """The distinct canonical genotypes among the rows, in order of appearance."""
        rows = dict.fromkeys(map(tuple, np.where(self.active(genes_PG), genes_PG, 0).tolist()))
        if type(self.space).canonical is SearchSpace.canonical:
            return list(rows)
        return list(dict.fromkeys(map(self.space.canonical, rows)))  # a subclass may know of more equal networks

    def everything(self) -> list[Genotype]:
        """Every canonical genotype once; meant for small spaces."""
        return self.distinct(self.matrix(list(self._combinations())))

    def active(self, genes_PG: Genes) -> Mask:
        """Mask [P, G] of the genes that decide anything."""
        active_PG: Mask = self._active_DG[self._depth_index(genes_PG)]
        for gene, decider, index in self.space.moot_genes:
            active_PG[:, gene] &= genes_PG[:, decider] != index
        return active_PG

    def uniform_draw(self, rng: np.random.Generator, count: int) -> Genes:
        """Rows with every gene drawn uniformly."""
        return rng.integers(self.options_G, size=(count, len(self.options_G)))

    def graded_draw(self, rng: np.random.Generator, count: int) -> Genes:
        """Rows from small to large: each has its own level, evenly spread, around which its genes scatter binomially.

        Genes drawn uniformly make networks of nearly equal size; this reaches the ends of the range as well.
        """
        level_P1 = ((np.arange(count) + rng.random(count)) / count)[:, None]
        return rng.binomial(self.options_G - 1, level_P1).astype(np.int64)

    def children(self, parents_PG: Genes, rng: np.random.Generator, count: int) -> Genes:
        """Rows bred from random parents, half of them from two, the others from one.

        Genes of dropped layers say nothing and are drawn afresh, so that a deeper child gets random layers rather than
        the thinnest ones. A few genes are then moved, half of them by one option, half to any.
        """
        pairs_2P = rng.integers(len(parents_PG), size=(2, count))
        mothers, fathers = (
            np.where(self.active(parents_PG[p]), parents_PG[p], self.uniform_draw(rng, count)) for p in pairs_2P
        )
        crossed = rng.random((count, 1)) < 0.5
        genes = np.where(crossed & (rng.random(mothers.shape) < 0.5), fathers, mothers)
        matter = self.active(genes) & (self.options_G > 1)
        moved = rng.random(genes.shape) < _MOVED_GENES / np.maximum(1, matter.sum(axis=1, keepdims=True))
        nearby = np.clip(genes + rng.choice([-1, 1], size=genes.shape), 0, self.options_G - 1)
        anywhere = (genes + rng.integers(1, np.maximum(2, self.options_G), size=genes.shape)) % self.options_G
        return np.where(moved, np.where(rng.random(genes.shape) < 0.5, nearby, anywhere), genes)

    def features(self, genes_PG: Genes) -> Matrix:
        """Features [P, F] of the rows, 0 where a layer is dropped.

        Every gene that varies is there twice: once as its option relative to the largest, for effects that follow its
        order (unless its options are names), and once with a column per option, for effects that do not. Every layer
        that may be dropped adds whether it is kept. See `groups_F`.
        """
        active_PG = self.active(genes_PG)
        sizes_PG = np.where(active_PG, self._scaled_GO[np.arange(len(self.options_G)), genes_PG], 0.0)
        kept_PL = self._kept_DL[self._depth_index(genes_PG)][:, self._varying_L]
        chosen_PO = (genes_PG[:, self._gene_O] == self._option_O) & active_PG[:, self._gene_O]
        return np.hstack([sizes_PG[:, self._ordered_G], kept_PL, _ONE_HOT_SCALE * chosen_PO])

    @cached_property
    def groups_F(self) -> Genes:
        """Per feature, what it belongs to: its gene, or the kept layers together."""
        kept = np.full(len(self._varying_L), len(self.options_G))
        return np.concatenate([self._ordered_G, kept, self._gene_O])

    def tallies(self, genes_PG: Genes) -> Matrix:
        """How often every option is chosen by the genes that offer the same options, ``[P, K]``.

        What a sum over like layers depends on, such as a latency; where the layers lie does not matter to it. Genes
        drawn uniformly have tallies of unit variance.
        """
        active_PG = self.active(genes_PG)
        columns = [np.empty((len(genes_PG), 0))]
        for alike in self._alike:
            options = int(self.options_G[alike[0]])
            chosen_PAK = (genes_PG[:, alike, None] == np.arange(options)) & active_PG[:, alike, None]
            columns.append(chosen_PAK.sum(axis=1) / np.sqrt(len(alike) * (options - 1)) * options)
        return np.hstack(columns)

    @cached_property
    def _alike(self) -> list[Genes]:
        """Genes that offer the same options, where there are several and something to choose."""
        offered: dict[tuple[int, ...], list[int]] = {}
        for gene, choice in enumerate(self.space.choices):
            if choice.axis != DEPTH and len(choice.options) > 1:
                offered.setdefault(choice.options, []).append(gene)
        return [np.array(genes) for genes in offered.values() if len(genes) > 1]

    def _combinations(self) -> Iterator[Genotype]:
        for depth, active_G in enumerate(self._active_DG):
            indices = [range(n) if on else (0,) for n, on in zip(self.options_G, active_G, strict=True)]
            if self._depth_gene is not None:
                indices[self._depth_gene] = (depth,)
            yield from product(*indices)

    @cached_property
    def _ordered_G(self) -> Genes:
        named = [choice.axis in self.space.labels for choice in self.space.choices]
        return np.flatnonzero((self.options_G > 1) & ~np.array(named, dtype=bool))

    @cached_property
    def _varying_L(self) -> Genes:
        return np.flatnonzero(self._kept_DL.any(axis=0) & ~self._kept_DL.all(axis=0))

    @cached_property
    def _gene_O(self) -> Genes:
        return np.repeat(np.arange(len(self.options_G)), np.where(self.options_G > 1, self.options_G, 0))

    @cached_property
    def _option_O(self) -> Genes:
        return np.concatenate([np.arange(n) for n in self.options_G if n > 1] or [np.empty(0, dtype=np.int64)])

    @cached_property
    def _depth_gene(self) -> int | None:
        return next((i for i, choice in enumerate(self.space.choices) if choice.axis == DEPTH), None)

    @cached_property
    def _kept_DL(self) -> Mask:
        """Which layers every depth keeps."""
        depths = (self.space.num_layers,) if self._depth_gene is None else self.space.choices[self._depth_gene].options
        rank_L = np.argsort(self.space.layer_order)
        return rank_L[None] < np.array(depths)[:, None]

    @cached_property
    def _active_DG(self) -> Mask:
        """Which genes decide anything at every depth."""
        layers = [choice.layer for choice in self.space.choices]
        return np.array([[layer is None or kept_L[layer] for layer in layers] for kept_L in self._kept_DL])

    @cached_property
    def _scaled_GO(self) -> Matrix:
        scaled = np.zeros((len(self.options_G), self.options_G.max()))
        for gene, choice in enumerate(self.space.choices):
            scaled[gene, : len(choice.options)] = np.array(choice.options) / choice.options[-1]
        return scaled

    def _depth_index(self, genes_PG: Genes) -> Genes:
        return np.zeros(len(genes_PG), dtype=np.int64) if self._depth_gene is None else genes_PG[:, self._depth_gene]
