from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from caffetools.cli.zoo import app
from caffetools.errors import ZooError
from caffetools.zoo.cards import Weights, get_card, list_models
from caffetools.zoo.fetch import MIRROR
from caffetools.zoo.names import short_name
from tests.zoo.server import unused_address


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(MIRROR, unused_address())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def output(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_has_a_line_for_every_model() -> None:
    lines = output("list").splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == ["name", "input", "size", "MACs", "top-1/5 %", "ms", "licence", "fetched"]
    assert re.split(r"\s{2,}", lines[1].strip()) == [
        "alexnet",
        "3 x 227 x 227",
        "244 MB",
        "724.4 M",
        "57.1/80.2",
        "-",
        "unrestricted",
        "no",
    ]
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[1:] if not line.startswith("caffetools: note")] == sorted(map(short_name, list_models()))


def test_list_as_json_holds_the_cards(tmp_path: Path) -> None:
    cards = json.loads(output("list", "--json"))
    assert sorted(card["name"] for card in cards) == list_models()
    assert cards[0]["weights"]["sha1"] == "9116a64c0fbe4459d18f4bb6b56d647b63920377"
    assert cards[0]["weights_path"] == str(tmp_path / "cache/caffetools/zoo/bvlc_alexnet.caffemodel") and cards[0]["fetched"] is False


def test_show_prints_what_a_user_needs() -> None:
    shown = output("show", "squeezenet_v1.1")
    for part in (
        "BSD-2-Clause",
        "3 x 227 x 227, BGR",
        "mean 104,117,123",
        "9d2fc33abf653a6e8b2ee6cc63ede0e72ec67f44",
        "1000 classes",
        "80.3",
    ):
        assert part in shown
    assert "no published weights" in output("show", "lenet")
    assert json.loads(output("show", "lenet", "--json"))["weights"] is None


@pytest.mark.parametrize("command", ["show", "fetch"])
def test_an_unknown_model_is_an_error_with_a_suggestion(command: str) -> None:
    error = run(command, "squeezenett").exception
    assert isinstance(error, ZooError) and "did you mean 'squeezenet'?" in str(error)


def test_fetch_offline_names_the_place_for_the_file(tmp_path: Path) -> None:
    error = run("fetch", "squeezenet_v1.1", "--to", str(tmp_path)).exception
    assert isinstance(error, ZooError) and f"put it at {tmp_path}/squeezenet_v1.1.caffemodel" in str(error)


@pytest.mark.parametrize("as_json", [False, True])
def test_fetch_refuses_a_file_of_the_mirror_that_is_not_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    (tmp_path / "bvlc_googlenet.caffemodel").write_bytes(b"other")
    monkeypatch.setenv(MIRROR, str(tmp_path))
    error = run("fetch", "bvlc_googlenet", *(["--json"] if as_json else [])).exception
    weights = get_card("bvlc_googlenet").weights
    assert weights is not None and isinstance(error, ZooError) and f"expected {weights.sha1}" in str(error)


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """bvlc_googlenet's card, as if its weights were a few bytes; the mirror has them."""
    content = b"a few bytes"
    card = get_card("bvlc_googlenet")
    weights = Weights("small.caffemodel", len(content) / 1e6, ("http://localhost/",), sha1=hashlib.sha1(content).hexdigest())
    monkeypatch.setattr("caffetools.zoo.cards.get_card", lambda name: dataclasses.replace(card, weights=weights))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "small.caffemodel").write_bytes(content)
    monkeypatch.setenv(MIRROR, str(tmp_path / "mirror"))
    return content


def test_fetch_reports_where_the_files_are_and_how_they_were_checked(small_model: bytes, tmp_path: Path) -> None:
    first = output("fetch", "bvlc_googlenet", "--to", str(tmp_path / "to"))
    assert f"{tmp_path}/to/small.caffemodel fetched from file://{tmp_path}/mirror/small.caffemodel" in first
    for part in ("SHA-1 as published", hashlib.sha256(small_model).hexdigest(), f"{tmp_path}/to/imagenet_labels.txt", "104,117,123 (BGR)"):
        assert part in first
    assert f"{tmp_path}/to/small.caffemodel is there already; nothing was fetched" in output(
        "fetch", "bvlc_googlenet", "--to", str(tmp_path / "to")
    )


def test_fetch_as_json_gives_the_paths(small_model: bytes, tmp_path: Path) -> None:
    answer = json.loads(output("fetch", "bvlc_googlenet", "--json"))
    assert Path(answer["path"]).read_bytes() == small_model
    assert Path(answer["labels"]).is_file() and answer["source"].startswith("file://") and answer["sha256"]
    assert json.loads(output("fetch", "bvlc_googlenet", "--json"))["source"] is None
    assert json.loads(output("show", "bvlc_googlenet", "--json"))["fetched"] is True


def test_a_file_of_another_size_in_the_cache_is_called_damaged_rather_than_fetched(tmp_path: Path) -> None:
    cached = tmp_path / "cache/caffetools/zoo"
    cached.mkdir(parents=True)
    (cached / "bvlc_googlenet.caffemodel").touch()
    states = {line.split()[0]: line.split()[-1] for line in output("list").splitlines()}
    assert (states["googlenet"], states["alexnet"]) == ("damaged", "no")
    assert "is damaged: remove it and fetch again" in output("show", "googlenet")
    fetched = {card["name"]: card["fetched"] for card in json.loads(output("list", "--json"))}
    assert not fetched["bvlc_googlenet"]
    name = get_card("mtcnn_pnet").weights
    assert name is not None
    (cached / name.file).write_bytes(bytes(28_163))
    assert json.loads(output("show", "mtcnn_pnet", "--json"))["fetched"] is True
