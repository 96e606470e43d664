"""How well latencies are measured, predicted and carried to other devices. `make bench-latency`

Parts: `tables` needs files of published latencies in HAT's format (CSV=), `transfer` those and, if given, the table of
NAS-Bench-201 (NB201=); `repeatability` and `composed` need the folders of the demonstrations, or of any jobs. A part
without its input is skipped, and says so. Rows are kept as they are finished; a stopped run goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from predictors.hat_csv import HatTable, read_hat_csv
from tests.benchmarks.common import RESULTS, finish, quiet
from tests.benchmarks.latency_parts import composed, hat, repeatability, transfers
from tests.benchmarks.latency_parts.cells import read_cells
from tests.benchmarks.latency_parts.kept import Kept
from tests.benchmarks.latency_parts.wide_experts import wide_experts

PARTS = ("tables", "transfer", "repeatability", "composed")
DEMO, DEMO_MOE = Path("demo"), Path("demo-moe")
TABLES, TIMES = RESULTS / "latency_tables.jsonl", RESULTS / "latency_repeatability.jsonl"


def main() -> None:
    """Run what is missing of the chosen parts, and print."""
    options = arguments()
    quiet()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    try:
        tables = [read_hat_csv(path) for path in options.csv]
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if wanted(options, "tables", bool(tables), "--csv FILE …") | wanted(
        options, "transfer", bool(tables or options.nb201), "--csv or --nb201"
    ):
        result |= on_tables(options, tables)
    there = [folder for folder in supernets(options.folder) if folder.exists()]
    if wanted(options, "repeatability", bool(there), "--folder, or `make demo demo-moe` first"):
        kept = Kept(TIMES, fresh=options.full)
        found = {str(folder): repeatability.run(folder, kept, options.networks) for folder in there}
        kept.finish({"benchmark": "latency, repeatability"})
        result["repeatability_mape"] = max(each["paired"]["mape"] for each in found.values())
        result["repeatability_tau"] = min(each["paired"]["tau"] for each in found.values())
        result["repeatability"] = found
    if wanted(options, "composed", bool(there), "--folder, or `make demo demo-moe` first"):
        training = max(composed.NETWORK_ROWS) if options.full else options.training
        found = {str(folder): composed.run(folder, options.unseen, training) for folder in there}
        own = [next(iter(each["predictors"].values())) for each in found.values()]
        result["composed_mape"] = round(max(each["mape"] for each in own), 3)
        result["composed_tau"] = round(min(each["tau"] for each in own), 4)
        result["interval_coverage"] = min(each["interval_coverage"] for each in found.values())
        result["composed"] = found
    finish(result)


def arguments() -> argparse.Namespace:
    """What the command was told."""
    parser = argparse.ArgumentParser(description="latencies: measured, predicted, carried to other devices")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--csv", nargs="*", type=Path, default=[], help="tables of latencies in HAT's format")
    parser.add_argument("--nb201", type=Path, help="NAS-Bench-201 with latencies of two devices")
    parser.add_argument("--folder", nargs="*", type=Path, help="of jobs with a supernet; default those of the demos")
    parser.add_argument("--splits", type=int, default=hat.SPLITS)
    parser.add_argument("--sizes", nargs="+", type=int, default=hat.SIZES)
    parser.add_argument("--models", nargs="+", choices=hat.MODELS, default=hat.MODELS)
    parser.add_argument("--networks", type=int, default=repeatability.NETWORKS, help="timed twice")
    parser.add_argument("--unseen", type=int, default=100, help="networks that predictions are compared on")
    parser.add_argument("--training", type=int, default=100, help="networks the opponents learn from")
    parser.add_argument("--full", action="store_true", help="forget kept rows; opponents learn from up to 400 networks")
    return parser.parse_args()


def supernets(folders: list[Path] | None) -> list[Path]:
    """Of the given jobs; by default of the two demonstrations, the second one's in a wider space."""
    if folders is None:
        folders = [DEMO, *([wide_experts(DEMO_MOE)] if (DEMO_MOE / "statistics").exists() else [])]
    return [folder / "supernet" for folder in folders]


def wanted(options: argparse.Namespace, part: str, has_input: bool, remedy: str) -> bool:
    """Whether a part runs; says why not where its input is missing."""
    if part in options.parts and not has_input:
        print(f"part {part} is skipped: it needs {remedy}", flush=True)
    return part in options.parts and has_input


def on_tables(options: argparse.Namespace, tables: list[HatTable]) -> dict[str, Any]:
    """Predictors on published latencies, transfer between devices, and the analytic GPU."""
    kept = Kept(TABLES, fresh=options.full)
    result: dict[str, Any] = {}
    if "tables" in options.parts and tables:
        hat.run(tables, kept, options.sizes, options.splits, options.models)
        result["rows_agree"] = hat.agreement(tables, kept, hat.SAMPLE)
        result["hat"] = hat.report(kept)
    if "transfer" in options.parts:
        groups = [[transfers.device_table(table) for table in tables]]
        groups += [read_cells(options.nb201)] if options.nb201 else []
        transfers.run(groups, kept, options.splits)
        result["transfer"] = transfers.report(kept)
        result["analytic_tau"] = transfers.analytic_taus(tables)
    kept.finish({"benchmark": "latency, published tables"})
    return result


if __name__ == "__main__":
    main()
