"""What settings of a study cannot be: told as they are read, not when models have been trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from streamcca.errors import InputError
from streamcca.multiplicity.features.diverse import ORDERS

if TYPE_CHECKING:
    from streamcca.multiplicity.study.config import StudyConfig


def _apart(values: tuple[Any, ...]) -> bool:
    return len(set(values)) == len(values)


_LIMITS: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    ("shifts", "kinds", _apart, "each kind once"),
    ("shifts", "strengths", _apart, "each strength once"),
    ("shifts", "seed", lambda v: v >= 0, "at least 0"),
    ("representation", "variance", lambda v: 0 < v <= 1, "a share above 0, at most 1"),
    ("representation", "nuclear", lambda v: 0 < v <= 1, "a share above 0, at most 1"),
    ("representation", "rank", lambda v: v >= 1, "at least 1"),
    ("representation", "ridge", lambda v: 0 <= v < math.inf, "at least 0"),
    ("representation", "batch_size", lambda v: v >= 1, "at least 1"),
    ("features", "shares", lambda v: v and all(0 <= one <= 1 for one in v), "shares from 0 to 1"),
    ("features", "draws", lambda v: v >= 1, "at least 1"),
    ("features", "pairs", lambda v: v >= 0, "at least 0"),
    ("features", "order", lambda v: v in (*ORDERS, "random"), f"one of {', '.join((*ORDERS, 'random'))}"),
    ("features", "step", lambda v: v >= 1, "at least 1"),
    ("features", "target", lambda v: 0 < v <= 1, "an accuracy above 0, at most 1"),
    ("features", "accuracy_band", lambda v: v >= 0, "at least 0"),
    ("features", "ensemble_size", lambda v: v >= 1, "at least 1"),
    ("statistics", "seed", lambda v: v >= 0, "at least 0"),
)


def check_limits(config: StudyConfig, where: str) -> None:
    """Refuse values outside their range, and groups that would train on test images.

    Raises
    ------
    InputError
    """
    for group in config.groups:
        own = asdict(config.data) | group.data
        split = [key for key in ("seed", "test_share", "test_count") if own[key] != getattr(config.data, key)]
        if split and (own["source"], own["folder"]) == (config.data.source, config.data.folder):
            raise InputError(
                f"{where}: group {group.name!r}: data.{split[0]}: got {own[split[0]]!r}, but another split of the "
                "study's own images would train on its test images; use subset = ..., or another source"
            )
    for section, key, fits, meaning in _LIMITS:
        value = getattr(getattr(config, section), key)
        if value is not None and not fits(value):
            told = list(value) if isinstance(value, tuple) else value
            raise InputError(f"{where}: [{section}].{key}: got {told!r}, expected {meaning}")
