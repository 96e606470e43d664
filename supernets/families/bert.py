"""BERT and the encoders that share its modules (RoBERTa, XLM-RoBERTa, ELECTRA)."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any, ClassVar

from torch import nn

from kernels import op_cost
from kernels.op_spec import Context, OpSpec
from supernets.elastic import ElasticGroup, Member
from supernets.family import Family, Layout, SpaceOptions, evenly_spaced
from supernets.modeling import bert as bert_modeling
from supernets.space import DEPTH, FFN_WIDTH, HEADS, Architecture, Choice, LayerChoice, SearchSpace


class BertFamily(Family):
    """Elastic depth, heads per layer and feed-forward width per layer; the residual width stays."""

    name = "bert"
    model_types = ("bert", "roberta", "xlm-roberta", "electra")
    modeling: ClassVar[ModuleType] = bert_modeling

    def layers_name(self, model: nn.Module) -> str:
        """The encoder's layers, below the model's own prefix."""
        return f"{model.base_model_prefix}.encoder.layer"

    def groups(self, model: nn.Module) -> tuple[ElasticGroup, ...]:
        """Two groups per layer: heads (query, key, value rows; output columns) and feed-forward neurons."""
        config: Any = model.config
        heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        groups: list[ElasticGroup] = []
        for layer in range(config.num_hidden_layers):
            path = f"{self.layers_name(model)}.{layer}"
            attention = [
                Member(parameter=f"{path}.attention.self.{name}.{kind}", dim=0, block=head_dim)
                for name in ("query", "key", "value")
                for kind in ("weight", "bias")
            ]
            out = Member(parameter=f"{path}.attention.output.dense.weight", dim=1, block=head_dim)
            groups.append(
                ElasticGroup(
                    axis=HEADS,
                    layer=layer,
                    units=heads,
                    members=(*attention, out),
                    consumer=f"{path}.attention.output.dense",
                )
            )
            up = [Member(parameter=f"{path}.intermediate.dense.{kind}", dim=0) for kind in ("weight", "bias")]
            down = Member(parameter=f"{path}.output.dense.weight", dim=1)
            groups.append(
                ElasticGroup(
                    axis=FFN_WIDTH,
                    layer=layer,
                    units=config.intermediate_size,
                    members=(*up, down),
                    consumer=f"{path}.output.dense",
                )
            )
        return tuple(groups)

    def default_space(self, config: Any, options: SpaceOptions) -> SearchSpace:
        """Depth from a share of the layers up to all; heads and widths evenly spaced."""
        layers = config.num_hidden_layers
        shallowest = max(1, round(layers * options.min_depth_fraction))
        heads = evenly_spaced(config.num_attention_heads, options.head_options, 1)
        widths = evenly_spaced(config.intermediate_size, options.width_options, 16)
        choices = [Choice(axis=DEPTH, options=tuple(range(shallowest, layers + 1)))]
        if options.uniform:
            choices.append(Choice(axis=FFN_WIDTH, options=widths))
        else:
            for layer in range(layers):
                choices.append(Choice(axis=HEADS, options=heads, layer=layer))
                choices.append(Choice(axis=FFN_WIDTH, options=widths, layer=layer))
        return SearchSpace(self.name, layers, tuple(range(layers)), tuple(choices))

    def ops(self, config: Any, architecture: Architecture, context: Context) -> tuple[OpSpec, ...]:
        """Embedding (and ELECTRA's projection of it), the kept layers' two residual blocks each, the two-layer head."""
        hidden = config.hidden_size
        embedded = getattr(config, "embedding_size", hidden)
        head_dim = hidden // config.num_attention_heads
        specs: list[OpSpec] = []
        for sequence in context.sequences:
            at = context.at(sequence)
            specs.append(op_cost.embedding(embedded, config.vocab_size, at))
            if embedded != hidden:
                specs.append(op_cost.linear(embedded, hidden, context.batch * sequence, at))
            for layer in architecture.layers:
                specs.append(op_cost.attention_block(hidden, _heads(config, layer), head_dim, at))
                specs.append(op_cost.feed_forward(hidden, _width(config, layer), at))
            specs.append(op_cost.linear(hidden, hidden, context.batch, at))
            specs.append(op_cost.linear(hidden, config.num_labels, context.batch, at))
        return tuple(specs)

    def activation_elements(self, config: Any, architecture: Architecture, context: Context) -> int:
        """Residual stream plus the widest of query/key/value/output and of the two feed-forward activations."""
        tokens, hidden = context.batch * max(context.sequences), int(config.hidden_size)
        head_dim = hidden // int(config.num_attention_heads)
        widest = max(max(4 * _heads(config, x) * head_dim, 2 * _width(config, x)) for x in architecture.layers)
        return tokens * (2 * hidden + widest)

    def input_limit(self, config: Any) -> int:
        """Position embeddings; those of the RoBERTa line start after the padding position."""
        reserved = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        return int(config.max_position_embeddings) - reserved

    def configure(self, config: Any, architecture: Architecture, layout: Layout) -> Any:
        """Free: per-layer sizes in ``supernas_layers``. Uniform: the stock fields, which cannot express fewer heads."""
        configured = copy.deepcopy(config)
        configured.num_hidden_layers = len(architecture.layers)
        if layout == "free":
            configured.supernas_layers = [
                {"heads": _heads(config, layer), "ffn_width": _width(config, layer)} for layer in architecture.layers
            ]
            return configured
        if any(_heads(config, layer) != config.num_attention_heads for layer in architecture.layers):
            raise ValueError(
                f"layout uniform needs all {config.num_attention_heads} heads in every layer, because stock "
                f"{config.model_type} classes derive the head size from their number; export with layout free"
            )
        widths = {_width(config, layer) for layer in architecture.layers}
        if len(widths) > 1:
            raise ValueError(
                f"layout uniform needs one feed-forward width for all layers, got {sorted(widths)}; "
                "export with layout free"
            )
        configured.intermediate_size = widths.pop()
        return configured


def _heads(config: Any, layer: LayerChoice) -> int:
    return layer.kept(HEADS) or int(config.num_attention_heads)


def _width(config: Any, layer: LayerChoice) -> int:
    return layer.kept(FFN_WIDTH) or int(config.intermediate_size)


FAMILY = BertFamily()
