"""Which tops are losses and which bottoms need a gradient (Caffe's Net::Init): above something to learn, and as propagate_down asks."""

from __future__ import annotations

from typing import NamedTuple

from caffetools.errors import NetError
from caffetools.layers.base import Layer
from caffetools.proto.schema import NetParameter


class Refusal(NamedTuple):
    """A gradient that a layer is asked for and does not have, where Caffe's backward pass ends the process.

    Attributes:
        bottom: The bottom's index.
        forced: Whether the net's force_backward alone asks for it.
    """

    bottom: int
    forced: bool


def loss_weights(layer: Layer) -> list[float]:
    """Return Caffe's loss weight of each top of a layer: as given, else 1 for the first top of a loss, 0 for others.

    Raises:
        NetError: The layer gives loss_weight for another number of tops.
    """
    given = [float(weight) for weight in layer.param.loss_weight]
    if given and len(given) != len(layer.tops):
        raise layer.error(f"loss_weight is given {len(given)} times for {len(layer.tops)} top(s)")
    if not given and layer.IS_LOSS:
        given = [1.0]
    return given + [0.0] * (len(layer.tops) - len(given))


def weights_in_gradient(layers: list[Layer]) -> dict[str, float]:
    """Return the weight of each loss in the sum whose gradient is computed: blob → weight, where not 0.

    The weight 1 of a loss whose prototxt gives none counts only where no layer reads the loss: Caffe keeps it in the blob's diff, which
    belongs to the readers then. A weight that the prototxt gives is added to what the readers return.

    Raises:
        NetError: As :func:`loss_weights`.
    """
    found: dict[str, float] = {}
    implied: set[str] = set()
    for layer in layers:
        for bottom in implied.intersection(layer.bottoms):
            found[bottom] = 0.0
        weights = dict(zip(layer.tops, loss_weights(layer), strict=True))
        implied = (implied - weights.keys()) | (set() if len(layer.param.loss_weight) else weights.keys())
        found.update(weights)
    return {blob: weight for blob, weight in found.items() if weight}


def plan_gradients(layers: list[Layer], *, force: bool = False, above_statistics: bool = False, inputs: bool = False) -> list[list[bool]]:
    """Return, for each layer in order, whether each of its bottoms gets a gradient.

    A bottom's gradient is needed where something below it learns (or ``force`` asks for all), and its layer can compute one.
    Whether a loss depends on it, autograd finds out by itself.

    Args:
        layers: The layers of a net, in order; several may have one name.
        force: The net's ``force_backward``.
        above_statistics: Whether blobs above a layer that only keeps statistics get a gradient, too. In Caffe BatchNorm turns lr_mult
            off after the net has read it, so that their diffs are computed; no parameter depends on them.
        inputs: Whether the tops of data layers want a gradient, as tensors given with ``requires_grad`` do.

    Raises:
        NetError: a layer gives propagate_down for another number of bottoms.
    """
    return plan_backward(layers, force=force, above_statistics=above_statistics, inputs=inputs)[0]


def plan_backward(
    layers: list[Layer], *, force: bool = False, above_statistics: bool = False, inputs: bool = False
) -> tuple[list[list[bool]], list[bool]]:
    """Return what :func:`plan_gradients` does, and for each layer whether it has a backward pass where a loss depends on it.

    Arguments and errors as there.
    """
    wanted: list[list[bool]] = []
    back: list[bool] = []
    needed: dict[str, bool] = {}
    for layer in layers:
        below = [needed.get(b, False) for b in layer.bottoms]
        given = list(layer.param.propagate_down)
        if given and len(given) != len(layer.bottoms):
            raise layer.error(f"propagate_down is given {len(given)} times for {len(layer.bottoms)} bottom(s)")
        learns = any(p.requires_grad for p in layer.blobs) or (above_statistics and _keeps_statistics(layer))
        # As in Caffe propagate_down stops a gradient below its layer, not at its top, and asks for none where the layer has none.
        goes_back = (
            learns or force or (inputs and layer.IS_DATA) or any(need for index, need in enumerate(below) if index not in layer.NO_GRADIENT)
        )
        needs = [((need and goes_back) or force) and index not in layer.NO_GRADIENT for index, need in enumerate(given or below)]
        wanted.append(needs)
        back.append(goes_back)
        needed.update(dict.fromkeys(layer.tops, goes_back))
    _add_unasked(layers, wanted, back)
    return wanted, back


def _add_unasked(layers: list[Layer], wanted: list[list[bool]], back: list[bool]) -> None:
    """Let layers whose backward pass in Caffe does not look at propagate_down give a gradient where another reader of the blob gives one.

    Caffe's Split adds what it finds in the diffs of all its tops.

    Args:
        layers: The layers.
        wanted: For each whether each of its bottoms gets a gradient; changed in place.
        back: For each whether it has a backward pass.
    """
    readers: dict[str, list[tuple[int, int]]] = {}
    versions = []
    for index, layer in enumerate(layers):
        for bottom, name in enumerate(layer.bottoms):
            readers.setdefault(name, []).append((index, bottom))
        versions += [readers.pop(top) for top in layer.tops if top in readers]
    for found in (*versions, *readers.values()):
        if any(wanted[index][bottom] for index, bottom in found):
            for index, bottom in found:
                ignores = layers[index].BACKWARD_IS_UNASKED or (layers[index].SHARES != "data" and layers[index].shares_memory())
                wanted[index][bottom] = wanted[index][bottom] or (ignores and back[index])


def refused_gradients(layers: list[Layer], *, force: bool = False) -> dict[int, Refusal]:
    """Return where Caffe's backward pass ends the process, by the layer's index: a gradient is asked for that the layer does not have.

    A loss asks for it where the bottom (labels, what ArgMax or Threshold reads) depends on something that learns, and no propagate_down
    leaves it out; force_backward asks all layers, also where propagate_down is false.

    Args:
        layers: The layers of a net, in order.
        force: The net's ``force_backward``.
    """
    found: dict[int, Refusal] = {}
    if force:
        for index, layer in enumerate(layers):
            for bottom in sorted(layer.REFUSES_FORCED.intersection(range(len(layer.bottoms))))[:1]:
                found[index] = Refusal(bottom, forced=True)
    found |= _refused_by_losses(layers)
    return found


def _refused_by_losses(layers: list[Layer]) -> dict[int, Refusal]:
    needed: dict[str, bool] = {}
    asked: list[list[bool]] = []
    for layer in layers:
        below = [needed.get(bottom, False) for bottom in layer.bottoms]
        learns = any(below) or any(p.requires_grad for p in layer.blobs) or _keeps_statistics(layer)
        asked.append(list(layer.param.propagate_down) or below if learns else [])
        needed.update(dict.fromkeys(layer.tops, learns))
    found: dict[int, Refusal] = {}
    # For the blobs that layers further up read: whether one of those leads to a loss, and whether one asks for a gradient.
    readers: dict[str, tuple[bool, bool]] = {}
    for index, layer in reversed(list(enumerate(layers))):
        above = [readers.pop(top, None) for top in layer.tops]
        has_loss = any(loss_weights(layer))
        leads_to_loss = has_loss or any(reader is not None and reader[0] for reader in above)
        goes_back = leads_to_loss and (has_loss or any(reader is None or reader[1] for reader in above))
        for bottom, ask in enumerate(asked[index] if goes_back else []):
            if ask and layer.REFUSES_GRADIENT and bottom in layer.NO_GRADIENT:
                found.setdefault(index, Refusal(bottom, forced=False))
        for bottom, name in enumerate(layer.bottoms):
            under, asks = readers.get(name, (False, False))
            ask = goes_back and bool(asked[index]) and asked[index][bottom]
            readers[name] = under or leads_to_loss, asks or ask
    return found


def check_gradients(layers: list[Layer], *, force: bool = False) -> None:
    """Check that no layer is asked for a gradient that it does not have. Raises :class:`NetError` naming the layer and its bottom.

    Args:
        layers: The layers of a net, in order.
        force: The net's ``force_backward``.
    """
    for index, refusal in sorted(refused_gradients(layers, force=force).items()):
        raise no_gradient(layers[index], refusal)


def no_gradient(layer: Layer, refusal: Refusal) -> NetError:
    """Return the error of a layer that is asked for a gradient that it does not have; to be raised."""
    bottom = refusal.bottom
    if refusal.forced:
        return layer.error(
            f"the net's force_backward asks for the gradient of its bottom '{layer.bottoms[bottom]}', which the layer does not have; "
            "take force_backward out, or the layer (an 'exclude' of the phase), or begin the backward pass at a layer below it"
        )
    given = " ".join(f"propagate_down: {str(index not in layer.NO_GRADIENT).lower()}" for index in range(len(layer.bottoms)))
    return layer.error(
        f"its bottom '{layer.bottoms[bottom]}' depends on parameters that learn, but the layer has no gradient for it; '{given}' leaves it out"
    )


def check_gradient_scale(net: NetParameter, layers: list[Layer]) -> None:
    """Check that NVCaffe's ``global_grad_scale`` of a net changes no update: all of its losses multiply their gradients by it.

    NVCaffe divides the gradients of all parameters by it again, also those of losses that do not know it.

    Args:
        net: The net's ``NetParameter``.
        layers: Its layers, in order.

    Raises:
        NetError: A loss of another type would get a smaller gradient; names its layer.
    """
    if net.global_grad_scale == 1 and not net.global_grad_scale_adaptive:
        return
    for layer in layers:
        if any(loss_weights(layer)) and not layer.TRAITS.scaled_gradient:
            field = "global_grad_scale_adaptive" if net.global_grad_scale_adaptive else "global_grad_scale"
            raise layer.error(f"the net's {field} divides the gradient of this loss in NVCaffe, which is not supported; remove that field")


def _keeps_statistics(layer: Layer) -> bool:
    """Return whether all of the layer's blobs are statistics, and the prototxt does not give each of them lr_mult 0, as Caffe's net reads it."""
    given = [param.lr_mult for param in layer.param.param]
    rates = (given + [1.0] * len(layer.specs))[: len(layer.specs)]
    return any(rates) and not any(spec.learnable for spec in layer.specs)


def plan_inplace(layers: list[Layer]) -> None:
    """Let layers that work in place overwrite their bottom's memory where no gradient needs the old values.

    That is so where the layer that produces the blob computes its gradient without its top (convolutions, inner products), and no
    other layer reads the blob in between. Elsewhere "in place" only shares a name, and autograd keeps both tensors.
    """
    producer: dict[str, Layer] = {}
    consumers: dict[str, int] = {}
    for layer in layers:
        in_place = len(layer.bottoms) == 1 and layer.tops == layer.bottoms
        source = producer.get(layer.bottoms[0]) if in_place else None
        layer.inplace_ok = source is not None and not source.NEEDS_TOP and not consumers.get(layer.bottoms[0])
        for bottom in layer.bottoms:
            consumers[bottom] = consumers.get(bottom, 0) + 1
        for top in layer.tops:
            producer[top], consumers[top] = layer, 0
