"""BVLC Caffe's layers through ``import caffe``: the figures of a real Caffe (BVLC Caffe 1.0), and gradients by finite differences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import caffetools
from tests.pycaffe.layer_checks import CASES, FIGURES, Check

RECORDED = json.loads(FIGURES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_a_layer_gives_the_figures_of_a_real_caffe(name: str, tmp_path: Path) -> None:
    caffetools.install_as_caffe()
    import caffe

    figures = Check(caffe, name, str(tmp_path)).figures()
    assert figures.keys() == RECORDED[name].keys()
    for blob, expected in RECORDED[name].items():
        assert figures[blob] == pytest.approx(expected, rel=2e-4, abs=2e-4), blob


@pytest.mark.parametrize("name", [name for name in CASES if len(RECORDED[name]) > 1])
def test_a_gradient_agrees_with_finite_differences(name: str, tmp_path: Path) -> None:
    caffetools.install_as_caffe()
    import caffe

    check, step = Check(caffe, name, str(tmp_path)), 2e-3
    for blob, gradient in check.gradients().items():
        memory, random = check.memory(blob), np.random.RandomState(1)
        for flat in random.permutation(gradient.size)[:4]:
            at = np.unravel_index(flat, gradient.shape)
            kept, values = memory[at], []
            for sign in (1, -1):
                memory[at] = kept + sign * step
                values.append(check.objective())
            memory[at] = kept
            # What float32 leaves of the difference of two objectives.
            noise = 4e-6 * max(abs(v) for v in values) / step
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(gradient[at]), rel=2e-2, abs=2e-2 + noise), (blob, at)
