"""Layer by layer gives the numbers of the whole model, in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from supernets.calibration import calibrate
from supernets.elastic_experts import build_block
from supernets.expert_bank import MoeLayer, moe_layers
from supernets.layer_stream import LayerStream, calibrate_streamed, streamed_nll
from supernets.reduction import CalibratedLayer, reduce_layer
from supernets.repair import next_token_loss
from supernets.routing_statistics import tensors_of
from tests.toy_moe import CONFIGS, toy_batches, toy_moe

BATCHES = toy_batches(batches=2)


def saved_in(folder: Path) -> Path:
    """A checkpoint of any kind."""
    saved("qwen3_moe", folder)
    return folder


def saved(kind: str, folder: Path, **changes: Any) -> Any:
    """A toy model and its checkpoint."""
    model: Any = toy_moe(kind, **changes)
    model.save_pretrained(folder)
    model.set_attn_implementation("sdpa" if kind != "gpt_oss" else "eager")
    return model


def padded_batch() -> dict[str, torch.Tensor]:
    """A batch in which one text is shorter."""
    ids = BATCHES[0]["input_ids"]
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_outputs_and_statistics_are_those_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    model, batches = saved(kind, tmp_path), [*BATCHES, padded_batch()]
    stream = LayerStream(tmp_path)
    for batch, hidden_BLD in zip(batches, stream.run(batches), strict=True):
        wanted = model(**batch).logits
        torch.testing.assert_close(stream.logits(hidden_BLD), wanted, rtol=1e-5, atol=1e-5)
    assert all(tensor.is_meta for tensor in stream.model.parameters())
    one, other = calibrate(model, batches, seed=3), calibrate_streamed(tmp_path, batches, seed=3)
    assert set(one.layers) == set(other.layers)
    for index, layer in one.layers.items():
        for name, tensor in tensors_of(layer).items():
            assert torch.equal(tensor, getattr(other.layer(index), name)), name


@torch.no_grad()
def test_a_candidate_is_evaluated_as_in_memory(tmp_path: Path) -> None:
    model = saved("qwen3_moe", tmp_path)
    statistics = calibrate(model, BATCHES)

    def reduced(layer: MoeLayer) -> nn.Module:
        found = reduce_layer(CalibratedLayer.of(layer, statistics), "m-smoe", 3 + layer.index)
        return build_block(layer, model.config, found, layer.top_k)

    plain = torch.stack([next_token_loss(model, batch) for batch in BATCHES]).mean()
    assert streamed_nll(tmp_path, BATCHES) == pytest.approx(float(plain), rel=1e-5)
    for layer in moe_layers(model):
        model.set_submodule(layer.name, reduced(layer))
    small = torch.stack([next_token_loss(model, batch) for batch in BATCHES]).mean()
    assert float(small) != pytest.approx(float(plain), rel=1e-3)
    assert streamed_nll(tmp_path, BATCHES, reduced) == pytest.approx(float(small), rel=1e-5)


def test_sharded_and_tied_checkpoints(tmp_path: Path) -> None:
    model: Any = toy_moe("mixtral", tie_word_embeddings=True)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.no_grad():
        wanted = float(torch.stack([next_token_loss(model, batch) for batch in BATCHES]).mean())
    assert streamed_nll(tmp_path, BATCHES) == pytest.approx(wanted, rel=1e-5)


MEMORY = """
import re, sys, torch
from pathlib import Path
from supernets.layer_stream import LayerStream, calibrate_streamed
batch = {"input_ids": torch.randint(0, 40, (2, 64))}
calibrate_streamed(Path(sys.argv[1]), [batch])
def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kilobytes("VmRSS")
calibrate_streamed(Path(sys.argv[2]), [batch])
stream = LayerStream(Path(sys.argv[2]))
layer = sum(p.nbytes for p in stream.decoder.layers[0].parameters())
print((kilobytes("VmHWM") - before) * 1024 / layer)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says how much memory was used")
def test_peak_memory_is_one_layer_and_a_half(tmp_path: Path) -> None:
    saved("qwen3_moe", tmp_path / "small")
    sizes = {"hidden_size": 256, "moe_intermediate_size": 1536, "num_experts": 8, "num_hidden_layers": 5}
    saved("qwen3_moe", tmp_path / "large", **sizes)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "small"), str(tmp_path / "large")]
    # Below 32 MB, glibc keeps what is freed; the tensors of real layers are larger.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "500000"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2], env=environment
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) <= 1.5


def test_folders_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the configuration"):
        LayerStream(tmp_path / "nothing")
    saved("olmoe", tmp_path / "olmoe")
    (tmp_path / "olmoe" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model.safetensors; save the checkpoint as safetensors first"):
        LayerStream(tmp_path / "olmoe")
    with pytest.raises(ValueError, match="there is no text to evaluate on"):
        streamed_nll(tmp_path / "olmoe", [])
    with pytest.raises(ValueError, match="no token follows another"):
        streamed_nll(saved_in(tmp_path / "one"), [{"input_ids": BATCHES[0]["input_ids"][:, :1]}])


def test_missing_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved("olmoe", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.4.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"has no model.layers.1.mlp.experts.4.up_proj.weight: the checkpoint is incom"
    ):
        calibrate_streamed(tmp_path, BATCHES)
    tensors = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has no model.layers.0.mlp.experts.gate_up_proj; quantised or unknown"):
        calibrate_streamed(tmp_path, BATCHES)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_named_though_the_configuration_is_silent(tmp_path: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file, save_file

    saved("olmoe", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.experts.4.up_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has quantised weights \(model.layers.1.mlp.experts.gate_up_proj in torch"):
        calibrate_streamed(tmp_path, BATCHES)
