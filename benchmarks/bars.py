"""What was promised, as data, and whether it was kept."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Times = list[float | None]


@dataclass(frozen=True)
class Bar:
    """One promise about one race.

    Attributes
    ----------
    kind : 'times', 'peak' or 'seconds'
        'times': `contender` takes at least `value` times as long as `against`; 'peak': `contender` reaches at least
        this share of the multiply-add peak; 'seconds': it takes at most so long.
    """

    kind: Literal["times", "peak", "seconds"]
    contender: str
    value: float
    against: str = ""

    def __str__(self) -> str:
        if self.kind == "times":
            return f"{self.contender} takes >= {self.value:.3g} x {self.against}"
        if self.kind == "peak":
            return f"{self.contender} >= {self.value:.0%} of peak"
        return f"{self.contender} <= {self.value * 1e6:g} us"


def median_seconds(seconds: Times) -> float:
    """Median of the rounds that a contender took part in."""
    return median(t for t in seconds if t is not None)


def median_ratio(slower: Times, faster: Times) -> float:
    """Median over the rounds of (one's time / the other's time)."""
    return median(a / b for a, b in zip(slower, faster, strict=True) if a is not None and b is not None)


def share_of_peak(flops: float, seconds: Times, peaks: Times) -> float:
    """Median over the rounds of the share of the peak that was measured just before each run."""
    return median(flops / t / 1e9 / p for t, p in zip(seconds, peaks, strict=True) if t is not None and p is not None)


def verdict(bar: Bar, race: dict[str, Any], flops: float | None) -> dict[str, Any]:
    """Return what was measured, whether that reaches the bar, and a sentence."""
    seconds = race["seconds"]
    if bar.kind == "times":
        measured = median_ratio(seconds[bar.contender], seconds[bar.against])
        reached, text = measured >= bar.value, f"{measured:.2f} x"
    elif bar.kind == "peak":
        assert flops is not None
        measured = share_of_peak(flops, seconds[bar.contender], race["peak"][bar.contender])
        reached, text = measured >= bar.value, f"{measured:.0%}"
    else:
        measured = median_seconds(seconds[bar.contender])
        reached, text = measured <= bar.value, f"{measured * 1e6:.1f} us"
    return {"bar": str(bar), "wanted": bar.value, "measured": measured, "reached": reached, "text": text}
