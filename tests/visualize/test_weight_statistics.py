"""Numbers about weights: against NumPy, dead units, spectra, change."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon

from caffetools.errors import DataError
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
    np.testing.assert_allclose(item.spectrum, np.linalg.svd(weights.reshape(6, -1), compute_uv=False), rtol=1e-4, atol=1e-3)
    assert item.norm_ratio == pytest.approx(0.5) and item.change == pytest.approx(0.5)
    assert item.histogram.sum() == 216


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
    assert "the largest is 5 (50.00% of the norm before)" in caption
    with pytest.raises(DataError, match="4 x 3 x 5 x 5 and 2 x 3 x 5 x 5 before and after"):
        filter_changes_figure(LayerWeights("c", before), LayerWeights("c", before[:2]))
    figure, _ = filter_changes_figure(LayerWeights("ip", np.ones((4, 6))), LayerWeights("ip", np.ones((4, 6))))
    assert len(figure.axes) == 3
