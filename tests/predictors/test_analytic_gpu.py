import math

import pytest

from kernels import op_cost
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
    with pytest.raises(ValueError, match="no peak is known for int8; known are float32"):
        operation_seconds(op_cost.linear(8, 8, 8, Context(dtype="int8")), GPUS["a100"])
