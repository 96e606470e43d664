"""Turn tables into training, validation and test examples that share no text.

The duplicate rule. Two examples are duplicates if their texts are equal after case folding and with every run of
white space read as one blank. Then:

1. Data that come unsplit, or the training split of data that come split: exact repeats are kept once; of duplicates
   whose labels disagree none is kept; an unlabelled example gives way to a labelled duplicate. Duplicates that are
   left (other case, same label) always go to the same split.
2. Validation and test splits that come with the data stay as they are, so that figures compare with published ones,
   except that a validation example that is also in test, and a training example that is in either, is dropped.
3. The default split keeps 80 % for training, 10 % for validation and 10 % for test, the same shares of every label.
   Which text goes where depends on the text and the seed alone, never on the order of the rows. Given splits without
   validation lose 10 % of training to it.

Everything dropped is counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from supernets.data.data_sets import WHOLE, split_of
from supernets.data.table_files import Table
from supernets.task import SPLITS, TEST, TRAIN, VALIDATION

SPLIT_COLUMN = "split"
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Example:
    """One or two texts and a label, empty where unknown."""

    texts: tuple[str, ...]
    label: str

    @property
    def key(self) -> str:
        """What duplicates have in common."""
        return "\t".join(" ".join(text.split()).casefold() for text in self.texts)


def examples_of(table: Table, text: Sequence[str], label: str | None) -> tuple[list[Example], int]:
    """The examples of a table in order, and how many rows were left out because their text is empty.

    A table without the label column holds unlabelled examples.
    """
    texts = zip(*(table.column(name) for name in text), strict=True)
    labels = table.columns.get(label or "") or [""] * len(table)
    examples = [Example(cells, name.strip()) for cells, name in zip(texts, labels, strict=True)]
    filled = [example for example in examples if any(cell.strip() for cell in example.texts)]
    return filled, len(examples) - len(filled)


def separate(tables: Mapping[str, Table]) -> dict[str, Table]:
    """Honour a column `SPLIT_COLUMN` of an unsplit table: rows go where it says. ValueError on other words in it."""
    whole = tables.get(WHOLE)
    if whole is None or SPLIT_COLUMN not in whole.columns:
        return dict(tables)
    words = [split_of(word) or word for word in whole.columns[SPLIT_COLUMN]]
    if TRAIN not in words or set(words) - set(SPLITS):
        raise ValueError(
            f"{whole.source}: column {SPLIT_COLUMN!r} must say {', '.join(SPLITS)} and mark some rows {TRAIN}, got "
            f"{sorted(set(words))[:5]}; correct or rename it"
        )
    return {split: _rows_where(whole, [word == split for word in words]) for split in SPLITS if split in words}


def _rows_where(table: Table, kept: Sequence[bool]) -> Table:
    columns = {name: [c for c, k in zip(cells, kept, strict=True) if k] for name, cells in table.columns.items()}
    return Table(table.source, columns)


def split_examples(
    given: Mapping[str, Sequence[Example]], seed: int = 0
) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """Apply the duplicate rule and the default split (see the module).

    Args:
        given: `WHOLE` → examples, or split → examples with at least the training split.

    Returns:
        Split → examples in their given order, and reason → number of dropped examples.
    """
    dropped: Counter[str] = Counter()
    if WHOLE in given:
        kept = _without_repeats(given[WHOLE], dropped)
        return _cut(kept, (TEST, VALIDATION), seed), dict(+dropped)
    seen: set[str] = set()
    splits: dict[str, list[Example]] = {}
    for split in (TEST, VALIDATION, TRAIN):
        examples = [example for example in given.get(split, ()) if example.key not in seen]
        dropped["also in another split"] += len(given.get(split, ())) - len(examples)
        seen.update(example.key for example in examples)
        splits[split] = _without_repeats(examples, dropped) if split == TRAIN else examples
    if VALIDATION not in given:
        splits.update(_cut(splits[TRAIN], (VALIDATION,), seed))
    return splits, dict(+dropped)


def sample(examples: Sequence[Example], limit: int | None, seed: int = 0) -> list[Example]:
    """At most `limit` examples, chosen by their text and the seed, in their given order."""
    if limit is None or limit >= len(examples):
        return list(examples)
    chosen = sorted(range(len(examples)), key=lambda i: (_rank(examples[i].key, seed), i))[:limit]
    return [examples[i] for i in sorted(chosen)]


def _without_repeats(examples: Sequence[Example], dropped: Counter[str]) -> list[Example]:
    """Rule 1 of the module."""
    once = dict.fromkeys(examples)
    dropped["repeats"] += len(examples) - len(once)
    labels: dict[str, set[str]] = {}
    for example in once:
        labels.setdefault(example.key, set()).add(example.label)
    kept: list[Example] = []
    for example in once:
        rivals = labels[example.key] - {""}
        if len(rivals) > 1:
            dropped["conflicting labels"] += 1
        elif rivals and not example.label:
            dropped["repeats"] += 1
        else:
            kept.append(example)
    return kept


def _cut(examples: Sequence[Example], held_out: Sequence[str], seed: int) -> dict[str, list[Example]]:
    """Hold out `HELD_OUT_SHARE` of every label's texts for each named split; labels with too few texts only train."""
    keys_of: dict[str, list[str]] = {}
    for key, label in {example.key: example.label for example in examples}.items():
        keys_of.setdefault(label, []).append(key)
    place: dict[str, str] = {}
    for keys in keys_of.values():
        keys.sort(key=lambda key: _rank(key, seed))
        size = max(1, round(HELD_OUT_SHARE * len(keys))) if len(keys) > len(held_out) else 0
        for i, split in enumerate(held_out):
            place.update(dict.fromkeys(keys[i * size : (i + 1) * size], split))
    splits: dict[str, list[Example]] = {split: [] for split in (TRAIN, *held_out)}
    for example in examples:
        splits[place.get(example.key, TRAIN)].append(example)
    return splits


def _rank(key: str, seed: int) -> bytes:
    """A number that looks random, the same on every machine, by which texts are dealt out."""
    return hashlib.blake2b(f"{seed}\t{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
