"""Number the classes of a data set, alone or in the order of a checkpoint's head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from supernets.task import TRAIN, UNLABELLED


def class_names(labels_of: Mapping[str, Sequence[str]], source: str) -> tuple[str, ...]:
    """The classes among the training labels: integers by value first, then other names in alphabetical order.

    Args:
        labels_of: split → labels, empty where unknown.
        source: what to call the column in messages.

    Raises:
        ValueError: fewer than two classes, about as many classes as rows, or a class that training never shows.
    """
    train = [label for label in labels_of[TRAIN] if label]
    names = sorted(set(train), key=_by_value)
    require_two_classes(names, source)
    if len(names) > 2 and len(train) < 2 * len(names):
        raise ValueError(f"{source} holds {len(names)} different values in {len(train)} rows; name a column of classes")
    for split, labels in labels_of.items():
        if unseen := sorted(set(labels) - {"", *names}):
            raise ValueError(f"{source} has {unseen[:5]} in {split} but never in {TRAIN}; correct it or add rows")
    return tuple(names)


def require_two_classes(labels: Iterable[str], source: str) -> None:
    """ValueError if a column holds one class only, from which nothing can be learnt, or none."""
    names = sorted({label for label in labels if label})
    if len(names) < 2:
        raise ValueError(f"{source} must hold two classes or more, got {names}; name another column or add rows")


def label_ids(
    labels: Iterable[str], names: Sequence[str], source: str, among: Iterable[str] | None = None
) -> list[int]:
    """The class id of each label, `UNLABELLED` where it is empty.

    A label is a class name, a class name in other case, or a class id written as an integer, whichever fits all of
    them first.

    Args:
        among: the labels of the whole data set, which are all spelt alike; by default these.

    Raises:
        ValueError: some label is none of these.
    """
    wanted = list(labels)
    known = set(wanted if among is None else among) - {""}
    exact = {name: i for i, name in enumerate(names)}
    folded = {name.casefold(): i for i, name in enumerate(names)}
    numbers = {str(i): i for i in range(len(names))}
    for ids, spelling in ((exact, str), (folded if len(folded) == len(exact) else {}, str.casefold), (numbers, str)):
        if all(spelling(label) in ids for label in known):
            return [ids[spelling(label)] if label else UNLABELLED for label in wanted]
    raise ValueError(
        f"{source} holds {sorted(known - set(names))[:5]}, which the classes {list(names)} lack; rename them or use "
        "class ids"
    )


def _by_value(name: str) -> tuple[int, int, str]:
    try:
        return 0, int(name), name
    except ValueError:
        return 1, 0, name


def require_classes(head: Sequence[str], task: Sequence[str], source: str) -> None:
    """Refuse a checkpoint's head for a task with other classes, or with the same ones in another order.

    Names are not compared further: what a head calls ``LABEL_0`` has a name in the data.

    Raises:
        ValueError: logits would be mixed up.
    """
    if len(head) != len(task):
        raise ValueError(
            f"{source} has a head for {len(head)} classes {tuple(head)}, but the task has {len(task)} {tuple(task)}; "
            "use its classes, or a checkpoint without a head"
        )
    theirs, ours = ([name.casefold() for name in names] for names in (head, task))
    if theirs != ours and sorted(theirs) == sorted(ours):
        raise ValueError(
            f"{source} has the classes {tuple(head)}, the task has them in another order, {tuple(task)}: logits would "
            "be mixed up; number the data's labels as the head does"
        )
