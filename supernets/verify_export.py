"""Reloads an exported checkpoint with plain transformers and compares it with recorded logits.

Run as a script in its own isolated process: ``python -I verify_export.py FOLDER REFERENCE PARAMETERS THREADS``. It
imports nothing of this project, so that what it proves holds for any user of the checkpoint. Exit code 0 means
bit-equal.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


def main(folder: str, reference: str, parameters: int, threads: int) -> None:
    """Exit with a message unless the checkpoint reproduces the reference."""
    torch.set_num_threads(threads)
    tensors = load_file(reference)
    expected = tensors.pop("logits")
    config = json.loads((Path(folder) / "config.json").read_text())
    is_language_model = config["architectures"][0].endswith("ForCausalLM")
    auto_class: Any = AutoModelForCausalLM if is_language_model else AutoModelForSequenceClassification
    model, info = auto_class.from_pretrained(folder, trust_remote_code="auto_map" in config, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            sys.exit(f"{problem}: {sorted(info[problem])[:3]}")
    for parameter in model.parameters():  # as loaded they may lie unaligned, and round differently for a single text
        parameter.data = parameter.data.clone()
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != parameters:
        sys.exit(f"it has {count} parameters instead of {parameters}")
    with torch.no_grad():
        logits = model.eval()(**{name.removeprefix("input."): value for name, value in tensors.items()}).logits.float()
    if not torch.equal(logits, expected):
        sys.exit(f"its logits differ by up to {(logits - expected).abs().max().item():.2e}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
