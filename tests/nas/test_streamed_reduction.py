"""A reduction layer by layer writes what the reduction of the whole model writes, in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nas.expert_reduction import ReductionRequest, reduce_checkpoint, reduced_space, stock_layout
from nas.expert_stage import model_statistics, stream_experts
from nas.streamed_reduction import reduce_streamed
from studies.errors import VerificationError
from supernets.checkpoint import load_exported, load_language_model
from supernets.checkpoint_writer import ShardWriter
from supernets.routing_statistics import RoutingStatistics
from supernets.task import TaskSettings
from tests.toy_moe import CONFIGS
from tests.toy_moe_job import write_experts, write_text

LENGTH = 24


def text(folder: Path) -> TaskSettings:
    path = folder / "text.txt"
    data = str(path if path.exists() else write_text(path))
    return TaskSettings(
        kind="language-modelling", data=data, text=("text",), label=None, max_length=LENGTH, metric="nll"
    )


def prepared(folder: Path, kind: str, operator: str, **changes: Any) -> ReductionRequest:
    """A model, statistics of it and what is asked for."""
    model = write_experts(folder / "model", kind, **changes)
    model_statistics(str(model), text(folder), "toy", stream=True).save(folder / "stats")
    return ReductionRequest(
        model=str(model), folder=folder / "new", operator=operator, keep="4", statistics=str(folder / "stats")
    )


@pytest.mark.parametrize(
    ("kind", "operator"),
    [*((kind, "reap") for kind in CONFIGS), *((kind, "mone") for kind in CONFIGS), ("qwen3_moe", "hc-smoe")],
)
def test_the_weights_are_those_of_the_extracted_network(kind: str, operator: str, tmp_path: Path) -> None:
    request = prepared(tmp_path, kind, operator)
    done = reduce_streamed(request)
    loaded = load_language_model(request.model)
    statistics = RoutingStatistics.load(tmp_path / "stats")
    supernet, architecture, experts = reduced_space(request, loaded.model, statistics)
    layout = stock_layout(supernet, architecture)
    network = supernet.extract(architecture, layout)
    written = load_exported(request.folder)
    assert (done.layout, done.experts) == (layout, experts)
    assert done.parameters == (
        sum(parameter.numel() for parameter in loaded.model.parameters()),
        sum(parameter.numel() for parameter in network.parameters()),
    )
    assert type(written).__name__ == type(network).__name__
    wanted, found = network.state_dict(), written.state_dict()
    assert set(wanted) == set(found)
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())


@pytest.mark.parametrize(("operator", "tied"), [("reap", True), ("uncurl", False)])
def test_the_folder_is_that_of_the_unstreamed_reduction(operator: str, tied: bool, tmp_path: Path) -> None:
    request = replace(prepared(tmp_path, "mixtral", operator, tie_word_embeddings=tied), task=text(tmp_path))
    stages: list[tuple[str, float, float]] = []
    streamed = reduce_streamed(request, lambda *stage: stages.append(stage))
    whole = reduce_checkpoint(replace(request, folder=tmp_path / "whole"))
    for name in ("config.json", "generation_config.json", "experts.jsonl", "tokenizer_config.json"):
        assert (request.folder / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    index = json.loads((request.folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(weights)
    for name, part in index["weight_map"].items():
        assert torch.equal(load_file(request.folder / part)[name], weights[name]), name
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert replace(streamed, quality={}, folder=whole.folder) == replace(whole, quality={})
    for stage in ("before", "reduced"):
        assert streamed.quality[stage].metrics == pytest.approx(whole.quality[stage].metrics, rel=1e-5)
        assert streamed.quality[stage].examples == whole.quality[stage].examples
    assert streamed.quality["before"] != streamed.quality["reduced"]
    names = ["judge the full model", "reduce", "verify", "judge the reduced model"]
    assert stages == [(name, layer, 2) for name in names for layer in (1, 2)]


def test_statistics_of_half_precision_weights_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    model = write_experts(tmp_path / "model")
    state = {name: tensor.bfloat16() for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text()) | {"dtype": "bfloat16"}
    (model / "config.json").write_text(json.dumps(config))
    streamed, whole = (model_statistics(str(model), text(tmp_path), "toy", stream=stream) for stream in (True, False))
    assert streamed.digest == whole.digest


def test_what_was_written_wrong_is_found_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = prepared(tmp_path, "olmoe", "reap")
    right = ShardWriter.add

    def wrong(writer: ShardWriter, tensors: Mapping[str, Tensor]) -> None:
        right(
            writer,
            {name: 2 * tensor if ".1.mlp.experts.3.down" in name else tensor for name, tensor in tensors.items()},
        )

    def more(writer: ShardWriter, tensors: Mapping[str, Tensor]) -> None:
        right(writer, {**tensors, "of.nobody": torch.zeros(3)})

    for add, message in ((wrong, "logits differ by up to"), (more, "numbers instead of")):
        monkeypatch.setattr(ShardWriter, "add", add)
        with pytest.raises(VerificationError, match=message):
            reduce_streamed(request)
        assert {path.name for path in tmp_path.iterdir()} == {"model", "stats", "text.txt"}


MEMORY = """
import re, sys
from pathlib import Path
from nas.expert_reduction import ReductionRequest
from nas.streamed_reduction import reduce_streamed
from supernets.layer_stream import LayerStream
root = Path(sys.argv[1])
def reduce(name):
    reduce_streamed(
        ReductionRequest(model=str(root / name), folder=root / f"new-{name}", operator="weight-norm", keep="50%")
    )
def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
reduce("small")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kilobytes("VmRSS")
reduce("large")
layer = 4 * sum(p.numel() for p in LayerStream(root / "large").decoder.layers[0].parameters())
print((kilobytes("VmHWM") - before) * 1024 / layer)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says how much memory was used")
def test_peak_memory_is_a_layer_and_its_reduced_copies(tmp_path: Path) -> None:
    write_experts(tmp_path / "small")
    sizes: Any = {"hidden_size": 256, "moe_intermediate_size": 1536, "num_experts": 8, "num_hidden_layers": 5}
    write_experts(tmp_path / "large", **sizes)
    # Below 32 MB, glibc keeps what is freed; the tensors of real layers are larger.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "500000"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert 1.4 < float(done.stdout) <= 2.6


def test_a_repair_is_refused(tmp_path: Path) -> None:
    request = prepared(tmp_path, "qwen3_moe", "reap")
    repair = replace(request, repair="router-kd", task=text(tmp_path))
    with pytest.raises(ValueError, match="repair router-kd trains the model as a whole, of which --stream holds one"):
        reduce_streamed(repair)
    assert not request.folder.exists()


def test_a_name_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.expert_stage._require_experts", lambda source: None)
    with pytest.raises(ValueError, match="--stream reads from a folder, got the name some/model"):
        stream_experts("some/model")
