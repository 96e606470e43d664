"""Writes a sub-network of a model that does not fit into memory, layer by layer, and proves it the same way.

Shapes: B batch, L sequence.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from studies.errors import VerificationError
from supernets.checkpoint import bring_modeling
from supernets.checkpoint_writer import ShardWriter
from supernets.expert_bank import MoeLayer, check_router
from supernets.family import Layout
from supernets.layer_stream import LayerStream
from supernets.space import Architecture
from supernets.supernet import Supernet

OnStage = Callable[[str, float, float], None]
"""Receives what is being done, how much of it is done, and how much there is."""

Named = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""Gives tensors the names under which they are written."""

_GENERATION = "generation_config.json"


@torch.no_grad()
def write_streamed(
    stream: LayerStream,
    supernet: Supernet,
    architecture: Architecture,
    layout: Layout,
    folder: Path,
    *,
    check_inputs: Mapping[str, Tensor],
    check_layer: Callable[[MoeLayer], None] = check_router,
    on_stage: OnStage | None = None,
) -> Any:
    """Write weights, configuration and modelling code of a sub-network; returns it without weights.

    Every layer is read, reduced, run on `check_inputs` and written before the next one is read. Then the folder is read
    layer by layer, and must give the same logits, bit for bit. In memory are at most a layer, and the reduced one once
    as it runs and once as it is written.

    Args:
        stream: the full model.
        supernet: wraps `stream.model`; the architecture keeps all layers.
        folder: an empty one.
        check_inputs: ``input_ids`` (B, L).
        check_layer: raises where a mixture's layer, just read, cannot be reduced.

    Raises:
        ValueError: the checkpoint lacks weights, a router is not finite, or an operator cannot do what is asked.
        VerificationError: what was written computes something else.
    """
    writer, prefix = ShardWriter(folder), f"{supernet.family.layers_name(stream.model)}."
    # Loaders of stock classes expect the names that others publish; ours take those in memory.
    named: Named = dict if layout == "free" else partial(revert_weight_conversion, stream.model)
    for name, tensor in stream.outer_state():
        writer.add(named({name: tensor}))

    @contextmanager
    def visit(index: int) -> Iterator[Callable[[int], None]]:
        if index in supernet.experts:
            check_layer(supernet.experts[index].layer)
        state = supernet.layer_state(architecture, index, layout)
        writer.add(named({f"{prefix}{index}.{name}": tensor for name, tensor in state.items()}))
        del state
        yield lambda _: None
        supernet.release(index)

    with supernet.active(architecture):
        (hidden_BLD,) = stream.run([check_inputs], visit, partial(on_stage, "reduce") if on_stage else None)
    writer.finish()
    network = _without_weights(supernet, architecture, layout)
    if layout == "free":
        bring_modeling(network, supernet.family, folder)
    network.config.architectures = [type(network).__name__]
    network.config.save_pretrained(folder)
    if (stream.folder / _GENERATION).is_file():
        shutil.copyfile(stream.folder / _GENERATION, folder / _GENERATION)
    _verify(folder, network, check_inputs, stream.logits(hidden_BLD), on_stage)
    return network


def _without_weights(supernet: Supernet, architecture: Architecture, layout: Layout) -> Any:
    """The sub-network on the meta device."""
    network_class = supernet.family.network_class(type(supernet.model), layout)
    with torch.device("meta"):
        return network_class(supernet.configured(architecture, layout)).eval()


def _verify(
    folder: Path, network: Any, inputs: Mapping[str, Tensor], logits_BLV: Tensor, on_stage: OnStage | None
) -> None:
    """Read a checkpoint layer by layer and compare: its tensors with the network's, its logits with those given."""
    stream = LayerStream(folder, network_class=type(network))
    tied = getattr(network, "all_tied_weights_keys", {})
    wanted = sum(tensor.numel() for name, tensor in network.state_dict().items() if name not in tied)
    if (found := stream.reader.count_elements()) != wanted:
        raise VerificationError(f"the written checkpoint holds {found} numbers instead of {wanted}")
    (hidden_BLD,) = stream.run([inputs], on_layer=partial(on_stage, "verify") if on_stage else None)
    difference = (stream.logits(hidden_BLD) - logits_BLV).abs().max()
    if difference:
        raise VerificationError(f"the written checkpoint's logits differ by up to {float(difference):.2e}")
