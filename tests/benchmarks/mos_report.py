"""The table, the figure and the last line of the study of supernet quality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.common import finish, print_table
from tests.benchmarks.mos_arms import ARMS, plain_twin
from tests.benchmarks.mos_statistics import Study

Rows = Mapping[tuple[Any, ...], Mapping[str, Any]]


def report(rows: Rows) -> None:
    """Print what the rows say so far, and the last line."""
    study = Study.of(rows)
    arms = [name for name in ARMS if name in study.arms]
    pair, recommended = best_mixture(study), recommend(study)
    _print_arms(study, arms)
    _print_ends("tau", study)
    _print_ends("tau by loss", study.by_loss())
    if recommended and (closed := study.closed(recommended)):
        print(f"tau of {recommended} above the middle of both: {_interval(closed)}")
    for longer in sorted({ARMS[name].times for name in arms}):
        if compared := best_mixture(study, longer):
            print(f"gap of {compared[0]} above that of {compared[1]}: {_interval(study.gap_difference(*compared))}")
            print(f"tau of {compared[0]} above that of {compared[1]}: {_interval(study.tau_difference(*compared))}")
    if pair:
        print(f"gap of {pair[0]} over that of {pair[1]}: {_interval(study.gap_ratio(*pair))}")
        _print_other_half(study)
    finish(
        {
            "recipes": {name: summary(study, name) for name in arms},
            "proxies": study.proxies(),
            "noise_ceiling_tau": study.ceiling(),
            "gap_ratio": study.gap_ratio(*pair)[0] if pair else None,
            "hypervolume_wins": study.hypervolume_wins(*pair) if pair else None,
            "step_ratio": step_ratio(study, *pair) if pair else None,
            "recommended": recommended,
        }
    )


def summary(study: Study, arm: str) -> dict[str, float | None]:
    """The figures of an arm; gaps in shares of accuracy, seconds of processor time."""
    return {
        "gap": study.gap(arm)[0],
        "gap_sd": float(study.gaps_N(arm).std(ddof=1)),
        "tau": study.tau(arm)[0],
        "spearman": study.spearman(arm),
        "steps_to_alone": study.steps_to_alone(arm),
        "seconds": fmean(row["seconds"] for row in study.arms[arm]),
    }


def best_mixture(study: Study, times: int = 1) -> tuple[str, str] | None:
    """The mixture of two experts with the smallest gap, and the same recipe without it; None before both are known."""
    mixtures = [
        name
        for name in study.arms
        if ARMS[name].mixture.get("experts") == 2 and ARMS[name].times == times and plain_twin(name) in study.arms
    ]
    best = min(mixtures, key=lambda name: study.gap(name)[0], default=None)
    return None if best is None else (best, plain_twin(best))


def recommend(study: Study) -> str | None:
    """The smallest gap of those arms that, in equal time, rank as well as the best, as far as intervals can tell."""
    arms = [name for name in study.arms if ARMS[name].times == 1]
    first = max(arms, key=lambda name: study.tau(name)[0], default=None)
    if first is None:
        return None
    equal = [name for name in arms if name == first or study.tau_difference(first, name)[1] <= 0]
    return min(equal, key=lambda name: study.gap(name)[0])


def _print_ends(what: str, study: Study) -> None:
    """Between which rank correlations those of supernets should lie."""
    ceiling = study.ceiling()
    proxies = ", ".join(f"{name} {tau:.3f}" for name, tau in study.proxies().items())
    print(f"{what} of {proxies or 'no proxy yet'}; of the truth with itself:", end=" ")
    print("not known yet" if ceiling is None else f"{ceiling:.3f}")


def _print_other_half(study: Study) -> None:
    """Both choices once more, made on every second network and scored on the others: what is chosen looks too good."""
    print("chosen on one half of the networks and scored on the other half:")
    halves = study.part(slice(0, None, 2)), study.part(slice(1, None, 2))
    for chosen, scored in (halves, halves[::-1]):
        pair, recommended = best_mixture(chosen), recommend(chosen)
        if pair and recommended:
            print(f"  gap of {pair[0]} over that of {pair[1]}: {_interval(scored.gap_ratio(*pair))};", end=" ")
            print(f"tau of {recommended}: {_interval(scored.tau(recommended))}")


def step_ratio(study: Study, mixture: str, plain: str) -> float:
    """Time of a mixture's training step over that of the same recipe without it."""
    return float(fmean(study.paces[mixture]["ratios"]) / fmean(study.paces[plain]["ratios"]))


def draw(rows: Rows, path: Path) -> None:
    """Inherited against alone for three arms, and the rank correlation of all with intervals."""
    from matplotlib.figure import Figure

    study = Study.of(rows)
    shown = [name for name in dict.fromkeys(("single-path", *(best_mixture(study) or ()))) if name in study.arms]
    names = [name for name in ARMS if name in study.arms]
    figure = Figure(figsize=(11.0, max(4.0, 0.25 * len(names))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in shown:
        left.scatter(study.alone_N, study.inherited[name].mean(axis=0), s=14, label=name)
    ends = [float(study.alone_N.min()), float(study.alone_N.max())]
    left.plot(ends, ends, color="0.6", linewidth=1)
    left.set(xlabel="accuracy trained alone", ylabel="accuracy inherited (mean of seeds)")
    for height, name in enumerate(reversed(names)):
        tau, low, high = study.tau(name)
        right.errorbar(tau, height, xerr=[[tau - low], [high - tau]], fmt="o", color="C0", capsize=2)
    right.set_yticks(range(len(names)), list(reversed(names)))
    lines = {**study.proxies(), **({} if (top := study.ceiling()) is None else {"truth again": top})}
    for number, (name, tau) in enumerate(lines.items()):
        right.axvline(tau, color=f"C{number + 1}", linestyle=":", label=name)
    right.set(xlabel="Kendall's tau against trained alone")
    for axes, place in ((left, {}), (right, {"loc": "upper center", "bbox_to_anchor": (0.3, -0.12), "ncols": 4})):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small", **place)
    figure.savefig(path)


def _print_arms(study: Study, arms: list[str]) -> None:
    head = ["recipe", "seeds", "steps", "seconds", "pace", "MiB", "gap", "2.5 %", "97.5 %", "sd", "loss gap"]
    head += ["tau", "2.5 %", "97.5 %", "by loss", "spearman", "to alone"]
    table, by_loss = [], study.by_loss()
    for name in arms:
        rows, pace, figures = study.arms[name], study.paces[name], summary(study, name)
        table.append(
            [
                name,
                len(rows),
                "+".join(map(str, rows[0]["steps"])),
                round(figures["seconds"] or 0.0),
                fmean(pace["ratios"]),
                round(pace["memory_bytes"] / 2**20),
                *study.gap(name),
                figures["gap_sd"],
                study.loss_gap(name),
                *study.tau(name),
                by_loss.tau(name)[0],
                figures["spearman"],
                "" if figures["steps_to_alone"] is None else round(figures["steps_to_alone"]),
            ]
        )
    print(f"{len(study.networks)} networks, accuracy alone {study.alone_N.min():.3f} to {study.alone_N.max():.3f}")
    print_table(head, table)


def _interval(values: tuple[float, float, float]) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*values)
