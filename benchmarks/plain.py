"""AlexNet, GoogLeNet, SqueezeNet v1.1, ResNet-10 and ResNet-50 as one would write them by hand in plain eager PyTorch, for comparison.

NCHW memory, ``nn`` modules, ``torch.optim.SGD``. Layer sizes are the papers'; LRN and GoogLeNet's two further heads are there, since
Caffe's networks have them. Every ``forward`` gives the training loss.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AlexNet(nn.Module):
    """Krizhevsky et al. 2012 with groups and LRN; 227 x 227 inputs."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, 4), nn.ReLU(inplace=True), nn.LocalResponseNorm(5, 1e-4, 0.75), nn.MaxPool2d(3, 2),
            nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(inplace=True), nn.LocalResponseNorm(5, 1e-4, 0.75), nn.MaxPool2d(3, 2),
            nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(9216, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4096, classes),
        )  # fmt: skip

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self.classifier(self.features(x).flatten(1)), label)


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


class GoogLeNet(nn.Module):
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

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        a = self.four_a(self.three(self.stem(x)))
        d = self.four_bcd(a)
        last = F.dropout(self.rest(d).mean((2, 3)), 0.4, self.training)
        return F.cross_entropy(self.classifier(last), label) + 0.3 * (self.head1(a, label) + self.head2(d, label))


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1 x 1 and 3 x 3 kernels."""

    def __init__(self, inputs: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze, self.one, self.three = unit(inputs, squeeze, 1), unit(squeeze, expand, 1), unit(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.one(x), self.three(x)], 1)


class SqueezeNet(nn.Module):
    """Iandola et al. 2016, version 1.1; 227 x 227 inputs."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.features = nn.Sequential(
            unit(3, 64, 3, stride=2), pool, Fire(64, 16, 64), Fire(128, 16, 64), pool, Fire(128, 32, 128), Fire(256, 32, 128), pool,
            Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256), nn.Dropout(0.5), unit(512, classes, 1),
        )  # fmt: skip

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self.features(x).mean((2, 3)), label)


def normed(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """ResNet-50's block: 1 x 1, 3 x 3 and 1 x 1 kernels; the first one has the stride."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            normed(inputs, width, 1, stride),
            nn.ReLU(inplace=True),
            normed(width, width, 3),
            nn.ReLU(inplace=True),
            normed(width, 4 * width, 1),
        )
        self.shortcut = nn.Identity() if inputs == 4 * width else normed(inputs, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x), inplace=True)


class ResNet50(nn.Module):
    """He et al. 2015; 224 x 224 inputs."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        blocks: list[nn.Module] = [normed(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)]
        inputs = 64
        for stage, count in enumerate((3, 4, 6, 3)):
            width = 64 << stage
            for index in range(count):
                blocks.append(Bottleneck(inputs, width, 2 if stage and not index else 1))
                inputs = 4 * width
        self.features, self.classifier = nn.Sequential(*blocks), nn.Linear(2048, classes)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self.classifier(self.features(x).mean((2, 3))), label)


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


class ResNet10(nn.Module):
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

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = self.stem(x)
        return F.cross_entropy(self.classifier(self.blocks(x + self.first(x)).mean((2, 3))), label)


NETWORKS = {
    "bvlc_alexnet": (AlexNet, 227),
    "bvlc_googlenet": (GoogLeNet, 224),
    "squeezenet_v1.1": (SqueezeNet, 227),
    "resnet10": (ResNet10, 224),
    "resnet50": (ResNet50, 224),
}


def sgemm_seconds(macs: int) -> float:
    """Seconds that ``macs`` multiply-adds take at the rate of a large matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begin)
    return min(times) * macs / 2048**3
