"""AnnotatedData: SSD's databases of pictures with boxes, its label table, and draws that depend on the seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffetools.data.databases import new_lmdb
from caffetools.data.images import encode_image
from caffetools.data.layers.batch_source import tolerating_corrupt_records
from caffetools.errors import CaffeToolsError, DataError
from caffetools.layers.registry import layer_class
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter, message_class
from caffetools.proto.text import parse

AnnotatedDatum = message_class("AnnotatedDatum")
# Boxes by picture: (group, instance, xmin, ymin, xmax, ymax, difficult).
BOXES = [
    [(3, 0, 0.1, 0.2, 0.4, 0.6, False), (3, 1, 0.5, 0.5, 1.0, 0.9, True), (7, 0, 0.0, 0.0, 0.3, 0.3, False)],
    [],
    [(1, 0, 0.25, 0.25, 0.75, 0.75, False)],
]


def picture(number: int, size: tuple[int, int] = (30, 40)) -> Any:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def annotated(number: int, *, encoded: bool = True, kind: int | None = 0) -> bytes:
    datum = AnnotatedDatum() if kind is None else AnnotatedDatum(type=kind)
    image = picture(number)
    datum.datum.channels, datum.datum.height, datum.datum.width, datum.datum.label = 3, 30, 40, number + 40
    datum.datum.data = encode_image(image, ".png") if encoded else image.transpose(2, 0, 1).tobytes()
    datum.datum.encoded = encoded
    groups: dict[int, Any] = {}
    for group, instance, xmin, ymin, xmax, ymax, difficult in BOXES[number % 3]:
        if group not in groups:
            groups[group] = datum.annotation_group.add(group_label=group)
        box = groups[group].annotation.add(instance_id=instance).bbox
        box.xmin, box.ymin, box.xmax, box.ymax, box.difficult = xmin, ymin, xmax, ymax, difficult
    return bytes(datum.SerializeToString())


@pytest.fixture
def source(tmp_path: Path) -> str:
    with new_lmdb(tmp_path / "lmdb") as writer:
        for number in range(6):
            writer.put(b"%08d_x" % number, annotated(number, encoded=number % 2 == 0))
    return str(tmp_path / "lmdb")


def layer(source: str, batch: int, text: str = "", *, phase: int = TEST, tops: str = 'top: "data" top: "label"') -> Any:
    param = parse(
        f'name: "d" type: "AnnotatedData" {tops} data_param {{ source: "{source}" backend: LMDB batch_size: {batch} }} {text}',
        LayerParameter,
    )
    made = layer_class("AnnotatedData")(param, phase)
    made.seed(5)
    made.configure([])
    return made


def test_labels_are_one_row_a_box_and_pictures_are_those_of_the_records(source: str) -> None:
    made = layer(source, 3)
    assert made.top_shapes == [(3, 3, 30, 40), (1, 1, 3, 8)]
    data, label = made()
    expected = [(item, *box[:2], *box[2:6], box[6]) for item in range(3) for box in BOXES[item]]
    assert label.shape == (1, 1, 4, 8)
    np.testing.assert_allclose(label[0, 0], expected, rtol=1e-6)
    for item in range(3):
        np.testing.assert_array_equal(data[item], picture(item).transpose(2, 0, 1))
    data, label = made()
    np.testing.assert_array_equal(data[0], picture(3).transpose(2, 0, 1))
    assert label.shape == (1, 1, 4, 8) and label[0, 0, -1, 1] == 1


def test_a_batch_without_boxes_has_one_row_of_minus_one(source: str) -> None:
    made = layer(source, 1)
    made()
    assert made()[1].tolist() == [[[[-1.0] * 8]]]


def test_mean_scale_resize_and_crop_are_applied_in_ssds_order(source: str) -> None:
    import cv2

    made = layer(
        source,
        1,
        "transform_param { mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.5 resize_param { height: 60 width: 60 } crop_h: 40 crop_w: 20 }",
    )
    data, label = made()
    resized = cv2.resize(picture(0), (60, 60), interpolation=cv2.INTER_LINEAR)[10:50, 20:40]
    np.testing.assert_allclose(data[0], (resized.transpose(2, 0, 1) - np.float32([104, 117, 123]).reshape(3, 1, 1)) * 0.5)
    # The crop is from 1/3 to 2/3 across, and from 1/6 to 5/6 down.
    np.testing.assert_allclose(label[0, 0, 0], [0, 3, 0, 0, (0.2 - 1 / 6) * 1.5, (0.4 - 1 / 3) * 3, (0.6 - 1 / 6) * 1.5, 0], atol=1e-6)
    assert label.shape[2] == 2


@pytest.mark.parametrize(
    ("fields", "times"),
    [
        ("annotated_data_param { batch_sampler { max_sample: 1 max_trials: 1 } }", 1),
        ("transform_param { distort_param {} }", 1),
        ("transform_param { distort_param {} expand_param { prob: 0 max_expand_ratio: 2 } }", 1),
        ("transform_param { distort_param {} } annotated_data_param { batch_sampler { max_sample: 1 max_trials: 1 } }", 2),
        ("transform_param { expand_param { prob: 0 max_expand_ratio: 2 } }", 0),
    ],
)
def test_as_in_ssd_a_stored_file_is_compressed_after_each_step_that_is_applied(source: str, fields: str, times: int) -> None:
    """The steps themselves change nothing here: nothing is distorted, and the region is the whole picture."""
    import cv2

    data, _ = layer(source, 2, fields, phase=TRAIN)()
    expected = picture(0)
    for _ in range(times):
        expected = np.asarray(cv2.imdecode(cv2.imencode(".jpg", expected)[1], cv2.IMREAD_UNCHANGED))
    np.testing.assert_array_equal(data[0], expected.transpose(2, 0, 1))
    # The second record has its pixels.
    np.testing.assert_array_equal(data[1], picture(1).transpose(2, 0, 1))


def test_records_without_a_type_give_the_labels_of_their_datum(tmp_path: Path) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        for number in range(2):
            writer.put(b"%d" % number, annotated(number, kind=None))
    made = layer(str(tmp_path / "db"), 2)
    assert made.top_shapes[1] == (2,) and made()[1].tolist() == [40, 41]
    made = layer(str(tmp_path / "db"), 2, "annotated_data_param { anno_type: BBOX }")
    assert made()[1].shape == (1, 1, 3, 8)
    assert len(layer(str(tmp_path / "db"), 2, tops='top: "data"')()) == 1


SSD = """
transform_param { mirror: true mean_value: 104 resize_param { height: 24 width: 24 interp_mode: LINEAR interp_mode: AREA }
  emit_constraint { emit_type: CENTER } expand_param { prob: 0.5 max_expand_ratio: 3 }
  distort_param { brightness_prob: 0.5 brightness_delta: 32 hue_prob: 0.5 hue_delta: 18 } }
annotated_data_param { batch_sampler { max_sample: 1 max_trials: 1 }
  batch_sampler { sampler { min_scale: 0.3 min_aspect_ratio: 0.5 max_aspect_ratio: 2 } sample_constraint { min_jaccard_overlap: 0.1 } max_sample: 1 max_trials: 50 } }
"""


def batches(made: Any, count: int) -> list[Any]:
    return [tuple(top.numpy().copy() for top in made()) for _ in range(count)]


def same(first: list[Any], second: list[Any]) -> bool:
    return all(np.array_equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))


def test_random_draws_depend_on_the_seed_alone_and_a_state_continues_them(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer(source, 4, SSD, phase=TRAIN)
    first = batches(made, 5)
    assert all(label[..., 3:7].max() <= 1 for _, label in first)
    for threads in (1, 3):
        monkeypatch.setattr("caffetools.util.threads.cpu_count", lambda threads=threads: threads)
        assert same(batches(layer(source, 4, SSD, phase=TRAIN), 5), first)
    other = layer(source, 4, SSD, phase=TRAIN)
    other.seed(6)
    other.configure([])
    assert not same(batches(other, 5), first)
    made = layer(source, 4, SSD, phase=TRAIN)
    batches(made, 2)
    state = made.get_state()
    resumed = layer(source, 4, SSD, phase=TRAIN)
    resumed.set_state(state)
    assert same(batches(resumed, 3), first[2:])


DAMAGED = {0: b"\xff\xff", 3: annotated(3)[:60], 4: AnnotatedDatum(type=0).SerializeToString()}


@pytest.mark.parametrize("phase", [TEST, TRAIN])
def test_damaged_records_are_left_out_up_to_a_number_and_reported_once(tmp_path: Path, phase: int) -> None:
    with new_lmdb(tmp_path / "lmdb") as writer:
        for number in range(9):
            writer.put(b"%08d_x" % number, DAMAGED.get(number, annotated(number)))
    seen: list[str] = []
    with tolerating_corrupt_records(3, lambda error: seen.append(str(error))):
        made = layer(str(tmp_path / "lmdb"), 2, phase=phase)
    found = [made()[0].numpy() for _ in range(6)]
    made.close()
    expected = [picture(number).transpose(2, 0, 1) for number in (1, 2, 5, 6, 7, 8)] * 2
    assert np.array_equal(np.concatenate(found), np.array(expected, np.float32))
    assert [f"record '{number:08d}_x'" in text for number, text in zip(DAMAGED, seen, strict=True)] == [True] * 3
    with tolerating_corrupt_records(2), pytest.raises(DataError, match="layer 'd'.*record '00000004_x'"):
        made = layer(str(tmp_path / "lmdb"), 2, phase=phase)
        for _ in range(3):
            made()


def test_a_database_of_damaged_records_alone_is_an_error(tmp_path: Path) -> None:
    with new_lmdb(tmp_path / "lmdb") as writer:
        writer.put(b"0", b"\xff")
    with tolerating_corrupt_records(100), pytest.raises(DataError, match="layer 'd'.*no record can be read"):
        layer(str(tmp_path / "lmdb"), 2)


def test_a_net_with_the_layer_gives_its_label_to_a_loss(source: str) -> None:
    text = f'layer {{ name: "d" type: "AnnotatedData" top: "data" top: "label" data_param {{ source: "{source}" batch_size: 2 }} }}'
    outputs = Net(parse(text, NetParameter), phase=TRAIN).forward()
    assert outputs["data"].shape == (2, 3, 30, 40) and outputs["label"].shape == (1, 1, 3, 8)


@pytest.mark.parametrize(
    ("text", "batch", "reason"),
    [
        ("transform_param { resize_param { height: 9 width: 9 resize_mode: FIT_SMALL_SIZE } }", 2, "batch_size must be 1"),
        ("transform_param { crop_size: 50 }", 1, r"the crop \(50 x 50\) is larger than the picture"),
        ("transform_param { crop_h: 5 }", 1, "crop_h and crop_w must be given together"),
        ("annotated_data_param { yolo_data_type: 1 }", 1, "has yolo_data_type, which changes"),
        ("transform_param { expand_param { max_expand_ratio: 2 } distort_param { hue_delta: -1 } }", 1, "hue_delta must be 0 or more"),
        ("transform_param { pad: 3 }", 1, "pad"),
    ],
)
def test_settings_that_cannot_be_are_one_error_that_names_the_layer(source: str, text: str, batch: int, reason: str) -> None:
    with pytest.raises(CaffeToolsError, match=reason) as caught:
        layer(source, batch, text)
    assert "layer 'd'" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xff\xff", "not an AnnotatedDatum"),
        (b"", "a database of Datum is read by a Data layer"),
        (annotated(0)[:-3], "not an AnnotatedDatum"),
    ],
)
def test_a_record_that_is_not_one_of_ssd_is_named(tmp_path: Path, value: bytes, reason: str) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        writer.put(b"00_a", annotated(0))
        writer.put(b"01_b", value)
    made = layer(str(tmp_path / "db"), 1)
    made()
    with pytest.raises(CaffeToolsError, match=f"record '01_b'.*{reason}"):
        made()
