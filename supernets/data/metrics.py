"""Classification metrics from a confusion matrix, and their standard error.

Shape suffixes: C classes; the matrix counts examples by (true class, predicted class).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def confusion(true: NDArray[np.int64], predicted: NDArray[np.int64], num_labels: int) -> Counts:
    """Examples by (true, predicted) class, [C, C]. ValueError if there are none."""
    if len(true) == 0:
        raise ValueError("a metric needs at least one labelled example, got none; evaluate on a labelled split")
    cells = np.bincount(true * num_labels + predicted, minlength=num_labels * num_labels)
    return cells.reshape(num_labels, num_labels).astype(np.int64)


def accuracy(counts_CC: Counts) -> float:
    """Share of examples on the diagonal."""
    return float(np.trace(counts_CC) / counts_CC.sum())


def f1(counts_CC: Counts) -> float:
    """Two classes: F1 of class 1. More: the unweighted mean over the classes that occur (macro F1).

    F1 of a class is 2 TP / (true + predicted examples of it), 0 if it never occurs.
    """
    hits_C, occurrences_C = np.diag(counts_CC), counts_CC.sum(0) + counts_CC.sum(1)
    scores_C = 2 * hits_C / np.maximum(occurrences_C, 1)
    return float(scores_C[1] if len(counts_CC) == 2 else scores_C[occurrences_C > 0].mean())


def matthews(counts_CC: Counts) -> float:
    """Matthews correlation for any number of classes, in [-1, 1]; 0 where it is undefined.

    Source: J. Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
    """
    # Python integers: products of three counts overflow 64 bits at about two million examples.
    true_C, predicted_C = counts_CC.sum(1).tolist(), counts_CC.sum(0).tolist()
    total, hits = sum(true_C), int(np.trace(counts_CC))
    covariance = hits * total - sum(t * p for t, p in zip(true_C, predicted_C, strict=True))
    variance_true = total * total - sum(t * t for t in true_C)
    variance_predicted = total * total - sum(p * p for p in predicted_C)
    return covariance / math.sqrt(variance_true * variance_predicted) if variance_true * variance_predicted else 0.0


METRICS: Mapping[str, Callable[[Counts], float]] = {"accuracy": accuracy, "f1": f1, "matthews": matthews}


def jackknife_error(metric: Callable[[Counts], float], counts_CC: Counts) -> float:
    """Standard error of a metric by leaving out one example at a time; infinite for fewer than two examples.

    Examples in one cell of the matrix are alike, so there are at most C² different omissions to compute.
    Source: B. Efron and C. Stein, "The jackknife estimate of variance", 1981.
    """
    n = int(counts_CC.sum())
    if n < 2:
        return math.inf
    cells = [(int(i), int(j)) for i, j in np.argwhere(counts_CC)]
    sizes = np.array([counts_CC[cell] for cell in cells], dtype=np.float64)
    left_out = np.array([metric(_without(counts_CC, cell)) for cell in cells])
    mean = float((sizes * left_out).sum() / n)
    return math.sqrt((n - 1) / n * float((sizes * (left_out - mean) ** 2).sum()))


def _without(counts_CC: Counts, cell: tuple[int, int]) -> Counts:
    fewer_CC = counts_CC.copy()
    fewer_CC[cell] -= 1
    return fewer_CC
