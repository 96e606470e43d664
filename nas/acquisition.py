"""Hypervolume improvement: which candidates are worth a real evaluation, judged on samples of what they may cost.

Legend of shapes: S samples of all costs, K candidates, N points of a front, M objectives (minimised).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]
Mask = NDArray[np.bool_]

_BLOCK = 24
"""Candidates whose improvement is brought up to date at a time."""


def improvements(points_SKM: Costs, front_SNM: Costs, reference_M: Costs) -> Costs:
    """Hypervolume [S, K] that every point alone would add to the front of its sample; 0 beyond the reference.

    Exact. Two objectives are the area between point and staircase; more are summed in slices along the last one, in
    each of which the front consists of the points below it. The time grows with the power M - 1 of N.
    """
    points_SKM, front_SNM = np.minimum(points_SKM, reference_M), np.minimum(front_SNM, reference_M)
    if len(reference_M) == 1:
        best_S1 = np.min(front_SNM[..., 0], axis=1, keepdims=True, initial=reference_M[0])
        return np.asarray(np.maximum(best_S1 - points_SKM[..., 0], 0.0))
    order_SN = np.argsort(front_SNM[..., -1], axis=1, kind="stable")
    front_SNM = np.take_along_axis(front_SNM, order_SN[..., None], axis=1)
    samples = len(front_SNM)
    below_SN = np.hstack([np.full((samples, 1), -np.inf), front_SNM[..., -1]])
    above_SN = np.hstack([front_SNM[..., -1], np.full((samples, 1), reference_M[-1])])
    depth_SK = points_SKM[..., -1]
    if len(reference_M) == 2:
        walls_SN = np.hstack([np.full((samples, 1), reference_M[0]), front_SNM[..., 0]])
        widths_SKN = np.minimum.accumulate(walls_SN, axis=1)[:, None] - points_SKM[..., :1]
        heights_SKN = above_SN[:, None] - np.maximum(below_SN[:, None], depth_SK[..., None])
        return np.asarray(np.einsum("skn,skn->sk", np.maximum(heights_SKN, 0.0), np.maximum(widths_SKN, 0.0)))
    total_SK = np.zeros(points_SKM.shape[:2])
    for n in range(front_SNM.shape[1] + 1):
        thickness_SK = np.maximum(above_SN[:, n, None] - np.maximum(below_SN[:, n, None], depth_SK), 0.0)
        if thickness_SK.any():
            total_SK += thickness_SK * improvements(points_SKM[..., :-1], front_SNM[:, :n, :-1], reference_M[:-1])
    return total_SK


def greedy_batch(samples_SKM: Costs, allowed_SK: Mask, front_NM: Costs, reference_M: Costs, count: int) -> list[int]:
    """Up to `count` candidates, each of which adds the most expected hypervolume to the front and those before it.

    The expectation is the mean over the samples; a candidate adds nothing in samples in which it is not allowed. Since
    an improvement only ever shrinks as the front grows, earlier values are upper bounds and few are recomputed.
    Candidates that improve nothing are not chosen.
    """
    samples_SKM = np.where(allowed_SK[..., None], samples_SKM, np.inf)
    front_SNM = np.broadcast_to(front_NM, (len(samples_SKM), *front_NM.shape))
    bound_K = improvements(samples_SKM, front_SNM, reference_M).mean(axis=0)
    chosen: list[int] = []
    while len(chosen) < count:
        best = _most_improving(samples_SKM, front_SNM, reference_M, bound_K)
        if best is None:
            break
        chosen.append(best)
        bound_K[best] = 0.0
        front_SNM = np.concatenate([front_SNM, samples_SKM[:, best : best + 1]], axis=1)
    return chosen


def _most_improving(samples_SKM: Costs, front_SNM: Costs, reference_M: Costs, bound_K: Costs) -> int | None:
    """The candidate of the largest present improvement; `bound_K` is tightened on the way. None if all are 0."""
    fresh_K = np.zeros(len(bound_K), dtype=bool)
    while True:
        best = int(bound_K.argmax())
        if bound_K[best] <= 0:
            return None
        if fresh_K[best]:
            return best
        stale = np.flatnonzero(~fresh_K)
        block = stale[np.argsort(-bound_K[stale], kind="stable")[:_BLOCK]]
        bound_K[block] = improvements(samples_SKM[:, block], front_SNM, reference_M).mean(axis=0)
        fresh_K[block] = True
