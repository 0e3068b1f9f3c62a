"""AlexNet, GoogLeNet, SqueezeNet v1.1, ResNets, MobileNets and VGG-16 as one would write them by hand in plain eager PyTorch, for comparison.

NCHW memory, ``nn`` modules, ``torch.optim.SGD``. Layer sizes are the papers'; LRN and GoogLeNet's two further heads are there, since
Caffe's networks have them. Every ``forward`` gives the training loss, ``probabilities`` what a deploy net gives.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """What the networks have in common."""

    def logits(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(x), label)

    def probabilities(self, x: Tensor) -> Tensor:
        return F.softmax(self.logits(x), 1)


class FullyConnected(Classifier):
    """A network that ends in three fully connected layers with dropout, as AlexNet's.

    Args:
        features: What comes before.
        inputs: How many values it gives.
        classes: Number of classes.
    """

    def __init__(self, features: nn.Sequential, inputs: int, classes: int):
        super().__init__()
        self.features = features
        self.classifier = nn.Sequential(
            nn.Linear(inputs, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4096, classes),
        )  # fmt: skip

    def logits(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).flatten(1))
        return y


class AlexNet(FullyConnected):
    """Krizhevsky et al. 2012 with groups and LRN; 227 x 227 inputs."""

    def __init__(self, classes: int = 1000):
        features = nn.Sequential(
            nn.Conv2d(3, 96, 11, 4), nn.ReLU(inplace=True), nn.LocalResponseNorm(5, 1e-4, 0.75), nn.MaxPool2d(3, 2),
            nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(inplace=True), nn.LocalResponseNorm(5, 1e-4, 0.75), nn.MaxPool2d(3, 2),
            nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        super().__init__(features, 9216, classes)


def unit(inputs: int, outputs: int, kernel: int, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, **options), nn.ReLU(inplace=True))


class Inception(nn.Module):
    """Four branches side by side, joined by channel."""

    def __init__(self, inputs: int, n1: int, r3: int, n3: int, r5: int, n5: int, pool: int):
        super().__init__()
        self.one = unit(inputs, n1, 1)
        self.three = nn.Sequential(unit(inputs, r3, 1), unit(r3, n3, 3, padding=1))
        self.five = nn.Sequential(unit(inputs, r5, 1), unit(r5, n5, 5, padding=2))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(inputs, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class Head(nn.Module):
    """One of GoogLeNet's two further classifiers."""

    def __init__(self, inputs: int, classes: int):
        super().__init__()
        self.conv, self.fc, self.classifier = unit(inputs, 128, 1), nn.Linear(2048, 1024), nn.Linear(1024, classes)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = self.conv(F.avg_pool2d(x, 5, 3)).flatten(1)
        return F.cross_entropy(self.classifier(F.dropout(F.relu(self.fc(x)), 0.7, self.training)), label)


class GoogLeNet(Classifier):
    """Szegedy et al. 2014 with LRN and three heads; 224 x 224 inputs."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        lrn, pool = nn.LocalResponseNorm(5, 1e-4, 0.75), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.stem = nn.Sequential(unit(3, 64, 7, stride=2, padding=3), pool, lrn, unit(64, 64, 1), unit(64, 192, 3, padding=1), lrn, pool)
        self.three = nn.Sequential(Inception(192, 64, 96, 128, 16, 32, 32), Inception(256, 128, 128, 192, 32, 96, 64), pool)
        self.four_a = Inception(480, 192, 96, 208, 16, 48, 64)
        self.four_bcd = nn.Sequential(
            Inception(512, 160, 112, 224, 24, 64, 64), Inception(512, 128, 128, 256, 24, 64, 64), Inception(512, 112, 144, 288, 32, 64, 64)
        )
        self.rest = nn.Sequential(
            Inception(528, 256, 160, 320, 32, 128, 128), pool,
            Inception(832, 256, 160, 320, 32, 128, 128), Inception(832, 384, 192, 384, 48, 128, 128),
        )  # fmt: skip
        self.head1, self.head2, self.classifier = Head(512, classes), Head(528, classes), nn.Linear(1024, classes)

    def last(self, d: Tensor) -> Tensor:
        y: Tensor = self.classifier(F.dropout(self.rest(d).mean((2, 3)), 0.4, self.training))
        return y

    def logits(self, x: Tensor) -> Tensor:
        return self.last(self.four_bcd(self.four_a(self.three(self.stem(x)))))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        a = self.four_a(self.three(self.stem(x)))
        d = self.four_bcd(a)
        return F.cross_entropy(self.last(d), label) + 0.3 * (self.head1(a, label) + self.head2(d, label))


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1 x 1 and 3 x 3 kernels."""

    def __init__(self, inputs: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze, self.one, self.three = unit(inputs, squeeze, 1), unit(squeeze, expand, 1), unit(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.one(x), self.three(x)], 1)


class SqueezeNet(Classifier):
    """Iandola et al. 2016, version 1.1; 227 x 227 inputs."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.features = nn.Sequential(
            unit(3, 64, 3, stride=2), pool, Fire(64, 16, 64), Fire(128, 16, 64), pool, Fire(128, 32, 128), Fire(256, 32, 128), pool,
            Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256), nn.Dropout(0.5), unit(512, classes, 1),
        )  # fmt: skip

    def logits(self, x: Tensor) -> Tensor:
        y: Tensor = self.features(x).mean((2, 3))
        return y


def normed(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias), nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """ResNet-50's block: 1 x 1, 3 x 3 and 1 x 1 kernels; the first one has the stride."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.shortcut = nn.Identity() if inputs == 4 * width else normed(inputs, 4 * width, 1, stride)
        self.residual = nn.Sequential(
            normed(inputs, width, 1, stride),
            nn.ReLU(inplace=True),
            normed(width, width, 3),
            nn.ReLU(inplace=True),
            normed(width, 4 * width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x), inplace=True)


class ResNet50(Classifier):
    """He et al. 2015, with a bias in the first convolution as the published Caffe net has it; 224 x 224 inputs."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        blocks: list[nn.Module] = [normed(3, 64, 7, 2, bias=True), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)]
        inputs = 64
        for stage, count in enumerate((3, 4, 6, 3)):
            width = 64 << stage
            for index in range(count):
                blocks.append(Bottleneck(inputs, width, 2 if stage and not index else 1))
                inputs = 4 * width
        self.features, self.classifier = nn.Sequential(*blocks), nn.Linear(2048, classes)

    def logits(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return y


class PreActivation(nn.Module):
    """ResNet-10's block: BatchNorm and ReLU before each of two 3 x 3 convolutions, the first of stride 2 as the shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.residual = nn.Sequential(
            normed(inputs, outputs, 3, 2), nn.ReLU(inplace=True), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y: Tensor = self.residual(x) + self.shortcut(x)
        return y


class ResNet10(Classifier):
    """Simon et al. 2016: BatchNorm over the pictures, and four blocks; 224 x 224 inputs."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.stem = nn.Sequential(
            nn.BatchNorm2d(3), nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)
        )
        self.first = nn.Sequential(normed(64, 64, 3), nn.ReLU(inplace=True), nn.Conv2d(64, 64, 3, padding=1, bias=False))
        self.blocks = nn.Sequential(
            PreActivation(64, 128), PreActivation(128, 256), PreActivation(256, 512), nn.BatchNorm2d(512), nn.ReLU(inplace=True)
        )
        self.classifier = nn.Linear(512, classes)

    def logits(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.classifier(self.blocks(x + self.first(x)).mean((2, 3)))
        return y


class MobileNetV1(Classifier):
    """Howard et al. 2017: thirteen depthwise separable convolutions; 224 x 224 inputs."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        blocks: list[nn.Module] = [normed(3, 32, 3, 2), nn.ReLU(inplace=True)]
        inputs = 32
        for outputs, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1)):
            blocks += [normed(inputs, inputs, 3, stride, inputs), nn.ReLU(inplace=True), normed(inputs, outputs, 1), nn.ReLU(inplace=True)]
            inputs = outputs
        self.features, self.classifier = nn.Sequential(*blocks), nn.Linear(1024, classes)

    def logits(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return y


class InvertedResidual(nn.Module):
    """MobileNet v2's block: expand, a depthwise convolution, and project to few channels without an activation."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int):
        super().__init__()
        width = inputs * expansion
        self.residual = nn.Sequential(
            normed(inputs, width, 1), nn.ReLU(inplace=True), normed(width, width, 3, stride, width), nn.ReLU(inplace=True), normed(width, outputs, 1)
        )  # fmt: skip
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.residual(x)
        return x + y if self.shortcut else y


# Of MobileNet v2: outputs, expansion, blocks, and the stride of the first.
STAGES = ((16, 1, 1, 1), (24, 6, 2, 2), (32, 6, 3, 2), (64, 6, 4, 1), (96, 6, 3, 2), (160, 6, 3, 2), (320, 6, 1, 1))


class MobileNetV2(Classifier):
    """Sandler et al. 2018, with ReLU and the strides of the published Caffe net; 224 x 224 inputs."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        blocks: list[nn.Module] = [normed(3, 32, 3, 2), nn.ReLU(inplace=True)]
        inputs = 32
        for outputs, expansion, count, stride in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(inputs, outputs, expansion, 1 if index else stride))
                inputs = outputs
        self.features = nn.Sequential(*blocks, normed(inputs, 1280, 1), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(1280, classes)

    def logits(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return y


class VGG16(FullyConnected):
    """Simonyan and Zisserman 2014; 224 x 224 inputs."""

    def __init__(self, classes: int = 1000):
        blocks: list[nn.Module] = []
        inputs = 3
        for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                blocks.append(unit(inputs, outputs, 3, padding=1))
                inputs = outputs
            blocks.append(nn.MaxPool2d(2, 2))
        super().__init__(nn.Sequential(*blocks), 25088, classes)


NETWORKS: dict[str, tuple[type[Classifier], int]] = {
    "bvlc_alexnet": (AlexNet, 227),
    "bvlc_googlenet": (GoogLeNet, 224),
    "squeezenet_v1.1": (SqueezeNet, 227),
    "resnet10": (ResNet10, 224),
    "resnet50": (ResNet50, 224),
    "mobilenet_v1": (MobileNetV1, 224),
    "mobilenet_v2": (MobileNetV2, 224),
    "vgg16": (VGG16, 224),
}


def load_caffemodel(model: Classifier, path: Path) -> None:
    """Copy the weights of a deploy net: the layers of both follow each other in the same order."""
    from caffetools.proto.binary import read_caffemodel
    from caffetools.proto.blobs import release_pages

    file = read_caffemodel(path)
    modules = [module for name, module in model.named_modules() if not name.startswith("head")]
    products = iter([module for module in modules if isinstance(module, (nn.Conv2d, nn.Linear))])
    norms = iter([module for module in modules if isinstance(module, nn.BatchNorm2d)])
    norm = nn.BatchNorm2d(1)
    for layer in file.net.layer:
        blobs = file.blobs.get(layer.name, [])
        targets: list[Tensor] = []
        if layer.type == "BatchNorm":
            norm = next(norms)
            assert norm.running_mean is not None and norm.running_var is not None and blobs[2] == 1
            targets = [norm.running_mean, norm.running_var]
        elif blobs:
            targets = list((norm if layer.type == "Scale" else next(products)).parameters())
        with torch.no_grad():
            for target, blob in zip(targets, blobs, strict=layer.type != "BatchNorm"):
                target.numpy()[...] = blob.reshape(target.shape)
                release_pages(blob)
    assert next(products, None) is next(norms, None) is None, "the file has fewer layers"


def sgemm_seconds(macs: int, tries: int = 7) -> float:
    """Seconds that ``macs`` multiply-adds take at the rate of a large matrix product, the best of ``tries``."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(tries):
        begin = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begin)
    return min(times) * macs / 2048**3
