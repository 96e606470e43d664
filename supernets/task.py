"""What a supernet is trained and judged on: a task gives batches, a loss and metrics. Imports no torch when loaded.

Shape suffixes: N examples of a split, B examples of a batch, C classes, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from studies.records import content_hash

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)

UNLABELLED = -100
"""Label id of an example without a label: losses and metrics leave it out (the default `ignore_index` of torch)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Some examples, padded to one length.

    Attributes:
        inputs: keyword arguments of the model, such as ``input_ids`` and ``attention_mask``, each int64 [B, T].
        labels: what `Task.loss` compares with: class ids, int64 [B], or next tokens, int64 [B, T]; `UNLABELLED` where
            unknown. None if the split has no labels at all.
        indices: position of each example in its split, int64 [B], always on the CPU.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with inputs and labels on a device."""
        return Batch(
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            labels=None if self.labels is None else self.labels.to(device),
            indices=self.indices,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSettings:
    """All that is needed to open the same task again, next to a tokenizer. Survives JSON unchanged.

    Attributes:
        kind: a file name in `supernets/tasks`, written with hyphens.
        data: one file or folder, or split name → file.
        text: one text column, or two for pairs.
        label: label column; None for unlabelled text.
        labels: class names in id order; None takes them from the training rows.
        max_length: longest input in tokens; None takes the tokenizer's limit.
        metric: what `Task.error` is one minus of.
        class_weights: None, or ``balanced`` for a loss weighted by inverse class frequency.
        limit: keep at most this many examples of each split; None keeps all.
        seed: decides the default split and the sample that `limit` keeps.
    """

    kind: str
    data: str | Mapping[str, str]
    text: tuple[str, ...] = ("text",)
    label: str | None = "label"
    labels: tuple[str, ...] | None = None
    max_length: int | None = None
    metric: str = "accuracy"
    class_weights: str | None = None
    limit: int | None = None
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values only; `from_json` is the inverse."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TaskSettings:
        """Settings from parsed JSON; ValueError names keys that do not belong."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(content) - known):
            raise ValueError(f"task settings do not know {unknown}; known are {sorted(known)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSummary:
    """What one split holds, to be looked at before anything is spent on it.

    Attributes:
        labels: class name → examples, in id order.
        truncated_share: share of examples longer than the limit, in [0, 1].
    """

    examples: int
    labels: Mapping[str, int]
    unlabelled: int
    truncated_share: float
    mean_tokens: float
    max_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSummary:
    """Summaries by split, and how many rows were left out for which reason."""

    splits: Mapping[str, SplitSummary]
    dropped: Mapping[str, int]


class Task(ABC):
    """Data, loss and metric of one job. Every file in `supernets/tasks` offers one subclass under the name `TASK`.

    Attributes:
        labels: class names in id order.
        usual_length: tokens of an example where nobody says otherwise; None leaves it to the tokenizer's limit.
        trains_head: whether training teaches a model's classification head, or its body alone.
    """

    settings: TaskSettings
    labels: tuple[str, ...]
    trains_head: ClassVar[bool] = True
    usual_length: ClassVar[int | None] = None

    @classmethod
    @abstractmethod
    def open(cls, settings: TaskSettings, tokenizer: Any) -> Task:
        """Read the data the settings name. ValueError in one line if it cannot be used."""

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The non-empty splits, in the order of `SPLITS`; train and validation are always among them."""

    @abstractmethod
    def size(self, split: str) -> int:
        """Examples in a split."""

    @abstractmethod
    def data_hash(self, split: str) -> str:
        """Identity of everything that decides the value of `error` on a split, whatever path it was read from."""

    @abstractmethod
    def batches(
        self, split: str, batch_size: int, *, seed: int | None = None, indices: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Every example (of `indices`, if given) exactly once: shuffled by `seed`, or in one fixed order without."""

    def logits(self, network: Any, batch: Batch) -> Tensor:
        """What `loss` takes: the float32 logits [B, C] of a supernet or a model."""
        logits: Tensor = network(**batch.inputs).logits
        return logits.float()

    def answers(self, network: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What `error`, `metrics` and `standard_error` take, a row per example: logits, and labels if there are any."""
        return self.logits(network, batch), batch.labels

    @abstractmethod
    def loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Scalar training loss; unlabelled examples do not count."""

    def outcomes(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """What `metrics`, `error` and `standard_error` need of a batch, one row an example.

        That is the logits, unless a task says otherwise because its logits are too many to be kept.
        """
        return logits_BC

    @abstractmethod
    def metrics(self, logits_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
        """Every metric of the task by name, from `outcomes`; larger is better unless the task says otherwise."""

    @abstractmethod
    def standard_error(self, logits_NC: Tensor, labels_N: Tensor) -> float:
        """Standard error of `error` over the sampling of the examples, from `outcomes`."""

    @abstractmethod
    def length_quantiles(self, split: str, n: int = 5) -> tuple[int, ...]:
        """`n` lengths in tokens, ascending, that stand for equal shares of a split."""

    @abstractmethod
    def summary(self) -> TaskSummary:
        """What the data look like."""

    @abstractmethod
    def labelled_by(self, predictions: Mapping[str, Sequence[int]]) -> Task:
        """The same task with given class ids, split → one per example, where examples have no label."""

    def error(self, logits_NC: Tensor, labels_N: Tensor) -> float:
        """One minus the chosen metric, from `outcomes`: 0 is perfect."""
        return 1.0 - self.metrics(logits_NC, labels_N)[self.settings.metric]

    @property
    def error_unit(self) -> str:
        """Unit of `error`; a fraction lies in [0, 1]."""
        return "fraction"

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.labels)

    @property
    def id2label(self) -> dict[int, str]:
        """Class names as a model configuration stores them."""
        return dict(enumerate(self.labels))

    @property
    def label2id(self) -> dict[str, int]:
        """Inverse of `id2label`."""
        return {name: i for i, name in enumerate(self.labels)}

    @property
    def fingerprint(self) -> str:
        """Identity of the whole task: its kind, loss, classes and data."""
        settings = self.settings
        hashes = {split: self.data_hash(split) for split in self.splits}
        return content_hash([settings.kind, settings.class_weights, list(self.labels), hashes])
