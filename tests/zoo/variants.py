"""Published deploy nets that the zoo does not ship, rewritten with its builders: real Caffe computed their blobs (golden/wildnets)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from caffetools.zoo.networks import build
from caffetools.zoo.networks.builder import (
    Learning,
    add,
    batch_norm,
    concat,
    conv,
    eltwise_sum,
    global_average,
    inner_product,
    network,
    picture,
    pool,
    prob,
    relu,
)

PLAIN = Learning()


def convolution() -> Any:
    """One convolution, as in the notebook on net surgery."""
    net = network()
    conv(net, "conv", picture(net, 1, 1, 100, 100), 3, 5, PLAIN)
    return net


def siamese() -> Any:
    """LeNet with an embedding of two numbers behind it."""
    net = build("lenet", "deploy")
    del net.layer[-1]
    inner_product(net, "feat", "ip2", 2, PLAIN)
    return net


def scaled_lenet() -> Any:
    """LeNet whose input is multiplied by 1 / 80."""
    net = build("lenet", "deploy")
    layers = list(net.layer)
    del net.layer[:]
    net.layer.append(layers[0])
    add(net, "Power", "scale", ("data",), ("scaled",), power_param={"scale": 0.0125})
    net.layer.extend(layers[1:])
    net.layer[2].bottom[0] = "scaled"
    net.layer[-1].name, net.layer[-1].top[0] = "softmax", "softmax"
    return net


def fully_convolutional() -> Any:
    """CaffeNet with convolutions in place of its fully connected layers."""
    net = build("bvlc_reference_caffenet", "deploy")
    for layer in net.layer:
        if layer.type == "InnerProduct":
            layer.type = "Convolution"
            kernel = 6 if layer.name == "fc6" else 1
            layer.convolution_param.num_output = layer.inner_product_param.num_output
            layer.convolution_param.kernel_size.append(kernel)
            layer.ClearField("inner_product_param")
    rename(net, {name: f"{name}-conv" for name in ("fc6", "fc7", "fc8")})
    return net


def global_resnet50() -> Any:
    """ResNet-50 whose last pooling is global."""
    net = build("resnet50", "deploy")
    (layer,) = [layer for layer in net.layer if layer.name == "pool5"]
    layer.ClearField("pooling_param")
    layer.pooling_param.pool = layer.pooling_param.AVE
    layer.pooling_param.global_pooling = True
    return net


def normalized_alexnet() -> Any:
    """AlexNet with BatchNorm without a Scale behind each layer in place of LRN and dropout."""
    net = network()
    x = picture(net, 10, 3, 227, 227)
    add(net, "BatchNorm", "data/bn", (x,))
    add(net, "Scale", "data/scale", ("data/bn",), scale_param={"bias_term": True})
    x = "data/scale"

    def normalized(name: str, number: int, top: str = "") -> str:
        add(net, "BatchNorm", f"{name}/bn", (name,))
        add(net, "ReLU", f"relu{number}", (f"{name}/bn",), (top or f"{name}/bn",))
        return top or f"{name}/bn"

    x = normalized(conv(net, "conv1", x, 96, 11, PLAIN, stride=4), 1, "norm1")
    x = pool(net, "pool1", x, "MAX", 3, 2)
    x = normalized(conv(net, "conv2", x, 256, 5, PLAIN, pad=2, group=2), 2, "norm2")
    x = pool(net, "pool2", x, "MAX", 3, 2)
    for number, (width, group) in enumerate(((384, None), (384, 2), (256, 2)), 3):
        x = normalized(conv(net, f"conv{number}", x, width, 3, PLAIN, pad=1, group=group), number)
    x = pool(net, "pool5", x, "MAX", 3, 2)
    for number in (6, 7):
        x = normalized(inner_product(net, f"fc{number}", x, 4096, PLAIN), number)
    add(net, "Softmax", "softmax", (inner_product(net, "fc8", x, 1000, PLAIN),), ("prob",))
    return net


def sphereface(depths: Sequence[int]) -> Any:
    """SphereFace's residual nets: four stages of convolutions with PReLU, ``depths`` residual units each, and an embedding of 512."""
    net = network()
    x = picture(net, 1, 3, 112, 96)
    for stage, units in enumerate(depths, 1):
        for k in range(1, 2 * units + 2):
            name = f"conv{stage}_{k}"
            y = conv(
                net, name, x if k % 2 == 1 or k == 2 else f"res{stage}_{k - 1}", 32 << stage, 3, PLAIN, stride=2 if k == 1 else 1, pad=1
            )
            add(net, "PReLU", f"relu{stage}_{k}", (y,), (y,))
            if k > 1 and k % 2 == 1:
                shortcut = f"conv{stage}_1" if k == 3 else f"res{stage}_{k - 2}"
                y = eltwise_sum(net, f"res{stage}_{k}", (shortcut, y))
            x = y
    inner_product(net, "fc5", x, 512, PLAIN)
    return net


def preactivated_resnet101() -> Any:
    """ResNet-101 v2: normalization and ReLU before each convolution; units are numbered through."""
    net = network()
    x = conv(net, "conv1", picture(net, 1, 3, 224, 224), 64, 7, PLAIN, stride=2, pad=3, bias=False)
    x = pool(net, "pool1", relu(net, "conv1_relu", batch_norm(net, "conv1_bn", "conv1_scale", x)), "MAX", 3, 2)
    unit = 0
    for stage, units in enumerate((3, 4, 23, 3)):
        width = 64 << stage
        for k in range(units):
            unit += 1
            name, stride = f"res{unit}", 2 if k == 0 and stage else 1
            shortcut = x
            if unit > 1:
                x = relu(net, f"{name}_relu", batch_norm(net, f"{name}_bn", f"{name}_scale", x, top=f"{name}_bn"))
            read = x
            for i, (kernel, step) in enumerate(((1, 1), (3, stride)), 1):
                part = f"{name}_conv{i}"
                x = conv(net, part, x, width, kernel, PLAIN, stride=step, pad=kernel // 2, bias=False)
                x = relu(net, f"{part}_relu", batch_norm(net, f"{part}_bn", f"{part}_scale", x))
            x = conv(net, f"{name}_conv3", x, 4 * width, 1, PLAIN, bias=False)
            if k == 0:
                shortcut = conv(net, f"{name}_match_conv", read, 4 * width, 1, PLAIN, stride=stride, bias=False)
            x = eltwise_sum(net, f"{name}_eletwise", (shortcut, x))
    last = f"res{unit}_eletwise"
    x = relu(net, f"{last}_relu", batch_norm(net, f"{last}_bn", f"{last}_scale", x, top=f"{last}_bn"))
    prob(net, inner_product(net, "classifier", global_average(net, "pool5", x), 1000, PLAIN))
    return net


def preactivated_resnet50() -> Any:
    """ResNet-50 with normalization before each convolution, and of the input; the zoo's ``resnet10`` is its small sister."""
    net = network()
    x = batch_norm(net, "data_bn", "data_scale", picture(net, 1, 3, 224, 224), top="data_bn")
    x = conv(net, "conv1", x, 64, 7, PLAIN, stride=2, pad=3)
    x = pool(net, "conv1_pool", relu(net, "conv1_relu", batch_norm(net, "conv1_bn", "conv1_scale", x)), "MAX", 3, 2)
    for width, units in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for k in range(1, units + 1):
            name, stride = f"layer_{width}_{k}", 2 if k == 1 and width > 64 else 1
            shortcut = x
            if (width, k) != (64, 1):
                x = relu(net, f"{name}_relu1", batch_norm(net, f"{name}_bn1", f"{name}_scale1", x, top=f"{name}_bn1"))
            read = x
            x = conv(net, f"{name}_conv1", x, width, 1, PLAIN, bias=False)
            if (width, k) == (64, 1):
                # The first unit's shortcut reads its first convolution.
                read = x
            x = relu(net, f"{name}_relu2", batch_norm(net, f"{name}_bn2", f"{name}_scale2", x))
            x = conv(net, f"{name}_conv2", x, width, 3, PLAIN, stride=stride, pad=1, bias=False)
            x = relu(net, f"{name}_relu3", batch_norm(net, f"{name}_bn3", f"{name}_scale3", x))
            x = conv(net, f"{name}_conv3", x, 4 * width, 1, PLAIN, bias=False)
            if k == 1:
                shortcut = conv(net, f"{name}_conv_expand", read, 4 * width, 1, PLAIN, stride=stride, bias=False)
            x = eltwise_sum(net, f"{name}_sum", (x, shortcut))
    x = relu(net, "last_relu", batch_norm(net, "last_bn", "last_scale", x))
    prob(net, inner_product(net, "score", global_average(net, "global_pool", x), 1000, PLAIN))
    return net


def landmark_net() -> Any:
    """MTCNN's net for five patches of 24 x 24, one a landmark: a Slice, five alike branches, a Concat and five outputs."""
    net = network()
    patches = [f"data24{i}" for i in range(1, 6)]
    add(net, "Slice", "slicer_data", (picture(net, 1, 15, 24, 24),), patches, slice_param={"slice_point": [3, 6, 9, 12]})

    def activated(name: str, blob: str) -> str:
        add(net, "PReLU", name, (blob,), (blob,))
        return blob

    ends = []
    for i, x in enumerate(patches, 1):
        for depth, (width, kernel) in enumerate(((28, 3), (48, 3), (64, 2)), 1):
            x = activated(f"prelu{depth}_{i}", conv(net, f"conv{depth}_{i}", x, width, kernel, PLAIN))
            x = pool(net, f"pool{depth}_{i}", x, "MAX", 3, 2) if depth < 3 else x
        ends.append(x)
    concat(net, "concat", ends)
    net.layer[-1].top[0] = "conv3"
    shared = activated("prelu4", inner_product(net, "fc4", "conv3", 256, PLAIN))
    for i in range(1, 6):
        inner_product(net, f"fc5_{i}", activated(f"prelu4_{i}", inner_product(net, f"fc4_{i}", shared, 64, PLAIN)), 2, PLAIN)
    return net


def rename(net: Any, names: dict[str, str]) -> None:
    """Rename layers and blobs, in place."""
    for layer in net.layer:
        layer.name = names.get(layer.name, layer.name)
        for blobs in (layer.bottom, layer.top):
            blobs[:] = [names.get(blob, blob) for blob in blobs]


# Golden case → the net.
VARIANTS: dict[str, Callable[[], Any]] = {
    "BVLC_caffe_examples_net_surgery_conv": convolution,
    "BVLC_caffe_examples_net_surgery_bvlc_caffenet_full_conv": fully_convolutional,
    "BVLC_caffe_examples_siamese_mnist_siamese": siamese,
    "NVIDIA_caffe_classification_model_deploy": scaled_lenet,
    "cvjena_cnn-models_AlexNet_cvgj_deploy": normalized_alexnet,
    "cvjena_cnn-models_ResNet_preact_ResNet50_cvgj_deploy": preactivated_resnet50,
    "kpzhang93_MTCNN_face_detection_alignment_code_codes_MTCNNv2_model_det4": landmark_net,
    "soeaver_caffe-model_cls_resnet_deploy_resnet50": global_resnet50,
    "soeaver_caffe-model_cls_resnet-v2_deploy_resnet101-v2": preactivated_resnet101,
    "wy1iu_sphereface_train_code_sphereface_deploy": lambda: sphereface((1, 2, 4, 1)),
    "wy1iu_sphereface_train_model_lib_Sphereface-64_sphereface_64_deploy": lambda: sphereface((3, 7, 16, 3)),
}
