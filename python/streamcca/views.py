"""Names, widths and pairs of views: what a configuration may say, and what is said when it may not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from streamcca.errors import DeviceError, InputError

Pairs = Literal["all", "self"] | Iterable[tuple[str, str]]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Sentence about an unknown name, with the known names that come closest."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}" if near else f"there are {', '.join(map(repr, names[:12]))}"
    return f"there is no {kind} {name!r}; {hint}"


def state_bytes(views: Mapping[str, int], pairs: Iterable[tuple[str, str]]) -> int:
    """Bytes that the second moments of these pairs take."""
    return sum(8 * views[a] * (views[a] + 1) // 2 if a == b else 8 * views[a] * views[b] for a, b in pairs)


def check_device(device: str | None) -> None:
    """Refuse a device that this build has no kernels for."""
    if device in (None, "cpu"):
        return
    if str(device).startswith("cuda"):
        raise DeviceError(
            f"device: got {device!r}, but this build of streamcca has no CUDA kernels; use device='cpu' and "
            "move rows there with .cpu()"
        )
    raise InputError(f"device: got {device!r}, expected None or 'cpu'")


def checked_views(views: Mapping[str, int]) -> dict[str, int]:
    """Return the views as a plain dict, or refuse them."""
    if not isinstance(views, Mapping) or not views:
        raise InputError(f"views: got {views!r}, expected a mapping from name to width, such as {{'a': 512}}")
    for name, width in views.items():
        if not isinstance(name, str) or not isinstance(width, int | np.integer) or width < 1:
            raise InputError(f"views: got {name!r}: {width!r}, expected a name and a width of at least 1")
    return {name: int(width) for name, width in views.items()}


def pair_list(names: list[str], pairs: Pairs) -> list[tuple[str, str]]:
    """Spell out which pairs are meant, each once."""
    if isinstance(pairs, str):
        if pairs == "self":
            return [(name, name) for name in names]
        if pairs == "all":
            return [(a, b) for i, a in enumerate(names) for b in names[i:]]
        raise InputError(f"pairs: got {pairs!r}, expected 'all', 'self' or pairs of view names")
    result: list[tuple[str, str]] = []
    for pair in pairs:
        a, b = pair
        for name in (a, b):
            if name not in names:
                raise InputError("pairs: " + unknown_name("view", name, names))
        if (a, b) not in result and (b, a) not in result:
            result.append((a, b))
    return result
