"""The demo end to end: real images, trained nets, agreement with NumPy, pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from streamcca.cli import main
from streamcca.demo import measured


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert min(result["accuracies"]) > 0.97
    assert result["comparison"]["n"] == 1797
    assert result["comparison"]["layers_a"] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    matrix = np.array(result["comparison"]["matrix"])
    null = np.array(result["comparison"]["null_matrix"])
    assert np.all(matrix > 3 * null)
    assert result["largest_difference"] <= np.max(result["comparison"]["error_bounds"]) < 1e-9
    for side in ("streamed", "in_memory_numpy"):
        assert result[side]["seconds"] > 0
    for picture in ("layers.png", "spectra.png"):
        assert (tmp_path / picture).stat().st_size > 20_000


def test_peak_memory_is_measured():
    _, seconds, peak = measured(lambda: np.ones((200, 1 << 17)).sum())
    assert 190 << 20 < peak < 260 << 20
    assert seconds > 0
