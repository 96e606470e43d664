"""Reads tables of measured latencies in the format of HAT, and says what their networks consist of.

HAT (Wang et al., ACL 2020, arXiv 2005.14187) publishes latencies of encoder-decoder transformers that translate one
sentence: 10 columns that describe the network, averages over layers among them, then the mean latencies of encoder and
decoder in ms. The sentence has 30 words, and 30 words are produced one by one.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kernels import op_cost
from kernels.op_spec import Context, OpSpec
from predictors.model import Matrix

FEATURES = (
    "encoder_embed_dim",
    "encoder_layer_num",
    "encoder_ffn_embed_dim_avg",
    "encoder_self_attention_heads_avg",
    "decoder_embed_dim",
    "decoder_layer_num",
    "decoder_ffn_embed_dim_avg",
    "decoder_self_attention_heads_avg",
    "decoder_ende_attention_heads_avg",
    "decoder_arbitrary_ende_attn_avg",
)
LATENCIES = ("latency_mean_encoder", "latency_mean_decoder")
SOURCE, STEPS, INNER, VOCABULARY = 30, 30, 512, 32_000
"""Words of the sentence, words that are produced, width of all queries and keys; an assumed size of the vocabulary."""

_HEAD_OPTIONS = (2, 4, 8)
_ATTENTIONS = ("encoder_self", "decoder_self", "decoder_ende")
_EMBED, _FFN, _LAYERS, _HEADS, _ATTENDED = 640, 3072, 6, 8, 3
"""The largest options of the space: constants to scale by."""


@dataclass(frozen=True, kw_only=True)
class HatTable:
    """One file; N networks.

    Attributes:
        features_NF: the columns `FEATURES`.
        seconds_N: encoder and decoder together.
    """

    name: str
    features_NF: Matrix
    seconds_N: Matrix

    @property
    def terms_NT(self) -> Matrix:
        """What the latencies can be sums of; see `analytic_terms`."""
        return analytic_terms(self.features_NF)


def read_hat_csv(path: Path) -> HatTable:
    """Read a file.

    Raises:
        ValueError: it cannot be read, lacks columns or rows, or holds an impossible value; the line is named.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            numbered = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table of latencies ({error})") from error
    if not numbered:
        raise ValueError(f"{path} holds no measured network; it needs a header and one line per network")
    if missing := [name for name in (*FEATURES, *LATENCIES) if name not in numbered[0][1]]:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; see FEATURES in predictors/hat_csv.py")
    rows, milliseconds = [], []
    for number, line in numbered:
        where = f"{path}, line {number}"
        if None in line:
            raise ValueError(f"{where} has more fields than the header; decimal commas are not understood")
        rows.append([_number(line[name], name, where) for name in FEATURES])
        milliseconds.append(sum(_number(line[name], name, where) for name in LATENCIES))
    return HatTable(name=path.stem, features_NF=np.array(rows), seconds_N=np.array(milliseconds) / 1e3)


def _number(text: str | None, name: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError as error:
        raise ValueError(f"{where}: {name} must be a number, got {text!r}") from error
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{where}: {name} must be a positive number, got {text}")
    return value


def analytic_terms(features_NF: Matrix) -> Matrix:
    """Terms [N, 18] of latency, each at most about 1: arithmetic of every kind of operation, heads, layers, a constant.

    Averages are over layers, so that their products with the number of layers are exact sums.
    """
    enc, layers, ffn, heads, dec, depth, dec_ffn, dec_heads, cross_heads, attended = features_NF.T
    terms = [
        layers * enc / (_LAYERS * _EMBED),  # encoder projections
        layers * enc * ffn / (_LAYERS * _EMBED * _FFN),  # encoder feed-forward
        layers / _LAYERS,  # encoder attention, whose width is fixed
        layers * heads / (_LAYERS * _HEADS),
        depth * dec / (_LAYERS * _EMBED),  # decoder projections of queries and outputs
        depth * dec * dec_ffn / (_LAYERS * _EMBED * _FFN),  # decoder feed-forward
        depth * enc * attended / (_LAYERS * _EMBED * _ATTENDED),  # keys and values of what the encoder says
        depth * attended / (_LAYERS * _ATTENDED),  # attention to it
        depth / _LAYERS,  # launches and the attention of the decoder to itself
        depth * dec_ffn / (_LAYERS * _FFN),
        depth * dec * attended / (_LAYERS * _EMBED * _ATTENDED),
        depth * enc / (_LAYERS * _EMBED),
        depth * dec_heads / (_LAYERS * _HEADS),
        depth * cross_heads / (_LAYERS * _HEADS),
        depth * cross_heads * attended / (_LAYERS * _HEADS * _ATTENDED),
        dec / _EMBED,  # scores of the vocabulary
        enc / _EMBED,
        np.ones(len(features_NF)),
    ]
    return np.stack(terms, axis=1)


def operations(features_F: Matrix, beam: int = 5, dtype: str = "float32") -> list[tuple[int, OpSpec]]:
    """How often one translation runs which operations, with the average layer standing for every layer.

    The encoder reads the sentence once; the decoder takes `STEPS` steps with one new word for each of `beam`
    hypotheses, and the middle step stands for all. Keys and values of the sentence are computed once.
    """
    values = dict(zip(FEATURES, (round(float(value)) for value in features_F), strict=True))
    enc, dec = values["encoder_embed_dim"], values["decoder_embed_dim"]
    layers, depth = values["encoder_layer_num"], values["decoder_layer_num"]
    attended = SOURCE * values["decoder_arbitrary_ende_attn_avg"]
    read = Context(sequences=(SOURCE,), dtype=dtype)
    write = replace(read, batch=beam).generating(SOURCE, 1)
    own = replace(write, cached=STEPS // 2)
    cross = replace(write, cached=attended - 1)
    heads = {name: _nearest(_HEAD_OPTIONS, values[f"{name}_attention_heads_avg"]) for name in _ATTENTIONS}
    encoder = [
        op_cost.linear(enc, 3 * INNER, SOURCE, read),
        op_cost.attention(heads["encoder_self"], heads["encoder_self"], INNER // heads["encoder_self"], read),
        op_cost.linear(INNER, enc, SOURCE, read),
        op_cost.norm(enc, read),
        op_cost.feed_forward(enc, values["encoder_ffn_embed_dim_avg"], read),
    ]
    decoder = [
        op_cost.linear(dec, 3 * INNER, beam, write),
        op_cost.attention(heads["decoder_self"], heads["decoder_self"], INNER // heads["decoder_self"], own),
        op_cost.linear(INNER, dec, beam, write),
        op_cost.norm(dec, write),
        op_cost.linear(dec, INNER, beam, write),
        op_cost.attention(heads["decoder_ende"], heads["decoder_ende"], INNER // heads["decoder_ende"], cross),
        op_cost.linear(INNER, dec, beam, write),
        op_cost.norm(dec, write),
        op_cost.feed_forward(dec, values["decoder_ffn_embed_dim_avg"], write),
    ]
    once = op_cost.linear(enc, 2 * INNER, attended, read)
    scores = op_cost.linear(dec, VOCABULARY, beam, write)
    return [
        *((layers, op) for op in encoder),
        *((STEPS * depth, op) for op in decoder),
        (depth, once),
        (STEPS, op_cost.embedding(dec, VOCABULARY, write)),
        (STEPS, scores),
    ]


def _nearest(options: tuple[int, ...], value: int) -> int:
    return min(options, key=lambda option: abs(option - value))
