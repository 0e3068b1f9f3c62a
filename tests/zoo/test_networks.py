"""The shipped networks: their text is what the builders write, and what they say are the facts of the published networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from caffetools.errors import ZooError
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import format_text, read_net, read_solver
from caffetools.zoo.networks import KINDS, MODELS, build, prototxt_path
from caffetools.zoo.networks.__main__ import write_all
from tests.conftest import GOLDEN
from tests.zoo.published import FILE, SOLVERS, TRAIN_VAL, digest, settings

FACTS = {
    "lenet": "lenet",
    "bvlc_alexnet": "alexnet",
    "bvlc_reference_caffenet": "caffenet",
    "bvlc_googlenet": "googlenet",
    "squeezenet_v1.0": "squeezenet_v1.0",
    "squeezenet_v1.1": "squeezenet_v1.1",
}
# Those of which there are facts of one kind only.
MORE_FACTS = {
    ("bvlc_reference_rcnn_ilsvrc13", "deploy"): "rcnn_deploy",
    ("cifar10_quick", "deploy"): "cifar10_quick_deploy",
    ("cifar10_full", "train_val"): "cifar10_full_train",
}


PUBLISHED = json.loads(FILE.read_text())


def facts_net(name: str) -> Any:
    """The ``NetParameter`` that a facts file describes, field by field."""
    facts = json.loads((GOLDEN / "nets" / f"{name}.facts.json").read_text())
    net = NetParameter(name=facts["name"]) if facts["name"] else NetParameter()
    for blob, shape in facts.get("input", {}).items():
        net.input.append(blob)
        net.input_shape.add(dim=shape)
    for layer in facts["layers"]:
        json_format.ParseDict(layer, net.layer.add())
    return net


@pytest.mark.parametrize(("model", "kind"), [*((model, kind) for model in FACTS for kind in ("train_val", "deploy")), *MORE_FACTS])
def test_a_built_network_has_the_published_facts_field_by_field(model: str, kind: str) -> None:
    short = "train" if kind == "train_val" else "deploy"
    expected = facts_net(MORE_FACTS.get((model, kind)) or f"{FACTS[model]}_{short}")
    built = build(model, kind)
    assert [layer.name for layer in built.layer] == [layer.name for layer in expected.layer]
    for ours, theirs in zip(built.layer, expected.layer, strict=True):
        assert ours == theirs, f"{format_text(ours)} is not {format_text(theirs)}"
    assert built == expected


def test_the_shipped_prototxts_are_what_the_builders_write(tmp_path: Path) -> None:
    written = write_all(tmp_path)
    assert len(written) == len(MODELS) * len(KINDS)
    for path in written:
        shipped = prototxt_path(path.parent.name, path.stem)
        assert shipped.read_text() == path.read_text(), f"{shipped} is out of date; run python -m caffetools.zoo.networks"
    folder = prototxt_path("lenet").parent.parent
    assert {p.relative_to(folder) for p in folder.rglob("*.prototxt")} == {p.relative_to(tmp_path) for p in written}


@pytest.mark.parametrize("model", MODELS)
def test_the_shipped_prototxts_read_back_as_built(model: str) -> None:
    for kind in KINDS:
        read = read_solver if kind == "solver" else read_net
        assert read(prototxt_path(model, kind)) == build(model, kind)


@pytest.mark.parametrize("model", TRAIN_VAL)
def test_a_net_for_training_is_the_published_one_field_by_field(model: str) -> None:
    assert digest(build(model)) == PUBLISHED["train_val"][model]


@pytest.mark.parametrize("model", SOLVERS)
def test_a_solver_has_the_settings_of_the_published_one_but_for_its_paths(model: str) -> None:
    assert settings(build(model, "solver")) == PUBLISHED["solver"][model]


@pytest.mark.parametrize("model", MODELS)
def test_a_solver_trains_the_net_next_to_it(model: str) -> None:
    solver = build(model, "solver")
    assert prototxt_path(model, "solver").with_name(solver.net) == prototxt_path(model)


def test_an_unknown_model_or_kind_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ZooError, match=r"no model 'squeezenet_v1.2'; did you mean 'squeezenet_v1..'"):
        prototxt_path("squeezenet_v1.2")
    with pytest.raises(ZooError, match="no 'weights' prototxt; there are train_val, deploy, solver"):
        build("lenet", "weights")
