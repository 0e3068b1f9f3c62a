"""Numbers about weights: against NumPy, dead units, spectra, change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon

from caffetools.errors import DataError
from caffetools.proto.schema import NetParameter
from caffetools.visualize import style
from caffetools.visualize.filters import LayerWeights, filter_changes_figure
from caffetools.visualize.weight_statistics import statistics_table, weight_statistics, weights_figure
from tests.conftest import GOLDEN

TINY = GOLDEN / "logs" / "tiny_iter_100.caffemodel"


def test_the_numbers_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((6, 4, 3, 3)).astype(np.float32)
    weights[2] = 1e-6
    (item,) = weight_statistics({"conv": [weights]}, {"conv": [weights * 2]})
    assert (item.units, item.dead, item.count) == (6, 1, 216)
    np.testing.assert_allclose([item.mean, item.deviation], [weights.mean(), weights.std()], rtol=1e-4)
    np.testing.assert_allclose(item.spectrum, np.linalg.svd(weights.reshape(6, -1).astype(float), compute_uv=False), rtol=1e-5, atol=1e-6)
    assert item.norm_ratio == pytest.approx(0.5) and item.change == pytest.approx(0.5)
    assert item.histogram.sum() == 216


@pytest.mark.parametrize("shape", [(1500, 40), (40, 1500), (1100, 1200)])
def test_the_whole_spectrum_is_computed(shape: tuple[int, int]) -> None:
    weights = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    (item,) = weight_statistics({"ip": [weights]})
    np.testing.assert_allclose(item.spectrum, np.linalg.svd(weights.astype(float), compute_uv=False), rtol=1e-6)


_DIGEST = "from tests.visualize.test_weight_statistics import digest; print(digest())"


def digest() -> str:
    """Return what weight_statistics computes for random weights, exactly."""
    rng = np.random.default_rng(0)
    one, two = ({"a": [rng.standard_normal((600, 700)).astype(np.float32)], "b": [rng.standard_normal((64, 900))]} for _ in range(2))
    found = weight_statistics(one, two)
    return repr([(item.spectrum.tolist(), item.norm_ratio, item.change, item.mean, item.deviation) for item in found])


def test_the_numbers_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    here = digest()
    assert torch.get_num_threads() == before
    other = "1" if before > 1 else "3"
    environment = {**os.environ, "OMP_NUM_THREADS": other, "OPENBLAS_NUM_THREADS": other}
    done = subprocess.run(
        [sys.executable, "-c", _DIGEST], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == here


def test_units_are_counted_along_their_axis(tmp_path: Path) -> None:
    net = NetParameter()
    for name, kind, shape in (
        ("embed", "Embed", (7, 3)),
        ("deconv", "Deconvolution", (4, 3, 2, 2)),
        ("turned", "InnerProduct", (6, 5)),
        ("old", "InnerProduct", (1, 1, 6, 5)),
        ("prelu", "PReLU", (1, 1, 1, 8)),
        ("depthwise", "Convolution", (1, 1, 3, 3)),
    ):
        layer = net.layer.add(name=name, type=kind)
        layer.blobs.add(data=np.arange(1, 1 + np.prod(shape)).tolist()).shape.dim.extend(shape)
    net.layer[1].convolution_param.group = 2
    net.layer[2].inner_product_param.transpose = True
    path = tmp_path / "w.caffemodel"
    path.write_bytes(net.SerializeToString())
    found = {item.layer: item for item in weight_statistics(path)}
    assert {name: item.units for name, item in found.items()} == {
        "embed": 3, "deconv": 6, "turned": 5, "old": 6, "prelu": 8, "depthwise": 1,
    }  # fmt: skip
    assert found["old"].shape == (6, 5) and len(found["old"].spectrum) == 5
    # Unit 3 is the first of the second group: input channels 2 and 3 of the deconvolution, output channel 0.
    blob = np.arange(1.0, 49).reshape(4, 3, 2, 2)
    rows = LayerWeights("deconv", blob, "Deconvolution", 2, 1).unit_rows()
    np.testing.assert_array_equal(rows[3], blob[2:, 0].ravel())


def test_the_effective_rank_counts_directions() -> None:
    (item,) = weight_statistics({"ip": [np.eye(5, dtype=np.float32)]})
    assert item.effective_rank == pytest.approx(5)
    (item,) = weight_statistics({"ip": [np.ones((5, 7), np.float32)]})
    assert item.effective_rank == pytest.approx(1, abs=1e-2)
    (item,) = weight_statistics({"ip": [np.zeros((5, 7), np.float32)]})
    assert item.effective_rank is None and item.zeros == 1.0 and item.dead == 5
    (item,) = weight_statistics({"ip": [np.ones((5, 7), np.float32)]}, spectra=False)
    assert item.effective_rank is None and item.dead == 0


def test_other_shapes_are_not_compared() -> None:
    first, second = weight_statistics({"a": [np.ones((2, 3))], "b": [np.ones(4)]}, {"a": [np.ones((3, 3))]})
    assert first.norm_ratio is None and second.norm_ratio is None


def test_a_file_is_drawn_the_same_twice_and_listed() -> None:
    statistics = weight_statistics(TINY, TINY)
    assert [row["layer"] for row in statistics_table(statistics)] == ["conv1", "ip"]
    assert statistics_table(statistics)[0]["norm_ratio"] == 1.0
    first, second = (style.render(weights_figure(statistics, "Weights"), "svg") for _ in range(2))
    assert first == second
    assert b"Convolution" in first


def test_hundreds_of_layers_are_drawn_in_columns() -> None:
    layers = {f"layer{index}": [np.array([1.0, float(index)])] for index in range(600)}
    figure = weights_figure(weight_statistics(layers, spectra=False), "Weights")
    names = [text for text in figure.texts if text.get_text().startswith("layer")]
    assert [text.get_text() for text in names] == list(layers)
    assert len({round(text.get_position()[0], 4) for text in names}) == 3
    assert figure.get_size_inches().max() * figure.dpi < 32_000
    assert len({text.get_position() for text in names}) == 600


def test_the_histogram_and_the_spectrum_are_those_of_the_weights() -> None:
    (item,) = weight_statistics({"a": [np.diag([4.0, 2.0, 1.0])]})
    figure = weights_figure([item], "Weights")
    (area,) = (artist for artist in figure.artists if isinstance(artist, Polygon))
    lines = [artist for artist in figure.artists if isinstance(artist, Line2D)]
    heights = area.get_path().vertices[1:-2:2, 1]
    counts = np.sqrt(item.histogram)
    np.testing.assert_allclose(
        (heights - heights.max()) / (heights.min() - heights.max()), (counts - counts.min()) / np.ptp(counts), atol=1e-9
    )
    spectrum = np.asarray(lines[-1].get_ydata(), float)
    np.testing.assert_allclose(np.diff(spectrum)[0] / np.diff(spectrum)[1], 2)


def test_weights_that_diverged_are_refused() -> None:
    with pytest.raises(DataError, match="layer 'a' holds weights that are not finite"):
        weight_statistics({"a": [np.array([np.nan])]})


def test_filters_before_and_after_with_their_change() -> None:
    before = np.zeros((4, 3, 5, 5), np.float32)
    before[:, 0] = 1
    after = before.copy()
    after[2, :, 1, 3] += np.array([3.0, 0.0, 4.0])
    figure, caption = filter_changes_figure(LayerWeights("c", before, "Convolution"), LayerWeights("c", after, "Convolution"))
    old, new, change = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    assert old.shape == new.shape == change.shape
    different = np.argwhere((old != new).any(axis=2))
    # One filter is rescaled; the largest change is where the weight changed.
    brightest = np.argwhere((change == np.array([253, 231, 37])).all(axis=2))
    assert len(brightest) and {tuple(place) for place in brightest} <= {tuple(place) for place in different}
    assert caption.endswith("over the three channels, from dark blue (0) to yellow (5). The whole layer changed by 50.00% of its norm.")
    with pytest.raises(DataError, match="4 x 3 x 5 x 5 and 2 x 3 x 5 x 5 before and after"):
        filter_changes_figure(LayerWeights("c", before), LayerWeights("c", before[:2]))
    figure, _ = filter_changes_figure(LayerWeights("ip", np.ones((4, 6))), LayerWeights("ip", np.ones((4, 6))))
    assert len(figure.axes) == 3
