"""A tokenizer whose tokens are the 256 bytes: every text is representable and nothing has to be downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
"""Ends a document; also fills up shorter examples."""
VOCABULARY = 257
"""The bytes and `END`, which comes last."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Saves and loads like any tokenizer of transformers.

    Bytes are written as the printable characters that GPT-2's byte-level scheme gives them (Radford et al. 2019); ids
    follow the order of these characters.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # clean_up_tokenization_spaces would alter decoded text.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )
