"""The model card of an exported checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from supernets.evaluation import Quality


def model_card(provenance: Mapping[str, Any], quality: Quality) -> str:
    """Markdown with the metadata block that model hubs read; every number says how it came to be."""
    values = "\n".join(f"| {v['objective']} | {v['number']:.6g} | {v['provenance']} |" for v in provenance["values"])
    return f"""{_head(provenance, is_text=provenance["task"]["kind"] == "language-modelling")}
{provenance["parameters"]:,} parameters; on {quality.examples} validation examples: {_metrics(quality.metrics)}.

{_layers(provenance)}

| objective | value | how it came to be |
|---|---|---|
{values}

Found by study `{provenance["study"]}`, evaluation {provenance["evaluation"]}; {_recovery(provenance)}.
`supernas.json` has the full record.
"""


def reduction_card(provenance: Mapping[str, Any]) -> str:
    """The same for a model whose experts were reduced without a search."""
    judged = "".join(
        f"\n- {stage}: {_metrics(one['metrics'])} on {one['examples']} blocks of validation text"
        for stage, one in provenance["quality"].items()
    )
    repair = provenance["repair"]
    return f"""{_head(provenance, is_text=True)}
{provenance["parameters"]:,} parameters; experts reduced by `{provenance["operator"]}`\
{f", repaired by `{repair}`" if repair else ""}.
{judged}

{_layers(provenance)}

`experts.jsonl` says which experts of the original are left, `supernas.json` has the full record.
"""


def _head(provenance: Mapping[str, Any], *, is_text: bool) -> str:
    base = PurePath(str(provenance["base_model"])).name
    pipeline, auto_class = (
        ("text-generation", "AutoModelForCausalLM")
        if is_text
        else ("text-classification", "AutoModelForSequenceClassification")
    )
    return f"""---
library_name: transformers
base_model: {base}
pipeline_tag: {pipeline}
tags:
- supernas
- neural-architecture-search
---

# A sub-network of {base}

Load it with `{auto_class}.from_pretrained(folder)`; if the folder holds a `modeling_supernas_*.py`, add
`trust_remote_code=True` after reading that file.
"""


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number:.4f}" for name, number in metrics.items())


def _layers(provenance: Mapping[str, Any]) -> str:
    """A table of the kept layers; a dash where an axis decides nothing."""
    layers = provenance["architecture"]
    axes = sorted({axis for layer in layers for axis in layer if axis != "index"})
    rows = [
        f"| {layer['index']} | " + " | ".join(str(layer.get(axis, "–")) for axis in axes) + " |" for layer in layers
    ]
    return "\n".join([f"| layer of the original | {' | '.join(axes)} |", "|---|" + "---|" * len(axes), *rows])


def _recovery(provenance: Mapping[str, Any]) -> str:
    if "adapted_steps" in provenance:
        return f"fine-tuned alone on its task for {provenance['adapted_steps']} steps after extraction"
    steps = provenance["recovery_steps"]
    if not steps:
        return "not trained after extraction"
    if provenance["recovery_kept"]:
        return f"trained alone for {steps} steps after extraction"
    return f"{steps} recovery steps made it worse on validation, so it has the weights it had in the supernet"
