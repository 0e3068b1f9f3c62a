"""Parts of a net as ONNX files: to some blobs, and from others."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from caffetools.engines.onnxruntime import open_session
from caffetools.errors import CaffeToolsError, ExportError
from caffetools.infer.export import ExportOptions, export_deployed
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.onnx.cut import cut_net
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse
from tests.net.test_net import conv, data, net_of, relu

# Two stages as in Faster R-CNN, whose proposals are made by a Python layer of the user's.
FIRST = (
    data("dim: 1 dim: 3 dim: 16 dim: 16")
    + conv("body", "data")
    + relu("body_relu", "body")
    + conv("offsets", "body")
    + conv("scores", "body")
)
PROPOSAL = (
    'layer { name: "proposal" type: "Python" bottom: "scores" bottom: "offsets" top: "rois" '
    'python_param { module: "not_here.proposal_layer" layer: "ProposalLayer" } }'
)
SECOND = (
    'layer { name: "pool" type: "ROIPooling" bottom: "body" bottom: "rois" top: "pool" '
    "roi_pooling_param { pooled_w: 3 pooled_h: 3 spatial_scale: 1 } }"
    'layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }'
)
ROIS = 'layer { name: "rois" type: "Input" top: "rois" input_param { shape { dim: 4 dim: 5 } } }'


def write_two_stages(folder: Path) -> tuple[Path, Path, Net]:
    """Write the net with the Python layer; its weights, and what it is with rois given."""
    torch.manual_seed(0)
    whole = net_of(FIRST + ROIS + SECOND)
    save_weights(whole, folder / "net.caffemodel")
    (folder / "net.prototxt").write_text(FIRST + PROPOSAL + SECOND)
    return folder / "net.prototxt", folder / "net.caffemodel", whole


def test_layers_that_cannot_be_built_here_are_cut_off(tmp_path: Path) -> None:
    deploy, weights, whole = write_two_stages(tmp_path)
    random = np.random.default_rng(0)
    given = {"data": random.normal(size=(1, 3, 16, 16)).astype(np.float32)}
    given["rois"] = np.array([[0, 0, 0, 5, 5], [0, 2, 3, 9, 14], [0, 1, 1, 1, 1], [0, 4, 0, 15, 15]], np.float32)
    expected = whole({name: torch.from_numpy(value) for name, value in given.items()}, keep=["body", "offsets", "scores"])

    export_deployed(deploy, weights, tmp_path / "first.onnx", how=ExportOptions(outputs=("body", "offsets", "scores")))
    first = open_session(tmp_path / "first.onnx").run({"data": given["data"]})
    for blob in ("body", "offsets", "scores"):
        np.testing.assert_allclose(first[blob], expected[blob].detach().numpy(), atol=1e-5)

    how = ExportOptions(outputs=("fc",), sources=("body", "rois"), input_shapes={"rois": (4, 5)}, dynamic_axes=())
    export_deployed(deploy, weights, tmp_path / "second.onnx", how=how)
    second = open_session(tmp_path / "second.onnx").run({"body": first["body"], "rois": given["rois"]})
    np.testing.assert_allclose(second["fc"], expected["fc"].detach().numpy(), atol=1e-5)


def test_an_unknown_shape_of_a_source_is_asked_for(tmp_path: Path) -> None:
    deploy, weights, _ = write_two_stages(tmp_path)
    with pytest.raises(CaffeToolsError, match=r"layer 'proposal': .*not_here.*give the shape of 'rois' with --input-shape rois=N"):
        export_deployed(deploy, weights, tmp_path / "x.onnx", how=ExportOptions(sources=("body", "rois")))
    with pytest.raises(
        ExportError, match=re.escape("body, rois differ in their first axis, so it cannot be the batch axis; leave every size")
    ):
        how = ExportOptions(sources=("body", "rois"), input_shapes={"rois": (4, 5)}, dynamic_axes=("batch",))
        export_deployed(deploy, weights, tmp_path / "x.onnx", how=how)
    assert not (tmp_path / "x.onnx").exists()


def test_the_outputs_are_those_of_the_net_where_none_are_given() -> None:
    text = data() + conv("a", "data") + relu("a_relu", "a") + conv("b", "a") + relu("b_relu", "b") + conv("c", "a")
    part = cut_net(parse(text, NetParameter), sources=["a"])
    assert [layer.name for layer in part.layer] == ["a", *[layer.name for layer in parse(text, NetParameter).layer][3:]]
    assert Net(part).outputs == net_of(text).outputs == ["b", "c"]


@pytest.mark.parametrize(
    ("outputs", "sources", "message"),
    [
        (["bb"], [], "has no blob 'bb'; did you mean 'b'?"),
        (["b"], ["c"], "none of b depends on 'c'"),
        ([], ["nothing"], "has no blob 'nothing'"),
    ],
)
def test_wrong_names_are_errors(outputs: list[str], sources: list[str], message: str) -> None:
    text = data() + conv("a", "data") + conv("b", "a") + conv("c", "a")
    with pytest.raises(ExportError, match=re.escape(message)):
        cut_net(parse(text, NetParameter), outputs, sources)
