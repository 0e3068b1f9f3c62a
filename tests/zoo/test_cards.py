from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from caffetools.errors import ZooError
from caffetools.proto.text import read_net, read_solver
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.zoo.cards import get_card, list_models, read_card, read_labels
from caffetools.zoo.networks import MODELS
from caffetools.zoo.resources import zoo_file

BVLC = ["bvlc_alexnet", "bvlc_googlenet", "bvlc_reference_caffenet", "squeezenet_v1.0", "squeezenet_v1.1"]


def test_every_network_has_a_card_and_every_card_a_network() -> None:
    assert list_models() == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_card_names_networks_that_are_shipped_and_take_its_input(name: str) -> None:
    card = get_card(name)
    deploy = upgrade_net(read_net(card.network("deploy")))
    assert read_net(card.network("train_val")).layer
    assert read_solver(card.network("solver")).base_lr > 0
    (shape,) = [tuple(layer.input_param.shape[0].dim) for layer in deploy.layer if layer.type == "Input"]
    assert shape[1:] == card.input.shape
    assert (card.labels is None) or len(card.read_labels()) == 1000


@pytest.mark.parametrize("name", MODELS)
def test_a_card_without_weights_names_what_to_do_and_one_with_weights_where_its_checksum_is_from(name: str) -> None:
    card = get_card(name)
    if card.weights is None:
        assert card.no_weights
    else:
        assert card.weights.file == f"{name}.caffemodel"
        assert bool(card.weights.checksums) == bool(card.weights.checksum_source)


@pytest.mark.parametrize("name", BVLC)
def test_a_published_model_has_an_address_a_checksum_with_its_source_and_preprocessing(name: str) -> None:
    card = get_card(name)
    assert card.weights is not None
    assert card.weights.urls and card.weights.checksums and card.weights.checksum_source
    assert card.input.channel_order == "BGR" and card.input.mean == (104, 117, 123) and card.input.raw_scale == 255
    assert card.accuracy is not None and card.accuracy.top5 is not None and card.accuracy.source
    assert len(card.read_labels()) == 1000


def test_lenet_states_that_there_are_no_published_weights() -> None:
    card = get_card("lenet")
    assert card.weights is None and "no published weights" in card.no_weights


@pytest.mark.parametrize(("asked", "meant"), [("alexnett", "alexnet"), ("squeezenet_1.2", "squeezenet"), ("LeNett", "lenet")])
def test_an_unknown_model_is_an_error_that_names_the_closest(asked: str, meant: str) -> None:
    with pytest.raises(ZooError, match=f"no model '{asked}'; did you mean '{meant}"):
        get_card(asked)


def test_a_model_unlike_any_other_is_an_error_that_lists_the_zoo() -> None:
    with pytest.raises(ZooError, match=r"it has lenet, bvlc_alexnet, .*vgg19"):
        get_card("zzz")


def card_data() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(zoo_file("bvlc_alexnet.yaml").read_text())
    return data


def write(folder: Path, data: Any) -> Path:
    path = folder / "bvlc_alexnet.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def changed(keys: str, value: Any) -> dict[str, Any]:
    data = card_data()
    *parents, last = keys.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    place[last] = value
    return data


def test_a_card_reads_as_it_is_written(tmp_path: Path) -> None:
    card = read_card(write(tmp_path, card_data()))
    assert card == get_card("bvlc_alexnet")
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("acuracy", {}, "unknown key 'acuracy'; did you mean 'accuracy'?"),
        ("weights.sha", "0", "unknown key 'weights.sha'; did you mean 'weights.sha1'?"),
        ("title", 3, "'title' must be text, not 3"),
        ("input.shape", "3x227", "'input.shape' must be a list, not '3x227'"),
        ("input.shape", [3, 227.5, 227], "'input.shape[1]' must be a whole number, not 227.5"),
        ("input.shape", [3, 0, 227], "'input.shape' must be [C, H, W], all positive, not [3, 0, 227]"),
        ("input.shape", [], "'input.shape' must be [C, H, W], all positive, not []"),
        ("input.mean", [104], "'input.mean' needs one value a channel, not 1"),
        ("input.raw_scale", True, "'input.raw_scale' must be a number, not True"),
        ("input.channel_order", "GBR", "'input.channel_order' must be BGR, RGB or grey"),
        ("input", None, "input. must be a mapping of keys to values, not empty"),
        ("name", "alexnet", "'name' is 'alexnet', but the file is called bvlc_alexnet.yaml"),
        ("weights.sha1", "123", "'weights.sha1' must be 40 lowercase hexadecimal digits"),
        ("weights.urls", ["ftp://example.org/x"], "'weights.urls' has ftp://example.org/x, which is not an http, https or file address"),
        ("weights.urls", ["https://[x/y"], "'weights.urls' has https://[x/y, which is not an http, https or file address"),
        ("weights.urls", [], "'weights.urls' must list at least one address"),
        ("weights.file", "../x", "'weights.file' must be a plain file name"),
        ("prototxt.deploy", "../deploy.prototxt", "'prototxt.deploy' must be a path inside prototxt/"),
        ("labels", "/labels.txt", "'labels' must be a file name of zoo/"),
        ("weights", None, "'no_weights' must state what to do where 'weights' is empty"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_file_and_key(tmp_path: Path, keys: str, value: Any, message: str) -> None:
    path = write(tmp_path, changed(keys, value))
    with pytest.raises(ZooError) as error:
        read_card(path)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize("keys", ["title", "input.mean", "weights.urls", "accuracy.source", "prototxt.deploy"])
def test_a_missing_key_is_an_error_that_names_file_and_key(tmp_path: Path, keys: str) -> None:
    data = card_data()
    *parents, last = keys.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    del place[last]
    path = write(tmp_path, data)
    with pytest.raises(ZooError) as error:
        read_card(path)
    assert str(error.value) == f"{path}: the key '{keys}' is missing"


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not a YAML card"), ("", "must be a mapping"), ("- 1", "must be a mapping"), ("a: !!python/tuple []", "not a YAML")],
)
def test_a_file_that_is_not_a_card_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ZooError, match=message) as error:
        read_card(path)
    assert str(path) in str(error.value)


def test_the_imagenet_labels_are_in_the_order_of_the_outputs() -> None:
    labels = read_labels("imagenet_labels.txt")
    assert len(labels) == len(set(labels)) == 1000
    # Caffe numbers the classes by WordNet id.
    assert labels == sorted(labels) and all(label[0] == "n" and label[1:9].isdigit() and label[9] == " " for label in labels)
    assert labels[0] == "n01440764 tench, Tinca tinca"
    assert labels[281] == "n02123045 tabby, tabby cat"
    assert labels[999] == "n15075141 toilet tissue, toilet paper, bathroom tissue"


def test_the_imagenet_labels_are_those_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision.models._meta")
    # torchvision tells the two cranes and the two maillots apart by names of its own.
    own = {134: "crane bird", 639: "maillot tank suit"}
    for index, (label, name) in enumerate(zip(read_labels("imagenet_labels.txt"), torchvision._IMAGENET_CATEGORIES, strict=True)):
        assert name == own.get(index, name)
        assert index in own or name in label[10:].split(", ")
