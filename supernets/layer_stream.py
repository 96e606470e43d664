"""Runs a model that does not fit into memory: one decoder layer at a time, all text through it, then the next.

The model is built without weights. Its own forward pass, with layers that only note how they are called, gives the
masks and position embeddings; then each layer's weights are read, used and dropped. What stays in memory are the
hidden states of the text and one layer; around the layers, the embeddings or the head.

Shapes: B batch, L sequence, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from supernets.calibration import SAMPLE, Batch, Observer, Tokens, depth_of, run
from supernets.checkpoint import require_unquantised
from supernets.checkpoint_reader import CheckpointReader
from supernets.evaluation import Quality, evaluate
from supernets.expert_bank import MoeLayer, moe_layers
from supernets.routing_statistics import LayerStatistics, RoutingStatistics
from supernets.task import Task

Visit = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Of a decoder layer, while its weights are there: what to call before each batch, by the batch's position."""
Replace = Callable[[MoeLayer], nn.Module | None]
"""A block to run in the place of a layer's own, whose weights are there; None to leave it."""
OnLayer = Callable[[float, float], None]
"""Receives how many layers are done, and how many there are."""


class LayerStream:
    """A causal language model in a folder, run layer by layer, in 32 bits however it is stored.

    Attributes:
        folder: where its weights are.
        model: the whole model, on the meta device except for what is being used.
        layers: its mixture-of-experts layers.
        reader: gives its weights one by one.
    """

    def __init__(self, folder: Path, *, network_class: Any = None) -> None:
        """Reads no weights yet.

        Args:
            folder: a checkpoint with safetensors.
            network_class: of the model; by default the stock class for its configuration.

        Raises:
            ValueError: no checkpoint there, one without experts, or quantised weights.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"cannot read the configuration of {folder}: {str(error).splitlines()[0]}") from error
        require_unquantised(config, str(folder))
        config.dtype = torch.float32
        build = network_class or AutoModelForCausalLM.from_config
        with torch.device("meta"):
            self.model: Any = build(config).eval()
        self.folder = folder
        self.reader = CheckpointReader(folder, torch.float32)
        self.layers = moe_layers(self.model)

    @property
    def decoder(self) -> Any:
        """The model without its head."""
        return self.model.base_model

    @torch.no_grad()
    def run(
        self, batches: Sequence[Batch], visit: Visit | None = None, on_layer: OnLayer | None = None
    ) -> list[Tensor]:
        """The (B, L, D) output of the last layer for each batch, before the last norm."""
        hidden_of, calls_of = self._inputs(batches)
        depth = len(self.decoder.layers)
        for index, layer in enumerate(self.decoder.layers):
            with self._loaded(layer, f"model.layers.{index}."), visit(index) if visit else nullcontext() as before:
                for position, calls in enumerate(calls_of):
                    if before is not None:
                        before(position)
                    output = layer(hidden_of[position], **calls[index])
                    hidden_of[position] = output[0] if isinstance(output, tuple) else output
            if on_layer:
                on_layer(index + 1, depth)
        return hidden_of

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """From (B, L, D) outputs of the last layer to (B, L, V) logits, while the head's weights are there."""
        head, norm = self.model.lm_head, self.decoder.norm
        tied = self.model.config.tie_word_embeddings
        with (
            self._loaded(norm, "model.norm."),
            self._loaded(head, "model.embed_tokens." if tied else "lm_head."),
        ):
            yield lambda hidden_BLD: head(norm(hidden_BLD))

    @torch.no_grad()
    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """(B, L, V) from the output of the last layer; the head is read for it."""
        with self.head() as head:
            return head(hidden_BLD)

    def outer_state(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of all that belongs to no layer, read one by one; tied weights once."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        for name, tensor in self.model.state_dict().items():
            if not name.startswith("model.layers.") and name not in tied:
                yield name, self.reader.tensor(name, tensor.shape)

    def _inputs(self, batches: Sequence[Batch]) -> tuple[list[Tensor], list[dict[int, dict[str, Any]]]]:
        """What the first layer gets, and with which keywords every layer is called."""
        decoder = self.decoder
        hidden_of: list[Tensor] = []
        calls_of: list[dict[int, dict[str, Any]]] = []

        def note(index: int) -> Callable[..., Tensor]:
            def forward(hidden_BLD: Tensor, **keywords: Any) -> Tensor:
                calls_of[-1][index] = keywords
                if index == 0:
                    hidden_of.append(hidden_BLD)
                return hidden_BLD

            return forward

        for index, layer in enumerate(decoder.layers):
            layer.forward = note(index)
        rotary = decoder.rotary_emb
        decoder.rotary_emb = type(rotary)(config=self.model.config)  # its tables are in no checkpoint
        try:
            with self._loaded(decoder.embed_tokens, "model.embed_tokens."), self._loaded(decoder.norm, "model.norm."):
                for batch in batches:
                    calls_of.append({})
                    run(self.model, batch)
        finally:
            decoder.rotary_emb = rotary
            for layer in decoder.layers:
                del layer.forward
        return hidden_of, calls_of

    @contextmanager
    def _loaded(self, module: nn.Module, prefix: str) -> Iterator[None]:
        """The module's weights from the checkpoint; dropped at the end."""
        state = {name: self.reader.tensor(prefix + name, tensor.shape) for name, tensor in module.state_dict().items()}
        module.load_state_dict(state, strict=True, assign=True)
        del state
        try:
            yield
        finally:
            module.to_empty(device="meta")


@torch.no_grad()
def calibrate_streamed(
    folder: Path,
    batches: Sequence[Batch],
    *,
    task: str = "",
    sample: int = SAMPLE,
    seed: int = 0,
    on_layer: OnLayer | None = None,
) -> RoutingStatistics:
    """The same numbers as `supernets.calibration.calibrate` of the model in 32 bits, with one layer in memory.

    Raises:
        ValueError: as `calibrate`; the checkpoint lacks weights or has quantised ones.
    """
    stream = LayerStream(folder)
    draws = torch.Generator().manual_seed(seed)
    tokens = [Tokens.of(batch, draws) for batch in batches]
    layers = {layer.index: layer for layer in stream.layers}
    found: dict[int, LayerStatistics] = {}

    @contextmanager
    def visit(index: int) -> Iterator[Callable[[int], None]]:
        if index not in layers:
            yield lambda _: None
            return
        observer = Observer(layers[index], sample)

        def before(position: int) -> None:
            observer.tokens = tokens[position]

        with observer.attached(stream.model):
            yield before
        found[index] = observer.statistics()

    stream.run(batches, visit, on_layer)
    return RoutingStatistics(layers=found, depth=depth_of(stream.model), task=task)


def streamed_quality(
    stream: LayerStream, task: Task, split: str, *, batch_size: int, on_layer: OnLayer | None = None
) -> Quality:
    """What `supernets.evaluation.evaluate` says of the model, with one layer in memory."""
    hidden_of = stream.run([batch.inputs for batch in task.batches(split, batch_size)], on_layer=on_layer)
    following = iter(hidden_of)
    with stream.head() as head:
        return evaluate(lambda **_: SimpleNamespace(logits=head(next(following))), task, split, batch_size=batch_size)


@torch.no_grad()
def streamed_nll(folder: Path, batches: Sequence[Batch], replace: Replace | None = None) -> float:
    """Negative log-likelihood of the next token, nats, mean over all tokens, with one layer in memory.

    Args:
        folder: the full model.
        batches: text; padding is not counted.
        replace: the reduced layers of a candidate.

    Raises:
        ValueError: there is no text; the checkpoint lacks weights.
    """
    if not batches:
        raise ValueError("there is no text to evaluate on; give at least one batch")
    stream = LayerStream(folder)
    layers = {layer.index: layer for layer in stream.layers}

    @contextmanager
    def visit(index: int) -> Iterator[Callable[[int], None]]:
        layer = layers.get(index)
        block = replace(layer) if replace is not None and layer is not None else None
        if layer is not None and block is not None:
            stream.model.set_submodule(layer.name, block)
        try:
            yield lambda _: None
        finally:
            if layer is not None:
                stream.model.set_submodule(layer.name, layer.block)

    total, count = 0.0, 0
    hidden_of = stream.run(batches, visit)
    with stream.head() as head:
        for batch, hidden_BLD in zip(batches, hidden_of, strict=True):
            labels_N = _next_tokens(batch)
            logits_NV = head(hidden_BLD).float()[:, :-1].flatten(0, 1)
            total += float(functional.cross_entropy(logits_NV, labels_N, reduction="sum"))
            count += int((labels_N >= 0).sum())
    if not count:
        raise ValueError("there is no text to evaluate on: no token follows another")
    return total / count


def _next_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """(B·(L−1),) labels; −100 where the token is padding."""
    labels_BL = batch["input_ids"]
    if "attention_mask" in batch:
        labels_BL = labels_BL.masked_fill(batch["attention_mask"] == 0, -100)
    return labels_BL[:, 1:].flatten()
