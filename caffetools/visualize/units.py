"""Units of a net, and the pictures that they are explained for.

A *unit* is named as follows:

- an index ``c`` into a blob (N, C): that value;
- ``(c, y, x)`` into a blob (N, C, H, W): that value;
- ``c`` or ``(c,)`` into a blob (N, C, H, W): the sum over all positions of channel ``c``;
- None: the unit with the largest value (of channel sums, for a blob with positions).

A blob's name stands for its last value: after an in-place ReLU, if there is one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caffetools.errors import DataError, NetError
from caffetools.layers.base import format_shape
from caffetools.net.net import Net
from caffetools.net.probe import Activations, Rule, join_items, picture_input, run_items
from caffetools.proto.schema import TEST

Unit = int | tuple[int, ...] | None
Image = NDArray[Any] | Tensor
Inputs = Mapping[str, Image]
# Called with (done, total).
Progress = Callable[[int, int], None]


def progress_of_part(progress: Progress, index: int, parts: int) -> Progress:
    """Return what reports the progress of part ``index`` of ``parts`` of equal weight as percents of all of them."""

    def advance(done: int, total: int) -> None:
        progress(int(100 * (index + done / total) / parts), 100)

    return advance


@dataclass(frozen=True)
class UnitProbe:
    """One unit of a net, and the picture that it is asked for.

    Attributes:
        net: A net in the TEST phase.
        picture: (1, C, H, W) float32.
        source: The input of pictures.
        others: Values of the net's other inputs, with a batch axis of 1.
        blob: The blob of the unit.
        unit: An index; never None.
    """

    net: Net
    picture: Tensor
    source: str
    others: Mapping[str, Tensor]
    blob: str
    unit: Unit

    @classmethod
    def of(cls, net: Net, image: Image, blob: str | None, unit: Unit, inputs: Inputs | None = None) -> UnitProbe:
        """Check what the user gave, and find the blob and the unit where they are None.

        Args:
            net: A net in the TEST phase, with its weights.
            image: (C, H, W), preprocessed.
            blob: The blob of the unit; see :func:`target_blob`.
            unit: See the module's description.
            inputs: Values of the net's other inputs that the blob depends on, by name, with or without a batch axis of 1.

        Raises:
            NetError: the net has no such blob, or the picture does not fit it.
            DataError: the blob has no such unit.
        """
        blob = target_blob(check_net(net), blob)
        picture, source = picture_batch(net, image, blob), picture_input(net, [blob])
        others = other_inputs(net, inputs or {}, source)
        probe = cls(net, picture, source, others, blob, unit)
        if unit is not None:
            return probe
        with located_picture(net, picture, source):
            values = join_items(run_items(net, picture, source=source, others=others, blobs=[blob]), blob)
        return cls(net, picture, source, others, blob, int(_unit_sums(values, blob)[0].argmax()))

    def scores(self, batch: Tensor) -> NDArray[np.float64]:
        """Return the unit's scores for a batch of pictures (N, C, H, W): (N,). Raises :class:`DataError` where they are not finite."""
        with located_picture(self.net, batch, self.source):
            parts = run_items(self.net, batch, source=self.source, others=self.others, blobs=[self.blob])
        scores = [unit_score(part.values.blobs[self.blob], self.blob, self.unit)[: part.count] for part in parts]
        return np.asarray(self._finite(torch.cat(scores)).double().cpu().numpy())

    def gradients(self, batch: Tensor, rule: Rule | None = None) -> NDArray[np.float32]:
        """Return each picture's gradient of its score, for a batch (N, C, H, W) and of its shape.

        Raises:
            NetError: the score does not depend on the picture by operations with a gradient.
            DataError: the score or its gradient is not finite.
        """
        found = [
            self._finite(values.gradient(score, values.inputs[self.source], what=f"blob '{self.blob}'")[:count].detach().float().cpu())
            for values, score, count in self.recorded(batch, rule=rule)
        ]
        return np.ascontiguousarray(torch.cat(found).numpy())

    def recorded(
        self, batch: Tensor, *, layers: tuple[str, ...] = (), blobs: tuple[str, ...] = (), rule: Rule | None = None
    ) -> Iterator[tuple[Activations, Tensor, int]]:
        """Run a batch with a graph; yield for each part its values, the sum of its scores, and its number of pictures.

        Items do not mix in the TEST phase, so that the sum of scores has each item's gradient.

        Args:
            batch: (N, C, H, W).
            layers: Layers whose tops are wanted too.
            blobs: Further blobs that are wanted.
            rule: See :data:`~caffetools.net.probe.Rule`.

        Raises:
            DataError: scores are not finite.
        """
        with located_picture(self.net, batch, self.source):
            wanted = [self.blob, *blobs]
            parts = run_items(self.net, batch, source=self.source, others=self.others, blobs=wanted, layers=layers, record=True, rule=rule)
        for part in parts:
            with torch.inference_mode(False), torch.enable_grad():
                scores = self._finite(unit_score(part.values.blobs[self.blob], self.blob, self.unit))
                # A blob without a batch axis (time steps, boxes) is one item as a whole.
                whole = len(scores) != len(part.values.inputs[self.source])
                yield part.values, (scores if whole else scores[: part.count]).sum(), part.count

    def _finite(self, values: Tensor) -> Tensor:
        """Return scores or gradients. Raises :class:`DataError` where one is NaN or infinite: a picture of them would show nothing."""
        if not bool(torch.isfinite(values).all()):
            raise DataError(f"blob '{self.blob}' or its gradient is not finite for this picture: the net's weights have diverged")
        return values


@contextmanager
def located_picture(net: Net, picture: Tensor, source: str) -> Iterator[None]:
    """Add to a :class:`NetError` of the body that the picture has another size than the net's input, where it has."""
    try:
        yield
    except NetError as error:
        wanted, given = tuple(net.blob_shapes[source][1:]), tuple(picture.shape[1:])
        if wanted != given and error.hint is None:
            error.hint = f"the picture is {format_shape(given)}, and input '{source}' takes {format_shape(wanted)}"
        raise


def check_net(net: Net) -> Net:
    """Return ``net``. Raises :class:`NetError` where it is not a net, or in the TRAIN phase, where dropout is random."""
    if not isinstance(net, Net):
        raise NetError(f"a net of caffetools.load_net is expected, not {type(net).__name__}")
    if net.training and net.phase == TEST:
        raise NetError(f"the net '{net.name}' is in torch's training mode, where dropout is random; call net.eval() first")
    if net.phase != TEST:
        raise NetError(f"the net '{net.name}' is in the TRAIN phase; load it in the TEST phase to look into it")
    return net


def unit_score(values: Tensor, blob: str, unit: Unit) -> Tensor:
    """Return the score of ``unit`` for each item of a batch: (N,).

    Args:
        values: The blob, (N, C) or (N, C, H, W) or of any other number of axes.
        blob: Its name, for the message.
        unit: See the module's description; None takes the largest unit of the first item.

    Raises:
        DataError: the blob has no such unit.
    """
    sums = _unit_sums(values, blob)
    index = (int(sums[0].argmax()),) if unit is None else _unit_index(unit)
    shape = tuple(values.shape[1:])
    fits = len(index) in (1, len(shape)) and all(0 <= i < n for i, n in zip(index, shape, strict=False))
    if not fits:
        raise DataError(f"blob '{blob}' has units {format_shape(shape)}, so it has no unit {index if len(index) > 1 else index[0]}")
    return sums[:, index[0]] if len(index) == 1 else values.flatten(1)[:, int(np.ravel_multi_index(index, shape))]


def _unit_sums(values: Tensor, blob: str) -> Tensor:
    """Return the sums over the positions of each unit of a blob, (N, C). Raises :class:`DataError` where it has no units."""
    if values.dim() < 2:
        raise DataError(f"blob '{blob}' is {format_shape(values.shape)}: it has no units")
    return values.flatten(2).sum(2) if values.dim() > 2 else values


def as_batch(image: Image) -> Tensor:
    """Return one picture (C, H, W), array or tensor, as (1, C, H, W) float32 on the CPU.

    Raises:
        DataError: it has another shape, values that are not real numbers, or NaN or infinite ones.
    """
    array = image.detach().cpu() if isinstance(image, Tensor) else _array(image)
    if array.is_complex():
        raise DataError("one preprocessed picture (C, H, W) of real numbers is expected, not of complex ones")
    x = array.float()
    if x.dim() == 4 and x.shape[0] == 1:
        x = x[0]
    if x.dim() != 3 or not x.numel():
        raise DataError(f"one preprocessed picture (C, H, W) is expected, not an array of {format_shape(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise DataError("the picture has values that are NaN or infinite")
    return x[None]


def picture_batch(net: Net, image: Image, *blobs: str) -> Tensor:
    """Return a picture as :func:`as_batch` for a net in the TEST phase that takes pictures with so many channels.

    Args:
        net: The net.
        image: (C, H, W), preprocessed.
        blobs: The picture is for the input that these depend on.

    Raises:
        NetError: the net is in the TRAIN phase, has no such blob, or its input takes another number of channels.
        DataError: as :func:`as_batch`.
    """
    batch, name = as_batch(image), picture_input(check_net(net), blobs)
    wanted, given = net.blob_shapes[name], tuple(batch.shape[1:])
    if len(wanted) == 4 and wanted[1] != given[0]:
        hint = "; transpose the picture from (H, W, C)" if wanted[1] == given[2] else ""
        raise NetError(f"the picture is {format_shape(given)}, but input '{name}' takes {format_shape(wanted[1:])} (C x H x W){hint}")
    return batch


def target_blob(net: Net, blob: str | None) -> str:
    """Return ``blob``; for None the net's single output.

    Of several outputs it is the only one of probabilities (a detector has others of boxes); where the outputs are losses and metrics, it
    is the scores that they read.

    Raises:
        NetError: the net has several such outputs or scores.
    """
    if blob is not None:
        return blob
    makers = [next(layer for layer in reversed(net.layers) if output in layer.tops) for output in net.outputs]
    roles = [layer.TRAITS.role for layer in makers]
    if roles and all(role in ("loss", "metric") for role in roles):
        found = list(dict.fromkeys(layer.bottoms[layer.TRAITS.scores_bottom or 0] for layer in makers))
    elif roles.count("probability") == 1:
        found = [net.outputs[roles.index("probability")]]
    else:
        found = list(net.outputs)
    if len(found) != 1:
        raise NetError(f"the net '{net.name}' has {len(found)} outputs ({', '.join(found)}); name the blob to explain")
    return found[0]


def other_inputs(net: Net, inputs: Inputs, source: str) -> dict[str, Tensor]:
    """Return the values of the inputs that are not the picture, by name, float32 with a batch axis of 1.

    Args:
        net: The net.
        inputs: Values by name, with or without the batch axis.
        source: The input of pictures.

    Raises:
        NetError: the net has no such input next to the picture's.
        DataError: a value has another shape, or is not of real numbers.
    """
    return {name: _other_input(net, name, value, source) for name, value in inputs.items()}


def _other_input(net: Net, name: str, value: Image, source: str) -> Tensor:
    if name not in net.inputs or name == source:
        raise NetError(
            f"the net '{net.name}' has no input '{name}' next to the picture's '{source}'; its inputs are {', '.join(net.inputs)}"
        )
    tensor = value.detach().cpu() if isinstance(value, Tensor) else _array(value)
    shape = tuple(net.blob_shapes[name][1:])
    if tuple(tensor.shape) == shape:
        tensor = tensor[None]
    if tensor.is_complex() or tuple(tensor.shape) != (1, *shape):
        raise DataError(f"the value of input '{name}' is {format_shape(tensor.shape)}, but {format_shape(shape)} is expected")
    return tensor.float()


def _array(image: NDArray[Any]) -> Tensor:
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise DataError(f"one preprocessed picture (C, H, W) is expected: {error}") from None
    if array.dtype.kind not in "fiubc":
        raise DataError(f"one preprocessed picture (C, H, W) of numbers is expected, not an array of type {array.dtype}")
    return torch.from_numpy(np.array(array, np.complex64 if array.dtype.kind == "c" else np.float32))


def _unit_index(unit: object) -> tuple[int, ...]:
    """Return a unit as indices. Raises :class:`DataError` where it is neither an integer nor a sequence of them."""
    parts = tuple(unit) if isinstance(unit, list | tuple) or (isinstance(unit, np.ndarray) and unit.ndim == 1) else (unit,)
    try:
        if not parts or any(isinstance(part, bool) for part in parts):
            raise TypeError
        return tuple(operator.index(part) for part in parts)
    except TypeError:
        raise DataError(f"a unit is an index c or (c, y, x), not {unit!r}") from None
