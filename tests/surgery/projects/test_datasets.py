"""A net's data layers made to fit a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffetools.data.datasets.card import DatasetCard
from caffetools.errors import CaffeToolsError, DataError, NetError
from caffetools.project.data_config import DataOptions, check_crops, classes_of, convert_imagedata_to_data, fit_batches, mean_of
from caffetools.zoo.networks import build
from tests.surgery.nets import TINY, net_of


def card_of(train: int, val: int, size: int = 10) -> DatasetCard:
    return DatasetCard(Path("data"), ["a", "b"], [train, 0], [val, 0], size, size, 3, [1.5, 2, 3], 1, 0.5)


@pytest.mark.parametrize(
    ("own", "pictures", "expected"),
    [
        ((4, 2), (100, 100), (4, 2)),
        ((4, 2), (3, 1), (3, 1)),
        ((4, 50), (9, 90), (4, 45)),
        ((4, 50), (9, 97), (4, 50)),
        ((4, 2), (0, 0), (4, 2)),
    ],
)
def test_batches_fit_the_pictures_and_test_each_once_where_they_can(
    own: tuple[int, int], pictures: tuple[int, int], expected: tuple[int, int]
) -> None:
    net = net_of(TINY)
    for layer, size in zip(net.layer, own, strict=False):
        layer.data_param.batch_size = size
    changes = fit_batches(net, card_of(*pictures))
    assert tuple(layer.data_param.batch_size for layer in net.layer[:2]) == expected
    assert len(changes) == sum(before != after for before, after in zip(own, expected, strict=True))


def test_lists_of_pictures_become_databases() -> None:
    net = net_of(
        TINY.replace('type: "Data"', 'type: "ImageData"')
        .replace("data_param {", "image_data_param { root_folder: 'x'")
        .replace("backend: LMDB", "")
    )
    changes = convert_imagedata_to_data(net)
    assert [str(change) for change in changes] == ["data: type ImageData → Data"]
    assert [(layer.type, layer.data_param.batch_size) for layer in net.layer[:2]] == [("Data", 4), ("Data", 2)]
    assert not net.layer[0].HasField("image_data_param") and net.layer[0].transform_param.crop_size == 8
    with pytest.raises(NetError, match="layer 'data': reads HDF5Data, which a dataset of pictures and labels cannot replace"):
        convert_imagedata_to_data(build("mtcnn_pnet"))


def test_pictures_must_be_as_large_as_the_crop() -> None:
    check_crops(net_of(TINY), card_of(1, 1, 8))
    check_crops(net_of(TINY), card_of(1, 1, 0))  # of their own sizes
    with pytest.raises(DataError, match="crops 8 x 8, but the pictures of data are 7 x 7; build the dataset with --size 8 or more"):
        check_crops(net_of(TINY), card_of(1, 1, 7))


def test_options_that_are_given_come_before_the_datasets() -> None:
    card = card_of(5, 5)
    made = DataOptions(train_source="mine", mean="7").with_dataset(card)
    assert (made.train_source, made.val_source, made.mean) == ("mine", str(Path("data/val_lmdb")), "7")
    assert mean_of(card) == str(Path("data/mean.binaryproto")) and mean_of(card_of(5, 5, 0)) == "1.5,2,3"
    assert classes_of(card, None) == 2 == classes_of(card, 2)
    with pytest.raises(CaffeToolsError, match="3 classes are asked for, but the dataset data has 2"):
        classes_of(card, 3)
