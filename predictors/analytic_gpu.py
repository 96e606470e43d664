"""Latencies of GPUs that are not here, from their data sheets: a ranking, never a measurement.

A matrix product is cut into tiles, one per multiprocessor at a time. A wave of tiles takes as long as one, which is
bound by arithmetic or by its share of the bandwidth; a product takes whole waves. What is no product is bound by the
bytes it touches. The host starts every kernel, and where that takes longer than the kernel, it is what counts. Data
sheets give peaks that are never reached, so that the seconds are too few; their order is what is meant. (Waves of
tiles: RaMP, arXiv 2604.26039; arithmetic or bandwidth: Williams et al., Communications of the ACM 2009.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kernels.op_spec import BYTES_PER_ELEMENT, Context, OpSpec
from predictors.predictor import Prediction

TILE_ROWS, TILE_COLUMNS = (16, 32, 64), 64
"""Tiles have as many rows as the product needs, of these."""
LAUNCH_SECONDS = 1e-5
"""Of the host, per kernel, where Python calls torch operations one by one: 5 to 15 microseconds are usual."""
_KERNEL_SECONDS = 2e-6
"""A kernel takes at least that long on the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """What a data sheet says.

    Attributes:
        multiprocessors: streaming multiprocessors, or compute units.
        flops: peak per second by dtype, dense, of matrix units where torch uses them by default.
        bandwidth: of the memory, in bytes per second.
        source: of the figures.
    """

    multiprocessors: int
    flops: Mapping[str, float]
    bandwidth: float
    source: str


def _gpu(multiprocessors: int, tera_float32: float, tera_half: float | None, giga_bytes: float, source: str) -> Gpu:
    half = tera_half or tera_float32
    tera = {"float32": tera_float32, "float16": half, "bfloat16": half}
    return Gpu(
        multiprocessors=multiprocessors,
        flops={dtype: 1e12 * value for dtype, value in tera.items()},
        bandwidth=1e9 * giga_bytes,
        source=source,
    )


GPUS: Mapping[str, Gpu] = {
    "titan-xp": _gpu(30, 12.15, None, 547.7, "NVIDIA TITAN Xp product page, 2017"),
    "v100": _gpu(80, 15.7, 125, 900, "NVIDIA V100 data sheet, SXM2, 2020"),
    "titan-rtx": _gpu(72, 16.3, 130, 672, "NVIDIA Turing architecture white paper, 2018"),
    "t4": _gpu(40, 8.1, 65, 320, "NVIDIA T4 data sheet, 2019"),
    "a100": _gpu(108, 19.5, 312, 2039, "NVIDIA A100 data sheet, SXM 80 GB, 2022"),
    "h100": _gpu(132, 67, 989, 3350, "NVIDIA H100 data sheet, SXM, dense, 2023"),
    "mi300x": _gpu(304, 163.4, 1307, 5300, "AMD Instinct MI300X data sheet, 2023"),
}


@dataclass(frozen=True, slots=True)
class AnalyticGpu:
    """Predicts latencies on a GPU from its data sheet alone. Implements `LatencyPredictor`.

    What it says has provenance ``analytic``; it was compared with no measurement, so its bounds are 0 and infinity.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in GPUS:
            raise ValueError(f"unknown GPU {self.name!r}; known are {', '.join(GPUS)}")

    @property
    def gpu(self) -> Gpu:
        """Its data sheet."""
        return GPUS[self.name]

    @property
    def device(self) -> str:
        """``analytic-`` and the name: no fingerprint, because nothing was there to take one from."""
        return f"analytic-{self.name}"

    @property
    def error(self) -> float | None:
        """Unknown."""
        return None

    def predict(self, ops: Sequence[OpSpec], context: Context) -> Prediction:
        """Seconds of one forward pass, the mean over the lengths of `context`."""
        seconds = sum(operation_seconds(op, self.gpu) for op in ops) / len(context.sequences)
        return Prediction(seconds=seconds, low=0.0, high=math.inf)


def operation_seconds(op: OpSpec, gpu: Gpu) -> float:
    """Seconds of one operation: what the host takes to start it, or the device to run it, whichever is more."""
    if op.context.dtype not in gpu.flops:
        raise ValueError(f"no peak is known for {op.context.dtype}; known are {', '.join(gpu.flops)}")
    products = list(_products(op))
    arithmetic = sum(product.seconds(gpu, op.context.dtype) for product in products)
    if not products:
        arithmetic = op.flops / gpu.flops[op.context.dtype]
    device = max(arithmetic, op.bytes / gpu.bandwidth, op.launches * _KERNEL_SECONDS)
    return max(device, op.launches * LAUNCH_SECONDS)


@dataclass(frozen=True, slots=True)
class _Product:
    """`count` independent products of (rows, depth) and (depth, columns)."""

    rows: int
    columns: int
    depth: int
    count: int = 1

    def seconds(self, gpu: Gpu, dtype: str) -> float:
        """Waves of tiles."""
        height = next((rows for rows in TILE_ROWS if rows >= self.rows), TILE_ROWS[-1])
        tiles = self.count * math.ceil(self.rows / height) * math.ceil(self.columns / TILE_COLUMNS)
        arithmetic = 2 * height * TILE_COLUMNS * self.depth / gpu.flops[dtype]
        moved = (height + TILE_COLUMNS) * self.depth * BYTES_PER_ELEMENT[dtype] / gpu.bandwidth
        return math.ceil(tiles / gpu.multiprocessors) * gpu.multiprocessors * max(arithmetic, moved)


def _products(op: OpSpec) -> Iterator[_Product]:
    """The matrix products of an operation; none where it has none, or none that are known."""
    size, batch, new, cached = op.size, op.context.batch, op.context.sequences[0], op.context.cached
    match op.kind:
        case "linear":
            yield _Product(size["rows"], size["out"], size["in"])
        case "feed_forward":
            yield _Product(batch * new, size["width"], size["hidden"])
            yield _Product(batch * new, size["hidden"], size["width"])
        case "attention_block":
            inner = size["heads"] * size["head_dim"]
            yield _Product(batch * new, inner, size["hidden"], count=3)
            yield from _attention(batch, size["heads"], size["head_dim"], new, cached)
            yield _Product(batch * new, size["hidden"], inner)
        case "attention":
            yield from _attention(batch, size["heads"], size["head_dim"], new, cached)


def _attention(batch: int, heads: int, head_dim: int, new: int, cached: int) -> Iterator[_Product]:
    yield _Product(new, cached + new, head_dim, count=batch * heads)
    yield _Product(new, head_dim, cached + new, count=batch * heads)
