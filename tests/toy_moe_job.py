"""Folders of tiny mixture-of-experts models, and text for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from supernets.data.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.toy_moe import toy_moe

WORDS = ["experts", "routers", "tokens", "layers", "keep", "drop", "merge", "the", "of", "a", "and"]


def write_experts(folder: Path, kind: str = "qwen3_moe", **changes: Any) -> Path:
    """A tiny random mixture of experts that reads bytes."""
    model: Any = toy_moe(kind, vocab_size=VOCABULARY, eos_token_id=VOCABULARY - 1, bos_token_id=None, **changes)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_switch(folder: Path) -> Path:
    """A tiny random Switch Transformer: an encoder with a decoder."""
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    sizes: Any = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
    config = SwitchTransformersConfig(vocab_size=VOCABULARY, num_experts=4, **sizes)
    SwitchTransformersForConditionalGeneration(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_text(path: Path, words: int = 300) -> Path:
    """Words in a random order."""
    rng = random.Random(0)
    path.write_text(" ".join(rng.choice(WORDS) for _ in range(words)))
    return path
