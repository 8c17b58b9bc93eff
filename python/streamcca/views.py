"""Names, widths and pairs of views: what a configuration may say, and what is said when it may not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from streamcca.errors import InputError

_MOST_THREADS = 1024

Pairs = Literal["all", "self"] | Iterable[tuple[str, str]]


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Sentence about an unknown name, with the known names that come closest."""
    import difflib

    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if near:
        return f"there is no {kind} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"there is no {kind} {name!r}; there are {', '.join(map(repr, names[:12]))}{more}"


def excerpts(got: str, expected: str, most: int = 120) -> tuple[str, str]:
    """Cut two long texts to where they differ."""
    alike = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), 0)
    start = max(0, alike - most // 3)

    def cut(text: str) -> str:
        return ("... " if start else "") + text[start : start + most] + (" ..." if len(text) > start + most else "")

    return cut(got), cut(expected)


def checked_views(views: Mapping[str, int]) -> dict[str, int]:
    """Return the views as a plain dict, or refuse them."""
    if not isinstance(views, Mapping) or not views:
        raise InputError(f"views: got {views!r}, expected a mapping from name to width, such as {{'a': 512}}")
    for name, width in views.items():
        whole = isinstance(width, int | np.integer) and not isinstance(width, bool)
        if not isinstance(name, str) or not name or not whole or width < 1:
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
        try:
            a, b = pair
        except (TypeError, ValueError):
            raise InputError(f"pairs: got {pair!r}, expected two view names") from None
        for name in (a, b):
            if name not in names:
                raise InputError("pairs: " + unknown_name("view", name, names))
        if (a, b) not in result and (b, a) not in result:
            result.append((a, b))
    return result


def check_option(option: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse a string option that is none of those known."""
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{option}: got {value!r}, expected one of {', '.join(map(repr, known))}")


def checked_threads(threads: object) -> int | None:
    """Return a number of threads, or None for what OpenMP would use."""
    if threads is None:
        return None
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or not 1 <= threads <= _MOST_THREADS:
        raise InputError(
            f"threads: got {threads!r}, expected an integer from 1 to {_MOST_THREADS}, or None for all cores"
        )
    return int(threads)


def shown(option: Any) -> Any:
    """Return an option as JSON can hold it; a function as the word for it."""
    if option is None or isinstance(option, bool | int | float | str):
        return option
    if isinstance(option, Mapping):
        return {str(key): shown(value) for key, value in option.items()}
    return [shown(value) for value in option] if isinstance(option, list | tuple) else "a function"
