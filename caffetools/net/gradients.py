"""Which bottoms need a gradient (Caffe's Net::Init): above something to learn, and as propagate_down says."""

from __future__ import annotations

from caffetools.layers.base import Layer


def plan_gradients(layers: list[Layer], *, force: bool = False) -> dict[str, list[bool]]:
    """For each layer, by name, whether each of its bottoms gets a gradient.

    A bottom's gradient is wanted where something below it learns (or ``force`` asks for all), and its layer can give one. Whether
    a loss lies above it, autograd finds out by itself.
    """
    wanted: dict[str, list[bool]] = {}
    flows: dict[str, bool] = {}
    for layer in layers:
        needs = [flows.get(b, False) for b in layer.bottoms]
        given = list(layer.param.propagate_down)
        if given:
            if len(given) != len(layer.bottoms):
                raise layer.error(f"propagate_down is given {len(given)} times for {len(layer.bottoms)} bottom(s)")
            needs = given
        learns = any(p.requires_grad for p in layer.blobs)
        needs = [(need or force) and index not in layer.NO_GRADIENT for index, need in enumerate(needs)]
        wanted[layer.name] = needs
        flows.update(dict.fromkeys(layer.tops, learns or any(needs) or (force and layer.IS_DATA)))
    return wanted


def plan_inplace(layers: list[Layer]) -> None:
    """Let a layer that works in place really overwrite its bottom, where no gradient needs the old values.

    That is so where the blob's maker computes its gradient without its top (convolutions, inner products), and no other layer
    reads the blob in between. Elsewhere "in place" is only a matter of names, and autograd keeps both tensors.
    """
    maker: dict[str, Layer] = {}
    readers: dict[str, int] = {}
    for layer in layers:
        in_place = len(layer.bottoms) == 1 and layer.tops == layer.bottoms
        source = maker.get(layer.bottoms[0]) if in_place else None
        layer.inplace_ok = source is not None and not source.NEEDS_TOP and not readers.get(layer.bottoms[0])
        for bottom in layer.bottoms:
            readers[bottom] = readers.get(bottom, 0) + 1
        for top in layer.tops:
            maker[top], readers[top] = layer, 0
