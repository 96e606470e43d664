"""The supernet's front against seven baselines, on test sentences nobody has seen.

``make bench-instatune`` prints the table of the committed raw rows after re-training a sample of them and re-measuring
every latency; ``FULL=1`` trains everything again. What each arm is and may spend: ``instatune_arms.py``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.device import load_backend
from kernels.op_cost import model as whole_network
from kernels.op_spec import Context
from nas.demo_data import prepare_movie_reviews
from nas.end_to_end import example_inputs
from nas.measuring import latency_table
from predictors.latency_table import LatencyTable
from predictors.measure import measure
from studies.records import content_hash
from studies.store import StudyStore
from supernets.checkpoint import load_classifier, load_tokenizer
from supernets.evaluation import resolve_precision
from supernets.finetune import Tuner
from supernets.recipe import plain_recipe
from supernets.supernet import Supernet
from supernets.task import TRAIN, TaskSettings
from supernets.tasks.text_classification import TextClassification
from tests.benchmarks.common import finish, model_folder, print_table, quiet, versions
from tests.benchmarks.instatune_arms import ARMS, quantised, run_arm
from tests.benchmarks.instatune_bench import RECIPE, Bench, Row, architecture_of

RESULTS = Path(__file__).parent / "results"
ROWS = RESULTS / "instatune.jsonl"
TABLE = RESULTS / "instatune_latency_table.json"
CACHE = Path("build/instatune")
SEEDS = range(5)
FEWER = {"unordered": 3, "pruned": 3, "random": 3, "int8": 3}
"""Arms that run on the first three seeds only."""
BATCH = 8
AGREEMENT = 0.02
"""Largest difference in test accuracy between a row and its repetition: other processors round differently."""


def make_bench() -> Bench:
    """Data, model, and the latency table of this machine."""
    base = str(model_folder())
    data = prepare_movie_reviews(CACHE / "data")
    task = TextClassification.open(TaskSettings(kind="text-classification", data=str(data)), load_tokenizer(base))
    context = Context(batch=BATCH, sequences=tuple(task.length_quantiles(TRAIN, 3)))
    return Bench(
        task=task,
        base=base,
        table=frozen_table(base, task, context),
        context=context,
        cache=CACHE,
        precision=resolve_precision("auto", "cpu"),
    )


def frozen_table(base: str, task: TextClassification, context: Context) -> LatencyTable:
    """The table that defines half latency during search; frozen with the rows, measured if there is none."""
    if not TABLE.exists():
        net = Supernet.wrap(load_classifier(base, task.labels).model)
        store = StudyStore.open(f"sqlite:///{CACHE / 'latency.db'}")
        table = latency_table(net, [context], store, load_backend("cpu"))
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(json.dumps(table.to_json(), indent=1) + "\n")
    return LatencyTable.from_json(json.loads(TABLE.read_text()))


# -- rows -------------------------------------------------------------------------------------------------------------


def stored_rows() -> list[Row]:
    """All committed rows."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def train_missing(bench: Bench, seeds: Iterable[int]) -> None:
    """Run every arm of every seed that has no rows yet, and append its rows at once."""
    for seed in seeds:
        for arm in ARMS:
            done = any((row["seed"], row["arm"]) == (seed, arm) for row in stored_rows())
            if not done and seed < FEWER.get(arm, len(SEEDS)):
                append(arm, seed, run_arm(bench, arm, seed), bench)


def append(arm: str, seed: int, rows: list[Row], bench: Bench) -> None:
    """Add an arm's rows to the file in one write."""
    shared = {"arm": arm, "seed": seed, "precision": bench.precision, "data": bench.task.fingerprint}
    text = "".join(json.dumps({**shared, **row, "versions": versions()}) + "\n" for row in rows)
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    with ROWS.open("a") as file:
        file.write(text)
    for row in rows:
        print(
            f"seed {seed} {arm:12} {row['point']:10} test {row['test']:.4f} cost {row.get('cost', 0):.0f}", flush=True
        )


def check_sample(bench: Bench) -> None:
    """Train one arm again and compare; exits with a message if it disagrees."""
    rows = {(r["arm"], r["seed"]): r for r in stored_rows()}
    again = run_arm(bench, "plain", 0)[0]
    stored = rows["plain", 0]
    difference = abs(again["test"] - stored["test"])
    print(f"sample: plain, seed 0: stored {stored['test']:.4f}, again {again['test']:.4f}")
    if difference > AGREEMENT:
        raise SystemExit(f"the repetition differs by {difference:.4f}, more than {AGREEMENT}")


# -- latency and cost -------------------------------------------------------------------------------------------------


def measured_ratios(bench: Bench, rows: list[Row]) -> dict[str, float]:
    """Latency of every network of the rows as a share of the full one's, all timed in one session on this machine."""
    net = Supernet.wrap(bench.fresh(0))
    full = net.space.decode(net.space.largest)
    networks: dict[str, Callable[[], Any]] = {"full": partial(net.extract, full)}
    for row in rows:
        architecture = architecture_of(row["architecture"]) if row.get("architecture") else full
        extract = partial(net.extract, architecture)
        networks[network_key(row)] = partial(_quantised, extract) if row["arm"] == "int8" else extract
    seconds = dict.fromkeys(networks, 0.0)
    for length in bench.context.sequences:
        context = bench.context.at(length)
        specs = {whole_network(key, context): key for key in networks}
        for spec, one in zip(specs, measure(specs, load_backend("cpu"), runner=_runner(networks)), strict=True):
            seconds[specs[spec]] += one.seconds_median / len(bench.context.sequences)
    return {key: value / seconds["full"] for key, value in seconds.items()}


def _quantised(extract: Callable[[], Any]) -> Any:
    return quantised(extract())


def _runner(networks: dict[str, Callable[[], Any]]) -> Callable[[Any], Callable[[], object]]:
    def runner(spec: Any) -> Callable[[], object]:
        network = networks[spec.tag]().eval()
        inputs = example_inputs(network.config, spec.context, "cpu")

        @torch.inference_mode()
        def call() -> object:
            return network(**inputs)

        return call

    return runner


def network_key(row: Row) -> str:
    """Identity of a row's network shape and arithmetic."""
    architecture = row.get("architecture")
    if row["arm"] != "int8" and not architecture:
        return "full"
    return content_hash([row["arm"] == "int8", architecture or "full"])


def tuning_cost_ratio(bench: Bench, pairs: int = 10) -> float:
    """Seconds of a supernet step over those of a plain step, interleaved: the median of ratios."""
    settings = bench.settings(0, RECIPE, order_fraction=0.0)
    logits = torch.zeros(bench.task.size(TRAIN), bench.task.num_labels)
    ours = Tuner(Supernet.wrap(bench.fresh(0)), bench.task, settings, teacher_logits_NC=logits)
    plain = Tuner(Supernet.fixed(bench.fresh(0)), bench.task, bench.settings(0, plain_recipe()))
    ours.state.step = 1
    batches = bench.task.batches(TRAIN, settings.batch_size, seed=0)
    ratios = []
    for batch, _ in zip(batches, range(pairs), strict=False):
        ratios.append(_seconds(partial(ours.train_step, batch)) / _seconds(partial(plain.train_step, batch)))
    return median(ratios[2:])


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# -- statistics -------------------------------------------------------------------------------------------------------


def right_matrix(rows: list[Row]) -> NDArray[np.float64]:
    """How often each test sentence was right, [seeds, examples]; several networks of one seed are averaged."""
    by_seed: dict[int, list[list[float]]] = {}
    for row in rows:
        bits = f"{int(row['right'], 16):0{row['examples']}b}"
        by_seed.setdefault(row["seed"], []).append([float(bit) for bit in bits])
    return np.array([np.mean(by_seed[seed], axis=0) for seed in sorted(by_seed)])


def interval(values_SN: NDArray[np.float64], draws: int = 2000) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over seeds S and examples N, both resampled."""
    rng = np.random.default_rng(0)
    seeds, examples = values_SN.shape
    means = [
        values_SN[np.ix_(rng.integers(seeds, size=seeds), rng.integers(examples, size=examples))].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values_SN.mean()), float(low), float(high)


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by the name of what they are: the arm, and the point where an arm has several."""
    found: dict[str, list[Row]] = {}
    for arm in ARMS:
        for point in ("full", "inherited", "recovered"):
            if chosen := [r for r in rows if (r["arm"], r["point"]) == (arm, point)]:
                several = any(r["point"] != point for r in rows if r["arm"] == arm)
                found[f"{arm} {point}" if several else arm] = chosen
    return found


def lead(rows: list[Row], others: list[Row]) -> tuple[float, float, float]:
    """Points of test accuracy by which rows are better than others of the same seeds; mean and interval."""
    seeds = {r["seed"] for r in rows} & {r["seed"] for r in others}
    mine, theirs = (right_matrix([r for r in side if r["seed"] in seeds]) for side in (rows, others))
    mean, low, high = interval(100 * (mine - theirs))
    return mean, low, high


def report(bench: Bench) -> None:
    """Print the tables and the result line."""
    rows = stored_rows()
    ratios, named = measured_ratios(bench, rows), groups(rows)
    ours, baseline = named["supernet recovered"], named["distilled"]
    table, arms, leads = [], {}, {}
    for name, chosen in named.items():
        ratio = float(np.mean([ratios[network_key(r)] for r in chosen]))
        accuracy = interval(right_matrix(chosen))
        loss = lead(baseline, chosen)
        cost = float(np.mean([r.get("cost", np.nan) for r in chosen]))
        table.append([name, len({r["seed"] for r in chosen}), ratio, *accuracy, *loss, cost])
        arms[name] = {f"{ratio:.3f}": accuracy}
        leads[name] = lead(ours, chosen)
    head = ["arm", "seeds", "latency", "test", "2.5 %", "97.5 %", "loss to (b)", "2.5 %", "97.5 %", "cost"]
    print_table(head, table)
    print("\npoints of test accuracy by which the recovered network of the supernet leads, same seeds")
    print_table(["arm", "mean", "2.5 %", "97.5 %"], [[name, *values] for name, values in leads.items()])
    finish(
        {
            "arms": arms,
            "tuning_cost_ratio": tuning_cost_ratio(bench),
            "largest_minus_plain": lead(named["supernet full"], named["plain"])[0],
            "loss_at_half_latency": dict(zip(("mean", "low", "high"), lead(baseline, ours), strict=True)),
            "leads": leads,
            "context": bench.context.key,
        }
    )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="train everything again")
    parser.add_argument(
        "--train-only", metavar="SEEDS", help="train missing rows of these seeds, such as 0,1, and stop"
    )
    options = parser.parse_args()
    if options.full:
        for path in (ROWS, TABLE):
            path.unlink(missing_ok=True)
    quiet()
    bench = make_bench()
    if options.train_only:
        torch.set_num_threads(1)
        train_missing(bench, [int(seed) for seed in options.train_only.split(",")])
        return
    if options.full or not ROWS.exists():
        train_missing(bench, SEEDS)
    else:
        check_sample(bench)
    report(bench)


if __name__ == "__main__":
    main()
