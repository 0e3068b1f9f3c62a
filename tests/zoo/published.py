"""What is known of published networks: digests of their layers, and their solvers' settings, in golden/published.json.

The prototxts belong to their authors, so only facts of them are here. Write them again from a folder that holds the files:

    python -m tests.zoo.published FOLDER
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from caffetools.proto.text import read_net, read_solver
from caffetools.proto.upgrades.v1 import upgrade_net
from tests.conftest import GOLDEN

# Where the published deploy nets lie among the wild prototxts; VGG-16 is one that kept the layers of the original.
DEPLOY = {
    "bvlc_reference_rcnn_ilsvrc13": "BVLC+caffe/models/bvlc_reference_rcnn_ilsvrc13/deploy",
    "cifar10_quick": "BVLC+caffe/examples/cifar10/cifar10_quick",
    "cifar10_full": "BVLC+caffe/examples/cifar10/cifar10_full",
    "vgg16": "soeaver+caffe-model/cls/vgg/deploy_vgg16-dsd",
    "vgg19": "soeaver+caffe-model/cls/vgg/deploy_vgg19-pytorch",
    "resnet10": "cvjena+cnn-models/ResNet_preact/ResNet10_cvgj/deploy",
    "resnet50": "KaimingHe+deep-residual-networks/prototxt/ResNet-50-deploy",
    "resnet101": "KaimingHe+deep-residual-networks/prototxt/ResNet-101-deploy",
    "resnet152": "KaimingHe+deep-residual-networks/prototxt/ResNet-152-deploy",
    "se_resnet50": "hujie-frank+SENet/models/SE-ResNet-50",
    "mobilenet_v1": "shicai+MobileNet-Caffe/mobilenet_deploy",
    "mobilenet_v2": "shicai+MobileNet-Caffe/mobilenet_v2_deploy",
    "mtcnn_pnet": "DuinoDu+mtcnn/model/det1",
    "mtcnn_rnet": "DuinoDu+mtcnn/model/det2",
    "mtcnn_onet": "DuinoDu+mtcnn/model/det3",
}
TRAIN_VAL = {
    "cifar10_quick": "BVLC+caffe/examples/cifar10/cifar10_quick_train_test",
    "cifar10_full": "BVLC+caffe/examples/cifar10/cifar10_full_train_test",
}
# SqueezeNet v1.1 shares the solver of v1.0.
SOLVERS = {
    "lenet": "BVLC+caffe/examples/mnist/lenet_solver",
    "bvlc_alexnet": "BVLC+caffe/models/bvlc_alexnet/solver",
    "bvlc_reference_caffenet": "BVLC+caffe/models/bvlc_reference_caffenet/solver",
    "bvlc_googlenet": "BVLC+caffe/models/bvlc_googlenet/quick_solver",
    "squeezenet_v1.0": "forresti+SqueezeNet/SqueezeNet_v1.0/solver",
    "squeezenet_v1.1": "forresti+SqueezeNet/SqueezeNet_v1.0/solver",
    "cifar10_quick": "BVLC+caffe/examples/cifar10/cifar10_quick_solver",
    "cifar10_full": "BVLC+caffe/examples/cifar10/cifar10_full_solver",
    "bvlc_reference_rcnn_ilsvrc13": "BVLC+caffe/examples/finetune_pascal_detection/pascal_finetune_solver",
}
# The wild VGG-19 comes from another framework, which called these differently.
RENAMED = {"vgg19": {"dropout6": "drop6", "dropout7": "drop7", "classifier": "fc8"}}
# Paths are ours, GPU is solver_mode's default, and the format of snapshots is the user's choice.
OURS = ("net", "snapshot_prefix", "solver_mode", "snapshot_format")

Described = tuple[str, list[str], list[str], dict[str, dict[str, Any]]]


def described(layer: Any) -> Described:
    """What a layer computes: type, bottoms, tops, and its numbers without defaults, fillers and the choice of an engine."""
    params = {field.name: numbers(value) for field, value in layer.ListFields() if field.name.endswith("_param")}
    return layer.type, list(layer.bottom), list(layer.top), {name: given for name, given in params.items() if given}


def numbers(param: Any) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for field, value in param.ListFields():
        if field.name in ("weight_filler", "bias_filler", "filler", "engine"):
            continue
        if field.name in ("pad", "stride") and hasattr(value, "append"):
            # [] is what these lists are without a number in them.
            given[field.name] = [number for number in value if number != (field.name == "stride")]
        elif field.message_type is not None:
            given[field.name] = str(value)
        else:
            given[field.name] = list(value) if hasattr(value, "append") else value if value != field.default_value else None
    return {name: value for name, value in given.items() if value not in (None, [])}


def layers_of(net: Any) -> dict[str, Described]:
    return {layer.name: described(layer) for layer in upgrade_net(net).layer if layer.type != "Input"}


def published(name: str, net: Any) -> dict[str, Described]:
    """The layers of the published net of ``name``; where ours differs on purpose, as ours are."""
    names = RENAMED.get(name, {})
    layers: dict[str, Described] = {}
    for layer, (kind, bottoms, tops, params) in layers_of(net).items():
        if kind == "Axpy":
            layers.update(weighed_sum(layer, bottoms, tops))
            continue
        layers[names.get(layer, layer)] = (kind, [names.get(b, b) for b in bottoms], [names.get(t, t) for t in tops], params)
    return layers


def weighed_sum(name: str, bottoms: list[str], tops: list[str]) -> dict[str, Described]:
    """Axpy(a, x, y) = a * x + y in BVLC Caffe's layers: a is (N, C, 1, 1), so it loses two axes and scales x."""
    weights, x, y = bottoms
    return {
        f"{name}_prob_reshape": ("Reshape", [weights], [f"{name}_prob_reshape"], {"reshape_param": {"shape": "dim: 0\ndim: 0\n"}}),
        f"{name}_scale": ("Scale", [x, f"{name}_prob_reshape"], [f"{name}_scale"], {"scale_param": {"axis": 0}}),
        name: ("Eltwise", [f"{name}_scale", y], tops, {}),
    }


def digests(layers: dict[str, Described]) -> list[str]:
    """One for each layer, in order, of its name and all that it computes."""
    return [hashlib.sha256(json.dumps([name, *layer]).encode()).hexdigest()[:8] for name, layer in layers.items()]


def digest(net: Any) -> str:
    """Of every field of a net."""
    return hashlib.sha256(net.SerializeToString(deterministic=True)).hexdigest()


def settings(solver: Any) -> dict[str, Any]:
    """The fields of a solver but those that are ours."""
    given: dict[str, Any] = json_format.MessageToDict(solver, preserving_proto_field_name=True)
    return {name: value for name, value in given.items() if name not in OURS}


def facts(folder: Path) -> dict[str, Any]:
    """All that golden/published.json holds, from the prototxts in ``folder``."""
    return {
        "deploy": {name: " ".join(digests(published(name, read_net(folder / f"{file}.prototxt")))) for name, file in DEPLOY.items()},
        "train_val": {name: digest(read_net(folder / f"{file}.prototxt")) for name, file in TRAIN_VAL.items()},
        "solver": {name: settings(read_solver(folder / f"{file}.prototxt")) for name, file in SOLVERS.items()},
    }


FILE = GOLDEN / "published.json"

if __name__ == "__main__":
    FILE.write_text(json.dumps(facts(Path(sys.argv[1])), indent=1) + "\n")
