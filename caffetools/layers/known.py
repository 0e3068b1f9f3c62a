"""Layer types of forks that are not computed here, and what surgery and inspection need to know of them."""

from __future__ import annotations

from caffetools.layers.base import Layer, Shape
from caffetools.layers.registry import declare
from caffetools.layers.traits import Traits
from caffetools.proto.schema import LayerParameter


@declare("ImageSegData")
class SegmentationData(Layer):
    """Pictures with maps of labels (PSPNet)."""

    TRAITS = Traits(role="data", label_tops="labels")

    @classmethod
    def label_shape(cls, top: int, shape: Shape) -> Shape:
        """Return the shape of the map of labels, or of PSPNet's third top: the height and width of each picture."""
        n, _, h, w = shape
        return (n, 1, h, w) if top == 1 else (n, 1, 1, 2)


@declare("VideoData")
class VideoData(Layer):
    """Snippets of videos (temporal segment networks): the frames of each segment, or its flow fields, as channels of one blob."""

    TRAITS = Traits(role="data", source="video_data_param", file_source=True, transforms=True, label_tops="numbers")

    @classmethod
    def item_channels(cls, param: LayerParameter) -> int:
        """Return the channels of all segments of a video: 3 for each frame, 2 for each flow field."""
        settings = param.video_data_param
        fields = settings.DESCRIPTOR.fields_by_name
        if "modality" not in fields:
            return 3
        modality = fields["modality"].enum_type
        flow = modality.values_by_name["FLOW"].number if modality is not None else None
        segments = settings.num_segments if "num_segments" in fields else 1
        return int((2 if settings.modality == flow else 3) * max(1, settings.new_length) * max(1, segments))


@declare("MultiBoxLoss")
class MultiBoxLoss(Layer):
    """SSD's loss of boxes and class scores."""

    TRAITS = Traits(role="loss", class_count=("multibox_loss_param.num_classes",), scores_bottom=1)


@declare("Yolov3")
class Yolov3(Layer):
    """The loss of YOLO v3's boxes and class scores (MobileNet-YOLO)."""

    TRAITS = Traits(role="loss", class_count=("yolov3_param.num_class",), box_numbers=5)


@declare("RegionLoss")
class RegionLoss(Layer):
    """The loss of YOLO v2's boxes and class scores (MobileNet-YOLO)."""

    TRAITS = Traits(role="loss", class_count=("region_loss_param.num_class",), box_numbers=5)


@declare("EvalDetection")
class EvalDetection(Layer):
    """Compares YOLO's boxes with labelled ones (Intel)."""

    TRAITS = Traits(role="metric", class_count=("eval_detection_param.num_class",), box_numbers=5)


@declare("ProposalTarget")
class ProposalTarget(Layer):
    """Labels and box targets of sampled regions (Cascade R-CNN)."""

    TRAITS = Traits(names_classes=("proposal_target_param.cls_num",))


@declare("DetectionEvaluate")
class DetectionEvaluate(Layer):
    """Compares detections with labelled boxes (SSD)."""

    TRAITS = Traits(role="metric", names_classes=("detection_evaluate_param.num_classes",))


@declare("DetectionLoss")
class DetectionLoss(Layer):
    """The loss of the boxes and class scores that a proposal network gives (MSCNN)."""

    TRAITS = Traits(
        role="loss", class_count=("detection_loss_param.cls_num",), objects_switch="detection_loss_param.objectness", box_numbers=4
    )


@declare("DetectionAccuracy")
class DetectionAccuracy(Layer):
    """Compares what a proposal network gives with labels (MSCNN)."""

    TRAITS = Traits(
        role="metric",
        class_count=("detection_accuracy_param.cls_num",),
        objects_switch="detection_accuracy_param.objectness",
        box_numbers=4,
    )


@declare("BoxOutput")
class BoxOutput(Layer):
    """The boxes of maps of scores, of which it counts the classes itself (MSCNN)."""

    TRAITS = Traits(role="detection", scores_bottom=None, box_numbers=4)
