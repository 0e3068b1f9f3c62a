"""Published networks, each led the whole way: parsed, retargeted, deployed; what cannot be done has one of the reasons listed here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from caffetools.errors import CaffeToolsError, PrototxtError
from caffetools.graph.summary import summarize
from caffetools.project.retargeting import prepare_retarget, write_retarget
from caffetools.project.trainable import make_trainable, write_trainable
from caffetools.proto.schema import NetParameter, SolverParameter
from caffetools.proto.text import format_text, parse, read_net
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.surgery.deploy import deploy_from
from caffetools.surgery.losses import is_loss_or_metric, losses_of

pytestmark = pytest.mark.wild

# Tried in turn where a net does not say how large its pictures are.
SHAPES = (None, (1, 3, 224, 224), (1, 1, 28, 28))


def published(wild: Path) -> Iterator[tuple[Path, Any]]:
    """Every net with layers, in today's form; label maps and solvers are no nets."""
    for path in sorted([*wild.joinpath("prototxt").rglob("*.prototxt"), *wild.joinpath("prototxt").rglob("*.pt")]):
        try:
            net = upgrade_net(read_net(path))
        except PrototxtError:
            continue
        if net.layer:
            yield path, net


def _retarget(path: Path, folder: Path, shape: Any) -> Any:
    return prepare_retarget(path, 120, folder, input_shape=shape, partial=True)


def _deploy(net: NetParameter, shape: Any) -> Any:
    return deploy_from(net, input_shape=shape)


def attempt(operation: Callable[[Any], Any], reasons: dict[str, str]) -> tuple[str, Any]:
    """What came of it: "done", or the name of the reason, one of ``reasons``; an error for which there is none is an error here."""
    for shape in SHAPES:
        try:
            return "done", operation(shape)
        except CaffeToolsError as error:
            reported = str(error)
            if "give --input-shape" in reported and "=SHAPE" not in reported and shape is None:
                continue
            if "channels" in reported and shape == SHAPES[1]:
                continue
            found = [name for name, text in reasons.items() if text in reported]
            assert len(found) == 1, reported
            return found[0], None
    raise AssertionError


def has_labels(net: Any) -> bool:
    return any(is_loss_or_metric(layer) or (layer.type == "Input" and "label" in layer.top) for layer in net.layer)


def test_every_published_prototxt_is_a_net_or_a_solver_that_prints_to_itself_or_names_where_it_is_not(wild: Path) -> None:
    broken = {}
    files = sorted(wild.joinpath("prototxt").rglob("*.*"))
    for path in (path for path in files if path.is_file()):
        text = path.read_text(errors="replace")
        for kind in (NetParameter, SolverParameter):
            try:
                message = parse(text, kind, path=path)
            except PrototxtError as error:
                broken[path] = str(error)
                continue
            broken.pop(path, None)
            assert parse(format_text(message), kind) == message, path
            break
    assert len(files) > 460
    # Maps from labels to names, for SSD, and a solver with a field of its own fork.
    assert all("labelmap" in path.name or "solver" in path.name for path in broken), broken
    assert all(re.match(rf"{re.escape(str(path))}:\d+:\d+: ", reported) for path, reported in broken.items()), broken
    assert len(broken) == 6


def test_every_published_net_for_training_is_retargeted_and_deployed_where_it_is_a_classifier(wild: Path, tmp_path: Path) -> None:
    reasons = {
        "no classifier": "no classifier was found in the net",
        "proposals alone": "which do not depend on the number of classes; there is no other classifier",
    }
    came: Counter[str] = Counter()
    for path, net in published(wild):
        if not losses_of(net):
            continue
        how, made = attempt(partial(_retarget, path, tmp_path), reasons)
        came[how] += 1
        if made is None:
            continue
        heads = [layer for layer in made.deploy.layer if layer.name in made.retargeted.renamed.values()]
        scores = [layer for layer in made.retargeted.train_val.layer if layer.name in made.retargeted.renamed.values()]
        if made.missing:
            came["no deploy net"] += 1
            continue
        # Where a margin is the head, it is for training, and the deploy net ends in the embedding below.
        assert heads or all(layer.type == "MarginInnerProduct" for layer in scores), path
        assert not has_labels(made.deploy), path
    assert came == {"done": 117, "no deploy net": 46, "no classifier": 10, "proposals alone": 6}


def test_every_published_net_for_training_is_deployed_or_needs_what_is_there_in_training_only(wild: Path) -> None:
    reasons = {"targets": "so it is a layer for training", "regions": "give --input-shape rois=SHAPE"}
    came: Counter[str] = Counter()
    for path, net in published(wild):
        if losses_of(net):
            how, made = attempt(partial(_deploy, net), reasons)
            came[how] += 1
            assert made is None or (summarize(made).layers and not has_labels(made)), path
    assert came == {"done": 87, "targets": 35, "regions": 11}


def test_every_published_deploy_net_becomes_trainable_and_is_retargeted_where_it_is_a_classifier(wild: Path, tmp_path: Path) -> None:
    reasons = {
        "inputs": "a net of one input can be made trainable",
        "scores": "one Softmax is expected",
        "maps": "gives a map of scores",
    }
    came: Counter[str] = Counter()
    for index, (path, net) in enumerate(published(wild)):
        if losses_of(net):
            continue
        folder = tmp_path / str(index)

        def both(shape: Any, path: Path = path, folder: Path = folder) -> Any:
            if not folder.exists():
                write_trainable(make_trainable(path, folder), folder)
            return prepare_retarget(folder / "train_val.prototxt", 120, folder / "new", input_shape=shape)

        how, made = attempt(both, reasons)
        came[how] += 1
        if made is not None:
            write_retarget(made, folder / "new")
            assert summarize(read_net(folder / "new" / "deploy.prototxt")).layers[-1].shapes[0][1] == 120, path
    assert came == {"done": 105, "inputs": 105, "scores": 6, "maps": 6}
