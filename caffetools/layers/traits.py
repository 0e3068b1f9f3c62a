"""Facts about a layer type that other rooms ask for; each class states its own, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from caffetools.proto.schema import LayerParameter

Role = Literal[
    "other",
    "activation",  # each value by itself, without parameters of its own
    "concat",
    "classifier",  # linear: each output is a weighted sum of its input, so it may be what gives one score a class
    "constant",  # no bottoms, and nothing from outside of the net: values from fillers
    "data",  # reads data from outside of the net
    "detection",  # turns scores and offsets into boxes
    "dropout",
    "input",  # data that the caller gives
    "loss",
    "merge",  # combines equally shaped bottoms value by value
    "metric",  # measures the net, and is not part of its outputs
    "normalization",
    "parameter",  # no bottoms: its top is a learned blob
    "permute",  # the axes in another order
    "pooling",
    "probability",  # turns scores into probabilities
    "rearrange",  # moves values between channels and positions
    "recurrent",
    "reshape",  # the same values in the same order under another shape
    "sampling",  # takes windows or positions of maps: crops, enlarges, shifts
    "scale",  # multiplies or shifts each channel
    "silence",
    "slice",
    "split",
    "unknown",  # a type that no class computes
]

# How a layer treats the channels (classes) of the first bottom: an output mixes several; output c is made from input c, or stays at
# its place among the others; or that depends on the shape that the layer's settings name.
Channels = Literal["mixed", "kept", "reshaped"]

# What a loss compares its first bottom with: the index of a class; one target for each value; or other embeddings.
Compares = Literal["", "classes", "targets", "values", "embeddings"]

# How the spatial coordinates of the bottom map to those of the top; "" where there is no such map.
Coordinates = Literal["", "same", "window", "transposed", "crop"]


@dataclass(frozen=True)
class Traits:
    """What is true of a layer type, for code that works on nets without knowing their types.

    Attributes:
        role: What the layer is for.
        fork: The fork or the tool that defines the type, where no table of :mod:`caffetools.proto.forks` names it.
        settings: The field of ``LayerParameter`` with the type's settings, such as ``convolution_param``.
        outputs: The field of ``settings`` with the number of outputs (``num_output``); "" where the type has none.
        class_axes: For each parameter blob the axis along which each output (class, channel) has its own values; None where the
            blob has no such axis. Blobs behind the end of the tuple have none.
        channels: What becomes of the bottom's channels; "kept" layers may stand between a classifier and its loss.
        class_count: Further fields, as ``settings.field`` paths, that name the number of classes.
        objects_switch: The boolean field, as a ``settings.field`` path, with which ``class_count`` is that of objects and background.
        box_numbers: How many numbers of its own each box has before the scores of its classes: 5 in YOLO's, with the confidence.
        class_maps: Whether it pools maps of scores, whose ``class_count`` is the number of its top's channels.
        names_classes: Fields, as ``settings.field`` paths, that name the number of classes of types that do not read the scores: of what
            makes labels for training, or compares detections with labels.
        scores_bottom: For types with a ``class_count``, the bottom that holds the scores; None where all do.
        rows: The field of ``settings`` that names the number of indices for each of which it has a row of weights.
        label_bottoms: The bottoms that hold labels, known in training only.
        compares: For losses, what the scores are compared with.
        class_matrix: For losses, whether they read a matrix with a row and a column for each class.
        scaled_gradient: For losses, whether NVCaffe's multiplies its gradient by the net's ``global_grad_scale``.
        activation: For losses, the type that turns their scores into answers; "" where the scores are answers, None where the
            first bottom holds no scores.
        loss: For types that turn scores into answers, the loss that trains those scores.
        class_axis: The field, as a ``settings.field`` path, that names the axis of the classes in the first bottom; "" is axis 1.
        rectifier: Whether it is a rectified linear unit: y = max(0, x), perhaps with a fixed slope below 0 or a bound above. Guided
            backpropagation and deconvnets change its gradient.
        in_place: Whether the top may be the bottom's blob, in Caffe too.
        half: Whether it may compute in bf16 or fp16 under autocast; all others get float32.
        coordinates: How spatial coordinates map through it.
        statistics_switch: The boolean field, as a ``settings.field`` path, that makes it use the statistics it has stored.
        source: For data layers the field of ``LayerParameter`` that holds the data's source and the batch size.
        file_source: Whether ``source`` names a file or a database.
        transforms: Whether ``transform_param`` (crop, mean, scale, mirror) applies to its data.
        label_tops: For data layers what the tops behind the first hold: one number an item, labels of other shapes, or anything.
        user_code: Whether building the layer runs code that the user wrote and the prototxt only names.
        weight_filler: The field of ``settings`` with the filler of the first parameter blob.
        blobs: What the parameter blobs hold, in order, each in a word or two; those behind its end are known by their index.
    """

    role: Role = "other"
    fork: str = ""
    settings: str = ""
    outputs: str = ""
    class_axes: tuple[int | None, ...] = ()
    channels: Channels = "mixed"
    class_count: tuple[str, ...] = ()
    objects_switch: str = ""
    box_numbers: int = 0
    class_maps: bool = False
    names_classes: tuple[str, ...] = ()
    scores_bottom: int | None = 0
    rows: str = ""
    label_bottoms: tuple[int, ...] = ()
    compares: Compares = ""
    class_matrix: bool = False
    scaled_gradient: bool = False
    activation: str | None = None
    loss: str = ""
    class_axis: str = ""
    rectifier: bool = False
    in_place: bool = False
    half: bool = False
    coordinates: Coordinates = ""
    statistics_switch: str = ""
    source: str = ""
    file_source: bool = False
    transforms: bool = False
    label_tops: Literal["any", "numbers", "labels"] = "any"
    user_code: bool = False
    weight_filler: str = ""
    blobs: tuple[str, ...] = ()

    def settings_of(self, layer: LayerParameter) -> Any:
        """Return the message ``settings`` of a ``LayerParameter``. Raises :class:`ValueError` where the type has none."""
        if not self.settings:
            raise ValueError(f"a {layer.type} layer has no settings of its own")
        return getattr(layer, self.settings)

    def num_output(self, layer: LayerParameter) -> int:
        """Return the number of outputs that a ``LayerParameter`` of this type names; 0 where the type names none."""
        return int(getattr(self.settings_of(layer), self.outputs)) if self.outputs else 0

    def scores(self, layer: LayerParameter) -> list[str]:
        """Return the bottoms of a layer with a ``class_count`` that hold scores."""
        bottoms = [str(blob) for blob in layer.bottom]
        return bottoms if self.scores_bottom is None else bottoms[self.scores_bottom : self.scores_bottom + 1]

    def counts_classes(self, layer: LayerParameter) -> bool:
        """Return whether a layer of this type names the number of classes of the scores that it reads."""
        return bool(self.class_count) and not (self.objects_switch and getattr(*field_at(layer, self.objects_switch)))

    def named_classes(self, layer: LayerParameter) -> int:
        """Return the number of classes in the first of the fields of ``class_count``; 0 where the type has none."""
        return int(getattr(*field_at(layer, self.class_count[0]))) if self.class_count else 0


def field_at(layer: LayerParameter, path: str) -> tuple[Any, str]:
    """Return the message and the name of the field at ``settings.field`` of a ``LayerParameter``."""
    message, _, name = path.partition(".")
    return getattr(layer, message), name
