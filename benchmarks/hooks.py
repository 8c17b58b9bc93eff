"""What watching costs: 20 convolutions of a net like ResNet-18, positions as rows, against the arithmetic alone."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from statistics import median
from typing import Any

from benchmarks.resnet import resnet18
from streamcca._backend import state_bytes
from streamcca._memory import peak_resident, reset_peak

_BAR = 1.15


def _seconds(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _memory(model: Any, batch: Any, watch: Any, widths: list[int]) -> dict[str, int]:
    """Peak of a watched forward over that of a plain one; the moments are there already, their size is told apart."""
    peaks = []
    for context in (contextlib.nullcontext(), watch):
        resident = reset_peak()
        with context:
            model(batch)
        peaks.append(peak_resident() - resident)
    return {"beyond": peaks[1] - peaks[0], "moments": sum(state_bytes([width], [(0, 0)]) for width in widths)}


def _update(moments: dict[str, Any], rows: dict[str, Any]) -> None:
    for name, x in rows.items():
        moments[name].update({name: x})


def run_hooks(images: int = 256, size: int = 64, rounds: int = 31) -> dict[str, Any]:
    """Time a forward pass without hooks, the same while watched, and the updates alone on the rows it brought.

    In turn, round after round in one process. The updates alone get the rows once where they lie (channels first) and
    once stored row by row, which is faster.
    """
    import numpy as np
    import torch

    import streamcca as sc

    torch.manual_seed(0)
    model, batch = resnet18(), torch.randn(images, 3, size, size)
    convolutions = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    outputs: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))
        for name in convolutions
    ]
    times: dict[str, list[float]] = {
        "plain forward": [],
        "watched forward": [],
        "updates, rows": [],
        "updates, maps": [],
    }
    with torch.no_grad():
        model(batch)
        for handle in handles:
            handle.remove()
        maps = {name: x.flatten(2).transpose(1, 2) for name, x in outputs.items()}
        rows = {name: x.reshape(-1, x.shape[-1]).contiguous() for name, x in maps.items()}
        alone = {kind: {name: sc.Moments({name: rows[name].shape[1]}) for name in rows} for kind in ("rows", "maps")}
        with sc.watch(model, convolutions, rows="positions", pairs="self") as watch:
            for _ in range(2):
                model(batch)
        for name in convolutions:
            x = rows[name].double().numpy()
            error = np.abs(watch.layer_moments[name].covariance(name, ddof=0) - np.cov(x, rowvar=False, ddof=0)).max()
            assert error < 1e-5 * np.abs(x).max() ** 2, (name, error)
        memory = _memory(model, batch, watch, [x.shape[1] for x in rows.values()])
        for i in range(rounds):
            for kind in ("plain", "watched") if i % 2 else ("watched", "plain"):
                with watch if kind == "watched" else contextlib.nullcontext():
                    times[f"{kind} forward"].append(_seconds(partial(model, batch)))
            for kind, source in (("rows", rows), ("maps", maps)):
                if not times[f"updates, {kind}"]:
                    _update(alone[kind], source)
                times[f"updates, {kind}"].append(_seconds(partial(_update, alone[kind], source)))
    return _result(
        f"{len(convolutions)} convolutions of a net like ResNet-18, {images} images {size} x {size}", times, memory
    )


def _result(case: str, times: dict[str, list[float]], memory: dict[str, int]) -> dict[str, Any]:
    spent = [w - p for w, p in zip(times["watched forward"], times["plain forward"], strict=True)]
    # Not the median of the quotients: a difference of two long times scatters more than what it is divided by.
    factor, factor_maps = (median(spent) / median(times[f"updates, {kind}"]) for kind in ("rows", "maps"))
    return {
        "case": case,
        "seconds": {name: median(values) for name, values in times.items()},
        "times": times,
        "memory": memory,
        "of_updates": factor,
        "of_updates_where_they_lie": factor_maps,
        "bars": [_verdict("where they lie", factor_maps), _verdict("stored row by row", factor)],
    }


def _verdict(rows: str, factor: float) -> dict[str, Any]:
    promise = f"watching adds <= {_BAR} x the updates alone, rows {rows}"
    return {"bar": promise, "wanted": _BAR, "measured": factor, "reached": factor <= _BAR, "text": f"{factor:.2f} x"}


def format_hooks(result: dict[str, Any]) -> str:
    """Lay the times out."""
    lines = [result["case"]] + [f"  {name:<18}{1e3 * seconds:>9.1f} ms" for name, seconds in result["seconds"].items()]
    lines.append(
        f"  watching adds {result['of_updates']:.2f} x the updates on rows, "
        f"{result['of_updates_where_they_lie']:.2f} x those on the maps where they lie"
    )
    moments, beyond = (result["memory"][key] / 2**20 for key in ("moments", "beyond"))
    lines.append(
        f"  memory beyond the plain forward: {beyond:.1f} MiB more at the peak, and moments of {moments:.1f} MiB"
    )
    return "\n".join(lines)
