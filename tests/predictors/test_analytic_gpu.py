import math
from dataclasses import replace

import pytest

from kernels import op_cost
from kernels.launch_config import ARCHITECTURES, config_for
from kernels.op_spec import Context
from predictors.analytic_gpu import GPUS, LAUNCH_SECONDS, TILE_COLUMNS, TILE_ROWS, AnalyticGpu, operation_seconds

CONTEXT = Context(sequences=(256,))
LARGE = Context(batch=64, sequences=(256,))


def test_small_operations_are_bound_by_their_launches() -> None:
    block = op_cost.attention_block(64, 2, 32, Context(sequences=(8,)))
    assert operation_seconds(block, GPUS["a100"]) == pytest.approx(block.launches * LAUNCH_SECONDS)


def test_large_products_approach_the_peak_from_below() -> None:
    spec, gpu = op_cost.linear(4096, 4096, 8192, CONTEXT), GPUS["a100"]
    ideal = spec.flops / gpu.flops["float32"]
    assert ideal <= operation_seconds(spec, gpu) < 2 * ideal


def test_a_wave_is_paid_whole() -> None:
    gpu = GPUS["t4"]
    seconds = [
        operation_seconds(op_cost.linear(8192, tiles * TILE_COLUMNS, TILE_ROWS[-1], CONTEXT), gpu)
        for tiles in (gpu.multiprocessors - 1, gpu.multiprocessors, gpu.multiprocessors + 1)
    ]
    assert seconds[0] == seconds[1]
    assert seconds[2] == pytest.approx(2 * seconds[1])


def test_what_is_no_product_is_bound_by_bytes() -> None:
    spec, gpu = op_cost.norm(4096, LARGE), GPUS["v100"]
    assert operation_seconds(spec, gpu) == pytest.approx(spec.bytes / gpu.bandwidth)


def test_tiles_are_those_of_the_compiled_kernels_where_there_are_any() -> None:
    """One column more than a whole number of the kernel's tiles costs every multiprocessor's worth of another tile."""
    gpu, rows = GPUS["a100"], 8192
    context = Context(sequences=(256,), dtype="bfloat16")
    columns = config_for("elastic_linear", rows=rows, width=4096, dtype="bfloat16", arch="sm_80").block_n
    narrow, exact, over = (
        operation_seconds(op_cost.linear(4096, size, rows, context), gpu)
        for size in (27 * columns - 16, 27 * columns, 27 * columns + 16)
    )
    assert narrow == exact < over


def test_little_under_way_starves_the_bandwidth() -> None:
    """One long tile on one multiprocessor: past what it has under way, a faster memory gains it nothing."""
    spec, a100 = op_cost.linear(2**22, 64, 16, Context(sequences=(16,), dtype="bfloat16")), GPUS["a100"]
    gpus = [replace(a100, bandwidth=factor * a100.bandwidth) for factor in (1, 16, 64)]
    usual, faster, fastest = (operation_seconds(spec, gpu) for gpu in gpus)
    assert usual > faster == fastest
    assert operation_seconds(spec, replace(gpus[-1], architecture="")) < fastest


@pytest.mark.parametrize("name", ["a100", "h100", "mi300x"])
def test_experts_cost_by_their_tiles(name: str) -> None:
    """Busy experts, not FLOPs, decide: twice the experts for the same tokens take longer."""
    context = Context(sequences=(512,), dtype="bfloat16")
    few, many = (op_cost.moe(4096, experts, 2, 4096, context, implementation="triton") for experts in (8, 64))
    assert operation_seconds(few, GPUS[name]) < operation_seconds(many, GPUS[name])
    mixed = op_cost.moe(4096, 8, 2, [1024] * 4 + [4096] * 4, context, implementation="triton")
    assert operation_seconds(mixed, GPUS[name]) < operation_seconds(few, GPUS[name])


def test_how_many_blocks_a_multiprocessor_holds() -> None:
    """The limits one by one: warps, registers, shared memory, after NVIDIA's own occupancy table."""
    sm_80 = ARCHITECTURES["sm_80"]
    assert sm_80.resident_blocks(warps=4, registers=32, shared_bytes=0) == 16
    assert sm_80.resident_blocks(warps=4, registers=255, shared_bytes=0) == 2
    assert sm_80.resident_blocks(warps=4, registers=32, shared_bytes=48 * 1024) == 3
    assert sm_80.resident_blocks(warps=4, registers=32, shared_bytes=sm_80.shared_bytes + 1024) == 0


@pytest.mark.parametrize("name", GPUS)
def test_wider_networks_take_longer_on_every_gpu(name: str) -> None:
    model = AnalyticGpu(name)
    seconds = [model.predict([op_cost.feed_forward(768, width, LARGE)], LARGE).seconds for width in (512, 1536, 3072)]
    assert seconds == sorted(seconds)
    assert seconds[0] < seconds[-1]
    assert "20" in GPUS[name].source, "every figure says where it is from"


def test_a_faster_memory_helps_and_nothing_is_claimed_to_be_known() -> None:
    spec = op_cost.attention(32, 8, 128, Context(batch=64).generating(prompt=4096, step=1))
    assert operation_seconds(spec, GPUS["h100"]) < operation_seconds(spec, GPUS["t4"])
    prediction = AnalyticGpu("h100").predict([spec], spec.context)
    assert (prediction.low, prediction.high) == (0.0, math.inf)
    assert AnalyticGpu("h100").error is None
    assert AnalyticGpu("h100").device == "analytic-h100"


def test_unknown_gpus_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown GPU 'abacus'; known are titan-xp, v100"):
        AnalyticGpu("abacus")
    for name, dtype in (("t4", "bfloat16"), ("titan-xp", "float16")):
        with pytest.raises(ValueError, match=f"no peak is known for {dtype}; known are float32"):
            operation_seconds(op_cost.linear(8, 8, 8, Context(dtype=dtype)), GPUS[name])
    with pytest.raises(ValueError, match="no peak is known for int8; known are float32"):
        operation_seconds(op_cost.linear(8, 8, 8, Context(dtype="int8")), GPUS["a100"])
