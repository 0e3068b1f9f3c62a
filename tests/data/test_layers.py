"""The data layers as parts of a net: reproducible, resumable, reading ahead without ever hanging, and clear about what is wrong."""

from __future__ import annotations

import copy
import gc
import json
import logging
import logging.handlers
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch
from google.protobuf import text_format

from caffetools.data.databases import new_lmdb, record_key
from caffetools.data.datum import array_to_datum
from caffetools.errors import DataError, NetError
from caffetools.layers.registry import layer_class
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter
from tests.conftest import GOLDEN

IO = GOLDEN / "io"


@pytest.fixture
def lmdb(tmp_path: Path) -> Path:
    """Ten records of 3 x 6 x 7; record i has label i and pixels of its own."""
    rng = np.random.default_rng(0)
    with new_lmdb(tmp_path / "lmdb") as writer:
        for i in range(10):
            datum = array_to_datum(rng.integers(0, 256, (3, 6, 7), np.uint8), i)
            writer.put(record_key(i, "p.png"), datum.SerializeToString())
    return tmp_path / "lmdb"


def layer(text: str, phase: int = TRAIN) -> Any:
    param = text_format.Parse(text, LayerParameter())
    made = layer_class(param.type)(param, phase)
    made.configure([])
    return made


def data(source: Path, more: str = "", *, batch: int = 4, transform: str = "crop_size: 4 mirror: true") -> str:
    return (
        f"name: 'd' type: 'Data' top: 'data' top: 'label' transform_param {{ {transform} }} "
        f"data_param {{ source: '{source}' batch_size: {batch} backend: LMDB {more} }}"
    )


def image_data(folder: Path, more: str = "") -> str:
    return (
        f"name: 'i' type: 'ImageData' top: 'data' top: 'label' transform_param {{ crop_size: 5 }} image_data_param "
        f"{{ source: '{folder / 'list_same.txt'}' root_folder: '{folder}/images/' batch_size: 3 {more} }}"
    )


def take(made: Any, passes: int) -> list[np.ndarray[Any, Any]]:
    return [np.concatenate([top.numpy().ravel() for top in made()]) for _ in range(passes)]


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(params=["data", "data without prefetch", "shuffled data", "images", "hdf5"])
def any_layer(request: pytest.FixtureRequest, lmdb: Path, tmp_path: Path) -> Any:
    """A function that makes a random layer of a kind with a given seed."""
    texts = {
        "data": data(lmdb),
        "data without prefetch": data(lmdb, "prefetch: 0"),
        "shuffled data": data(lmdb, "shuffle: true"),
        "images": image_data(IO, "shuffle: true"),
        "hdf5": f"name: 'h' type: 'HDF5Data' top: 'x' hdf5_data_param {{ source: '{tmp_path}/h5.txt' batch_size: 3 shuffle: true }}",
    }
    for number in range(3):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["x"] = np.arange(4 + number) + 10 * number
    (tmp_path / "h5.txt").write_text("".join(f"{tmp_path}/{number}.h5\n" for number in range(3)))
    made: list[Any] = []

    def make(seed: int) -> Any:
        made.append(layer(texts[request.param]))
        made[-1].seed(seed)
        return made[-1]

    yield make
    for item in made:
        item.close()


def test_the_same_seed_gives_the_same_batches_and_another_does_not(any_layer: Any) -> None:
    assert same(take(any_layer(3), 8), take(any_layer(3), 8))
    assert not same(take(any_layer(3), 8), take(any_layer(4), 8))


@pytest.mark.parametrize("before", [0, 1, 5])
def test_reading_continues_from_a_state_that_went_through_json(any_layer: Any, before: int) -> None:
    first = any_layer(3)
    take(first, before)
    state = json.loads(json.dumps(first.get_state()))
    rest = take(first, 6)
    second = any_layer(9)
    take(second, 2)
    second.set_state(state)
    assert second.get_state() == state
    assert same(take(second, 6), rest)


def test_a_copy_of_a_layer_continues_on_its_own(any_layer: Any) -> None:
    first = any_layer(3)
    take(first, 2)
    second = copy.deepcopy(first)
    assert same(take(first, 4), take(second, 4))
    second.close()


def test_the_seed_is_torchs_unless_it_is_set(lmdb: Path) -> None:
    torch.manual_seed(11)
    first, second = layer(data(lmdb)), layer(data(lmdb))
    torch.manual_seed(12)
    third = layer(data(lmdb))
    batches = [take(made, 3) for made in (first, second, third)]
    assert same(batches[0], batches[1]) and not same(batches[0], batches[2])


def test_records_come_in_order_and_wrap_around(lmdb: Path) -> None:
    made = layer(data(lmdb))
    assert [made()[1].tolist() for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]


def starts(text: str) -> set[int]:
    """The first labels that a layer gives with thirty seeds."""
    found = set()
    for seed in range(30):
        made = layer(text)
        made.seed(seed)
        found.add(int(made()[1][0]))
        made.close()
    return found


def test_rand_skip_starts_at_one_of_the_first_pictures_of_a_list_and_at_the_first_record_of_a_database(lmdb: Path) -> None:
    assert starts(image_data(IO, "rand_skip: 3")) == {0, 3, 1}
    # Caffe 1.0's Data layer does not read the field.
    assert starts(data(lmdb, "rand_skip: 3", batch=1)) == {0}


def test_without_a_second_top_there_are_no_labels(lmdb: Path) -> None:
    made = layer(data(lmdb).replace("top: 'label' ", ""))
    assert made.top_shapes == [(4, 3, 4, 4)]
    (batch,) = made()
    assert batch.shape == (4, 3, 4, 4) and batch.dtype == torch.float32


def test_two_nets_read_one_database_and_each_keeps_its_place(lmdb: Path) -> None:
    nets = [Net(text_format.Parse(f"layer {{ {data(lmdb)} }}", NetParameter()), phase) for phase in (TRAIN, TEST)]
    assert nets[0].blob_shapes == {"data": (4, 3, 4, 4), "label": (4,)}
    assert [nets[0]()["label"].tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert nets[1]()["label"].tolist() == [0, 1, 2, 3]


def test_a_net_follows_batches_that_change_their_size() -> None:
    text = image_data(IO).replace("list_same", "list_mixed").replace("batch_size: 3", "batch_size: 1").replace("crop_size: 5", "")
    net = Net(text_format.Parse(f"layer {{ {text} }}", NetParameter()), TEST)
    shapes = [tuple(net()["data"].shape) for _ in range(3)]
    assert shapes == [(1, 3, 20, 31), (1, 3, 33, 22), (1, 3, 25, 25)]


def test_a_shuffled_list_is_read_once_an_epoch_in_new_orders() -> None:
    made = layer(image_data(IO, "shuffle: true").replace("batch_size: 3", "batch_size: 7"))
    made.seed(1)
    epochs = [made()[1].tolist() for _ in range(4)]
    assert all(sorted(epoch) == [0, 0, 1, 2, 3, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_shuffled_records_come_once_an_epoch_in_new_orders_also_by_rank_and_without_reading_those_skipped(lmdb: Path) -> None:
    def labels(made: Any, batches: int) -> list[int]:
        return [int(label) for _ in range(batches) for label in made()[1]]

    text = data(lmdb, "shuffle: true", batch=5, transform="")
    whole = labels(layer(text), 6)
    epochs = [whole[start : start + 10] for start in (0, 10, 20)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in [*epochs, list(range(10))]}) == 4
    skipped = layer(text)
    skipped.skip_batches(3)
    assert labels(skipped, 3) == whole[15:]
    ranks = [layer(text) for _ in range(2)]
    for rank, made in enumerate(ranks):
        made.shard(rank, 2)
    assert [labels(made, 3) for made in ranks] == [whole[rank:30:2] for rank in range(2)]


def test_shuffled_hdf5_rows_come_once_an_epoch(tmp_path: Path) -> None:
    for number in range(2):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["x"] = np.arange(5, dtype=np.int64) + 5 * number
    (tmp_path / "list.txt").write_text(f"{tmp_path}/0.h5\n{tmp_path}/1.h5\n")
    made = layer(f"type: 'HDF5Data' top: 'x' hdf5_data_param {{ source: '{tmp_path}/list.txt' batch_size: 10 shuffle: true }}")
    epochs = [made()[0].tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1]


def test_an_error_in_the_reading_thread_reaches_the_caller_and_is_raised_again(lmdb: Path, tmp_path: Path) -> None:
    with new_lmdb(tmp_path / "broken") as writer:
        for i in range(6):
            writer.put(b"%d" % i, array_to_datum(np.zeros((3, 6, 7), np.uint8), i).SerializeToString())
        writer.put(b"6", b"\xff\xff")
    made = layer(data(tmp_path / "broken", batch=3))
    take(made, 2)
    for _ in range(2):
        with pytest.raises(DataError, match="layer 'd': .*broken: record '6': the record is damaged"):
            made()


def test_the_thread_of_a_collected_layer_ends(lmdb: Path) -> None:
    made = layer(data(lmdb))
    made()
    thread, collected = made._ahead._thread, weakref.ref(made)
    assert thread.is_alive()
    del made
    gc.collect()
    assert collected() is None
    thread.join(10)
    assert not thread.is_alive()


def test_a_program_that_still_reads_ends_at_once_and_quietly(lmdb: Path) -> None:
    program = (
        "from google.protobuf import text_format\n"
        "from caffetools.proto.schema import NetParameter\n"
        "from caffetools.net.net import Net\n"
        f'net = Net(text_format.Parse("""layer {{ {data(lmdb)} }}""", NetParameter()))\n'
        "print(net()['label'].tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[0.0, 1.0, 2.0, 3.0]\n" and done.stderr == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("batch_size: 4", ""), "batch_size is missing or 0"),
        (("lmdb'", "none'"), "layer 'd': .*none: no such database"),
        (("crop_size: 4", "crop_size: 9"), "crop_size 9 is larger than the picture"),
        (("crop_size: 4", "mean_file: 'none'"), "transform_param: mean_file: none: cannot read"),
    ],
)
def test_settings_that_do_not_fit_are_found_before_anything_runs(lmdb: Path, change: tuple[str, str], reason: str) -> None:
    with pytest.raises((DataError, NetError), match=reason):
        layer(data(lmdb).replace(*change))


def test_the_missing_part_of_a_truncated_jpeg_is_gray_as_in_caffe_and_logged_once(tmp_path: Path) -> None:
    whole = bytes(cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))[1])
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "list").write_text(f"{tmp_path}/a.jpg 3\n")
    (tmp_path / "windows").write_text(f"# 0\n{tmp_path}/a.jpg\n3\n40\n50\n2\n1 0.9 2 3 30 38\n0 0 2 3 30 38\n")
    pixels = cv2.imread(str(tmp_path / "a.jpg"))
    assert pixels is not None and (pixels[-1] == 128).all()
    logger, handler = logging.getLogger("caffetools.data.images"), logging.handlers.BufferingHandler(100)
    logger.addHandler(handler)
    try:
        images = layer(f"name: 'i' type: 'ImageData' top: 'd' top: 'l' image_data_param {{ source: '{tmp_path}/list' batch_size: 2 }}")
        for _ in range(2):
            np.testing.assert_array_equal(images.forward()[0][1].numpy(), pixels.transpose(2, 0, 1))
        assert [record.getMessage().partition(": its")[0] for record in handler.buffer] == [f"{tmp_path}/a.jpg: the picture is truncated"]
        for cached in ("true", "false"):
            windows = layer(
                "name: 'w' type: 'WindowData' top: 'd' top: 'l' transform_param { crop_size: 9 } "
                f"window_data_param {{ source: '{tmp_path}/windows' batch_size: 4 cache_images: {cached} }}"
            )
            assert windows.forward()[0].shape == (4, 3, 9, 9)
        assert len(handler.buffer) == 3
    finally:
        logger.removeHandler(handler)
