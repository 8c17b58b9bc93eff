"""Options that many functions here take."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamcca.errors import InputError


def checked_level(level: Any) -> float:
    """Return a level of confidence as a float.

    Raises
    ------
    InputError
    """
    if isinstance(level, bool) or not isinstance(level, int | float | np.number) or not 0 < level < 1:
        raise InputError(f"level: got {level!r}, expected a probability between 0 and 1, such as 0.95")
    return float(level)


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """Return a count as an int.

    Raises
    ------
    InputError
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name}: got {value!r}, expected an integer of at least {least}")
    return int(value)
