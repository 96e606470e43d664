"""Latencies of GPUs that are not here, by data sheet and compiled kernels: a ranking, never a measurement.

A matrix product is cut into tiles, which the multiprocessors share. A tile is bound by arithmetic or by bandwidth, and
the multiprocessor with the most tiles decides. What is no product is bound by the bytes it touches. The host starts
every kernel, and where that takes longer than the kernel, it is what counts. Data sheets give peaks that are never
reached, so that the seconds are too few; their order is what is meant. (Waves of tiles: RaMP, arXiv 2604.26039;
arithmetic or bandwidth: Williams et al., Communications of the ACM 2009.)

For an architecture that our kernels are compiled for, tiles are those of the kernels, and the compile report says how
many blocks a multiprocessor holds and how many bytes each of them has under way. A memory that answers after
`LATENCY_SECONDS` gives no more than what is under way in that time (Little's law). Other GPUs get a tile by rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kernels.compile_report import Cell, recorded_result
from kernels.launch_config import config_for
from kernels.op_cost import expert_widths
from kernels.op_spec import BYTES_PER_ELEMENT, Context, OpSpec
from kernels.routing_profile import RoutingProfile, histogram, positions
from predictors.predictor import Prediction

TILE_ROWS, TILE_COLUMNS = (16, 32, 64), 64
"""Where no kernel was compiled, tiles have as many rows as the product needs, of these."""
LATENCY_SECONDS = 6e-7
"""Of the memory of a GPU: 400 to 800 nanoseconds are usual."""
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
        architecture: whose compile reports hold; empty if our kernels are not compiled for it.
    """

    multiprocessors: int
    flops: Mapping[str, float]
    bandwidth: float
    source: str
    architecture: str = ""


def _gpu(
    multiprocessors: int,
    tera_float32: float,
    tera_half: float | None,
    giga_bytes: float,
    source: str,
    architecture: str = "",
) -> Gpu:
    """All architectures with compiled kernels compute bfloat16 as fast as float16; older ones do not have it."""
    tera = {"float32": tera_float32}
    if tera_half is not None:
        tera |= {"float16": tera_half} | ({"bfloat16": tera_half} if architecture else {})
    return Gpu(
        multiprocessors=multiprocessors,
        flops={dtype: 1e12 * value for dtype, value in tera.items()},
        bandwidth=1e9 * giga_bytes,
        source=source,
        architecture=architecture,
    )


GPUS: Mapping[str, Gpu] = {
    "titan-xp": _gpu(30, 12.15, None, 547.7, "NVIDIA TITAN Xp product page, 2017"),
    "v100": _gpu(80, 15.7, 125, 900, "NVIDIA V100 data sheet, SXM2, 2020"),
    "titan-rtx": _gpu(72, 16.3, 130, 672, "NVIDIA Turing architecture white paper, 2018"),
    "t4": _gpu(40, 8.1, 65, 320, "NVIDIA T4 data sheet, 2019"),
    "a100": _gpu(108, 19.5, 312, 2039, "NVIDIA A100 data sheet, SXM 80 GB, 2022", "sm_80"),
    "h100": _gpu(132, 67, 989, 3350, "NVIDIA H100 data sheet, SXM, dense, 2023", "sm_90"),
    "mi300x": _gpu(304, 163.4, 1307, 5300, "AMD Instinct MI300X data sheet, 2023", "gfx942"),
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
class _Tile:
    """Rows and columns of one tile; blocks that a multiprocessor holds, and the bytes each has under way."""

    rows: int
    columns: int
    resident: float = math.inf
    under_way: float = math.inf


@dataclass(frozen=True, slots=True)
class _Product:
    """Products of one launch: (rows, depth) times (depth, columns) for each part, all of it `count` times."""

    parts: tuple[tuple[int, int], ...]
    depth: int
    count: int = 1
    kernel: str = "elastic_linear"

    def seconds(self, gpu: Gpu, dtype: str) -> float:
        """As long as the multiprocessor with the most tiles takes."""
        tile = _compiled_tile(self, gpu.architecture, dtype) if gpu.architecture else _usual_tile(self)
        tiles = sum(math.ceil(rows / tile.rows) * math.ceil(columns / tile.columns) for rows, columns in self.parts)
        share = math.ceil(self.count * tiles / gpu.multiprocessors)
        under_way = min(share, tile.resident) * tile.under_way
        bandwidth = min(gpu.bandwidth / gpu.multiprocessors, under_way / LATENCY_SECONDS)
        arithmetic = 2 * tile.rows * tile.columns * self.depth / gpu.flops[dtype] * gpu.multiprocessors
        moved = (tile.rows + tile.columns) * self.depth * BYTES_PER_ELEMENT[dtype] / bandwidth
        return share * max(arithmetic, moved)


def _usual_tile(product: _Product) -> _Tile:
    most = max(rows for rows, _ in product.parts)
    return _Tile(next((rows for rows in TILE_ROWS if rows >= most), TILE_ROWS[-1]), TILE_COLUMNS)


def _compiled_tile(product: _Product, architecture: str, dtype: str) -> _Tile:
    """The tile that our kernel has there, with what its compile report says; float16 is compiled like bfloat16."""
    compiled_as = "float32" if dtype == "float32" else "bfloat16"
    rows = math.ceil(sum(rows for rows, _ in product.parts) / len(product.parts))
    config = config_for(product.kernel, rows=rows, width=product.depth, dtype=compiled_as, arch=architecture)
    report = recorded_result(Cell(kernel=product.kernel, architecture=architecture, dtype=compiled_as, config=config))
    columns = (2 if product.kernel == "moe_up" else 1) * config.block_n
    return _Tile(config.block_m, columns, report.resident_blocks, report.shared_bytes)


def _products(op: OpSpec) -> Iterator[_Product]:
    """The matrix products of an operation; none where it has none, or none that are known."""
    size, batch, new, cached = op.size, op.context.batch, op.context.sequences[0], op.context.cached
    tokens = batch * new
    match op.kind:
        case "linear":
            yield _Product(((size["rows"], size["out"]),), size["in"])
        case "feed_forward":
            yield _Product(((tokens, size["width"]),), size["hidden"])
            yield _Product(((tokens, size["hidden"]),), size["width"])
        case "attention_block":
            inner = size["heads"] * size["head_dim"]
            yield _Product(((tokens, inner),), size["hidden"], count=3)
            yield from _attention(batch, size["heads"], size["head_dim"], new, cached)
            yield _Product(((tokens, size["hidden"]),), inner)
        case "attention":
            yield from _attention(batch, size["heads"], size["head_dim"], new, cached)
        case "moe":
            yield from _experts(op, tokens)


def _attention(batch: int, heads: int, head_dim: int, new: int, cached: int) -> Iterator[_Product]:
    yield _Product(((new, cached + new),), head_dim, count=batch * heads)
    yield _Product(((new, head_dim),), cached + new, count=batch * heads)


def _experts(op: OpSpec, tokens: int) -> Iterator[_Product]:
    """Router; gate and up of all busy experts in one launch, down of all in another; shared experts."""
    size = op.size
    hidden, experts, shared = size["hidden"], size["experts"], size.get("shared", 0)
    counts, widths = histogram(tokens, size["top_k"], RoutingProfile.parse(op.routing)), expert_widths(size)
    busy = [(count, widths[at]) for count, at in zip(counts, positions(len(counts), experts), strict=True)]
    yield _Product(((tokens, experts),), hidden)
    yield _Product(tuple((count, 2 * width) for count, width in busy), hidden, kernel="moe_up")
    mean_width = round(sum(width for _, width in busy) / len(busy))
    yield _Product(tuple((count, hidden) for count, _ in busy), mean_width, kernel="moe_down")
    if shared:
        yield _Product(((tokens, 2 * shared),), hidden)
        yield _Product(((tokens, hidden),), shared)
