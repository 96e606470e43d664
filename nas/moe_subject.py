"""A small mixture-of-experts language model to work on, since none comes in a Python package.

It has the architecture of Qwen3-MoE and a byte vocabulary, and learns eight domains (`nas.domain_texts`) at once: every
training step holds equally many sequences of each.

Shapes: B sequences, T tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.domain_texts import DOMAINS
from studies.records import content_hash
from supernets.data.byte_tokenizer import VOCABULARY, byte_tokenizer
from supernets.staging import staged_folder
from supernets.task import TaskSettings

if TYPE_CHECKING:
    import torch

    from supernets.moe_training import MoeTrainingProgress

LENGTH = 128
"""Tokens of a training sequence, and of a block of the tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The model and its training.

    Attributes:
        width: inner units of an expert.
        repeats: sequences of each domain in a step.
        least_top_k: see `supernets.moe_training.MoeTrainingSettings`.
    """

    experts: int = 16
    top_k: int = 2
    width: int = 64
    hidden: int = 64
    layers: int = 8
    steps: int = 2000
    repeats: int = 2
    learning_rate: float = 3e-3
    least_top_k: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """A folder name that no other subject has."""
        return f"e{self.experts}k{self.top_k}-s{self.seed}-{content_hash(asdict(self))[:8]}"


def prepare_subject(
    cache_dir: Path,
    subject: Subject,
    texts: Path,
    on_progress: Callable[[MoeTrainingProgress], None] | None = None,
) -> Path:
    """Checkpoint folder of a trained subject, with its tokenizer.

    Made once: later calls return the same folder. It appears complete or not at all; an interrupted training goes on.

    Args:
        texts: what `nas.domain_texts.prepare_domain_texts` returned.
    """
    from supernets.moe_training import MoeTrainingSettings, train_moe

    folder = cache_dir / subject.name
    if folder.is_dir():
        return folder
    model = new_model(subject)
    sequences = TrainingSequences(texts, subject)
    settings = MoeTrainingSettings(
        steps=subject.steps,
        learning_rate=subject.learning_rate,
        least_top_k=subject.least_top_k,
        seed=subject.seed,
    )
    state_file = cache_dir / f"{subject.name}.training.safetensors"
    identity = content_hash([subject.name, sequences.hash])
    for progress in train_moe(model, sequences, settings, state_file=state_file, identity=identity):
        if on_progress is not None:
            on_progress(progress)
    with staged_folder(folder) as staged:
        model.save_pretrained(staged)
        byte_tokenizer().save_pretrained(staged)
    state_file.unlink(missing_ok=True)
    return folder


def new_model(subject: Subject) -> Any:
    """The untrained model; our experts' implementation trains it faster than transformers' own."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from kernels.experts_implementation import register_experts

    torch.manual_seed(subject.seed)
    config: Any = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=subject.hidden,
        intermediate_size=subject.width * subject.top_k,
        num_hidden_layers=subject.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=subject.experts,
        num_experts_per_tok=subject.top_k,
        moe_intermediate_size=subject.width,
        norm_topk_prob=True,
        max_position_embeddings=4 * LENGTH,
        bos_token_id=None,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )
    config.head_dim = subject.hidden // 4  # a field that the class takes but does not declare
    model: Any = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation(register_experts())
    return model


class TrainingSequences:
    """Step → token ids: sequences from random places of every domain's training text.

    Args:
        texts: a folder of `nas.domain_texts`.
    """

    def __init__(self, texts: Path, subject: Subject, domains: tuple[str, ...] = DOMAINS) -> None:
        import torch

        tokenizer = byte_tokenizer()
        read = {domain: (texts / domain / "train.txt").read_text(encoding="utf-8") for domain in domains}
        self._ids = {domain: torch.tensor(tokenizer(text)["input_ids"]) for domain, text in read.items()}
        self._repeats, self._seed = subject.repeats, subject.seed

    @property
    def hash(self) -> str:
        """Identity of the texts."""
        return content_hash({domain: ids.tolist() for domain, ids in self._ids.items()})

    def __call__(self, step: int) -> torch.Tensor:
        """int64 (B, T) of a step, `repeats` rows a domain; a function of the seed and the step."""
        import torch

        generator = torch.Generator().manual_seed(1_000_003 * self._seed + step)
        rows = []
        for ids in self._ids.values():
            starts = torch.randint(len(ids) - LENGTH + 1, (self._repeats,), generator=generator)
            rows += [ids[start : start + LENGTH] for start in starts.tolist()]
        return torch.stack(rows)


def domain_task(texts: Path, domain: str) -> TaskSettings:
    """One domain as a task whose training split is calibration text, which no subject was trained on."""
    files = {split: texts / domain / f"{name}.txt" for split, name in _SPLIT_FILES.items()}
    return TaskSettings(
        kind="language-modelling",
        data={split: str(file) for split, file in files.items()},
        label=None,
        max_length=LENGTH,
        metric="nll",
    )


_SPLIT_FILES = {"train": "calibration", "validation": "validation", "test": "test"}
