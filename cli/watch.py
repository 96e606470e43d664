"""Shows how far the stages of a job are: what the stages report, as progress and lines."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from cli.output import Progress, duration

if TYPE_CHECKING:
    from nas.algorithm import Generation
    from nas.fit import Listener
    from nas.search import SearchProgress
    from supernets.estimate import Estimate
    from supernets.finetune import TuneProgress


class Watch:
    """One progress display at a time; a stage with another title or total begins a new one."""

    def __init__(self, explains: bool = False) -> None:
        self._explains = explains
        self._explained = False
        self._shown: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None

    def show(self, title: str, done: float, total: float, note: str = "") -> None:
        """Say that `done` of `total` are done."""
        if self._shown is None or (self._shown.title, self._shown.total) != (title, total):
            self._close()
            self._shown = Progress(title, total).__enter__()
        self._shown.update(done, note)

    def estimated(self, estimate: Estimate) -> None:
        """State what the training will take before it starts."""
        self.say(describe(estimate))

    def tuned(self, name: str, progress: TuneProgress) -> None:
        """Training: loss, and the quality of three networks where just measured."""
        quality = " ".join(f"{network} {number:.3f}" for network, number in progress.quality.items())
        self.show(f"train {name}", progress.step, progress.steps, f"loss {progress.loss:.3f} {quality}".strip())

    def measured(self, done: float, total: int) -> None:
        """Timing on the device."""
        self.show("measure", round(done, 1), total)

    def calibrated(self, done: float, total: float) -> None:
        """Text that a model with experts has read."""
        self.show("calibrate", done, total)

    def repaired(self, done: float, total: float) -> None:
        """Steps of a repair."""
        self.show("repair", done, total)

    def searched(self, progress: SearchProgress) -> None:
        """Evaluations."""
        if self._explains and not self._explained:
            self._explained = True
            self.say("this algorithm does not say what it trusts")
        self.show("search", progress.answered, progress.budget, f"{progress.failed} failed" * bool(progress.failed))

    def explained(self, generation: Generation) -> None:
        """What an algorithm says of itself before a proposal."""
        self._explained = True
        if self._explains:
            self.say(explanation(generation))

    def say(self, text: str) -> None:
        """A line of its own."""
        (self._shown or Progress("", 0)).say(text)

    def recovered(self, progress: TuneProgress) -> None:
        """Training of one exported network."""
        self.show("recover", progress.step, progress.steps, f"loss {progress.loss:.3f}")

    def listener(self) -> Listener:
        """Everything a whole job may tell."""
        from nas.fit import Listener

        return Listener(
            on_estimate=self.estimated,
            on_tuned=self.tuned,
            on_measured=self.measured,
            on_searched=self.searched,
            on_generation=self.explained,
            on_recovered=self.recovered,
        )


def explanation(generation: Generation) -> str:
    """``generation 3: 60 measured, …; error by ridge, off by 41 %, rank correlation 0.83, trusted``."""
    facts = [
        f"{generation.measured} measured",
        f"{100 * generation.feasible_share:.0f} % within limits",
        f"hypervolume {generation.hypervolume:.4f}",
    ]
    fits = [
        f"{key} by {fit.predictor}, off by {100 * fit.relative_error:.0f} % of its spread, "
        f"rank correlation {fit.rank_correlation:.2f}, {'trusted' if fit.trusted else 'not trusted'}"
        for key, fit in generation.columns.items()
    ]
    notes = [generation.note] if generation.note else []
    return f"generation {generation.number}: " + "; ".join([", ".join(facts), *fits, *notes])


def describe(estimate: Estimate) -> str:
    """``training takes about 4 min 10 s (300 steps) and 420 MiB of memory``."""
    memory = estimate.memory_bytes / 2**20
    return f"training takes about {duration(estimate.seconds)} ({estimate.steps} steps) and {memory:.0f} MiB of memory"
