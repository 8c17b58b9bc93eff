"""What representational multiplicity of many models costs beyond running them once."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

_BAR, _MEMORY_BAR = 1.2, 1.0
_STAGES = ((3, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))


def _net(seed: int) -> Any:
    """Return a convnet of six stages for images of 3 x 32 x 32: 39 million multiply-adds, as many as a ResNet-20."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    stages = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b, stride in _STAGES
    ]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()


def _images(count: int) -> Any:
    """Return images whose power falls with the square of the frequency, as that of photographs does."""
    import torch

    generator = torch.Generator().manual_seed(0)
    noise = torch.fft.rfft2(torch.randn(count, 3, 32, 32, generator=generator))
    frequency = torch.hypot(*torch.meshgrid(torch.fft.fftfreq(32), torch.fft.rfftfreq(32), indexing="ij"))
    smooth = torch.fft.irfft2(noise / frequency.clamp(min=1 / 32))
    contrast = torch.rand(count, 1, 1, 1, generator=generator) + 0.5
    return (smooth / smooth.std() * contrast).contiguous()


def _seconds(job: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock, seconds of all cores (which other programs do not lengthen as much), and the answer."""
    start, own = time.perf_counter(), time.process_time()
    result = job()
    return time.perf_counter() - start, time.process_time() - own, result


def _forward(net: Any, batches: Any) -> None:
    import torch

    with torch.no_grad():
        for batch in batches:
            net(batch)


def run_multiplicity(
    models: int = 40, images: int = 1000, rounds: int = 1, folder: Path | None = None, keep_memory: bool = True
) -> dict[str, Any]:
    """Run every model once; again with its scores taken and saved; then compare all pairs of models from the files.

    `keep_memory`: with the C library told to keep freed memory, as a study does; for all that is timed.
    """
    import streamcca as sc
    from streamcca.multiplicity.insides.allocator import keep_freed_memory
    from streamcca.multiplicity.insides.representational import MEMORY, representational_multiplicity

    kept = keep_memory and keep_freed_memory()
    layers = [str(stage) for stage in range(len(_STAGES))]
    batches = list(_images(images).split(100))
    seconds: dict[str, list[float]] = {name: [] for name in ("forward", "scores", "two passes", "pairs")}
    cores = dict.fromkeys(("forward", "scores", "pairs"), 0.0)
    paths, ranks = {}, []
    with tempfile.TemporaryDirectory(dir=folder, prefix="streamcca-rm-") as own:
        for i in range(models):
            net, name = _net(i), f"m{i}"
            paths[name] = Path(own) / name

            def scores(net: Any = net, name: str = name, keep: bool = True) -> Any:
                found = sc.subspace_scores(
                    net, batches, layers, name=name, rows="pool", precision="float64", keep_rows=keep, progress=False
                )
                found.save(paths[name])
                return found

            if not i:
                _forward(net, batches)  # what is set up late
                scores()
            # Plainly and with scores, one right after the other, so that both meet the same machine.
            times: dict[str, list[float]] = {"forward": [], "scores": []}
            jobs: dict[str, Callable[[], Any]] = {"forward": partial(_forward, net, batches), "scores": scores}
            for k in range(rounds):
                for job in sorted(jobs, reverse=bool((i + k) % 2)):
                    taken, busy, result = _seconds(jobs[job])
                    times[job].append(taken)
                    cores[job] += busy / rounds
                    if job == "scores" and not k:
                        ranks.append(list(result.ranks.values()))
            for job, all_taken in times.items():
                seconds[job].append(float(np.median(all_taken)))
            if i < 4:
                seconds["two passes"].append(_seconds(partial(scores, keep=False))[0])
        size = max(path.stat().st_size for path in paths.values())
        groups = {f"g{k}": list(paths)[k * 5 : k * 5 + 5] for k in range((models + 4) // 5)}

        def pairs(count: int = models, memory: int = MEMORY) -> Any:
            some = {name: [one for one in group if int(one[1:]) < count] for name, group in groups.items()}
            some = {name: group for name, group in some.items() if group}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", sc.StreamCCAWarning)
                return representational_multiplicity(paths, some, memory=memory, progress=False)

        found = pairs()
        compared = [_seconds(pairs) for _ in range(rounds)]
        seconds["pairs"], cores["pairs"] = [one[0] for one in compared], float(np.median([one[1] for one in compared]))
        _check(found, paths, layers)
        # In blocks of an eighth of the models, so that also the fewest below fill two of them.
        budget = max(1, models // 8) * 5 * size
        peaks = {c: _peak(partial(pairs, c, budget)) for c in (models // 4, models // 2, models)}
    totals = {
        "forward": sum(seconds["forward"]),
        "scores": sum(seconds["scores"]),
        "pairs": float(np.median(seconds["pairs"])),
    }
    counts = sorted(peaks)
    text = f"RM of {models} models x {len(layers)} layers, all pairs <= 1.2 x the models run once"
    memory = f"peak memory of all pairs of {counts[-1]} models <= the budget given ({budget / 2**20:.0f} MiB)"
    return {
        "case": f"{models} convnets, {images} images of 3 x 32 x 32, {len(layers)} layers, rows pooled; "
        f"freed memory {'kept' if kept else 'given back'}",
        "n": images,
        "ranks": np.median(ranks, axis=0).tolist(),
        "file_bytes": size,
        "seconds": totals,
        "seconds_of_cores": cores,
        "two_passes": sum(seconds["two passes"]) / sum(seconds["forward"][: len(seconds["two passes"])]),
        "ratio_of_each": [a / b for a, b in zip(seconds["scores"], seconds["forward"], strict=True)],
        "peaks": {str(count): peaks[count] for count in counts},
        "bars": [
            _bar(text, _BAR, (totals["scores"] + totals["pairs"]) / totals["forward"]),
            _bar(memory, _MEMORY_BAR, peaks[counts[-1]] / budget),
        ],
    }


def _peak(job: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        job()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _check(found: Any, paths: dict[str, Path], layers: list[str]) -> None:
    """Stop at a wrong answer: some pairs are compared by the plain way."""
    import streamcca as sc

    names = list(paths)
    for a, b in ((0, 1), (0, len(names) - 1), (len(names) // 2, len(names) - 1)):
        x, y = (sc.SubspaceScores.load(paths[names[i]]) for i in (a, b))
        for k, layer in enumerate(layers):
            wanted = x.pair(layer, y, layer, measure="svcca")[0].distance if a != b else 0.0
            if abs(found.distances[k, a, b] - wanted) > 1e-12:
                raise SystemExit(f"models {a} and {b}, layer {layer}: {found.distances[k, a, b]} is not {wanted}")


def _bar(text: str, limit: float, measured: float) -> dict[str, Any]:
    return {
        "bar": text,
        "wanted": limit,
        "measured": measured,
        "reached": measured <= limit,
        "text": f"{measured:.2f} times",
    }


def format_multiplicity(result: dict[str, Any]) -> str:
    """Lay the case out."""
    seconds, cores, each = result["seconds"], result["seconds_of_cores"], result["ratio_of_each"]
    low, middle, high = np.quantile(each, [0.25, 0.5, 0.75])
    mib = {count: f"{peak / 2**20:.1f}" for count, peak in result["peaks"].items()}
    lines = [
        result["case"],
        f"  directions kept (median over models): {', '.join(f'{rank:.0f}' for rank in result['ranks'])}; "
        f"{result['file_bytes'] / 2**20:.1f} MiB a file",
        f"  models run once {seconds['forward']:.1f} s, with their scores taken and saved {seconds['scores']:.1f} s, "
        f"all pairs from files {seconds['pairs']:.2f} s",
        f"  by the time of all cores: {(cores['scores'] + cores['pairs']) / cores['forward']:.3f} times the models",
        f"  scores over a plain run, model by model: median {middle:.2f} (quartiles {low:.2f} to {high:.2f}); "
        f"if rows are not kept, in two passes: {result['two_passes']:.2f}",
        "  peak of all pairs, traced: " + ", ".join(f"{peak} MiB of {count} models" for count, peak in mib.items()),
    ]
    lines += [f"  {'reached' if bar['reached'] else 'MISSED'}: {bar['bar']}: {bar['text']}" for bar in result["bars"]]
    return "\n".join(lines)
