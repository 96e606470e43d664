"""`nas check`: what a job looks like before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.config import ConfigOption
from cli.options import ModelArgument, RunOptions, TaskOptions, TrainingOptions
from cli.output import Format, FormatOption, duration, write_rows

if TYPE_CHECKING:
    from nas.checking import Check


def check(
    model: ModelArgument,
    task: TaskOptions,
    training: TrainingOptions,
    run: RunOptions,
    style: FormatOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Look at model and data: classes, lengths, duplicates, what is elastic, how long tuning takes. Writes nothing."""
    request = training.request(model, task, run)
    from nas.checking import check

    found = check(request)
    facts = _facts(found)
    if style is not Format.TABLE:
        write_rows([facts], style)
        return
    write_rows([{"fact": name, "value": value} for name, value in facts.items()], style)


def _facts(found: Check) -> dict[str, object]:
    """One column a fact."""
    facts: dict[str, object] = {}
    for name, split in found.summary.splits.items():
        labels = ", ".join(f"{label} {count}" for label, count in split.labels.items())
        unlabelled = f", unlabelled {split.unlabelled}" if split.unlabelled else ""
        facts |= {
            f"{name} examples": f"{split.examples} ({labels}{unlabelled})",
            f"{name} tokens": f"mean {split.mean_tokens:.1f}, longest {split.max_tokens}",
            f"{name} truncated": f"{split.truncated_share:.1%}",
        }
    facts |= {f"dropped: {reason}": count for reason, count in found.summary.dropped.items()}
    facts["classes"] = ", ".join(found.labels)
    facts["classification head"] = "its own, which is the baseline" if found.has_head else "none yet"
    facts["teacher"] = found.teacher or ("fine-tuned first" if found.trains_teacher else "none needed")
    facts |= {f"elastic: {name}": " ".join(map(str, options)) for name, options in found.space.options.items()}
    facts |= {
        "networks": found.space.networks,
        "smallest parameters": found.space.parameters[0],
        "largest parameters": found.space.parameters[1],
        **({} if found.mixture_parameters is None else {"mixture parameters": found.mixture_parameters}),
        "training steps": found.estimate.steps,
        "training time": duration(found.estimate.seconds),
        "training memory": f"{found.estimate.memory_bytes / 2**20:.0f} MiB",
    }
    return facts
