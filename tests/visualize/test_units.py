"""What a unit sees and prefers: receptive fields, top pictures, synthesized pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from caffetools.cancel import CancelToken
from caffetools.errors import Cancelled, DataError, NetError
from caffetools.events import Event, EventSink, Finished, Progress, Started, Warned, on_progress
from caffetools.net.net import Net
from caffetools.net.probe import run_probe
from caffetools.net.weights import save_weights
from caffetools.visualize.activations import blob_values
from caffetools.visualize.attribution import integrated_gradients, occlusion, saliency, smooth_grad
from caffetools.visualize.everything import write_everything
from caffetools.visualize.picture_net import PictureNet
from caffetools.visualize.receptive_field import receptive_field_figure, receptive_fields
from caffetools.visualize.synthesis import deep_dream, preferred_part, rectified_blobs, style_transfer, synthesize
from caffetools.visualize.top_images import find_top_images, top_images_figure
from tests.net.test_net import conv, data, net_of, relu
from tests.visualize.test_attribution import linear

PROTOTXT = Path(__file__).parents[2] / "prototxt"
POOL = 'layer { name: "pool" type: "Pooling" bottom: "conv1" top: "pool" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }\n'
STACK = (
    data("dim: 1 dim: 3 dim: 16 dim: 16")
    + conv("conv1", "data")
    + relu("relu1", "conv1")
    + POOL
    + conv("conv2", "pool")
    + relu("relu2", "conv2")
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PictureNet:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    text = STACK + linear(3, "conv2")
    (folder / "deploy.prototxt").write_text(text)
    save_weights(net_of(text), folder / "w.caffemodel")
    return PictureNet(folder / "deploy.prototxt", folder / "w.caffemodel")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(11):
        cv2.imwrite(str(folder / f"{i:02}.png"), cv2.resize(rng.integers(0, 255, (4, 4, 3), np.uint8), (16, 16)))
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    ("name", "blob", "size", "stride"),
    [("bvlc_alexnet", "conv5", 163, 16), ("bvlc_alexnet", "pool5", 195, 32), ("vgg16", "pool5", 212, 32), ("resnet50", "res5c", 483, 32)],
)
def test_published_receptive_fields(name: str, blob: str, size: int, stride: int) -> None:
    field = receptive_fields(Net.from_file(PROTOTXT / name / "deploy.prototxt", fill=False))[blob]
    assert field.size == (size, size) and field.stride == (stride, stride)


def filled(net: Net) -> Net:
    """The net with weights that let every gradient pass."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.1)
    return net


def test_fields_are_where_gradients_reach() -> None:
    net = filled(net_of(STACK))
    image = np.ones((3, 16, 16), np.float32)
    for blob in ("conv1", "pool", "conv2"):
        field = receptive_fields(net)[blob]
        for y, x in ((0, 0), (3, 5), (field.positions[0] - 1, field.positions[1] - 1)):
            reached = np.abs(saliency(net, image, blob=blob, unit=(0, y, x))).sum(0) > 0
            top, left, bottom, right = field.box(y, x, (16, 16))
            expected = np.zeros((16, 16), bool)
            expected[top:bottom, left:right] = True
            np.testing.assert_array_equal(reached, expected, err_msg=f"{blob} {y} {x}")


def test_no_two_outlines_of_fields_look_alike() -> None:
    layers, bottom = "", "data"
    for index in range(20):
        layers += conv(f"c{index}", bottom)
        bottom = f"c{index}"
    figure, _ = receptive_field_figure(net_of(data("dim: 1 dim: 3 dim: 48 dim: 48") + layers))
    outlines = [(patch.get_edgecolor(), str(patch.get_linestyle())) for patch in figure.axes[0].patches[1:]]
    assert len(outlines) == len(set(outlines)) == len(figure.axes[1].lines) == 20


def test_fields_end_at_layers_that_mix_all_positions() -> None:
    fields = receptive_fields(net_of(STACK + linear(3, "conv2")))
    assert fields["ip"].whole and fields["ip"].box(0, 0, (16, 16)) == (0, 0, 16, 16)
    figure, caption = receptive_field_figure(net_of(STACK + linear(3, "conv2")))
    assert caption == "4 blobs, 1 of which depend on the whole picture; the largest field of the others is 9 × 9." and len(figure.axes) == 2


def test_a_bottom_that_is_read_for_its_size_does_not_widen_a_field() -> None:
    """The skip connection of a U-Net: a crop of early features to the size of late ones depends on the early features alone."""
    crop = 'layer { name: "crop" type: "Crop" bottom: "conv1" bottom: "conv3" top: "crop" crop_param { axis: 2 } }\n'
    net = net_of(data("dim: 1 dim: 3 dim: 16 dim: 16") + conv("conv1", "data") + conv("conv2", "conv1") + conv("conv3", "conv2") + crop)
    fields = receptive_fields(net)
    assert fields["conv3"].size == (7, 7) and fields["crop"].size == fields["conv1"].size == (3, 3)
    gradient = saliency(filled(net), np.ones((3, 16, 16), np.float32), blob="crop", unit=(0, 3, 4))
    top, left, bottom, right = fields["crop"].box(3, 4, (16, 16))
    rows, columns = np.nonzero(np.abs(gradient).sum(0))
    assert (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) == (top, left, bottom, right)


def test_values_that_only_move_keep_the_size_of_their_field() -> None:
    moved = 'layer { name: "perm" type: "Permute" bottom: "conv2" top: "perm" permute_param { order: [0, 2, 3, 1] } }\n'
    moved += 'layer { name: "flat" type: "Flatten" bottom: "perm" top: "flat" }\n'
    moved += 'layer { name: "early" type: "Flatten" bottom: "conv1" top: "early" }\n'
    moved += 'layer { name: "join" type: "Concat" bottom: "early" bottom: "flat" top: "join" }\n'
    prior = 'layer { name: "prior" type: "PriorBox" bottom: "conv2" bottom: "data" top: "prior" prior_box_param { min_size: 4 } }\n'
    net = net_of(STACK + moved + prior + linear(3, "join"))
    fields = receptive_fields(net)
    assert {name for name, field in fields.items() if field.rearranged} == {"perm", "flat", "early", "join", "prior"}
    assert all(fields[name].size == fields["conv2"].size == (9, 9) for name in ("perm", "flat", "join", "prior"))
    assert fields["early"].size == (3, 3) and fields["ip"].whole
    assert fields["flat"].box(0, 5, (16, 16)) == (0, 0, 16, 16)
    reached = np.argwhere(np.abs(saliency(filled(net), np.ones((3, 16, 16), np.float32), blob="flat", unit=60)).sum(0))
    assert tuple(np.ptp(reached, axis=0) + 1) <= (9, 9)
    assert receptive_field_figure(net)[1].startswith("9 blobs, 1 of which depend on the whole picture; the largest field")


def test_top_images_are_the_largest_of_all(model: PictureNet, pictures: list[Path]) -> None:
    images = torch.from_numpy(np.stack([model.prepare(path).input for path in pictures]))
    values = run_probe(model.net, images, blobs=["conv2"]).blobs["conv2"].numpy()
    best = values.reshape(11, 4, -1).max(2)
    for batch in (1, 4, 16):
        found = find_top_images(model, pictures, "conv2", top=5, batch=batch)
        order = np.argsort(-best, axis=0, kind="stable")[:5].T
        np.testing.assert_array_equal(found.pictures, order)
        np.testing.assert_allclose(found.values, np.take_along_axis(best, order.T, 0).T, atol=1e-5)
    unit, rank = 2, 1
    y, x = found.places[unit, rank]
    assert values[found.pictures[unit, rank], unit, y, x] == pytest.approx(float(found.values[unit, rank]), abs=1e-5)


def test_an_interrupted_search_resumes(model: PictureNet, pictures: list[Path], tmp_path: Path) -> None:
    state, token = tmp_path / "state.npz", CancelToken()
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 6:
            token.cancel()

    with pytest.raises(Cancelled):
        find_top_images(model, pictures, "conv2", top=3, batch=2, state=state, events=on_progress(stop), cancel=token)
    resumed: list[int] = []
    found = find_top_images(model, pictures, "conv2", top=3, batch=2, state=state, events=on_progress(lambda done, _: resumed.append(done)))
    assert (seen[-1] == 8 and resumed == [10, 11]) or (seen[-1] == 6 and resumed == [8, 10, 11])
    whole = find_top_images(model, pictures, "conv2", top=3, batch=2)
    np.testing.assert_array_equal(found.pictures, whole.pictures)
    with pytest.raises(DataError, match="made with other pictures"):
        find_top_images(model, pictures[:5], "conv2", top=3, state=state)
    state.write_bytes(b"no state")
    with pytest.raises(DataError, match="not a state of top images"):
        find_top_images(model, pictures, "conv2", top=3, state=state)


def test_a_synthesized_picture_is_cropped_to_what_its_unit_sees(model: PictureNet) -> None:
    made = synthesize(model, blob="conv1", unit=1, steps=4, jitter=0)
    top, left, bottom, right = receptive_fields(model.net)["conv1"].box(8, 8, (16, 16))
    np.testing.assert_array_equal(preferred_part(model, made, "conv1", 1), made[top:bottom, left:right])
    assert preferred_part(model, made, "conv1", (1, 0, 0)).shape == (2, 2, 3), "the rest of the field is padding"
    assert preferred_part(model, made, "ip", 1) is made


def test_top_and_synthesized_pictures_of_a_net_with_a_batch_size_in_a_reshape(tmp_path: Path, pictures: list[Path]) -> None:
    reshape = 'layer { name: "flat" type: "Reshape" bottom: "conv2" top: "flat" reshape_param { shape { dim: 3 dim: -1 } } }\n'
    text = STACK.replace("dim: 1 dim: 3", "dim: 3 dim: 3") + reshape + linear(2, "flat")
    (tmp_path / "deploy.prototxt").write_text(text)
    torch.manual_seed(0)
    save_weights(net_of(text), tmp_path / "w.caffemodel")
    model = PictureNet(tmp_path / "deploy.prototxt", tmp_path / "w.caffemodel")
    found = find_top_images(model, pictures, "ip", top=3, batch=4)
    values = [activation(model, cv2.imread(str(picture))[..., ::-1], 1) for picture in pictures]
    np.testing.assert_array_equal(found.pictures[1], np.argsort(np.negative(values), kind="stable")[:3])
    made = synthesize(model, blob="ip", unit=1, steps=20, jitter=0)
    assert activation(model, made, 1) > max(values)
    _, caption = top_images_figure(model, pictures, found, [1])
    assert caption.endswith("of each unit, whole.")


def test_what_was_found_before_a_damaged_picture_remains(model: PictureNet, pictures: list[Path], tmp_path: Path) -> None:
    copies = [tmp_path / picture.name for picture in pictures]
    for picture, copy in zip(pictures, copies, strict=True):
        copy.write_bytes(picture.read_bytes())
    copies[7].write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"07\.png"):
        find_top_images(model, copies, "conv2", top=3, batch=2, state=tmp_path / "state.npz")
    copies[7].write_bytes(pictures[7].read_bytes())
    done: list[int] = []
    found = find_top_images(
        model, copies, "conv2", top=3, batch=2, state=tmp_path / "state.npz", events=on_progress(lambda n, _: done.append(n))
    )
    assert done == [8, 10, 11]
    np.testing.assert_array_equal(found.pictures, find_top_images(model, pictures, "conv2", top=3).pictures)


Make = Callable[[PictureNet, EventSink, CancelToken | None], object]
_NOISE = np.random.RandomState(1).randint(0, 256, (24, 24, 3)).astype(np.uint8)
_PICTURE = _NOISE[:16, :16].transpose(2, 0, 1).astype(np.float32)
MADE: dict[str, tuple[int, str, Make]] = {
    "synthesize": (
        5,
        "steps",
        lambda model, events, cancel: synthesize(model, blob="ip", unit=1, steps=5, octaves=2, events=events, cancel=cancel),
    ),
    "deepdream": (
        6,
        "steps",
        lambda model, events, cancel: deep_dream(model, _NOISE, blob="conv2", steps=3, octaves=2, events=events, cancel=cancel),
    ),
    "style": (4, "steps", lambda model, events, cancel: style_transfer(model, _NOISE, _NOISE[::-1], steps=4, events=events, cancel=cancel)),
    "integrated-gradients": (
        4,
        "points",
        lambda model, events, cancel: integrated_gradients(model.net, _PICTURE, steps=4, batch=1, events=events, cancel=cancel),
    ),
    "smooth-grad": (
        3,
        "samples",
        lambda model, events, cancel: smooth_grad(model.net, _PICTURE, samples=3, batch=1, events=events, cancel=cancel),
    ),
    "occlusion": (
        16,
        "windows",
        lambda model, events, cancel: occlusion(model.net, _PICTURE, window=4, stride=4, batch=1, events=events, cancel=cancel),
    ),
}


@pytest.mark.parametrize("task", MADE)
def test_work_on_one_picture_reports_each_step_and_can_be_cancelled(model: PictureNet, task: str) -> None:
    steps, unit, make = MADE[task]
    seen: list[Event] = []
    make(model, seen.append, None)
    assert [(event.task, event.done, event.total, event.unit) for event in seen if isinstance(event, Progress)] == [
        (task, number, steps, unit) for number in range(1, steps + 1)
    ]
    assert isinstance(seen[0], Started) and isinstance(seen[-1], Finished) and seen[-1].status == "done"
    token, done = CancelToken(), list[Event]()

    def stop(event: Event) -> None:
        done.append(event)
        if isinstance(event, Progress) and event.done == 2:
            token.cancel()

    with pytest.raises(Cancelled):
        make(model, stop, token)
    assert [event.done for event in done if isinstance(event, Progress)] == [1, 2]
    assert isinstance(done[-1], Finished) and done[-1].status == "cancelled"


@pytest.mark.parametrize("kind", [Started, Progress])
def test_a_page_of_all_drawings_that_is_cancelled_is_not_written(
    model: PictureNet, pictures: list[Path], tmp_path: Path, kind: type[Event]
) -> None:
    deploy, weights, token = tmp_path / "deploy.prototxt", tmp_path / "w.caffemodel", CancelToken()
    deploy.write_text(STACK + linear(3, "conv2"))
    save_weights(model.net, weights)
    seen: list[Event] = []

    def stop(event: Event) -> None:
        seen.append(event)
        if isinstance(event, kind):
            token.cancel()

    with pytest.raises(Cancelled):
        write_everything(tmp_path / "page.html", model, deploy, weights, pictures[:2], events=stop, cancel=token)
    assert not (tmp_path / "page.html").exists() and isinstance(seen[-1], Finished) and seen[-1].status == "cancelled"


@pytest.mark.parametrize("end", [linear(3, "conv2") + linear(2, "conv2", "ip_b"), data("dim: 1 dim: 5", "vector") + linear(3, "vector")])
def test_a_page_of_all_drawings_leaves_out_what_it_cannot_explain(end: str, pictures: list[Path], tmp_path: Path) -> None:
    deploy, weights = tmp_path / "deploy.prototxt", tmp_path / "w.caffemodel"
    deploy.write_text(STACK + end)
    save_weights(net_of(STACK + end), weights)
    seen: list[Event] = []
    count = write_everything(tmp_path / "page.html", PictureNet(deploy, weights), deploy, weights, pictures[:1], events=seen.append)
    page = (tmp_path / "page.html").read_text()
    (warning,) = [event.message for event in seen if isinstance(event, Warned)]
    assert warning.startswith("00.png is not explained: ") and count == 4
    assert "Activations for 00.png" in page and "Explanation of" not in page


def test_top_images_are_drawn_as_crops(model: PictureNet, pictures: list[Path]) -> None:
    found = find_top_images(model, pictures[:2], "conv2", top=3)
    figure, caption = top_images_figure(model, pictures[:2], found, [0, 3])
    assert len(figure.axes) == 4 and "the pictures by the largest value" in caption and "receptive field (9 × 9 pixels)" in caption
    figure, caption = top_images_figure(model, pictures[:4], find_top_images(model, pictures[:4], "conv2", top=3), [0, 3])
    assert len(figure.axes) == 6 and "the 3 pictures of 4 with the largest value" in caption
    with pytest.raises(DataError, match="has 4 channels, so it has no unit 4"):
        top_images_figure(model, pictures[:2], found, [4])
    with pytest.raises(DataError, match="at least one picture"):
        find_top_images(model, [], "conv2")
    with pytest.raises(NetError, match="no blob 'nope'"):
        find_top_images(model, pictures, "nope")


def activation(model: PictureNet, pixels: np.ndarray, unit: int) -> float:
    prepared = model.prepare_pixels(np.ascontiguousarray(pixels[..., ::-1]))
    return float(blob_values(model.net, prepared.input, ["ip"])["ip"][unit])


def test_a_synthesized_picture_activates_its_unit_more_than_any_real_one(model: PictureNet, pictures: list[Path]) -> None:
    for unit in range(3):
        made = synthesize(model, blob="ip", unit=unit, steps=60, decay=0.0, blur=0.0)
        assert made.shape == (16, 16, 3) and made.dtype == np.uint8
        real = max(activation(model, cv2.imread(str(path))[..., ::-1], unit) for path in pictures)
        assert activation(model, made, unit) > real
    np.testing.assert_array_equal(made, synthesize(model, blob="ip", unit=2, steps=60, decay=0.0, blur=0.0))
    assert synthesize(model, blob="conv2", unit=1, steps=6, octaves=2, seed=3).shape == (16, 16, 3)
    with pytest.raises(DataError, match="at least 1 step"):
        synthesize(model, blob="ip", unit=0, steps=0)
    with pytest.raises(DataError, match="no unit 9"):
        synthesize(model, blob="ip", unit=9, steps=1)


def test_a_deep_dream_has_larger_activations_and_keeps_its_size(model: PictureNet) -> None:
    pixels = np.random.default_rng(0).integers(60, 190, (40, 30, 3), np.uint8)
    made = deep_dream(model, pixels, blob="conv2", steps=5, octaves=2)
    assert made.shape == pixels.shape

    def energy(x: np.ndarray) -> float:
        planes = np.ascontiguousarray(x[..., ::-1].transpose(2, 0, 1), np.float32)
        return float((run_probe(model.net, torch.from_numpy(planes)[None], blobs=["conv2"]).blobs["conv2"] ** 2).sum())

    assert energy(made) > 1.1 * energy(pixels)
    assert deep_dream(model, pixels, blob="ip", steps=1).shape == (16, 16, 3), "a net with an InnerProduct is bound to its size"


def test_style_moves_towards_the_other_pictures_statistics(model: PictureNet) -> None:
    rng = np.random.default_rng(0)
    content = rng.integers(100, 150, (24, 24, 3), np.uint8)
    style = np.zeros((24, 24, 3), np.uint8)
    style[::2] = (255, 40, 0)
    assert rectified_blobs(model.net) == ["conv1", "conv2"]

    def distance(pixels: np.ndarray) -> float:
        grams = []
        for item in (pixels, style):
            planes = np.ascontiguousarray(item[..., ::-1].transpose(2, 0, 1), np.float32)
            flat = run_probe(model.net, torch.from_numpy(planes)[None], blobs=["conv1"]).blobs["conv1"][0].flatten(1)
            grams.append(flat @ flat.T)
        return float((grams[0] - grams[1]).square().sum())

    made = style_transfer(model, content, style, steps=25)
    assert made.shape == content.shape
    assert distance(made) < 0.5 * distance(content)
