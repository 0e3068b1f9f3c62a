"""Explanations of a net's answer for one picture, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from caffetools.cancel import CancelToken
from caffetools.errors import DataError, NetError
from caffetools.events import EventSink, ignore, on_progress, reporter, reporting
from caffetools.layers.registry import layer_types
from caffetools.net.net import Net
from caffetools.net.probe import needed_layers
from caffetools.visualize.activations import blob_values
from caffetools.visualize.attribution import METHODS
from caffetools.visualize.cam import grad_cam, grad_cam_plus_plus
from caffetools.visualize.colormaps import heat_of, overlay, scaled_colours
from caffetools.visualize.panels import PANEL_SIDE, Panel, enlarge, panels_figure
from caffetools.visualize.picture_net import PictureNet, Prepared
from caffetools.visualize.style import LIGHT, Theme
from caffetools.visualize.units import Unit, UnitProbe, progress_of_part, target_blob

CAMS = {"grad-cam": grad_cam, "grad-cam++": grad_cam_plus_plus}
ALL_METHODS = (*METHODS, *CAMS)
# Methods that run the net many times.
_SLOW = ("integrated-gradients", "smooth-grad", "occlusion")


def explain(
    model: PictureNet, prepared: Prepared, method: str, *, blob: str, unit: Unit, layer: str | None = None, **options: Any
) -> NDArray[np.float32]:
    """Return an attribution by the name of its method: (C, H, W) or (H, W); Grad-CAM's maps have the layer's resolution.

    Args:
        model: The net.
        prepared: The picture.
        method: One of :data:`ALL_METHODS`.
        blob: Of the unit.
        unit: As in attribution.
        layer: For Grad-CAM; None takes the last layer with positions below the blob.
        options: Options of the method's function.

    Raises:
        DataError: an unknown method.
        NetError, DataError: as the method's function.
    """
    if method in CAMS:
        cam_layer = layer or last_feature_layer(model.net, blob)
        return CAMS[method](model.net, prepared.input, layer=cam_layer, blob=blob, unit=unit, inputs=model.others)
    if method not in METHODS:
        raise DataError(f"unknown method '{method}'; it is one of {', '.join(ALL_METHODS)}")
    return METHODS[method](model.net, prepared.input, blob=blob, unit=unit, inputs=model.others, **options)


@dataclass(frozen=True)
class Explained:
    """Attributions of one unit for one picture.

    Attributes:
        blob: The blob of the unit.
        unit: Its index; never None.
        layer: The layer of Grad-CAM's maps; "" without any.
        maps: The methods with their attributions, (C, H, W) or (H, W).
    """

    blob: str
    unit: Unit
    layer: str
    maps: tuple[tuple[str, NDArray[np.float32]], ...]


@reporting("explain", "Explain an answer for a picture")
def explain_all(
    model: PictureNet,
    prepared: Prepared,
    methods: Sequence[str],
    *,
    blob: str | None = None,
    unit: Unit = None,
    layer: str | None = None,
    options: dict[str, Any] | None = None,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Explained:
    """Explain one unit for a picture by several methods.

    Args:
        model: The net.
        prepared: The picture.
        methods: Names; see :data:`ALL_METHODS`.
        blob: The blob of the unit; None takes the scores before the softmax of the net's output.
        unit: As in :mod:`caffetools.visualize.units`; None is the largest.
        layer: For Grad-CAM; None takes the last layer with positions.
        options: Of occlusion.
        events: Receives the progress in percent.
        cancel: Stops between methods, and between the batches of one.

    Raises:
        DataError, NetError: as :func:`explain`.
        Cancelled: ``cancel`` was called.
    """
    unknown = [method for method in methods if method not in ALL_METHODS]
    if unknown:
        raise DataError(f"unknown method '{unknown[0]}'; it is one of {', '.join(ALL_METHODS)}")
    blob = blob or score_blob(model.net)
    unit = UnitProbe.of(model.net, prepared.input, blob, unit, model.others).unit
    shown = (layer or last_feature_layer(model.net, blob)) if set(methods) & set(CAMS) else ""
    maps, report = [], reporter(events, "explain", "percent", cancel)
    for index, method in enumerate(methods):
        advance = progress_of_part(report, index, len(methods))
        given: dict[str, Any] = {"events": on_progress(advance), "cancel": cancel} if method in _SLOW else {}
        given |= (options or {}) if method == "occlusion" else {}
        maps.append((method, explain(model, prepared, method, blob=blob, unit=unit, layer=shown or None, **given)))
        advance(1, 1)
    return Explained(blob, unit, shown, tuple(maps))


def explanations_figure(
    model: PictureNet, prepared: Prepared, explained: Explained, *, side: int = PANEL_SIDE, theme: Theme = LIGHT
) -> tuple[Figure, str]:
    """Draw a picture next to explanations of one unit, each ``side`` pixels long, and return the figure and its caption."""
    panels = [Panel(enlarge(prepared.shown, side), "picture")]
    height, width = panels[0].image.shape[:2]
    laid = []
    for method, attribution in explained.maps:
        heat = heat_of(attribution)
        if attribution.ndim == 2:
            large = np.asarray(cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR))
            image = overlay(panels[0].image, large)
            laid.append(heat)
        else:
            image = enlarge(scaled_colours(heat), side)
        note = f"layer {explained.layer}" if method in CAMS else f"largest {np.abs(attribution).max():.3g}"
        panels.append(Panel(image, method, note))
    name = unit_name(model, explained.blob, explained.unit)
    caption = f"Unit {name} of blob '{explained.blob}'."
    if len(laid) < len(explained.maps):
        caption += " Gradient maps: the largest absolute value over the channels, from dark blue (0) to yellow."
    if laid:
        caption += " Over the gray picture: how much each part supports the unit, from dark blue (0) to yellow"
        signed = any(heat.min() < 0 for heat in laid)
        caption += "; where some oppose it, from purple (against) over white (0) to orange (for)." if signed else "."
    return panels_figure(panels, f"Why {name}?  ·  {prepared.name}", caption + _top(model, prepared), theme=theme), caption


def unit_name(model: PictureNet, blob: str, unit: Unit) -> str:
    """Return the class name of a unit of the last blobs, where labels are known, else its index."""
    if isinstance(unit, int) and model.labels and blob in (*model.net.outputs, score_blob(model.net)):
        return model.class_name(unit)
    return str(unit if isinstance(unit, int) or unit is None else ", ".join(map(str, unit)))


def score_blob(net: Net) -> str:
    """Return the blob to explain: the net's output, or what its last layer turns into probabilities."""
    output = target_blob(net, None)
    maker = next(layer for layer in reversed(net.layers) if output in layer.tops)
    role = layer_types()[maker.type_name].TRAITS.role if maker.type_name in layer_types() else "other"
    return maker.bottoms[0] if role == "probability" and maker.bottoms[0] != output else output


def last_feature_layer(net: Net, blob: str) -> str:
    """Return the last layer that ``blob`` depends on whose top has channels with positions. Raises :class:`NetError` without one."""
    for layer in reversed(needed_layers(net, [blob])):
        shape = layer.top_shapes[0] if layer.top_shapes else ()
        if not layer.IS_DATA and len(shape) == 4 and shape[2] * shape[3] > 1:
            return layer.name
    raise NetError(f"blob '{blob}' depends on no layer with positions; Grad-CAM needs one")


def _top(model: PictureNet, prepared: Prepared) -> str:
    output = model.net.outputs[0] if len(model.net.outputs) == 1 else None
    if output is None:
        return ""
    values = blob_values(model.net, prepared.input, [output], model.others)[output].reshape(-1)
    if model.labels and len(model.labels) != len(values):
        return ""
    best = np.argsort(-values, kind="stable")[:3]
    return f"\nOutput '{output}': " + ", ".join(f"{model.class_name(int(i))} {values[i]:.3g}" for i in best) + "."
