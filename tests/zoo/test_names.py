"""One name for one model everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from caffetools.errors import ZooError
from caffetools.zoo.cards import get_card, list_models
from caffetools.zoo.names import ALIASES, MODELS, find_model, get_name, is_model, known_names
from caffetools.zoo.networks import MODELS as BUILDERS
from caffetools.zoo.networks import prototxt_path


def test_every_card_and_builder_has_its_name_in_the_table() -> None:
    assert set(list_models()) == set(MODELS) == set(BUILDERS)
    assert set(ALIASES.values()) <= set(MODELS)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("alexnet", "bvlc_alexnet"),
        ("AlexNet", "bvlc_alexnet"),
        ("bvlc_alexnet", "bvlc_alexnet"),
        ("caffenet", "bvlc_reference_caffenet"),
        ("googlenet", "bvlc_googlenet"),
        ("squeezenet", "squeezenet_v1.1"),
        ("ResNet-50", "resnet50"),
        ("VGG_16", "vgg16"),
    ],
)
def test_short_names_and_spellings_lead_to_the_model(name: str, model: str) -> None:
    assert get_card(name).name == model
    assert prototxt_path(name) == prototxt_path(model)


def test_a_file_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_model("alexnet")
    (tmp_path / "alexnet").write_text("")
    assert not is_model("alexnet")
    # As `zoo copy squeezenet squeezenet` leaves it: a folder is never a net.
    (tmp_path / "squeezenet").mkdir()
    assert is_model("squeezenet")
    assert find_model("deploy.prototxt") is None


@pytest.mark.parametrize("name", ["x.prototxt", "./lenett", "nets/lenett", "lenet.caffemodel"])
def test_a_path_that_does_not_exist_is_named_as_that(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError, match=f"^{re.escape(name)}: no such file; check the path, or give a network of the zoo"):
        get_name(name)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("")
    with pytest.raises(ZooError, match="is a file or folder, and the name of a network of the zoo is expected"):
        get_name(name)


def test_completion_offers_short_and_full_names() -> None:
    assert {"alexnet", "bvlc_alexnet", "googlenet", "resnet50"} <= set(known_names())
