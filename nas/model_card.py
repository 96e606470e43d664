"""The model card of an exported checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from supernets.evaluation import Quality


def model_card(provenance: Mapping[str, Any], quality: Quality) -> str:
    """Markdown with the metadata block that model hubs read; every number says how it came to be."""
    base = PurePath(str(provenance["base_model"])).name
    metrics = ", ".join(f"{name} {number:.4f}" for name, number in quality.metrics.items())
    layers = "\n".join(
        f"| {layer['index']} | " + " | ".join(str(layer[axis]) for axis in sorted(layer) if axis != "index") + " |"
        for layer in provenance["architecture"]
    )
    axes = sorted(key for key in provenance["architecture"][0] if key != "index")
    values = "\n".join(f"| {v['objective']} | {v['number']:.6g} | {v['provenance']} |" for v in provenance["values"])
    loading = (
        "Load it with `AutoModelForSequenceClassification.from_pretrained(folder)`; if the folder holds a "
        "`modeling_supernas_*.py`, add `trust_remote_code=True` after reading that file."
    )
    return f"""---
library_name: transformers
base_model: {base}
pipeline_tag: text-classification
tags:
- supernas
- neural-architecture-search
---

# A sub-network of {base}

{provenance["parameters"]:,} parameters; on {quality.examples} validation examples: {metrics}.

{loading}

| layer of the original | {" | ".join(axes)} |
|{"---|" * (len(axes) + 1)}
{layers}

| objective | value | how it came to be |
|---|---|---|
{values}

Found by study `{provenance["study"]}`, evaluation {provenance["evaluation"]}; {_recovery(provenance)}.
`supernas.json` has the full record.
"""


def _recovery(provenance: Mapping[str, Any]) -> str:
    steps = provenance["recovery_steps"]
    if not steps:
        return "not trained after extraction"
    if provenance["recovery_kept"]:
        return f"trained alone for {steps} steps after extraction"
    return f"{steps} recovery steps made it worse on validation, so it has the weights it had in the supernet"
