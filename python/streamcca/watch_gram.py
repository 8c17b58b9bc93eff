"""What a watch may keep of a model's layers: moments, if they fit; or all rows on disk, and Gram matrices of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from streamcca._backend import state_bytes
from streamcca._memory import available_memory
from streamcca.errors import InputError, MemoryLimitError
from streamcca.gram import Gram, form_view, gram_bytes, remove_files
from streamcca.gram_cca import gram_refuses
from streamcca.spool import Spool, segment_bytes
from streamcca.views import Pairs, check_option, pair_list

if TYPE_CHECKING:
    from torch import Tensor

WatchStrategy = Literal["auto", "covariance", "gram"]


class RowKeeper:
    """Rows of a watched model on disk, and the Gram matrices that they become.

    Parameters
    ----------
    folder : path
        Where rows go, and unfinished matrices.
    options : mapping
        Those of `watch`: 'precision', 'threads', 'nonfinite', 'pairs'.
    memory : int, optional
        Bytes that may be taken.
    """

    def __init__(self, folder: str | os.PathLike[str], options: Mapping[str, Any], memory: int | None) -> None:
        refusal = gram_refuses("svcca", 0.0, options["nonfinite"])
        if refusal:
            raise InputError(refusal)
        if options["pairs"] != "all":
            raise InputError(
                f"pairs: got {options['pairs']!r}, expected 'all': with strategy='gram' each layer has a matrix of its "
                "own, and every pair comes from two of them"
            )
        self._folder, self._options, self._memory = Path(folder), options, memory
        self._spool: Spool | None = None
        self._gram: Gram | None = None
        self.widths: dict[str, int] = {}
        self.rows = 0

    @property
    def formed(self) -> bool:
        """Whether the matrices are there, and rows can no longer be added."""
        return self._gram is not None

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Write the rows of one forward; those that a killed watch has written are passed over."""
        if self._spool is None:
            self.widths = {name: int(x.shape[1]) for name, x in rows.items()}
            waiting = segment_bytes([int(x.shape[1]) * x.element_size() for x in rows.values()])
            _check("rows that wait for the disk need", waiting, self._memory, "watch fewer or narrower layers")
            self._spool = Spool(self._folder)
        self._spool.add(rows, self.rows)
        self.rows += len(next(iter(rows.values())))

    def gram(self) -> Gram:
        """Form the matrices, once, and remove the files.

        Raises
        ------
        InputError
            Nothing was watched; or the folder holds other numbers of rows than were watched.
        MemoryLimitError
            They do not fit.
        """
        if self._gram is not None:
            return self._gram
        if self._spool is None:
            raise InputError("nothing was watched yet; run the model inside the with block first")
        need = _matrices_bytes(self.rows, list(self.widths.values()))
        what = f"Gram matrices of {len(self.widths)} layers and {self.rows} rows need"
        _check(what, need, self._memory, f"watch fewer layers or rows; the rows stay in {self._folder}")
        if not self._spool.complete:
            if self._spool.rows > self.rows:  # of a longer watch, which is not over
                self._refuse_other_rows(self._spool.rows)
            self._spool.finish()
        if self._spool.rows != self.rows:
            self._refuse_other_rows(self._spool.rows)
        how = {key: self._options[key] for key in ("precision", "threads", "device")} | {"progress": "auto"}
        views = {name: form_view(name, self._spool.tiles(name), self._folder, **how) for name in self.widths}
        remove_files(self._folder, self._spool)
        self._gram = Gram(views)
        return self._gram

    def _refuse_other_rows(self, there: int) -> None:
        raise InputError(
            f"{self._folder}: holds {there} rows of an earlier watch, expected the {self.rows} of this one; name an "
            "empty folder, or run the model on all rows of that time"
        )


def check_watch_options(strategy: Any, folder: Any, memory: Any) -> None:
    """Refuse what does not go together.

    Raises
    ------
    InputError
    """
    check_option("strategy", strategy, ("auto", "covariance", "gram"))
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 0):
        raise InputError(f"memory: got {memory!r}, expected a whole number of at least 0 (bytes)")
    if strategy == "gram" and folder is None:
        raise InputError("folder: got None, expected a folder, in which strategy='gram' keeps all rows")
    if strategy != "gram" and folder is not None:
        raise InputError("folder: got a folder, expected None: only strategy='gram' keeps rows on disk")


def check_moments_fit(
    rows: Mapping[str, Tensor], pairs: Pairs, alone: bool, memory: int | None, strategy: WatchStrategy, flattened: bool
) -> None:
    """Refuse moments that do not fit before they are made, and say what would; nothing is chosen instead.

    A watch does not know how many rows will come, so it cannot choose what n x n takes.

    Parameters
    ----------
    rows : mapping of str to Tensor
        Those of the first forward.
    pairs : Pairs
        As given to `watch`.
    alone : bool
        Whether each layer is for itself: then there is a mark of its moments, too.
    memory : int, optional
        Bytes that may be taken; by default what the system leaves.
    strategy : 'auto' or 'covariance'
        As given to `watch`.
    flattened : bool
        Whether a layer's positions or tokens are part of its width: averages over them are narrower.

    Raises
    ------
    MemoryLimitError
    """
    widths = {name: int(x.shape[1]) for name, x in rows.items()}
    need = _moments_bytes(widths, pairs, alone)
    limit, source = _limit(memory)
    if need <= limit:
        return
    fitting = []
    if not alone and pairs != "self" and _moments_bytes(widths, "self", alone=True) <= limit:
        fitting.append("pairs='self' (no pairs of layers)")
    most = _most_rows(limit, list(widths.values()))
    if segment_bytes([int(x.shape[1]) * x.element_size() for x in rows.values()]) <= limit and most > 1:
        fitting.append(f"strategy='gram' with a folder= for all rows (up to {most} of them)")
    count = _narrowest(widths, limit, alone)
    if count:
        fitting.append(f"fewer layers (the {count} narrowest)")
    if flattened:
        fitting.append("perhaps averages over positions or tokens (rows='pool')")
    remedy = (
        f"what would fit: {', or '.join(fitting)}" if fitting else "watch narrower layers, or resize maps (resize=)"
    )
    what = "no route fits" if strategy == "auto" else "strategy='covariance' does not fit"
    raise MemoryLimitError(
        f"watch: {what}: moments of {len(widths)} layers need {_size(need)}, but {source} leaves {_size(limit)}; "
        f"{remedy}"
    )


def _moments_bytes(widths: Mapping[str, int], pairs: Pairs, alone: bool) -> int:
    index = {name: i for i, name in enumerate(widths)}
    if alone:
        return 2 * sum(state_bytes([width], [(0, 0)]) for width in widths.values())
    return state_bytes(list(widths.values()), [(index[a], index[b]) for a, b in pair_list(list(widths), pairs)])


def _matrices_bytes(rows: int, widths: list[int]) -> int:
    """Bytes of the matrices of all layers, which are there at once, and of what truncates one."""
    return gram_bytes(rows, widths) + max(0, len(widths) - 2) * 8 * rows * rows


def _most_rows(limit: int, widths: list[int]) -> int:
    """Rows of which the matrices fit into `limit`, to two digits."""
    rows, beyond = 0, math.isqrt(limit) + 1
    while beyond - rows > 1:
        middle = (rows + beyond) // 2
        rows, beyond = (middle, beyond) if _matrices_bytes(middle, widths) <= limit else (rows, middle)
    step = int(10 ** max(0, len(str(rows)) - 2))
    return rows // step * step


def _narrowest(widths: Mapping[str, int], limit: int, alone: bool) -> int:
    """How many layers, the narrowest first, have moments of all pairs (or, if `alone`, of each) that fit."""
    ordered, count = sorted(widths, key=widths.__getitem__), 0
    while count < len(ordered):
        some = {name: widths[name] for name in ordered[: count + 1]}
        if _moments_bytes(some, "all", alone or len(some) == 1) > limit:
            break
        count += 1
    return count


def _limit(memory: int | None) -> tuple[int, str]:
    return (memory, "memory=") if memory is not None else available_memory()


def _check(what: str, need: int, memory: int | None, remedy: str) -> None:
    limit, source = _limit(memory)
    if need > limit:
        raise MemoryLimitError(f"watch: {what} {_size(need)}, but {source} leaves {_size(limit)}; {remedy}")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
