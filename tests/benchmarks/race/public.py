"""Readers of published tables: NAS-Bench-Macro, NAS-Bench-201 with HW-NAS-Bench latencies, NAS-Bench-Graph."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np

from studies.records import Genotype, Objective
from tests.benchmarks.race.tables import Column, Table, TableSpace, plain_space, read_archive, read_table

GRAPH = ("computers", "arxiv", "proteins")
"""Data sets of NAS-Bench-Graph that race."""


def open_table(name: str, path: Path | None) -> Table:
    """A table by its name in the race, from a published file, a table file or an installed package.

    Raises:
        ValueError: the file is not what the name promises.
        ModuleNotFoundError: NAS-Bench-Graph is not installed.
    """
    if name.startswith("graph-"):
        return graph_table(name.removeprefix("graph-"))
    assert path is not None, f"table {name} comes from a file"
    if path.suffix == ".json":
        return macro_table(path, name)
    return nb201_table(path, name) if "lat_raspi4" in read_archive(path) else read_table(path, name)


def macro_table(path: Path, name: str = "macro") -> Table:
    """NAS-Bench-Macro (Su et al., CVPR 2021, arXiv 2103.11922): 8 blocks with 3 operators, trained three times each.

    Error is the mean of three CIFAR-10 test runs, in percent; the operators grow from identity to the wider block.
    A table called ``…-noisy`` lets the search see one run of the three.
    """
    try:
        content = json.loads(path.read_text())
        runs_NR = 100.0 - np.array([entry["test_acc"] for entry in content.values()])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not NAS-Bench-Macro's JSON: {error!r}") from error
    error_N = runs_NR.mean(axis=1)
    noise = float(runs_NR.std(axis=1, ddof=1).mean()) if name.endswith("-noisy") else 0.0
    seen = runs_NR if noise else error_N
    columns = [Column(objective=Objective(name="error", unit="%"), seen=seen, scored=error_N, noise=noise)]
    for key, unit, field in (("flops", "M", "flops"), ("parameters", "M", "params")):
        values = np.array([entry[field] for entry in content.values()]) / 1e6
        columns.append(Column(objective=Objective(name=key, unit=unit), seen=values, scored=values, exact=True))
    return Table(
        name=name,
        space=plain_space("macro", [3] * 8),
        genotypes=np.array([[int(digit) for digit in key] for key in content]),
        columns=tuple(columns),
        reference={"error": 15.0, "flops": float(columns[1].seen.max()) * 1.01},
        source="NAS-Bench-Macro, CIFAR-10",
    )


def nb201_table(path: Path, name: str = "nb201") -> Table:
    """NAS-Bench-201 (Dong and Yang, ICLR 2020): 6 edges with 5 operators; CIFAR-100 validation error in percent.

    Latencies in ms of a Raspberry Pi 4 (HW-NAS-Bench, ICLR 2021) and a Titan RTX at batch 32 (HELP, NeurIPS 2021); they
    were measured network by network, so no column can be computed.
    """
    archive = read_archive(path)
    arch, error = archive["arch"].astype(np.int64), 100.0 - archive["acc_cifar100-val"].astype(np.float64)
    devices = {key.removeprefix("lat_"): archive[key].astype(np.float64) for key in archive if "lat_" in key}
    columns = [Column(objective=Objective(name="error", unit="%"), seen=error, scored=error)]
    for device in ("raspi4", "titan_rtx_32"):
        seen = devices[device]
        columns.append(Column(objective=Objective(name=f"latency_{device}", unit="ms"), seen=seen, scored=seen))
    return Table(
        name=name,
        space=plain_space("nb201", [5] * 6, nominal=[True] * 6),
        genotypes=arch,
        columns=tuple(columns),
        reference={"error": 60.0, "latency_raspi4": float(columns[1].seen.max())},
        source="NAS-Bench-201, CIFAR-100 validation; HW-NAS-Bench and HELP latencies",
    )


def graph_table(dataset: str) -> Table:
    """NAS-Bench-Graph (Qin et al., NeurIPS 2022, arXiv 2206.09166), from the package `nas-bench-graph`.

    One gene for the topology (9) and four for the operators (9; 5 for proteins), none of them ordered. Encodings of
    isomorphic networks are one; those whose operators are all identities are missing. Validation error as a fraction,
    latency in ms (measured), parameters in thousands (computed).
    """
    from nas_bench_graph import light_read
    from nas_bench_graph.architecture import Arch, gnn_list, gnn_list_proteins, link_list

    bench = light_read(dataset)
    operators = gnn_list_proteins if dataset == "proteins" else gnn_list
    row_of: dict[int, Genotype] = {}
    aliases: dict[Genotype, Genotype] = {}
    for genotype in product(range(len(link_list)), *[range(len(operators))] * 4):
        key = Arch(list(link_list[genotype[0]]), [operators[gene] for gene in genotype[1:]]).valid_hash()
        if key in bench and row_of.setdefault(key, genotype) != genotype:
            aliases[genotype] = row_of[key]
    base = plain_space(f"graph-{dataset}", [len(link_list)] + [len(operators)] * 4, nominal=[True] * 5)
    space = TableSpace(
        base.family, base.num_layers, base.layer_order, base.choices, nominal=base.nominal, aliases=aliases
    )
    entries = [bench[key] for key in row_of]
    error = 1.0 - np.array([float(entry["valid_perf"]) for entry in entries])
    latency = 1000.0 * np.array([float(entry["latency"]) for entry in entries])
    parameters = 1000.0 * np.array([float(entry["para"]) for entry in entries])
    return Table(
        name=f"graph-{dataset}",
        space=space,
        genotypes=np.array(list(row_of.values())),
        columns=(
            Column(objective=Objective(name="error", unit="fraction"), seen=error, scored=error),
            Column(objective=Objective(name="latency", unit="ms"), seen=latency, scored=latency),
            Column(objective=Objective(name="parameters", unit="k"), seen=parameters, scored=parameters, exact=True),
        ),
        source=f"NAS-Bench-Graph, {dataset}",
    )
