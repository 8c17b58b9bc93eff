"""The checkpoint of a comparison of all layers by sketches: whose it is, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamcca.errors import StateFileError
from streamcca.sketch_state import Checkpoint, packed
from streamcca.subspace import Rule
from streamcca.sweep import Sweep, checksum
from streamcca.wide import AnyArray

NAME = "sketch.state"  # as that of `svcca`, so that each finds and refuses the other's
_SECONDS = 300.0
_LONGEST_SHOWN = 60


def key_of(sweep: Sweep, rule: Rule, directions: int | None, power: int, precision: str) -> dict[str, Any]:
    """Return what decides the numbers of a job and is known before its first batch.

    Masks, calls, maps' sizes and `forward` are not in it: they show in the rows of the first batch, which every restart
    runs and compares. The inputs of all batches are compared by their checksums.
    """
    return {
        "layers": {key: list(tap.modules) for key, tap in sweep.taps.items()},
        "weights": {key: _weights(tap.model) for key, tap in sweep.taps.items()},
        "rule": [rule.name, float(rule.x), float(rule.y)],
        "directions": None if directions is None else int(directions),
        "power": int(power),
        "precision": precision,
        "rows": sweep.rows,
    }


def _weights(model: Any) -> int:
    """CRC-32 of all parameters and buffers; of those that are not there (device 'meta'), of their names."""
    there = {name: None if getattr(x, "is_meta", False) else x for name, x in model.state_dict().items()}
    return checksum(there)


class LayersCheckpoint:
    """The file in a job's folder; without a folder nothing is ever due.

    Attributes
    ----------
    saved : dict or None
        What an earlier attempt has left, ``{'meta', 'tensors'}``.
    facts : dict
        What the first batch has shown, for a restart to plan with.

    Raises
    ------
    StateFileError
        The file is damaged, or another job's.
    """

    def __init__(self, folder: Path | None = None, key: Mapping[str, Any] | None = None) -> None:
        self._path = None if folder is None else folder / NAME
        self._file = Checkpoint(self._path, _SECONDS)
        self._key = dict(key or {})
        self.saved = self._file.load()
        self.facts: dict[str, Any] = {}
        if self.saved is not None:
            self.check("key", self._key)
            self.facts = self.saved["meta"]["facts"]

    def check(self, what: str, mine: Mapping[str, Any]) -> None:
        """Refuse a file that says other things of itself."""
        assert self.saved is not None  # noqa: S101 - only then
        known = self.saved["meta"].get(what)
        if known == mine:
            return
        if known is None:
            difference = "another kind of sketch"
        else:
            name = next(name for name in mine if known.get(name) != mine[name])
            shown = f"{known.get(name)!r}, expected {mine[name]!r}"
            difference = f"{name}: " + (shown if len(shown) <= _LONGEST_SHOWN else "others than those of this one")
        raise StateFileError(
            f"{self._path}: it belongs to another job ({difference}); remove the file, or give another folder="
        )

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self._file.due

    def save(self, meta: Mapping[str, Any], states: Mapping[str, Any], tensors: Mapping[str, AnyArray]) -> None:
        """Replace the file, atomically."""
        own_meta, own_tensors = packed(states)
        self._file.save({**meta, **own_meta, "key": self._key, "facts": self.facts}, {**tensors, **own_tensors})

    def remove(self) -> None:
        """Remove the file of a job that is done."""
        self._file.remove()
