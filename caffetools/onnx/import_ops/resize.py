"""Resize and Upsample."""

from __future__ import annotations

import numpy as np

from caffetools.onnx.import_graph import Node
from caffetools.onnx.import_net import NetWriter, importer
from caffetools.onnx.import_ops.window import fill_kernel


@importer("Resize", "Upsample")
def resize(writer: NetWriter, node: Node) -> None:
    """Whole factors of nearest: a deconvolution of ones; bilinear with fixed corners: Interp."""
    source, target = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    if source == target:
        writer.alias(node)
        return
    if len(source) != 4 or source[:2] != target[:2]:
        raise node.error("only maps of 2 axes are resized")
    mode = str(node.attributes.get("mode", "nearest"))
    where = str(node.attributes.get("coordinate_transformation_mode", "half_pixel" if node.op == "Resize" else "asymmetric"))
    blob, channels = writer.blob(node, node.inputs[0]), source[1]
    factors = [m // n for n, m in zip(source[2:], target[2:], strict=True)]
    whole = all(n * f == m for n, f, m in zip(source[2:], factors, target[2:], strict=True))
    rounding = str(node.attributes.get("nearest_mode", "round_prefer_floor"))
    copies = (where == "asymmetric" and rounding == "floor") or (
        where in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round")
    )
    if mode == "nearest" and whole and (node.op == "Upsample" or copies):
        if writer.target == "any" and factors[0] == factors[1]:
            writer.layer(node, "Upsample", [blob]).upsample_param.scale = factors[0]
            return
        layer = writer.layer(node, "Deconvolution", [blob], weights=[np.ones((channels, 1, *factors))])
        fill_kernel(layer, channels, factors, factors, (0, 0), (1, 1), channels)
        layer.convolution_param.bias_term = False
    elif mode == "linear" and where == "align_corners" and writer.target == "any":
        layer = writer.layer(node, "Interp", [blob])
        layer.interp_param.height, layer.interp_param.width = target[2:]
    else:
        raise node.error(
            f"{mode} with {where} by {target[2] / source[2]:g} x {target[3] / source[3]:g} has no layer; nearest by whole factors has, and "
            "with --target any bilinear with align_corners"
        )
