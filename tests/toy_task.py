"""A task that takes seconds to learn: does the sentence hold the magic token? With the tiny models that learn it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studies.records import content_hash
from supernets.data.batching import evaluation_order, training_order
from supernets.space import DEPTH, FFN_WIDTH, HEADS, Choice, SearchSpace
from supernets.supernet import Supernet
from supernets.task import SPLITS, Batch, SplitSummary, Task, TaskSettings, TaskSummary

START, MAGIC = 2, 7
VOCABULARY = 100
LENGTH = 8
LAYERS = 3

CLASSES = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
}


class ToyTask(Task):
    """Synthetic sentences of one length; class 1 holds token `MAGIC` after the first, class 0 does not."""

    labels = ("absent", "present")

    def __init__(self, sizes: tuple[int, int, int] = (64, 32, 32), seed: int = 0) -> None:
        self.settings = TaskSettings(kind="toy", data="synthetic", seed=seed)
        generator = torch.Generator().manual_seed(seed)
        self.data = {split: _examples(n, generator) for split, n in zip(SPLITS, sizes, strict=True)}

    @classmethod
    def open(cls, settings: TaskSettings, tokenizer: Any) -> ToyTask:
        return cls(seed=settings.seed)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.data)

    def size(self, split: str) -> int:
        return len(self.data[split][1])

    def data_hash(self, split: str) -> str:
        return content_hash([tensor.tolist() for tensor in self.data[split]])

    def batches(
        self, split: str, batch_size: int, *, seed: int | None = None, indices: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        tokens_NT, labels_N = self.data[split]
        lengths, chosen = [LENGTH] * len(labels_N), range(len(labels_N)) if indices is None else indices
        order = (
            evaluation_order(lengths, chosen, batch_size)
            if seed is None
            else training_order(lengths, chosen, batch_size, seed)
        )
        for rows in order:
            tokens_BT = tokens_NT[rows]
            inputs = {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT)}
            yield Batch(inputs=inputs, labels=labels_N[rows], indices=torch.tensor(rows))

    def loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        return F.cross_entropy(logits_BC, labels_B)

    def metrics(self, logits_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
        return {"accuracy": float((logits_NC.argmax(-1) == labels_N).double().mean())}

    def standard_error(self, logits_NC: Tensor, labels_N: Tensor) -> float:
        error = self.error(logits_NC, labels_N)
        return float((error * (1 - error) / len(labels_N)) ** 0.5)

    def length_quantiles(self, split: str, n: int = 5) -> tuple[int, ...]:
        return (LENGTH,) * n

    def labelled_by(self, predictions: Mapping[str, Sequence[int]]) -> ToyTask:
        return self

    def summary(self) -> TaskSummary:
        splits = {
            split: SplitSummary(
                examples=len(labels_N),
                labels={name: int((labels_N == i).sum()) for i, name in enumerate(self.labels)},
                unlabelled=0,
                truncated_share=0.0,
                mean_tokens=LENGTH,
                max_tokens=LENGTH,
            )
            for split, (_, labels_N) in self.data.items()
        }
        return TaskSummary(splits=splits, dropped={})


def _examples(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens [N, T] and labels [N], half of them of each class; token 0 to 9 occur only as `START` and `MAGIC`."""
    tokens_NT = torch.randint(10, VOCABULARY, (count, LENGTH), generator=generator)
    tokens_NT[:, 0] = START
    labels_N = torch.arange(count) % 2
    places_N = torch.randint(1, LENGTH, (count,), generator=generator)
    present = labels_N == 1
    tokens_NT[present, places_N[present]] = MAGIC
    return tokens_NT, labels_N


def tiny_model(model_type: str = "bert", *, seed: int = 0, layers: int = LAYERS, **config: Any) -> nn.Module:
    """A randomly initialised classifier in evaluation mode; its weights are a function of `seed`."""
    import transformers

    model_class = getattr(transformers, CLASSES[model_type])
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
    }
    torch.manual_seed(seed)
    model: nn.Module = model_class(model_class.config_class(**{**sizes, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_space(layers: int = LAYERS, order: Sequence[int] | None = None) -> SearchSpace:
    """Depth, and heads and feed-forward width per layer, of `tiny_model`."""
    choices = [Choice(axis=DEPTH, options=tuple(range(1, layers + 1)))]
    for layer in range(layers):
        choices.append(Choice(axis=HEADS, options=(1, 2, 4), layer=layer))
        choices.append(Choice(axis=FFN_WIDTH, options=(16, 32, 64), layer=layer))
    return SearchSpace("bert", layers, tuple(range(layers)) if order is None else tuple(order), tuple(choices))


def tiny_supernet(model_type: str = "bert", *, seed: int = 0, layers: int = LAYERS, **config: Any) -> Supernet:
    """`tiny_model` over `tiny_space`."""
    return Supernet.wrap(tiny_model(model_type, seed=seed, layers=layers, **config), tiny_space(layers))


def tiny_inputs(batch: int = 4, length: int = LENGTH, seed: int = 0) -> dict[str, Tensor]:
    """Random sentences with padding in the second row."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(10, VOCABULARY, (batch, length), generator=generator)
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[1, length // 2 :] = 0
    return {"input_ids": tokens_BT, "attention_mask": mask_BT}


def tiny_tokenizer(folder: Path) -> Any:
    """A word-piece tokenizer over the toy vocabulary."""
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"w{i}" for i in range(VOCABULARY - len(special))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return BertTokenizer(str(folder / "vocab.txt"))
