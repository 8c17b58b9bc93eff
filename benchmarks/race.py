"""Contenders take turns; what counts are medians of ratios inside one round."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Threads of OpenBLAS were seen to spin for 0.1 s after their last job, those of OpenMP for a few milliseconds; with
# less rest they would slow whoever comes next.
_REST = 0.25


@dataclass(frozen=True)
class Contender:
    """A job under a label, and the environment variables it runs with.

    `peak` is the type whose multiply-add peak it is held against, `threads` how many threads reach that (0: all).
    """

    label: str
    job: str
    environment: tuple[tuple[str, str], ...] = ()
    every: int = 1  # takes part in every so-manieth round: the slow ones need fewer
    peak: str = "float32"
    threads: int = 0


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


def race(contenders: list[Contender], folder: Path, rounds: int, answers: bool) -> dict[str, Any]:
    """Time the contenders by turns, in another order each round, each after a measurement of its peak.

    Returns
    -------
    dict
        ``seconds`` and ``peak`` (GFLOP/s): label to a list, None where a contender sat a round out; ``blas``; and
        ``answer`` (label to mean correlation and ranks) where they are asked for.
    """
    workers: list[Worker] = []
    seconds: dict[str, list[float | None]] = {c.label: [] for c in contenders}
    peaks: dict[str, list[float | None]] = {c.label: [] for c in contenders}
    try:
        for contender in contenders:  # one by one, so that those started are closed if the next one fails
            workers += [Worker(contender, folder)]
        questions = ["blas", "answer"] if answers else ["blas"]
        told = {question: {w.contender.label: w.ask(question) for w in workers} for question in questions}
        shuffled = random.Random(1)
        for r in range(rounds):
            for worker in shuffled.sample(workers, len(workers)):
                c = worker.contender
                takes_part = r % c.every == 0
                if takes_part:
                    time.sleep(_REST)
                peaks[c.label].append(worker.ask(f"peak {c.peak} {c.threads}") if takes_part else None)
                seconds[c.label].append(worker.ask("run") if takes_part else None)
        return {"seconds": seconds, "peak": peaks, **told}
    finally:
        for worker in workers:
            worker.close()
