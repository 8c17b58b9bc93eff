"""Contenders take turns; what counts is the median of the ratios inside one round."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

# Threads of OpenBLAS were seen to spin for 0.1 s after their last job, those of OpenMP for a few milliseconds; with
# less rest they would slow whoever comes next.
_REST = 0.25


@dataclass(frozen=True)
class Contender:
    """A job under a label, and the environment variables it runs with."""

    label: str
    job: str
    environment: tuple[tuple[str, str], ...] = ()
    every: int = 1  # takes part in every so-manieth round: the slow ones need fewer


class Worker:
    """A contender's process, ready to run on command."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        self.contender = contender
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contender.job, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **dict(contender.environment)},
        )
        self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"{self.contender.label}: its process ended early, with {self._process.returncode}")
        return json.loads(line)

    def ask(self, command: str) -> Any:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Let the process end."""
        self._process.communicate()


def race(contenders: list[Contender], folder: Path, rounds: int, peak: str, answers: bool) -> dict[str, Any]:
    """Time the contenders by turns, in another order each round; the first one also measures the machine's peak.

    Returns
    -------
    dict
        ``seconds`` (label to a list, None where a contender sat a round out), ``peak`` (GFLOP/s per round), ``blas``,
        and ``answer`` (label to mean correlation and ranks) where they are asked for.
    """
    workers: list[Worker] = []
    seconds: dict[str, list[float | None]] = {c.label: [] for c in contenders}
    peaks: list[float] = []
    try:
        for contender in contenders:  # one by one, so that those started are closed if the next one fails
            workers += [Worker(contender, folder)]
        questions = ["blas", "answer"] if answers else ["blas"]
        told = {question: {w.contender.label: w.ask(question) for w in workers} for question in questions}
        shuffled = random.Random(1)
        for r in range(rounds):
            time.sleep(_REST)
            peaks.append(workers[0].ask(f"peak {peak}"))
            for worker in shuffled.sample(workers, len(workers)):
                takes_part = r % worker.contender.every == 0
                time.sleep(_REST if takes_part else 0)
                seconds[worker.contender.label].append(worker.ask("run") if takes_part else None)
        return {"seconds": seconds, "peak": peaks, **told}
    finally:
        for worker in workers:
            worker.close()


def median_seconds(seconds: list[float | None]) -> float:
    """Median of the rounds that a contender took part in."""
    return median(t for t in seconds if t is not None)


def median_ratio(slower: list[float | None], ours: list[float | None]) -> float:
    """Median over the rounds of (rival's time / our time)."""
    return median(a / b for a, b in zip(slower, ours, strict=True) if a is not None and b is not None)
