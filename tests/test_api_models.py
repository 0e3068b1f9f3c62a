"""The public API takes names of the zoo's models in place of files, as the commands do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import caffetools as ct
from caffetools.net.weights import save_weights
from tests.cli.published import publishing
from tests.project.shapes import draw_shapes


def test_a_name_stands_for_the_prototxt_that_a_call_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = ct.load_net("lenet")
    assert net.blob_shapes["prob"] == (64, 10)
    assert ct.inspect("lenet").parameters == 431080
    assert ct.deploy("lenet", input_shape=(1, 1, 28, 28)).layer[-1].top[0] == "prob"
    result = ct.retarget("AlexNet", classes=7)
    assert result.net().blob_shapes["prob"][1] == 7
    Path("lenet").write_text("layer {")
    with pytest.raises(ct.CaffeToolsError, match="lenet:1"):
        ct.load_net("lenet")


def test_published_weights_are_fetched_once_and_the_card_gives_the_preprocessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)
    seen: list[ct.events.Event] = []
    with publishing(tmp_path, monkeypatch) as server:
        (named,) = ct.classify(image, "squeezenet", top=1, events=seen.append)
        assert len(server.seen) == 1 and any(isinstance(event, ct.events.ArtifactWritten) for event in seen)
        net = ct.load_net("squeezenet", "squeezenet")
        assert len(server.seen) == 1
    weights = tmp_path / "published.caffemodel"
    (plain,) = ct.classify(image, ct.zoo_prototxt("squeezenet_v1.1"), weights, mean="104,117,123", top=1)
    assert named.guesses[0].index == plain.guesses[0].index
    assert named.guesses[0].probability == pytest.approx(plain.guesses[0].probability, rel=1e-5)
    assert named.guesses[0].label != str(named.guesses[0].index)
    same = ct.load_net(ct.zoo_prototxt("squeezenet_v1.1"), weights)
    assert all((a == b).all() for a, b in zip(net.parameters(), same.parameters(), strict=True))


def test_a_solver_is_built_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "solver.prototxt"
    net = 'layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 2 dim: 3 } } }'
    path.write_text(f"net_param {{ {net} }} base_lr: 0.1 lr_policy: 'fixed' max_iter: 3")
    solver = ct.Solver(path)
    assert (solver.path, solver.max_iter) == (path, 3)
    path.write_text(f"net_param {{ {net} }} base_lr: 0.1 lr_policy: 'stepp'")
    with pytest.raises(ct.CaffeToolsError, match=r"solver\.prototxt"):
        ct.Solver(str(path))


def test_a_folder_stands_for_its_pictures(tmp_path: Path) -> None:
    pictures = draw_shapes(tmp_path / "pictures", each=1, size=32)
    save_weights(ct.load_net("cifar10_quick"), tmp_path / "w.caffemodel")
    results = ct.classify([pictures, pictures / "absent.png"], "cifar10_quick", tmp_path / "w.caffemodel", top=1)
    assert [Path(result.picture).name for result in results] == ["00.png", "00.png", "00.png", "absent.png"]
    assert results[-1].error and not any(result.error for result in results[:-1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ct.CaffeToolsError, match="empty: the folder holds no pictures"):
        ct.classify(tmp_path / "empty", "cifar10_quick", tmp_path / "w.caffemodel")
