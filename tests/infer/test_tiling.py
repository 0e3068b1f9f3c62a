"""Tiled inference: the values of one pass over the whole picture, for every kind of window; refused where a layer sees the whole map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffetools.errors import CaffeToolsError, NetError
from caffetools.infer.tiling import plan_tiles, run_tiles
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, NetParameter
from caffetools.proto.text import parse


def conv(name: str, bottom: str, top: str, outputs: int, settings: str, kind: str = "Convolution") -> str:
    return (
        f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" convolution_param {{ num_output: {outputs} {settings} '
        f'weight_filler {{ type: "gaussian" std: 0.2 }} bias_filler {{ type: "uniform" min: -1 max: 1 }} }} }}\n'
    )


def pool(name: str, bottom: str, top: str, settings: str) -> str:
    return f'layer {{ name: "{name}" type: "Pooling" bottom: "{bottom}" top: "{top}" pooling_param {{ {settings} }} }}\n'


def layer(kind: str, bottoms: str, top: str, settings: str = "") -> str:
    listed = " ".join(f'bottom: "{name}"' for name in bottoms.split())
    return f'layer {{ name: "{top}_{kind.lower()}" type: "{kind}" {listed} top: "{top}" {settings} }}\n'


INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 64 dim: 64 } } }\n'
NETS = {
    "plain": conv("c1", "data", "c1", 4, "kernel_size: 3 pad: 1")
    + layer("ReLU", "c1", "c1")
    + conv("c2", "c1", "out", 2, "kernel_size: 5 pad: 2"),
    "strides and ceiled pooling": conv("c1", "data", "c1", 4, "kernel_size: 7 stride: 2 pad: 3")
    + pool("p1", "c1", "p1", "pool: MAX kernel_size: 3 stride: 2")
    + layer("LRN", "p1", "n1", "lrn_param { local_size: 5 norm_region: WITHIN_CHANNEL alpha: 0.5 }")
    + pool("p2", "n1", "p2", "pool: AVE kernel_size: 3 stride: 2 pad: 1")
    + conv("c2", "p2", "out", 3, "kernel_size: 3 pad: 2 dilation: 2"),
    "branches": conv("c1", "data", "c1", 4, "kernel_size: 3 stride: 2 pad: 1")
    + conv("a", "c1", "a", 4, "kernel_size: 5 pad: 2")
    + pool("b", "c1", "b", "pool: MAX kernel_size: 3 stride: 1 pad: 1")
    + layer("Eltwise", "a b", "sum")
    + layer("Concat", "sum c1", "joined")
    + layer("Softmax", "joined", "out"),
    "fully convolutional segmentation": conv("c1", "data", "c1", 4, "kernel_size: 3 pad: 30")
    + pool("p1", "c1", "p1", "pool: MAX kernel_size: 2 stride: 2")
    + conv("c2", "p1", "c2", 4, "kernel_size: 3 pad: 1")
    + pool("p2", "c2", "p2", "pool: MAX kernel_size: 2 stride: 2")
    + conv("score", "p2", "score", 3, "kernel_size: 3")
    + conv("up", "score", "up", 3, "kernel_size: 8 stride: 4", "Deconvolution")
    + layer("Crop", "up data", "out", "crop_param { axis: 2 offset: 27 }"),
    "finer than the picture": conv("c1", "data", "c1", 4, "kernel_size: 3 pad: 1")
    + conv("up", "c1", "up", 2, "kernel_size: 4 stride: 2 pad: 1", "Deconvolution")
    + conv("c2", "up", "out", 2, "kernel_size: 3 pad: 1"),
    "zoomed": conv("c1", "data", "c1", 8, "kernel_size: 3 stride: 4 pad: 1")
    + layer("Interp", "c1", "fine", "interp_param { zoom_factor: 4 }")
    + conv("c2", "fine", "out", 2, "kernel_size: 3 pad: 1"),
    "repeated pixels": conv("c1", "data", "c1", 8, "kernel_size: 3 stride: 2 pad: 1")
    + layer("Upsample", "c1", "large", "upsample_param { scale: 2 }")
    + conv("c2", "large", "out", 3, "kernel_size: 3 pad: 1"),
    "channels to pixels": conv("c1", "data", "c1", 18, "kernel_size: 3 stride: 2 pad: 1")
    + layer("Reorg", "c1", "large", "reorg_param { stride: 3 reverse: true }")
    + conv("c2", "large", "out", 3, "kernel_size: 3 pad: 1"),
    "different kernels of the axes": conv("c1", "data", "out", 4, "kernel_h: 1 kernel_w: 9 stride_h: 3 stride_w: 1 pad_h: 0 pad_w: 4"),
}


def net_of(text: str) -> Net:
    torch.manual_seed(0)
    return Net(parse(INPUT + text, NetParameter), TEST)


def tiled(net: Net, picture: np.ndarray, size: int, outputs: list[str]) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []

    def window(rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        seen.append((rows[1] - rows[0], columns[1] - columns[0]))
        return picture[:, :, slice(*rows), slice(*columns)]

    tiling = plan_tiles(net, "data", outputs, picture.shape, size)
    blobs = run_tiles(net, "data", tiling, window, lambda _, shape: np.full(shape, np.nan, np.float32))
    return blobs, seen


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("height", "width", "size"), [(150, 203, 96), (97, 131, 84), (128, 64, 90), (60, 60, 60)])
def test_tiles_give_the_values_of_the_whole_picture(name: str, height: int, width: int, size: int) -> None:
    net = net_of(NETS[name])
    picture = np.random.default_rng(1).normal(0, 1, (2, 3, height, width)).astype(np.float32)
    with torch.inference_mode():
        whole = net({"data": torch.from_numpy(picture)}, keep=[blob for blob in ("c1",) if blob in net.blob_shapes])
    blobs, seen = tiled(net, picture, size, ["out", "c1"] if "c1" in net.blob_shapes else ["out"])
    assert all(max(sides) <= size for sides in seen), seen
    assert len(seen) > 1 or size >= max(height, width)
    for blob, values in blobs.items():
        assert values.shape == tuple(whole[blob].shape)
        np.testing.assert_allclose(values, whole[blob].numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (pool("all", "data", "out", "pool: AVE global_pooling: true"), "all"),
        (layer("InnerProduct", "data", "out", "inner_product_param { num_output: 2 }"), "out_innerproduct"),
        (layer("MVN", "data", "out"), "out_mvn"),
        (layer("Softmax", "data", "out", "softmax_param { axis: 2 }"), "out_softmax"),
        (layer("BatchNorm", "data", "out", "batch_norm_param { use_global_stats: false }"), "out_batchnorm"),
        (layer("Flatten", "data", "out"), "out_flatten"),
        (layer("Interp", "data", "out", "interp_param { zoom_factor: 3 }"), "out_interp"),
        (layer("Interp", "data", "out", "interp_param { height: 99 width: 99 }"), "out_interp"),
        (layer("Upsample", "data", "out", "upsample_param { scale: 3 }"), "out_upsample"),
        (conv("c", "data", "c", 4, "kernel_size: 1") + layer("Reorg", "c", "out", "reorg_param { stride: 2 }"), "out_reorg"),
    ],
)
def test_layer_that_sees_the_whole_map_is_refused_by_name(text: str, name: str) -> None:
    with pytest.raises(NetError) as caught:
        plan_tiles(net_of(text), "data", ["out"], (1, 3, 200, 200), 64)
    assert caught.value.layer == name


def test_tile_smaller_than_the_receptive_field_is_refused_with_a_size_that_works() -> None:
    net = net_of(NETS["strides and ceiled pooling"])
    with pytest.raises(CaffeToolsError, match="take at least (\\d+)") as caught:
        plan_tiles(net, "data", ["out"], (1, 3, 300, 300), 32)
    enough = int(str(caught.value).rsplit(" ", 1)[1])
    assert plan_tiles(net, "data", ["out"], (1, 3, 300, 300), enough).rows


def test_tile_that_a_kernel_does_not_fit_is_refused_with_a_size_that_works() -> None:
    """Tiles differ from the picture by a multiple of the stride: of this picture tiles of 37 would be 12 wide, 1 after the pooling."""
    text = conv("c1", "data", "c1", 4, "kernel_size: 3 stride: 6") + pool("p", "c1", "p", "pool: MAX kernel_size: 2 stride: 5")
    net = net_of(text + conv("c2", "p", "out", 2, "kernel_size: 2"))
    with pytest.raises(CaffeToolsError, match="tiles of 37 pixels are too small for this net: .* take at least (\\d+)") as caught:
        plan_tiles(net, "data", ["out"], (1, 3, 102, 102), 37)
    assert not isinstance(caught.value, NetError)
    enough = int(str(caught.value).rsplit(" ", 1)[1])
    assert len(plan_tiles(net, "data", ["out"], (1, 3, 102, 102), enough).rows) > 1 or enough >= 102


def test_a_picture_of_more_values_than_one_blob_may_have_is_planned() -> None:
    tiling = plan_tiles(net_of(NETS["plain"]), "data", ["out"], (1, 3, 50_000, 60_000), 512)
    assert tiling.shapes["out"] == (1, 2, 50_000, 60_000)
    assert tiling.rows[-1].kept["out"][1] == 50_000
