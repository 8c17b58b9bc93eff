"""Worker processes of a study: one thread each, started once, ended with their parent or when asked."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from streamcca.errors import StreamCCAWarning
from streamcca.multiplicity.insides.allocator import keep_freed_memory

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Time for a training to write its checkpoint.
_PATIENCE_SECONDS = 10.0
_asked_to_stop = threading.Event()


class Workers:
    """Processes that answer tasks; they start with the first one, and end with the context."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, function: str, folder: Path, arguments: dict[str, Any]) -> Future[dict[str, Any]]:
        """Call a "module:function" in a worker."""
        with _one_thread_each():  # a worker takes the environment that there is when its first task comes
            if self._pool is None:
                context = get_context("spawn")
                self._pool = ProcessPoolExecutor(self.jobs, context, _start_worker, (os.getpid(),))
            return self._pool.submit(_call, function, folder, arguments)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        if kind is not None:
            self._stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _stop(self) -> None:
        """Ask what runs to stop: a training writes its checkpoint; what cannot be asked is killed after a while.

        Files are written atomically, and an answer without a receipt is formed anew.
        """
        assert self._pool is not None  # noqa: S101 - the caller looked
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()


def asked_to_stop() -> bool:
    """Whether this worker's parent wants it to stop."""
    return _asked_to_stop.is_set()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Give BLAS and OpenMP of the workers one thread, through the environment that they start with."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.signal(signal.SIGTERM, lambda *_: _asked_to_stop.set())
    keep_freed_memory()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _call(function: str, folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    module, name = function.split(":")
    call: Callable[..., Any] = getattr(importlib.import_module(module), name)
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StreamCCAWarning)
        answer = call(folder, **arguments)
    notes = sorted({str(one.message) for one in caught if issubclass(one.category, StreamCCAWarning)})
    for one in caught:
        if not issubclass(one.category, StreamCCAWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return {"answer": answer, "notes": notes, "seconds": time.monotonic() - start}
