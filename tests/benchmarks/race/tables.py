"""Tables of architectures whose costs are all known: what a search sees, and what it is scored on.

A table file is a NumPy archive (``.npz``, no pickles) with

========== ================= ======================================================================================
``arch``   integers [N, G]   one row per network, one column per gene: the option's index, from 0
*a name*   floats [N]        one named column per cost; or [N, R] for R repeated measurements of the same thing
``meta``   text (JSON)       optional, see below
``alias``  integers [K, G]   optional: further encodings of networks that have a row …
``same``   integers [K]      … and which row that is
========== ================= ======================================================================================

Without ``meta`` every float column is an objective to be minimised, in alphabetical order. ``meta`` may hold

- ``objectives``: a list of ``{"name", "unit", "goal", "seen", "scored", "exact", "noise"}``. `seen` is the column the
  search is told (default: the one called `name`), `scored` the column its result is judged by (default: `seen`). Of R
  repeated measurements a search sees one, drawn per network from the seed, and is scored on their mean. `exact` says
  that the cost can be computed without running the network, `noise` is the standard error of one number. The first
  objective should be the quality; call it ``error`` and its unit ``fraction`` or ``%``.
- ``space``: what `SearchSpace.to_json` writes, whose depth gene is the rule for conditional genes. Without it every
  column is one gene of its own.
- ``nominal``: whether the options of each gene are without an order (one boolean for all, or one per gene).
- ``reference``: objective → a reference point people quote for this table.
- ``source``: where the numbers come from.

Legend of shapes: N rows, G genes, R repeats, M objectives.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.algorithm import Costs, SearchProblem
from studies.pareto import signed
from studies.records import Genotype, Objective, content_hash
from supernets.space import Choice, SearchSpace

RESERVED = ("arch", "meta", "alias", "same")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TableSpace(SearchSpace):
    """A search space of which some encodings are known to mean the same network.

    Attributes:
        nominal: per gene, whether its options are without an order; empty means all have one.
        aliases: (canonical by the space's own rule) genotype → the one that has a row.
    """

    nominal: tuple[bool, ...] = ()
    aliases: Mapping[Genotype, Genotype] = field(default_factory=dict, compare=False, repr=False)

    def canonical(self, genotype: Sequence[int]) -> Genotype:
        """The one genotype that stands for the same network."""
        own = super().canonical(genotype)
        return self.aliases.get(own, own)

    @cached_property
    def size(self) -> int:
        """Number of distinct networks, as far as is known."""
        return super().size - len(self.aliases)


def nominal_genes(space: SearchSpace) -> tuple[bool, ...]:
    """Per gene, whether its options are without an order."""
    return (isinstance(space, TableSpace) and space.nominal) or (False,) * len(space)


def plain_space(name: str, options: Sequence[int], nominal: Sequence[bool] = ()) -> TableSpace:
    """One gene per column, each with so many options."""
    choices = tuple(
        Choice(axis="option", layer=gene, options=tuple(range(1, 1 + count))) for gene, count in enumerate(options)
    )
    return TableSpace(name, len(choices), tuple(range(len(choices))), choices, nominal=tuple(nominal))


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One objective of a table.

    Attributes:
        seen: ``[N]``, or ``[N, R]`` of which each search sees one per row.
        scored: ``[N]``.
        exact: whether it can be computed without running the network.
        noise: standard error of one seen number; 0 where unknown or none.
    """

    objective: Objective
    seen: Floats
    scored: Floats
    exact: bool = False
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Networks and their costs.

    Attributes:
        genotypes: ``[N, G]``, distinct and canonical.
        reference: objective name → the reference point people quote, for objectives that have one.
    """

    name: str
    space: TableSpace
    genotypes: NDArray[np.int64]
    columns: tuple[Column, ...]
    reference: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    @cached_property
    def rows(self) -> dict[Genotype, int]:
        """Genotype → row."""
        return {tuple(row): i for i, row in enumerate(self.genotypes.tolist())}

    @cached_property
    def hash(self) -> str:
        """Identity of everything a race depends on."""
        numbers = [[np.round(c.seen, 9).tolist(), np.round(c.scored, 9).tolist()] for c in self.columns]
        names = [[c.objective.key, c.objective.goal, c.exact] for c in self.columns]
        return content_hash([self.space.to_json(), self.genotypes.tolist(), names, numbers])

    def column(self, name: str) -> Column:
        """A column by its objective's name; ValueError names the known ones."""
        for column in self.columns:
            if column.objective.name == name:
                return column
        known = ", ".join(column.objective.name for column in self.columns)
        raise ValueError(f"table {self.name} has no objective {name!r}; known are {known}")


class TableProblem:
    """A search over a table: the problem, the costs the search sees, and the costs it is scored on.

    A genotype without a row, or with a number that is not finite, is a failed evaluation. Where its exact costs are
    asked for, they are the largest of the table.
    """

    def __init__(
        self, table: Table, objectives: Sequence[str], limits: Mapping[str, float] | None = None, seed: int = 0
    ) -> None:
        columns = [table.column(name) for name in objectives]
        self._rows = table.rows
        self._seen_NM = np.column_stack([_costs(column, _seen(column, seed)) for column in columns])
        self.scored_NM = np.column_stack([_costs(column, column.scored) for column in columns])
        self._exact_M = np.array([column.exact for column in columns])
        finite = np.where(np.isfinite(self._seen_NM), self._seen_NM, -np.inf)
        self._unknown_M = np.where(self._exact_M, finite.max(axis=0), np.nan)
        self.problem = SearchProblem(
            space=table.space,
            objectives=tuple(column.objective for column in columns),
            exact=self._exact,
            exact_columns=tuple(column.exact for column in columns),
            noise=tuple(column.noise for column in columns) if any(column.noise for column in columns) else (),
            limits={list(objectives).index(name): limit for name, limit in (limits or {}).items()},
        )

    @property
    def all_seen(self) -> Costs:
        """What a search would see of every row, ``[N, M]``."""
        return self._seen_NM

    def all_rows(self) -> list[tuple[Genotype, Costs]]:
        """Every genotype that has a row, with the costs a search would see."""
        return list(zip(self._rows, self._seen_NM, strict=True))

    def evaluate(self, genotypes: Sequence[Genotype]) -> Costs:
        """Cost rows as a search sees them; +inf for a failed one."""
        costs = self._lookup(genotypes, self._seen_NM)
        return np.where(np.isfinite(costs).all(axis=1, keepdims=True), costs, np.inf)

    def scored(self, genotypes: Sequence[Genotype]) -> Costs:
        """Cost rows a result is judged by; +inf for a failed one."""
        costs = self._lookup(genotypes, self.scored_NM)
        return np.where(np.isfinite(costs).all(axis=1, keepdims=True), costs, np.inf)

    def _lookup(self, genotypes: Sequence[Genotype], costs_NM: Costs) -> Costs:
        rows = np.array([self._rows.get(genotype, -1) for genotype in genotypes], dtype=int)
        return np.where(rows[:, None] >= 0, costs_NM[rows], np.nan)

    def _exact(self, genotypes: Sequence[Genotype]) -> Costs:
        costs = np.where(self._exact_M, self._lookup(genotypes, self._seen_NM), np.nan)
        return np.where(self._exact_M & ~np.isfinite(costs), self._unknown_M, costs)


def _seen(column: Column, seed: int) -> Floats:
    if column.seen.ndim == 1:
        return column.seen
    count, repeats = column.seen.shape
    chosen = np.random.default_rng([seed, repeats]).integers(repeats, size=count)
    return np.asarray(column.seen[np.arange(count), chosen])


def _costs(column: Column, numbers: Floats) -> Floats:
    return np.asarray(signed(column.objective, 1.0) * numbers)


def read_archive(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a NumPy archive by name; ValueError if the file is none."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is no NumPy archive of plain arrays (.npz): {error}") from error


def read_table(path: Path, name: str = "") -> Table:
    """Read a table file; ValueError says what is wrong with it."""
    content = read_archive(path)
    if "arch" not in content:
        raise ValueError(f"{path} is no table: it has no matrix `arch` (found {', '.join(sorted(content))})")
    arch = content["arch"].astype(np.int64)
    meta: dict[str, Any] = json.loads(str(content["meta"])) if "meta" in content else {}
    names = sorted(key for key in content if key not in RESERVED)
    described = meta.get("objectives") or [{"name": key} for key in names]
    for each in described:
        wanted = {each.get("seen", each["name"]), each.get("scored", each.get("seen", each["name"]))}
        if missing := sorted(wanted - set(names)):
            raise ValueError(f"{path}: objective {each['name']!r} needs the column {missing[0]!r}; found {names}")
    columns = tuple(_column(each, content) for each in described)
    for key in names:
        if len(content[key]) != len(arch):
            raise ValueError(f"{path}: column {key!r} has {len(content[key])} rows, arch has {len(arch)}")
    space = _space(name or path.stem, arch, meta, content.get("alias"), content.get("same"))
    genotypes = [space.canonical(row) for row in arch.tolist()]
    if len(set(genotypes)) < len(genotypes):
        raise ValueError(f"{path}: {len(genotypes) - len(set(genotypes))} rows of `arch` repeat a network")
    return Table(
        name=name or path.stem,
        space=space,
        genotypes=np.array(genotypes),
        columns=columns,
        reference=meta.get("reference", {}),
        source=meta.get("source", ""),
    )


def _column(description: Mapping[str, Any], content: Mapping[str, NDArray[Any]]) -> Column:
    seen_name = description.get("seen", description["name"])
    seen = content[seen_name].astype(np.float64)
    scored = content[description.get("scored", seen_name)].astype(np.float64)
    return Column(
        objective=Objective(
            name=description["name"], unit=description.get("unit", ""), goal=description.get("goal", "min")
        ),
        seen=seen,
        scored=scored if scored.ndim == 1 else scored.mean(axis=1),
        exact=bool(description.get("exact", False)),
        noise=float(description.get("noise") or 0.0),
    )


def _space(
    name: str,
    arch: NDArray[np.int64],
    meta: Mapping[str, Any],
    alias: NDArray[Any] | None,
    same: NDArray[Any] | None,
) -> TableSpace:
    if "space" in meta:
        base = SearchSpace.from_json(meta["space"])
    else:
        highest = arch.max(axis=0) if alias is None else np.maximum(arch.max(axis=0), alias.max(axis=0))
        base = plain_space(name, [int(index) + 1 for index in highest])
    said = meta.get("nominal", ())
    nominal = (said,) * len(base) if isinstance(said, bool) else tuple(bool(each) for each in said)
    aliases: dict[Genotype, Genotype] = {}
    if alias is not None and same is not None:
        targets = [tuple(arch[row].tolist()) for row in same]
        aliases = dict(zip((tuple(row) for row in alias.tolist()), targets, strict=True))
    return TableSpace(base.family, base.num_layers, base.layer_order, base.choices, nominal=nominal, aliases=aliases)


def write_table(path: Path, table: Table) -> None:
    """Write a table that `read_table` reads back with the same hash."""
    arrays: dict[str, NDArray[Any]] = {"arch": table.genotypes.astype(np.int16)}
    objectives: list[dict[str, Any]] = []
    for column in table.columns:
        objective = column.objective
        arrays[objective.name] = column.seen
        described: dict[str, Any] = {"name": objective.name, "unit": objective.unit, "goal": objective.goal}
        described |= {"exact": column.exact, "noise": column.noise}
        if column.seen.ndim > 1 or not np.array_equal(column.seen, column.scored):
            described["scored"] = f"{objective.name} (scored)"
            arrays[described["scored"]] = column.scored
        objectives.append(described)
    meta = {
        "objectives": objectives,
        "space": table.space.to_json(),
        "nominal": list(table.space.nominal),
        "reference": dict(table.reference),
        "source": table.source,
    }
    if table.space.aliases:
        arrays["alias"] = np.array(list(table.space.aliases), dtype=np.int16)
        arrays["same"] = np.array([table.rows[target] for target in table.space.aliases.values()], dtype=np.int32)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
