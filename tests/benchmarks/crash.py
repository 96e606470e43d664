"""kill -9 of `nas tune`, `nas search` and `nas fit` at random moments, then the same command again. `make bench-crash`

A round starts a job in an empty folder, kills it and starts it again until it ends by itself. After every run, all that
was finished before it (training steps, weights, measurements, evaluations, values, artifacts) must still be there, once
and unchanged. After every round, the job is done once more without a kill, in another folder, with the round's
measurements and nothing else of it: weights and values must be equal bit for bit, and proposals genotype by genotype.
The moments are spread evenly over the time an uninterrupted run takes, in a random order.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.common import RESULTS, finish, print_table, quiet, write_rows
from tests.benchmarks.crash_job import COMMANDS, Command, Fault, Job, Snapshot, call, faults, prepare

ROWS = RESULTS / "crash.jsonl"
KILLS, FULL_KILLS = 20, 60
COUNTED = ("step", "measurement", "evaluation", "value")
Row = dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """What became of one command.

    Attributes:
        leftovers: files that only the killed runs left behind.
    """

    command: str
    rows: list[Row] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    rounds: int = 0
    same_trace: bool = True

    @property
    def kills(self) -> int:
        """Runs that were killed."""
        return sum(row["killed"] for row in self.rows)

    def count(self, kind: str) -> int:
        """Faults of a kind."""
        return sum(fault.kind == kind for fault in self.faults)


def main() -> None:
    """Kill, compare, print; exit code 1 if anything was lost, duplicated or changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS, help="of every command")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help=f"{FULL_KILLS} kills of every command")
    options = parser.parse_args()
    quiet()
    kills = FULL_KILLS if options.full else options.kills
    outcomes = campaigns(options.commands, kills, options.seed)
    if kills >= KILLS and tuple(options.commands) == COMMANDS:
        write_rows(ROWS, [row for one in outcomes for row in one.rows], {"seed": options.seed, "kills": kills})
    report(outcomes)


def campaigns(commands: Sequence[Command], kills: int, seed: int) -> list[Outcome]:
    """Outcomes in the order of the commands; two run at a time, the longest first."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        prepare(Path(scratch) / "inputs")
        running = {}
        for command in sorted(commands, key=COMMANDS.index, reverse=True):
            root = Path(scratch) / command
            root.mkdir()
            job, rng = Job(command, Path(scratch) / "inputs"), random.Random(f"{seed} {command}")
            running[command] = pool.submit(campaign, job, kills, rng, root)
        return [running[command].result() for command in commands]


def campaign(job: Job, kills: int, rng: random.Random, root: Path) -> Outcome:
    """Rounds until a job has been killed often enough."""
    outcome, shares = Outcome(job.command), [(i + rng.random()) / kills for i in range(kills)]
    rng.shuffle(shares)
    (root / "whole").mkdir()
    seconds = call(*job.arguments(root / "whole")).seconds
    print(f"{job.command}: {seconds:.1f} s without a kill", flush=True)
    while shares:
        folder, replayed = (root / f"{kind}-{outcome.rounds}" for kind in ("killed", "replayed"))
        before = len(shares)
        took = one_round(job, folder, shares, seconds, outcome)
        if len(shares) == before:  # it was faster than the moment of its first kill
            seconds = took
        else:
            job.replay(folder, replayed)
            compare(outcome, Snapshot.of(folder), Snapshot.of(replayed))
        outcome.rounds += 1
    return outcome


def one_round(job: Job, folder: Path, shares: list[float], seconds: float, outcome: Outcome) -> float:
    """Kill and restart one job until it ends; takes the shares of `seconds` it uses, and returns how long the end took.

    What an earlier run of the round has finished is there at once: a restart may end before its moment has come.
    """
    folder.mkdir()
    before = Snapshot()
    while True:
        run = call(*job.arguments(folder), kill_after=shares[0] * seconds if shares else None)
        after = Snapshot.of(folder)
        found = faults(before, after)
        outcome.faults += found
        outcome.rows.append(
            {
                "command": job.command,
                "round": outcome.rounds,
                "killed": run.killed,
                "seconds": round(run.seconds, 3),
                "stage": run.stage if run.killed else "end",
                **{f"{kind}s": [before.count(kind), after.count(kind)] for kind in COUNTED},
                "faults": [f"{fault.kind} {fault.what}" for fault in found],
            }
        )
        print(describe(outcome.rows[-1]), flush=True)
        if not run.killed:
            return run.seconds
        shares.pop(0)
        before = after


def compare(outcome: Outcome, found: Snapshot, expected: Snapshot) -> None:
    """Hold a round against the uninterrupted run."""
    differences = faults(expected, found)
    for fault in differences:
        print(f"{outcome.command} against the uninterrupted run: {fault.kind} {fault.what}", flush=True)
    outcome.faults += differences
    outcome.leftovers += sorted(found.files - expected.files)
    outcome.same_trace &= found.trace == expected.trace


def describe(row: Row) -> str:
    """One line of progress."""
    counts = [f"{kind}s {row[f'{kind}s'][0]} → {row[f'{kind}s'][1]}" for kind in COUNTED if row[f"{kind}s"][1]]
    how = f"killed in {row['stage']} after" if row["killed"] else "ended after"
    return "; ".join([f"{row['command']} round {row['round']}: {how} {row['seconds']:.1f} s", *counts, *row["faults"]])


def report(outcomes: Sequence[Outcome]) -> None:
    """Tables and the result line."""
    stages = Counter((row["command"], row["stage"]) for one in outcomes for row in one.rows if row["killed"])
    print_table(["killed in", "kills"], [(f"nas {' · '.join(key)}", count) for key, count in stages.items()])
    kinds = ("lost", "duplicated", "changed")
    print_table(
        ["command", "rounds", "kills", *kinds, "same trace", "leftovers"],
        [
            (
                one.command,
                one.rounds,
                one.kills,
                *map(one.count, kinds),
                "yes" if one.same_trace else "NO",
                len(one.leftovers),
            )
            for one in outcomes
        ],
    )
    for path in sorted({path for one in outcomes for path in one.leftovers}):
        print(f"left behind: {path}")
    totals = {kind: sum(one.count(kind) for one in outcomes) for kind in kinds}
    same_trace = all(one.same_trace for one in outcomes)
    finish(
        {
            "kills": sum(one.kills for one in outcomes),
            **totals,
            "same_trace": same_trace,
            "leftovers": sum(len(one.leftovers) for one in outcomes),
            "kills_by_command": {one.command: one.kills for one in outcomes},
        }
    )
    if any(totals.values()) or not same_trace:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
