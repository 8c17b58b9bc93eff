"""Tasks of a study: each runs once, in a worker; a receipt remembers its answer and what it rested on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamcca._backend import VERSION
from streamcca.errors import ProcessError, StreamCCAError
from streamcca.multiplicity.study.workers import Workers
from streamcca.sources import progress_bar
from streamcca.store import remove_unfinished, write_atomically


@dataclass(frozen=True)
class Task:
    """Work whose answer is plain values, and perhaps files.

    Attributes
    ----------
    name : str
        Unique in the study; the receipt's file name.
    function : str
        "module:function", called with the study's folder and `arguments` in a worker process.
    arguments : dict
        Plain values.
    rests_on : object
        Plain values that decide the answer beside the arguments, such as keys of the models. The answer is formed anew
        when any of this has changed.
    files : tuple of Path
        Files that it writes; formed anew when one is missing.
    """

    name: str
    function: str
    arguments: dict[str, Any]
    rests_on: Any = None
    files: tuple[Path, ...] = field(default=())

    @property
    def key(self) -> str:
        """Hash of everything that decides the answer, this version of the package among it."""
        return stable_hash([VERSION, self.function, self.arguments, self.rests_on])


def stable_hash(value: Any) -> str:
    """Return a hash of plain values, the same in every process."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def run_tasks(
    tasks: Sequence[Task], folder: Path, workers: Workers, description: str, progress: Any = "auto"
) -> dict[str, dict[str, Any]]:
    """Run what has not been run yet, and return by name: answer, notes and seconds.

    Every task runs in a worker with one thread, however many workers there are, so that neither `jobs` nor a restart
    changes a bit.

    Raises
    ------
    ProcessError
        A worker was killed.
    StreamCCAError, ...
        What a task raised; finished tasks keep their receipts.
    """
    receipts = folder / "receipts"
    receipts.mkdir(parents=True, exist_ok=True)
    answers = {task.name: _receipt(task, receipts) for task in tasks}
    open_tasks = [task for task in tasks if answers[task.name] is None]
    if open_tasks:
        with progress_bar(progress, len(tasks), "task", description) as bar:
            bar.update(len(tasks) - len(open_tasks))
            for task, answer in _run_all(open_tasks, folder, workers):
                answers[task.name] = _write_receipt(task, answer, receipts)
                bar.update(1)
    return {name: receipt for name, receipt in answers.items() if receipt is not None}


def _path(task: Task, receipts: Path) -> Path:
    return receipts / f"{task.name.replace('/', '__')}.json"


def _receipt(task: Task, receipts: Path) -> dict[str, Any] | None:
    path = _path(task, receipts)
    if not path.is_file() or not all(file.is_file() for file in task.files):
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # damaged by a full disk, say; formed anew
        return None
    return found if found.get("key") == task.key and "answer" in found else None


def _write_receipt(task: Task, answer: dict[str, Any], receipts: Path) -> dict[str, Any]:
    path = _path(task, receipts)
    remove_unfinished(path.parent, path.name)
    content = json.dumps({"task": task.name, "key": task.key, **answer})
    write_atomically(path, content.encode())
    # As a restart would read it: lists for tuples, texts for keys.
    receipt: dict[str, Any] = json.loads(content)
    return receipt


def _run_all(tasks: Sequence[Task], folder: Path, workers: Workers) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Yield tasks and answers as they come."""
    waiting: dict[Future[dict[str, Any]], Task] = {}
    try:
        for task in tasks:
            # Its files may be written over from here on; settings of before must not find them under an old receipt.
            _path(task, folder / "receipts").unlink(missing_ok=True)
            waiting[workers.submit(task.function, folder, task.arguments)] = task
            if len(waiting) >= 2 * workers.jobs:  # all at once would run on after an error
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)
    except BrokenProcessPool:
        names = ", ".join(task.name for task in list(waiting.values())[: workers.jobs])
        raise ProcessError(
            f"study: a worker process ended while it ran one of {names}, perhaps killed for memory; start the study "
            "again, with fewer --jobs: it goes on where it was"
        ) from None


def _finished(waiting: dict[Future[dict[str, Any]], Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        task = waiting[future]
        try:
            answer = future.result()
        except StreamCCAError as error:
            raise type(error)(*_with_name(error, task.name)) from None
        del waiting[future]
        yield task, answer


def _with_name(error: StreamCCAError, name: str) -> tuple[Any, ...]:
    if isinstance(error, OSError):
        return (error.errno, f"{name}: {error.strerror}")
    return (f"{name}: {error}",)
