"""In-supernet forward against the extracted sub-network, and the time to switch. `make bench-supernet`

Random sub-networks of MiniLM's default space, with units and layers in a random order of importance. For every one, the
forward pass inside the supernet and that of the extracted network take turns; their ratio is the median over the turns.
Switching is entering and leaving `Supernet.active` and making every view the sub-network needs, without a forward pass.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from kernels.device import DeviceBackend, load_backend
from kernels.timing import TimingSettings, time_paired
from supernets.checkpoint import load_classifier
from supernets.space import Architecture
from supernets.supernet import Supernet
from supernets.weights import ElasticLinear
from tests.benchmarks.common import RESULTS, finish, model_folder, print_table, quiet, write_rows

Row = dict[str, Any]
TIMING = TimingSettings(min_rounds=7, max_rounds=15, tolerance=0.02)
SWITCHES = 50


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--full", action="store_true", help="200 architectures, raw rows kept")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    count = 200 if options.full else options.architectures
    inputs = random_inputs(options.batch, options.length)
    supernet, exact = checked_supernet(inputs)
    backend = load_backend("cpu")
    rows = []
    for number, architecture in enumerate(random_architectures(supernet, count), 1):
        rows.append(measured(supernet, architecture, inputs, backend, options.threads))
        print(
            f"  {number}/{count}  forward ratio {rows[-1]['ratio']:.3f}  switch {rows[-1]['switch_ms']:.3f} ms",
            flush=True,
        )
    exact["active = extracted = reloaded"] = all(row["bit_exact"] for row in rows)
    context = {"threads": options.threads, "batch": options.batch, "length": options.length}
    if options.full:
        about = {**context, "device": backend.detect().fingerprint, "supernet": supernet.hash}
        write_rows(RESULTS / "supernet.jsonl", rows, about)
    report(rows, exact, context)


def random_inputs(batch: int, length: int) -> dict[str, Tensor]:
    """Seeded tokens without padding."""
    tokens_BT = torch.randint(1000, 30000, (batch, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT)}


def random_architectures(supernet: Supernet, count: int) -> list[Architecture]:
    """Distinct ones, always the same."""
    rng, genotypes = random.Random(0), dict[tuple[int, ...], None]()
    while len(genotypes) < count:
        genotypes[supernet.space.sample(rng)] = None
    return [supernet.space.decode(genotype) for genotype in genotypes]


@torch.no_grad()
def checked_supernet(inputs: dict[str, Tensor]) -> tuple[Supernet, dict[str, bool]]:
    """The supernet after a random reordering, and what holds of wrapping and reordering."""
    model = load_classifier(str(model_folder()), ("negative", "positive")).model
    original = model(**inputs).logits
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    supernet = Supernet.wrap(model)
    space, rng = supernet.space, random.Random(1)
    with supernet.active(space.decode(space.largest)):
        before = supernet(**inputs).logits
    wrapped = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    supernet.reorder({(g.axis, g.layer): rng.sample(range(g.units), g.units) for g in supernet.groups})
    supernet.space = space.reordered(rng.sample(range(space.num_layers), space.num_layers))
    with supernet.active(space.decode(space.largest)):
        after = supernet(**inputs).logits
    return supernet, {
        "wrapping copies no weight": wrapped == addresses,
        "largest = original": torch.equal(before, original),
        "reordered within 1e-6": float((after - original).abs().max()) <= 1e-6,
        "reordered predicts the same": torch.equal(after.argmax(-1), original.argmax(-1)),
    }


@torch.no_grad()
def measured(
    supernet: Supernet, architecture: Architecture, inputs: dict[str, Tensor], backend: DeviceBackend, threads: int
) -> Row:
    """Ratio, switching time and equality of one sub-network."""
    extracted = supernet.extract(architecture)
    with supernet.active(architecture):
        inside = supernet(**inputs).logits
        (timing,) = time_paired(
            [lambda: supernet(**inputs)],
            backend=backend,
            reference=lambda: extracted(**inputs),
            threads=threads,
            settings=TIMING,
        )
    reloaded = reload(extracted)
    return {
        "architecture": architecture.key,
        "ratio": timing.seconds_median / timing.reference_seconds,
        "inside_ms": 1e3 * timing.seconds_median,
        "extracted_ms": 1e3 * timing.reference_seconds,
        "noisy": timing.noisy,
        "switch_ms": switch_ms(supernet, architecture, backend),
        "bit_exact": all(torch.equal(inside, network(**inputs).logits) for network in (extracted, reloaded)),
    }


def reload(network: Any) -> Any:
    """The network again, from a checkpoint on disk."""
    folder = Path(tempfile.mkdtemp())
    try:
        network.save_pretrained(folder)
        return type(network).from_pretrained(folder).eval()
    finally:
        shutil.rmtree(folder)


def switch_ms(supernet: Supernet, architecture: Architecture, backend: DeviceBackend) -> float:
    """Median time to make a sub-network active and to leave it, coming from the smallest one."""
    smallest = supernet.space.decode(supernet.space.smallest)
    there, back = (switching(supernet, target) for target in (architecture, smallest))
    times = []
    for _ in range(SWITCHES):
        back()
        times.append(1e3 * backend.sample(there, loops=1, threads=1).seconds)
    return median(times)


def switching(supernet: Supernet, architecture: Architecture) -> Callable[[], None]:
    """Enter, make the views of all kept layers, leave."""
    used = [
        module
        for module in supernet.model.modules()
        if isinstance(module, ElasticLinear) and module.slot.weight_cuts[0].group.layer in architecture.by_index
    ]

    def switch() -> None:
        with supernet.active(architecture):
            for module in used:
                module.active_weights()

    return switch


def report(rows: list[Row], exact: dict[str, bool], context: dict[str, int]) -> None:
    """Tables and the result line."""
    print_table(["check", "holds"], [(name, "yes" if holds else "NO") for name, holds in exact.items()])
    ratios = [row["ratio"] for row in rows]
    switches = [row["switch_ms"] for row in rows]
    print_table(
        ["over architectures", "median", "worst"],
        [
            ("in-supernet / extracted", median(ratios), max(ratios)),
            ("switch, ms", median(switches), max(switches)),
            (
                "extracted forward, ms",
                median(row["extracted_ms"] for row in rows),
                max(r["extracted_ms"] for r in rows),
            ),
        ],
    )
    print(f"{sum(row['noisy'] for row in rows)} of {len(rows)} ratios did not settle within {TIMING.max_rounds} turns")
    finish(
        {
            "forward_ratio_vs_extracted": median(ratios),
            "forward_ratio_worst": max(ratios),
            "switch_ms": median(switches),
            "bit_exact": all(exact.values()),
            "architectures": len(rows),
            **context,
        }
    )


if __name__ == "__main__":
    main()
