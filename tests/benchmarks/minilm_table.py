"""Every network of a closed part of the demo's supernet: error on two halves, latency, size. `make table-minilm`

The part: 2 to 6 layers of MiniLM, each with 3 or 12 heads and a feed-forward width of 256 or 1536: 5,456 networks. Each
is evaluated on the same sentences of the validation split, parted at random into A, which a search sees, and B, on
which it is scored. Networks that begin alike share what they compute (`tests/benchmarks/exhaustive.py`); a sample is
computed alone as well, and has to predict the same.

Latencies are of extracted networks, one batch at a time beside a reference. All layers of MiniLM have the same shape,
so a network's operations follow from how many layers of which sizes it has: one network of every such multiset is
timed, and all others share its latency. Of some, a network with the same layers in another order is timed as well; how
far the two are apart is printed, and how far the latency composed of operations is off.

What is done is kept in FOLDER/table, batch by batch and network by network; a stopped run goes on there.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.device import load_backend
from kernels.op_spec import Context
from kernels.timing import TimingSettings
from nas.demo import DemoSettings, demo_request
from nas.end_to_end import measure_networks
from nas.measuring import latency_table
from nas.searching import OpenSupernet, open_supernet
from nas.tuning import tune_supernet
from nas.workspace import Workspace
from studies.records import Genotype, Objective, content_hash
from studies.store import StudyStore
from supernets.evaluation import predict_logits, resolve_precision
from supernets.space import Architecture, SearchSpace
from supernets.task import TRAIN, VALIDATION
from tests.benchmarks.common import RESULTS, finish, print_table, quiet
from tests.benchmarks.exhaustive import Exhaustive, every_genotype, part_of
from tests.benchmarks.race.tables import Column, Table, TableSpace, write_table

HEADS, WIDTHS = (3, 12), (256, 1536)
BATCH = 64
ALONE = 25
"""Networks that are also computed without sharing."""
TIMING = TimingSettings(min_rounds=10, max_rounds=20, tolerance=0.02)
REORDERED = 40
"""Shapes of which a second network is timed."""


def main() -> None:
    """Evaluate, time, check, write."""
    options = _options()
    quiet()
    torch.set_num_threads(options.threads)
    job = Job.open(options.folder, options.networks, options.sentences)
    wrong_NS = job.wrong()
    differing = job.differing(options.check)
    with StudyStore.open(f"sqlite:///{job.folder / 'latency.db'}") as store:
        latencies = job.latencies(store)
    table = job.table(wrong_NS, latencies.measured_N)
    if options.networks is None and options.sentences is None:
        write_table(options.output, table)
    report(job, table, wrong_NS, latencies, differing, options.output)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), help="of the demo; its supernet is made if missing"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "minilm.npz")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", type=int, help="a random part of the networks, as a trial: no table is written")
    parser.add_argument("--sentences", type=int, help="a random part of the sentences, as a trial: no table is written")
    parser.add_argument("--check", type=int, default=ALONE, help="networks that are also computed alone")
    return parser.parse_args()


Shape = tuple[tuple[tuple[str, int], ...], ...]


def shape_of(architecture: Architecture) -> Shape:
    """The sizes of its layers whatever their order: networks that do the same operations."""
    return tuple(sorted(layer.units for layer in architecture.layers))


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Milliseconds of N networks.

    Attributes:
        measured_N: of one network per shape, as a whole; shared by all of that shape.
        composed_N: of operations.
        shapes: distinct ones.
        order_matters: median relative difference of two networks of one shape, noise included.
    """

    measured_N: NDArray[np.float64]
    composed_N: NDArray[np.float64]
    shapes: int
    order_matters: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is evaluated.

    Attributes:
        folder: of what is done so far.
        genotypes: N networks of `space`.
        positions: S sentences of the validation split, in random order; the first half is A.
        context: of the latencies.
    """

    folder: Path
    opened: OpenSupernet
    space: SearchSpace
    genotypes: list[Genotype]
    positions: list[int]
    context: Context

    @classmethod
    def open(cls, folder: Path, networks: int | None = None, sentences: int | None = None) -> Job:
        """The demo's supernet, tuned if it is not there yet; what is done is kept apart for every question."""
        workspace = Workspace(folder.resolve())
        if not workspace.supernet.exists():
            tune_supernet(demo_request(workspace.root, DemoSettings()), workspace, _tuned)
        return cls.of(open_supernet(workspace.supernet), workspace.root / "table", networks, sentences)

    @classmethod
    def of(
        cls,
        opened: OpenSupernet,
        folder: Path,
        networks: int | None = None,
        sentences: int | None = None,
        heads: tuple[int, ...] = HEADS,
        widths: tuple[int, ...] = WIDTHS,
    ) -> Job:
        """The same for a supernet that is loaded already."""
        task, supernet = opened.task, opened.supernet
        space = part_of(supernet.space, heads, widths)
        genotypes = every_genotype(space)
        if networks is not None:
            genotypes = sorted(random.Random(0).sample(genotypes, networks))
        positions = list(range(task.size(VALIDATION)))
        random.Random(1).shuffle(positions)
        positions = positions[:sentences]
        (length,) = task.length_quantiles(TRAIN, 1)
        question = [supernet.hash, space.fingerprint, genotypes, positions, task.data_hash(VALIDATION), BATCH]
        (folder := folder / content_hash(question)).mkdir(parents=True, exist_ok=True)
        context = Context(batch=8, sequences=(length,))
        return cls(folder=folder, opened=opened, space=space, genotypes=genotypes, positions=positions, context=context)

    @property
    def half(self) -> int:
        """Sentences of A."""
        return len(self.positions) // 2

    def wrong(self) -> NDArray[np.bool_]:
        """Whether a network errs on a sentence, ``[N, S]``, A before B."""
        task = self.opened.task
        precision = resolve_precision("auto", "cpu")
        tree = Exhaustive(self.opened.supernet, self.space, self.genotypes, precision)
        place = {position: column for column, position in enumerate(self.positions)}
        wrong_NS = np.empty((len(self.genotypes), len(self.positions)), dtype=bool)
        batches = list(task.batches(VALIDATION, BATCH, indices=self.positions))
        for number, batch in enumerate(batches, 1):
            start, path = time.monotonic(), self.folder / f"batch-{number:03d}.npy"
            if not path.exists():
                draft = path.with_suffix(".partial.npy")
                np.save(draft, tree.classes(batch))
                draft.replace(path)
                seconds = time.monotonic() - start
                print(f"  batch {number} of {len(batches)}: {seconds:.0f} s", flush=True)
            assert batch.labels is not None
            columns = [place[position] for position in batch.indices.tolist()]
            wrong_NS[:, columns] = np.load(path) != batch.labels.numpy()
        return wrong_NS

    def differing(self, count: int) -> float:
        """Share of predictions that differ when some networks are computed alone, in the same batches."""
        supernet, task = self.opened.supernet, self.opened.task
        found = np.concatenate(
            [np.load(path) for path in sorted(self.folder.glob("batch-???.npy"))], axis=1
        )  # columns in the order of the batches, as are the logits below once sorted alike
        order = np.concatenate([b.indices.numpy() for b in task.batches(VALIDATION, BATCH, indices=self.positions)])
        rows = random.Random(2).sample(range(len(self.genotypes)), min(count, len(self.genotypes)))
        shares = []
        for row in rows:
            with supernet.active(self.space.decode(self.genotypes[row])):
                logits, _ = predict_logits(
                    supernet,
                    task,
                    VALIDATION,
                    batch_size=BATCH,
                    precision=resolve_precision("auto", "cpu"),
                    indices=self.positions,
                )
            shares.append(np.mean(logits.argmax(-1).numpy() != found[row][np.argsort(order)]))
        return float(np.mean(shares)) if shares else float("nan")

    def latencies(self, store: StudyStore) -> Latencies:
        """Time one network of every shape, and for some shapes another whose layers stand in another order."""
        supernet, backend = self.opened.supernet, load_backend("cpu")
        composed = latency_table(supernet, [self.context], store, backend, settings=TIMING)
        architectures = [supernet.space.decode(self._in_whole(genotype)) for genotype in self.genotypes]
        alike: dict[Shape, list[Architecture]] = {}
        for architecture in architectures:
            alike.setdefault(shape_of(architecture), []).append(architecture)
        first_ms = self._timed([group[0] for group in alike.values()], store)
        of_shape = dict(zip(alike, first_ms, strict=True))
        again = [(ms, group[-1]) for ms, group in zip(first_ms, alike.values(), strict=True) if len(group) > 1]
        again = again[:: max(1, len(again) // REORDERED)]
        last_ms = self._timed([architecture for _, architecture in again], store)
        predicted = [composed.predict(supernet.ops(a, self.context), self.context).seconds for a in architectures]
        return Latencies(
            measured_N=np.array([of_shape[shape_of(a)] for a in architectures]),
            composed_N=1e3 * np.array(predicted),
            shapes=len(alike),
            order_matters=float(np.median(np.abs(last_ms / np.array([ms for ms, _ in again]) - 1))) if again else 0.0,
        )

    def _timed(self, architectures: list[Architecture], store: StudyStore) -> NDArray[np.float64]:
        backend, start = load_backend("cpu"), time.monotonic()
        timed = measure_networks(
            self.opened.supernet,
            architectures,
            self.context,
            backend,
            settings=TIMING,
            stored=store.measurements(backend.detect().fingerprint),
            on_measured=lambda row: store.put_measurements([row]),
        )
        print(f"  timed {len(timed)} networks in {time.monotonic() - start:.0f} s", flush=True)
        return np.array([1e3 * latency.seconds for latency in timed])

    def _in_whole(self, genotype: Genotype) -> Genotype:
        return self.opened.supernet.space.encode(self.space.decode(genotype))

    def table(self, wrong_NS: NDArray[np.bool_], latency_N: NDArray[np.float64]) -> Table:
        """The table a race reads."""
        supernet, half = self.opened.supernet, self.half
        seen, scored = wrong_NS[:, :half].mean(axis=1), wrong_NS[:, half:].mean(axis=1)
        architectures = [self.space.decode(genotype) for genotype in self.genotypes]
        parameters = np.array([float(supernet.count_parameters(a)) for a in architectures])
        space = TableSpace(self.space.family, self.space.num_layers, self.space.layer_order, self.space.choices)
        typical = float(np.sqrt(seen * (1 - seen) / half).mean())
        return Table(
            name="minilm",
            space=space,
            genotypes=np.array(self.genotypes),
            columns=(
                Column(objective=Objective(name="error", unit="fraction"), seen=seen, scored=scored, noise=typical),
                _exact("latency", "ms", latency_N),
                _exact("parameters", "parameters", parameters),
            ),
            source=f"demo supernet {supernet.hash}, {half} + {len(self.positions) - half} validation sentences, "
            f"latency at {self.context.key} on {load_backend('cpu').detect().name}",
        )


def _exact(name: str, unit: str, numbers: NDArray[np.float64]) -> Column:
    return Column(objective=Objective(name=name, unit=unit), seen=numbers, scored=numbers, exact=True)


def report(
    job: Job,
    table: Table,
    wrong_NS: NDArray[np.bool_],
    latencies: Latencies,
    differing: float,
    output: Path,
) -> None:
    """Print what the table is worth, and the last line."""
    error, latency = table.columns[0], table.columns[1].seen
    half, largest = job.half, int(np.argmax(table.columns[2].seen))
    composed_error = float(np.median(np.abs(latencies.composed_N / latency - 1)))
    facts: dict[str, Any] = {
        "networks": len(job.genotypes),
        "sentences": [half, len(job.positions) - half],
        "errors": [float(error.seen.min()), float(error.seen.max())],
        "largest_error": [float(error.seen[largest]), float(error.scored[largest])],
        "rank_correlation_of_the_halves": _kendall(error.seen, error.scored),
        "latency_ms": [float(latency.min()), float(latency.max())],
        "shapes_timed": latencies.shapes,
        "order_matters_by": latencies.order_matters,
        "composed_latency_off_by": composed_error,
        "differing_predictions": differing,
        "hash": table.hash,
        "file": str(output) if output.exists() else None,
    }
    print_table(("fact", "value"), [(name, str(value)) for name, value in facts.items()])
    assert wrong_NS.shape == (len(job.genotypes), len(job.positions))
    finish(facts)


def _kendall(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic)


def _tuned(name: str, progress: Any) -> None:
    if progress.step % 50 == 0:
        print(f"  training the {name}: {progress.step} of {progress.steps}", flush=True)


if __name__ == "__main__":
    main()
