"""Classifiers drawn at random: plain layers, branches, residual units, layers in place or not, with or without a second classifier."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from caffetools.proto.schema import TEST, TRAIN, NetParameter

ACTIVATIONS = ("ReLU", "PReLU", "Sigmoid", "TanH", "ELU", "AbsVal", "BNLL")
SIDE = 16


class Builder:
    """Draws a net layer by layer and keeps count of the channels and the side of what it has."""

    def __init__(self, draw: st.DrawFn):
        self.draw, self.net, self.count = draw, NetParameter(name="generated"), 0
        self.blob, self.channels, self.side = "data", 3, SIDE

    def chance(self) -> bool:
        return bool(self.draw(st.booleans()))

    def add(self, kind: str, bottoms: list[str], *, top: str = "", **fields: Any) -> Any:
        self.count += 1
        name = f"{kind.lower()}{self.count}"
        layer = self.net.layer.add(name=name, type=kind, bottom=bottoms, top=[top or name], **fields)
        self.blob = layer.top[0]
        return layer

    def data(self) -> None:
        phases = (TRAIN, TEST) if self.chance() else (None,)
        for phase in phases:
            layer = self.net.layer.add(name="data", type="Data", top=["data", "label"])
            layer.data_param.source, layer.data_param.batch_size, layer.data_param.backend = "lmdb", self.draw(st.integers(1, 4)), 1
            layer.transform_param.crop_size = SIDE
            if phase is not None:
                layer.include.add(phase=phase)

    def conv(self, bottom: str, outputs: int, *, stride: int = 1) -> str:
        kernel = self.draw(st.sampled_from((1, 3, 5)))
        layer = self.add("Convolution", [bottom])
        param = layer.convolution_param
        param.num_output = outputs
        param.kernel_size.append(kernel)
        param.pad.append(kernel // 2)
        param.stride.append(stride)
        if self.chance():
            param.bias_term = False
        param.weight_filler.type = self.draw(st.sampled_from(("xavier", "msra", "gaussian")))
        for mult in self.draw(st.sampled_from(((), (1.0,), (1.0, 2.0) if not param.HasField("bias_term") else (0.5,)))):
            layer.param.add(lr_mult=mult, decay_mult=1)
        return str(layer.top[0])

    def in_place(self, kind: str, **fields: Any) -> None:
        # Caffe refuses AbsVal in place, and any layer in place where another one reads the blob before it.
        readers = [layer for layer in self.net.layer if self.blob in layer.bottom and self.blob not in layer.top]
        allowed = kind != "AbsVal" and not readers
        self.add(kind, [self.blob], top=self.blob if self.chance() and allowed else "", **fields)

    def step(self) -> None:
        kind = self.draw(st.sampled_from(("conv", "activation", "pool", "norm", "bn", "dropout", "branch", "residual")))
        if kind == "conv":
            stride = 2 if self.side > 4 and self.chance() else 1
            self.channels = self.draw(st.integers(1, 6))
            self.conv(self.blob, self.channels, stride=stride)
            self.side = (self.side - 1) // stride + 1
        elif kind == "activation":
            self.in_place(self.draw(st.sampled_from(ACTIVATIONS)))
        elif kind == "pool" and self.side >= 4:
            pool = self.draw(st.sampled_from(("MAX", "AVE")))
            self.add("Pooling", [self.blob], pooling_param={"pool": pool, "kernel_size": 2, "stride": 2})
            self.side = (self.side + 1) // 2
        elif kind == "norm":
            self.add("LRN", [self.blob], lrn_param={"local_size": 3})
        elif kind == "bn":
            self.in_place("BatchNorm")
            self.in_place("Scale", scale_param={"bias_term": True})
        elif kind == "dropout":
            self.in_place("Dropout", dropout_param={"dropout_ratio": 0.25})
        elif kind == "branch":
            source = self.blob
            widths = self.draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
            self.add("Concat", [self.conv(source, width) for width in widths])
            self.channels = sum(widths)
        elif kind == "residual":
            source = self.blob
            self.add("Eltwise", [source, self.conv(source, self.channels)])

    def classifier(self, classes: int, *, weight: float | None = None) -> None:
        source = self.blob
        layer = self.add("InnerProduct", [source], inner_product_param={"num_output": classes, "weight_filler": {"type": "xavier"}})
        scores = str(layer.top[0])
        for mult in self.draw(st.sampled_from(((), (1.0, 2.0)))):
            layer.param.add(lr_mult=mult)
        loss = self.add("SoftmaxWithLoss", [scores, "label"])
        if weight is not None:
            loss.loss_weight.append(weight)
        if self.chance():
            self.add("Accuracy", [scores, "label"]).include.add(phase=TEST)
        self.blob = source


@st.composite
def classifiers(draw: st.DrawFn) -> Any:
    """A ``NetParameter`` for training with 4 classes; its image is 3 x 16 x 16."""
    builder = Builder(draw)
    builder.data()
    for _ in range(draw(st.integers(0, 5))):
        builder.step()
    if draw(st.booleans()):
        builder.classifier(4, weight=0.25)
    for _ in range(draw(st.integers(0, 3))):
        builder.step()
    if draw(st.booleans()):
        builder.add("Pooling", [builder.blob], pooling_param={"pool": "AVE", "global_pooling": True})
    builder.classifier(4)
    return builder.net
