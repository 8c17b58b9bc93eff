"""The checkpoint of a comparison of all layers: whose it is, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamcca import checkpoint
from streamcca.arrays import AnyArray
from streamcca.checkpoint import Checkpoint, check_same_job, packed
from streamcca.errors import ReplayError
from streamcca.subspace import Rule
from streamcca.sweep import BatchRows, Sweep, checksum
from streamcca.views import shown

# Of a replay, beside the first pass's own, which is not written again meanwhile.
REPLAY_NAME = "replay.state"
# Of a first batch so many values of each layer are compared; kernels that are not deterministic may differ by as much.
_VALUES = 64
_NOISE, _NOISE_OF_NARROW = 1e-4, {"torch.float16": 4e-3, "torch.bfloat16": 3e-2}


def key_of(
    sweep: Sweep, rule: Rule, bounds: Mapping[str, Any], options: Mapping[str, Any], ridge: float
) -> dict[str, Any]:
    """Return what decides the numbers of a job and is known before its first batch.

    `forward`, and what functions do, are not in it: they show in the rows of the first batch, which every restart runs
    and compares (`values_of_first`). The inputs of all batches are compared by their checksums.
    """
    directions = bounds["directions"]
    return {
        "layers": {key: list(tap.modules) for key, tap in sweep.taps.items()},
        "weights": {key: _weights(tap.model) for key, tap in sweep.taps.items()},
        "rule": [rule.name, float(rule.x), float(rule.y)],
        "ridge": float(ridge),
        "directions": None if directions is None else int(directions),
        "power": int(bounds["power"]),
        "precision": options["precision"],
        "nonfinite": options["nonfinite"],
        "rows": shown(sweep.rows),
        "choices": {key: tap.choices() for key, tap in sweep.taps.items()},
    }


def _weights(model: Any) -> int:
    """CRC-32 of all parameters and buffers; of those that are not there (device 'meta'), of their names."""
    there = {name: None if getattr(x, "is_meta", False) else x for name, x in model.state_dict().items()}
    return checksum(there)


def values_of_first(rows: BatchRows) -> dict[str, list[Any]]:
    """Return the type and some values of each layer's rows of a first batch."""
    return {name: [str(x.dtype), _some_of(x).tolist()] for name, x in rows.items()}


def check_first(rows: BatchRows, known: Mapping[str, list[Any]]) -> None:
    """Refuse a first batch whose rows have another type, or values that are further off than rounding.

    Raises
    ------
    ReplayError
    """
    for name, x in rows.items():
        dtype, values = known[name]
        if str(x.dtype) != dtype:
            raise ReplayError(f"layer {name!r}: got {x.dtype} rows, expected {dtype} as when this job began")
        before, now = np.array(values, dtype=np.float64), _some_of(x).numpy()
        finite = np.abs(before[np.isfinite(before)])
        off = _NOISE_OF_NARROW.get(dtype, _NOISE) * float(finite.max(initial=0.0))
        if now.shape != before.shape or not np.allclose(now, before, rtol=0, atol=off, equal_nan=True):
            raise ReplayError(
                f"layer {name!r}: the first batch gave other values than when this job began, by more than rounding; "
                "run the models as at that time (autocast, forward=, masks), or give another folder="
            )


def _some_of(x: Any) -> Any:
    flat = x.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _VALUES)][:_VALUES].double().cpu()


class LayersCheckpoint:
    """A file in a job's folder; without a folder nothing is ever due.

    Attributes
    ----------
    folder : Path or None
    saved : dict or None
        What an earlier attempt has left, ``{'meta', 'tensors'}``.
    facts : dict
        What the first batch has shown, and the strategy that was chosen by it, for a restart to plan with.

    Raises
    ------
    StateFileError
        The file is damaged, or another job's.
    """

    def __init__(
        self,
        folder: Path | None = None,
        key: Mapping[str, Any] | None = None,
        strategy: str = "auto",
        name: str = checkpoint.NAME,
    ) -> None:
        self.folder = folder
        self._path = None if folder is None else folder / name
        self._file = Checkpoint(self._path, checkpoint.SECONDS)
        self._key = dict(key or {})
        self.saved = self._file.load()
        self.facts: dict[str, Any] = {}
        if self.saved is not None:
            meta = self.saved["meta"]
            check_same_job(self._path, meta.get("key"), self._key)
            self.facts = meta["facts"]
            if strategy != "auto":
                check_same_job(self._path, self.facts, {"strategy": strategy})

    def of_replay(self) -> LayersCheckpoint:
        """Return the file of the second pass of the same job."""
        return LayersCheckpoint(self.folder, self._key, name=REPLAY_NAME)

    def remove_replay(self) -> None:
        """Remove the file of the second pass."""
        if self.folder is not None:
            (self.folder / REPLAY_NAME).unlink(missing_ok=True)

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
