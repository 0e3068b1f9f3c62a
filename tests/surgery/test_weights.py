"""Weights: layers taken out, called otherwise, put together; rows kept when classes are added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffetools.errors import CaffeToolsError
from caffetools.graph.inputs import data_layers_to_inputs
from caffetools.graph.summary import summarize
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, to_caffemodel
from caffetools.proto.binary import read_caffemodel, write_caffemodel
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter
from caffetools.surgery.class_incremental import Classes, extend_classifier_weights, read_classes, trim_weights
from caffetools.surgery.retarget import retarget
from caffetools.surgery.weights import merge_weights, prune_weights, remap_rows, rename_layers
from tests.surgery.nets import TINY, net_of, with_head


def model_of(**layers: list[int]) -> Caffemodel:
    net = NetParameter(name="m")
    for name in layers:
        net.layer.add(name=name, type="InnerProduct")
    return Caffemodel(net, {name: [np.arange(np.prod(shape), dtype=np.float32).reshape(shape)] for name, shape in layers.items()})


def test_layers_are_kept_by_name_or_by_a_function_and_the_file_is_whole(tmp_path: Path) -> None:
    model = model_of(a=[2, 3], b=[4], c=[1])
    assert list(prune_weights(model, {"a", "c"}).blobs) == ["a", "c"]
    pruned = prune_weights(model, lambda name: name < "c")
    assert [layer.name for layer in pruned.net.layer] == ["a", "b"]
    write_caffemodel(tmp_path / "w.caffemodel", pruned)
    again = read_caffemodel(tmp_path / "w.caffemodel")
    assert list(again.blobs) == ["a", "b"]
    np.testing.assert_array_equal(again.blobs["a"][0], model.blobs["a"][0])


def test_layers_are_renamed_and_may_swap_names() -> None:
    model = model_of(a=[2], b=[3])
    swapped = rename_layers(model, {"a": "b", "b": "a"})
    assert [layer.name for layer in swapped.net.layer] == ["b", "a"]
    assert swapped.blobs["b"][0].shape == (2,) and swapped.blobs["a"][0].shape == (3,)
    assert [layer.name for layer in model.net.layer] == ["a", "b"]
    with pytest.raises(CaffeToolsError, match="no layer 'z'"):
        rename_layers(model, {"z": "y"})
    with pytest.raises(CaffeToolsError, match="two layers of the weights would be called 'b'"):
        rename_layers(model, {"a": "b"})


def test_of_a_layer_that_several_have_the_last_ones_weights_are_taken() -> None:
    merged = merge_weights([model_of(a=[2], b=[3]), model_of(b=[5], c=[1])])
    assert {name: arrays[0].shape for name, arrays in merged.blobs.items()} == {"a": (2,), "b": (5,), "c": (1,)}
    assert [layer.name for layer in merged.net.layer] == ["a", "b", "c"]
    with pytest.raises(CaffeToolsError, match="no weights to merge"):
        merge_weights([])


def inner(**settings: bool) -> Any:
    return LayerParameter(type="InnerProduct", inner_product_param=settings)


def test_rows_are_kept_and_the_others_are_new() -> None:
    old = [np.arange(6, dtype=np.float32).reshape(3, 2), np.array([10, 11, 12], np.float32)]
    fresh = [np.full((4, 2), -1, np.float32), np.full(4, -2, np.float32)]
    weights, bias = remap_rows(inner(), old, [2, None, 0, None], fresh)
    assert weights.tolist() == [[4, 5], [-1, -1], [0, 1], [-1, -1]] and bias.tolist() == [12, -2, 10, -2]
    (columns,) = remap_rows(inner(transpose=True), [old[0].T], [2, None, 0, None], [fresh[0].T])
    assert columns.T.tolist() == weights.tolist()
    (legacy,) = remap_rows(inner(), [old[0].reshape(1, 1, 3, 2)], [2, None, 0, None], fresh[:1])
    assert legacy.tolist() == weights.tolist()
    with pytest.raises(CaffeToolsError, match="does not fit"):
        remap_rows(inner(), [np.zeros((3, 5), np.float32)], [0], [np.zeros((1, 2), np.float32)])


OLD, NEW = [f"p{i}" for i in range(10)], ["new", "p3", "p0", "other"]


def test_a_grown_net_scores_the_classes_that_it_knew_as_before() -> None:
    net = net_of(TINY)
    made = retarget(net, len(NEW))
    trained = Net(data_layers_to_inputs(net, batch=2), TEST)
    shapes = {row.name: row.parameters or [] for row in summarize(made.train_val, TRAIN).layers}
    weights = extend_classifier_weights(to_caffemodel(trained), net, made.train_val, made.renamed, shapes, Classes(OLD, NEW))
    grown = Net(data_layers_to_inputs(made.train_val, batch=2), TEST)
    assert load_weights(grown, weights).fresh == []
    rng = np.random.default_rng(1)
    batch = {"data": torch.from_numpy(rng.normal(size=(2, 3, 8, 8)).astype(np.float32)), "label": torch.zeros(2)}
    before, after = trained(batch, keep=["fc"])["fc"], grown(batch, keep=["fc_4"])["fc_4"]
    torch.testing.assert_close(after[:, [1, 2]], before[:, [3, 0]], rtol=0, atol=0)
    again = extend_classifier_weights(to_caffemodel(trained), net, made.train_val, made.renamed, shapes, Classes(OLD, NEW))
    np.testing.assert_array_equal(again.blobs["fc_4"][0], weights.blobs["fc_4"][0])
    assert weights.blobs["fc_4"][0][0].std() > 0 and (weights.blobs["fc_4"][1][[0, 3]] == 0.5).all()


def test_new_classes_are_drawn_from_a_generator_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training in another thread draws from torch's global generator, which thus may be neither set nor used, not even for a while."""
    net = net_of(TINY)
    made = retarget(net, len(NEW))
    model = to_caffemodel(Net(data_layers_to_inputs(net, batch=2), TEST))
    shapes = {row.name: row.parameters or [] for row in summarize(made.train_val, TRAIN).layers}
    classes = Classes(OLD, NEW)

    def fc(seed: int) -> Any:
        return extend_classifier_weights(model, net, made.train_val, made.renamed, shapes, classes, seed=seed).blobs["fc_4"][0]

    def refused(*_: object) -> None:
        raise AssertionError("the global generator is set")

    before = torch.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "manual_seed", refused)
        patch.setattr(torch, "set_rng_state", refused)
        one, two = fc(1), fc(2)
    assert torch.equal(torch.get_rng_state(), before)
    # The kept rows are equal, the new ones are those of the seed.
    assert (one[[1, 2]] == two[[1, 2]]).all() and (one[[0, 3]] != two[[0, 3]]).any()


def test_what_follows_the_classifier_grows_with_it() -> None:
    behind = 'layer { name: "bn" type: "BatchNorm" bottom: "fc" top: "y" } layer { name: "sc" type: "Scale" bottom: "y" top: "y" }'
    net = with_head(behind)
    made = retarget(net, 3)
    trained = Net(net, TEST)
    with torch.no_grad():
        for layer, values in (("bn", (3.0, 8.0, 2.0)), ("sc", (7.0,))):
            for blob, value in zip(next(x for x in trained.layers if x.name == layer).blobs, values, strict=True):
                blob.fill_(value)
    shapes = {row.name: row.parameters or [] for row in summarize(made.train_val, TRAIN).layers}
    weights = extend_classifier_weights(
        to_caffemodel(trained), net, made.train_val, made.renamed, shapes, Classes(list("abcd"), list("xda"))
    )
    assert [blob.tolist() for blob in weights.blobs["bn_3"]] == [[0, 3, 3], [2, 8, 8], [2]]
    assert weights.blobs["sc_3"][0].tolist() == [1, 7, 7]


def test_labels_that_cannot_be_right_are_errors(tmp_path: Path) -> None:
    net = net_of(TINY)
    made = retarget(net, 4)
    model = to_caffemodel(Net(data_layers_to_inputs(net), TEST))
    shapes = {row.name: row.parameters or [] for row in summarize(made.train_val, TRAIN).layers}
    for old, new, message in (
        (OLD[:9], NEW, "the old labels are 9, but layer 'fc' has 10 outputs"),
        (OLD, list("wxyz"), "none of the new"),
    ):
        with pytest.raises(CaffeToolsError, match=message):
            extend_classifier_weights(model, net, made.train_val, made.renamed, shapes, Classes(old, new))
    for text, message in (("", "names no class"), ("a\nb\na\n", "has 'a' twice")):
        (tmp_path / "labels.txt").write_text(text)
        with pytest.raises(CaffeToolsError, match=message):
            read_classes(tmp_path / "labels.txt")
    with pytest.raises(CaffeToolsError, match="cannot read"):
        read_classes(tmp_path / "none.txt")
    (tmp_path / "labels.txt").write_text("a b\nc\n\n")
    assert read_classes(tmp_path / "labels.txt") == ["a b", "c"]


def test_trimmed_weights_have_what_is_kept() -> None:
    made = retarget(net_of(TINY), 10, keep_names=True)
    model = to_caffemodel(Net(data_layers_to_inputs(net_of(TINY)), TEST))
    assert list(trim_weights(model, made.train_val, made.renamed).blobs) == ["conv"]
