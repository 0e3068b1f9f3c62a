"""Graphs of nets: every layer is there once, boxes do not overlap, blocks fold, names stay text."""

from __future__ import annotations

import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

from caffetools.errors import DataError, NetError, RunFailed
from caffetools.layers.registry import layer_types
from caffetools.layers.traits import Role
from caffetools.proto.schema import TRAIN, LayerParameter, NetParameter
from caffetools.proto.text import parse, read_net
from caffetools.visualize.graph_drawing import _first_points, draw_graph, graph_figure, is_readable_as_png, place_graph, svg_text
from caffetools.visualize.graph_layout import Layout, _read_plain, lay_out
from caffetools.visualize.layer_facts import BlobFacts, Setting, blob_facts, describe_type, layer_settings
from caffetools.visualize.net_graph import FAMILIES, NetGraph, family_of, fold_repeats, net_graph
from caffetools.visualize.panels import text_width
from tests.net.test_net import conv, data, relu
from tests.visualize.browser import run_in_page

PROTOTXT = Path(__file__).parents[2] / "prototxt"
EVIL = "<script>alert('1')</script>&\\\"$x"
BUNDLED = ["bvlc_googlenet", "resnet152", "densenet121", "squeezenet_v1.1", "mtcnn_pnet", "lenet"]


def graph_of(text: str, phase: int = 1) -> NetGraph:
    return net_graph(parse(text, NetParameter), phase)


def bundled(name: str, kind: str = "deploy") -> NetGraph:
    return net_graph(read_net(PROTOTXT / name / f"{kind}.prototxt"))


def test_every_role_that_says_something_has_one_colour() -> None:
    drawn = [role for _, roles in FAMILIES.values() for role in roles]
    assert sorted(drawn) == sorted(set(get_args(Role)) - {"other", "unknown", "silence"})
    kinds = {kind: family_of(kind) for kind in ("Concat", "Permute", "Reorg", "ReorgYolo", "ShuffleChannel", "Accum", "Slice")}
    assert set(kinds.values()) == {"shape"}


def residual(blocks: int) -> str:
    text = data("dim: 1 dim: 4 dim: 8 dim: 8") + conv("first", "data")
    top = "first"
    for i in range(blocks):
        text += conv(f"b{i}_1", top) + relu(f"b{i}_r", f"b{i}_1") + conv(f"b{i}_2", f"b{i}_1")
        text += f'layer {{ name: "b{i}" type: "Eltwise" bottom: "b{i}_2" bottom: "{top}" top: "b{i}" }}\n'
        top = f"b{i}"
    return text + conv("last", top)


def check_layout(layout: Layout, graph: NetGraph, sizes: list[tuple[float, float]]) -> None:
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(layout.boxes, sizes, strict=True)]
    for x0, y0, x1, y1 in boxes:
        assert x0 >= -0.6 and y0 >= -0.6 and x1 <= layout.width + 0.6 and y1 <= layout.height + 0.6
    order = sorted(boxes, key=lambda box: box[1])
    for i, a in enumerate(order):
        for b in itertools.takewhile(lambda box: box[1] < a[3] - 0.5, order[i + 1 :]):  # noqa: B023
            assert b[0] >= a[2] - 0.5 or b[2] <= a[0] + 0.5, (a, b)
    for arrow in graph.arrows:
        assert boxes[arrow.source][3] < boxes[arrow.target][1], "arrows point down"


def test_layers_become_boxes_and_in_place_layers_join_them() -> None:
    graph = graph_of(data() + conv("conv1", "data") + relu("relu1", "conv1") + conv("conv2", "conv1"))
    assert [[row.layer for row in box.rows] for box in graph.boxes] == [["data"], ["conv1", "relu1"], ["conv2"]]
    assert [(a.source, a.target, a.blob, a.label) for a in graph.arrows] == [(0, 1, "data", "3 × 8 × 8"), (1, 2, "conv1", "4 × 8 × 8")]
    assert graph.boxes[1].rows[0].detail == "4 · 3×3 pad 1"


def test_a_layer_in_place_on_a_value_that_others_read_before_is_refused_as_by_caffe() -> None:
    with pytest.raises(NetError, match="layer 'relu1': it writes its top 'conv1' in place, which layer 'side' reads before"):
        graph_of(data() + conv("conv1", "data") + conv("side", "conv1") + relu("relu1", "conv1") + conv("conv2", "conv1"))


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_nets_are_laid_out_without_overlap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = bundled(name)
    summary = read_net(PROTOTXT / name / "deploy.prototxt")
    assert sorted(row.layer for box in graph.boxes for row in box.rows) == sorted(layer.name for layer in summary.layer)
    folded = fold_repeats(graph)
    assert [row.layer for box in folded.boxes for row in box.rows] == [row.layer for box in graph.boxes for row in box.rows]
    for shown in (graph, folded):
        placed = place_graph(shown, engine="own")
        check_layout(placed.layout, shown, placed.sizes)
        assert all(len(curve) % 3 == 1 for curve in placed.layout.arrows)


def test_graphviz_and_our_own_layout_place_the_same_graph() -> None:
    graph = bundled("squeezenet_v1.1")
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed")
    placed = place_graph(graph, engine="dot")
    check_layout(placed.layout, graph, placed.sizes)


def test_without_graphviz_our_own_layout_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    sizes, arrows = [(50.0, 20.0)] * 3, [(0, 1), (0, 2), (1, 2)]
    assert lay_out(sizes, arrows) == lay_out(sizes, arrows, engine="own")
    with pytest.raises(RunFailed, match="dot is not installed"):
        lay_out(sizes, arrows, engine="dot")


def test_repeated_blocks_fold_into_one_box() -> None:
    graph = graph_of(residual(6))
    folded = fold_repeats(graph)
    assert [box.folded for box in folded.boxes] == [0, 0, 0, 0, 0, 5, 0]
    assert {(a.source, a.target) for a in folded.arrows} == {(0, 1), (1, 2), (2, 3), (3, 4), (1, 4), (4, 5), (5, 6)}
    assert folded.layers == graph.layers == 2 + 6 * 4 + 1
    assert fold_repeats(graph_of(residual(1))).boxes == graph_of(residual(1)).boxes


def test_a_thousand_layers_are_readable(tmp_path: Path) -> None:
    graph = graph_of(residual(250))
    assert graph.layers > 1000
    placed = place_graph(graph, engine="own")
    check_layout(placed.layout, graph, placed.sizes)
    assert placed.layout.width < 600, "a chain of blocks does not drift to one side"
    assert len(fold_repeats(graph).boxes) == 7


def test_a_long_net_is_a_picture_of_columns() -> None:
    graph = graph_of(residual(50))
    placed = place_graph(graph, engine="own")
    figure = graph_figure(placed, title="long")
    width, height = figure.get_size_inches()
    assert 0.5 < width / height < 2
    assert placed.layout.height > 10_000 and is_readable_as_png(placed)
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"]
    assert sorted(names[1:]) == sorted(box.name for box in graph.boxes)
    frames = [patch.get_extents().extents for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    canvas = figure.bbox.extents
    for index, (x0, y0, x1, y1) in enumerate(frames):
        assert canvas[0] <= x0 and canvas[1] <= y0 and x1 <= canvas[2] and y1 <= canvas[3]
        assert not any(x0 < u1 and u0 < x1 and y0 < v1 and v0 < y1 for u0, v0, u1, v1 in frames[:index])
    short = graph_figure(place_graph(fold_repeats(graph), engine="own"))
    assert len(short.axes[0].texts) < 30
    wide = [(20_000.0 * i, 20_000.0 * i) for i in range(len(graph.boxes))]
    assert not is_readable_as_png(replace(placed, layout=replace(placed.layout, boxes=wide, width=1e6, height=1e6)))


def test_drawings_are_the_same_twice(tmp_path: Path) -> None:
    for name, suffix in (("squeezenet_v1.1", ".svg"), ("lenet", ".png"), ("lenet", ".html")):
        first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
        caption = draw_graph(bundled(name), first)
        draw_graph(bundled(name), second)
        assert first.read_bytes() == second.read_bytes()
        assert name == "lenet" or caption.startswith("67 layers, 1,235,496 parameters")
    assert cv2.imread(str(tmp_path / "a.png")) is not None
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "fire2/squeeze1x1" in words and "16 × 56 × 56" in words


def test_names_never_become_markup(tmp_path: Path) -> None:
    name = EVIL.replace("\\", "\\\\").replace('"', '\\"').replace("'", "\\'")
    graph = graph_of(data().replace('"data"', f'"{name}"') + conv("c", name) + relu("r", "c"))
    ElementTree.fromstring(svg_text(place_graph(graph), title=EVIL))
    draw_graph(graph, tmp_path / "g.html", title=EVIL)
    html = (tmp_path / "g.html").read_text()
    assert "<script>alert" not in html
    script = "document.querySelector('g.b').dispatchEvent(new Event('click')); "
    script += "done(document.querySelector('#details h2').textContent + '|' + document.querySelectorAll('script').length)"
    assert run_in_page(html, script, tmp_path).endswith("|4")


def test_a_layer_of_an_unknown_type_is_drawn() -> None:
    text = data() + conv("c", "data") + 'layer { name: "u" type: "Mystery" bottom: "c" top: "u" }\n' + relu("r", "u")
    graph = graph_of(text)
    assert [box.name for box in graph.boxes] == ["data", "c", "u"]
    assert "not known" in graph.boxes[2].rows[0].note


def test_the_page_searches_folds_and_shows_settings(tmp_path: Path) -> None:
    draw_graph(graph_of(residual(6)), tmp_path / "g.html", title="residual")
    script = """
      const box = document.getElementById('search'); const out = [document.getElementById('canvas').scrollTop];
      box.value = 'b4_1'; box.dispatchEvent(new Event('input')); out.push(document.getElementById('found').textContent);
      box.value = 'convolution'; box.dispatchEvent(new Event('input')); out.push(document.getElementById('found').textContent);
      box.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' }));
      out.push(document.querySelector('#details h2').textContent, document.querySelector('#details pre').textContent.includes('num_output: 4'));
      document.querySelectorAll('svg:not([hidden]) g.b')[5].dispatchEvent(new Event('click'));
      out.push(document.querySelector('#details h2').textContent);
      document.querySelector('#details button').click();
      out.push(document.querySelector('#details h2').textContent, document.querySelectorAll('svg:not([hidden]) g.b').length);
      done(out.join('|'));
    """
    result = run_in_page((tmp_path / "g.html").read_text(), script, tmp_path)
    assert result == "0|1 box|5 boxes|first|true|5 repeated blocks|b1_1|21"


def test_settings_are_listed_with_the_defaults_of_bvlc_caffe() -> None:
    text = 'name: "c" type: "Convolution" bottom: "a" top: "b" param { lr_mult: 0 } include { phase: TRAIN } '
    text += "convolution_param { num_output: 4 kernel_size: 3 kernel_size: 5 weight_filler { type: 'xavier' } engine: CAFFE }"
    settings = {setting.name: (setting.value, setting.default) for setting in layer_settings(parse(text, LayerParameter))}
    written = {name: value for name, (value, default) in settings.items() if not default}
    assert written == {
        "param[0].lr_mult": "0",
        "include[0].phase": "TRAIN",
        "num_output": "4",
        "kernel_size": "3, 5",
        "weight_filler.type": "xavier",
        "engine": "CAFFE",
    }
    defaults = {name: value for name, (value, default) in settings.items() if default}
    assert defaults == {"bias_term": "true", "pad_h": "0", "pad_w": "0", "group": "1", "axis": "1", "force_nd_im2col": "false"}
    relu_settings = layer_settings(parse('name: "r" type: "ReLU"', LayerParameter))
    assert Setting("negative_slope", "0", default=True) in relu_settings, "a type's defaults also where it has no settings"
    assert layer_settings(parse('name: "m" type: "Mystery"', LayerParameter)) == []


def test_every_type_with_a_description_states_it_without_markup() -> None:
    for kind in layer_types():
        assert "`" not in describe_type(kind)
    assert describe_type("ReLU").startswith("y = max(0, x)") and describe_type("Mystery") == ""


def test_sizes_that_are_not_known_are_not_given_as_zero() -> None:
    source = 'layer { name: "d" type: "Data" top: "data" data_param { source: "absent" batch_size: 2 } }\n'
    graph = graph_of(source + conv("first", "data"))
    assert graph.facts == ["2 layers", "sizes not known"]
    assert [cause.split(":")[0] for cause in graph.unknown] == ["d"] and "--input-shape" in graph.unknown[0]
    other = data() + conv("first", "data") + 'layer { name: "odd" type: "Odd" bottom: "first" top: "odd" }\n' + conv("last", "odd")
    partly = graph_of(other)
    assert partly.facts[1] == f"{partly.parameters} parameters of what is known" and partly.parameters > 0
    assert partly.unknown == ("odd: the type Odd is not known here",)
    assert fold_repeats(partly).facts == partly.facts


def test_weights_are_named_and_summarized() -> None:
    graph = graph_of(data() + conv("c", "data"))
    assert blob_facts("Convolution", graph.boxes[1].rows[0].blobs) == [BlobFacts("weights", "4 × 3 × 3 × 3"), BlobFacts("bias", "4")]
    stored = blob_facts("Embed", None, [np.array([[1.0, 3.0]], np.float32), np.full(40, np.nan, np.float32), np.zeros(1)])
    assert stored[0] == BlobFacts("weights", "1 × 2", "mean 2, deviation 1, from 1 to 3", "1, 3")
    assert stored[1].statistics == "40 of 40 values are not finite" and stored[1].values.endswith("nan, …")
    assert stored[2].name == "blob 2"


def test_the_page_follows_blobs_and_keys(tmp_path: Path) -> None:
    weights = {"b1_1": [np.array([0.5, 1.5], np.float32)]}
    text = residual(6) + relu("late", "b0", "late")
    draw_graph(graph_of(text), tmp_path / "g.html", title="residual", weights=weights)
    script = """
      const text = (query) => [...document.querySelectorAll('#details ' + query)].map((node) => node.textContent).join('+');
      const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true }));
      const out = [text('h3'), text('li strong')];
      document.querySelector('#details button.link').click(); out.push(text('h2'), text('button.link'));
      key('ArrowDown'); out.push(text('h2')); key('ArrowUp'); out.push(text('h2'));
      const box = document.getElementById('search');
      box.value = 'b1_1'; box.dispatchEvent(new Event('input')); box.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' }));
      [...document.querySelectorAll('#details button')][0].click(); out.push(text('h2'), text('code'));
      key('Escape'); out.push(text('h2'));
      done(out.join('|'));
    """
    result = run_in_page((tmp_path / "g.html").read_text(), script, tmp_path)
    assert result == ("Inputs+Outputs|data+last+late|first|data+b0_1+b0|b0_1+b0_r|first|b1_1+b1_r|0.5, 1.5|residual"), (
        "net's inputs and outputs; a blob's layers; next and previous box; a folded block opened; its weights"
    )


def test_training_nets_have_their_own_phase_and_bad_ones_are_refused(tmp_path: Path) -> None:
    text = data() + conv("c", "data") + relu("r", "c").replace("bottom", "include { phase: TRAIN } bottom")
    assert graph_of(text).layers == 2 and graph_of(text, TRAIN).layers == 3
    with pytest.raises(NetError):
        graph_of(conv("c", "nothing"))
    with pytest.raises(DataError, match=r"\.png, \.svg or \.html"):
        draw_graph(graph_of(text), tmp_path / "g.gif")
    with pytest.raises(DataError, match="has no layers"):
        draw_graph(graph_of('name: "empty"'), tmp_path / "g.svg")


def test_a_box_that_graphviz_rounds_to_above_the_drawing_is_in_the_picture() -> None:
    text = "graph 1 2.5 5.6111\nnode n0 1.25 5.3056 2.5 0.61111\nnode n1 1.25 0.30556 2.5 0.61111\nedge n0 n1 4 1.25 5 1.25 4 1.25 2 1.25 0.6\nstop\n"
    layout = _read_plain(text, [(180.0, 44.0), (180.0, 44.0)], [(0, 1)])
    assert layout is not None and layout.boxes[0] == (0.0, 0.0)


def test_an_arrow_that_leaves_to_the_right_has_its_shape_on_the_left() -> None:
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed")
    text = data("dim: 1 dim: 3 dim: 32 dim: 32") + "".join(conv(f"c{i}", f"c{i - 1}" if i else "data") for i in range(3))
    placed = place_graph(graph_of(text + 'layer { name: "crop" type: "Crop" bottom: "data" bottom: "c2" top: "crop" }'), engine="dot")
    assert len(placed.layout.arrows) == 5 and len(placed.labels) == 4
    for curve in placed.layout.arrows:
        for x, y, words in placed.labels:
            assert not [p for p in _first_points(curve) if x < p[0] < x + text_width(words, 5.5) and y - 9 < p[1] < y], words


def test_the_ground_around_a_shape_covers_an_arrow_between_its_letters(tmp_path: Path) -> None:
    graph = graph_of(data() + conv("conv1", "data"))
    for name, rule in (("net.svg", r"\.e\{[^}]*stroke-width:(\d+)px"), ("net.html", r"\.e \{[^}]*stroke-width: (\d+)px")):
        draw_graph(graph, tmp_path / name)
        found = re.search(rule, (tmp_path / name).read_text())
        # A space of 11 pixels' text is about 3.5 wide, and letters leave another pixel on either side.
        assert found and int(found[1]) >= 6, name


def points_of(curve: list[tuple[float, float]]) -> NDArray[np.float64]:
    share = np.linspace(0, 1, 33)[:, None]
    pieces = [np.array(curve[first : first + 4]) for first in range(0, len(curve) - 1, 3)]
    return np.concatenate(
        [(1 - share) ** 3 * a + 3 * (1 - share) ** 2 * share * b + 3 * (1 - share) * share**2 * c + share**3 * d for a, b, c, d in pieces]
    )


def test_no_arrow_runs_behind_a_box() -> None:
    # Boxes 1 and 2 are of one rank, and an arrow of the low one, 1, passes under the high one.
    sizes = [(160.0, 44.0)] * 2 + [(200.0, 104.0)] + [(160.0, 44.0)] * 6
    arrows = [(0, 1), (0, 2), (2, 3), (3, 4), (1, 5), (4, 5), (1, 6), (4, 6), (5, 7), (6, 7), (5, 8), (7, 8)]
    layout = lay_out(sizes, arrows, engine="own")
    for arrow, curve in zip(arrows, layout.arrows, strict=True):
        x, y = points_of(curve).T
        for index, ((left, top), (width, height)) in enumerate(zip(layout.boxes, sizes, strict=True)):
            inside = (x > left + 1) & (x < left + width - 1) & (y > top + 1) & (y < top + height - 1)
            assert not inside.any(), (arrow, index)


def test_a_box_with_many_shapes_lists_only_those_that_fit_below_it() -> None:
    slices = "".join(f'top: "s{i}" ' for i in range(4)) + "slice_param { slice_point: [1, 3, 6] }"
    text = data("dim: 1 dim: 10 dim: 8 dim: 8") + f'layer {{ name: "slice" type: "Slice" bottom: "data" {slices} }}'
    placed = place_graph(graph_of(text + "".join(conv(f"c{i}", f"s{i}") for i in range(4))), engine="own")
    (_, top), (_, height) = placed.layout.boxes[1], placed.sizes[1]
    below = [(y, words) for _, y, words in placed.labels if y > top + height]
    assert [words for _, words in below] == ["1 × 8 × 8", "2 × 8 × 8 +2"]
    assert max(y for y, _ in below) < min(y for _, y in placed.layout.boxes[2:]) - 7
