"""Encoders of the BERT line whose layers may each have their own number of heads and feed-forward width.

This file travels with a checkpoint: it needs nothing but torch and transformers. The sizes come from
``config.supernas_layers``, one ``{"heads": h, "ffn_width": w}`` per layer; the size of a head stays that of the
original model.
"""

from typing import Any

from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)


def resize_layers(encoder: Any, config: PreTrainedConfig) -> None:
    """Give every layer of an encoder the sizes the configuration lists for it."""
    hidden = config.hidden_size
    for layer, sizes in zip(encoder.layer, config.supernas_layers, strict=True):
        attention = layer.attention.self
        attention.num_attention_heads = sizes["heads"]
        attention.all_head_size = sizes["heads"] * attention.attention_head_size
        for name in ("query", "key", "value"):
            setattr(attention, name, nn.Linear(hidden, attention.all_head_size))
        layer.attention.output.dense = nn.Linear(attention.all_head_size, hidden)
        layer.intermediate.dense = nn.Linear(hidden, sizes["ffn_width"])
        layer.output.dense = nn.Linear(sizes["ffn_width"], hidden)


class SupernasBertForSequenceClassification(BertForSequenceClassification):
    """BERT with per-layer sizes."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        resize_layers(self.bert.encoder, config)


class SupernasElectraForSequenceClassification(ElectraForSequenceClassification):
    """ELECTRA with per-layer sizes."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(config)
        resize_layers(self.electra.encoder, config)


class SupernasRobertaForSequenceClassification(RobertaForSequenceClassification):
    """RoBERTa with per-layer sizes."""

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config)
        resize_layers(self.roberta.encoder, config)


class SupernasXLMRobertaForSequenceClassification(XLMRobertaForSequenceClassification):
    """XLM-RoBERTa with per-layer sizes."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__(config)
        resize_layers(self.roberta.encoder, config)
