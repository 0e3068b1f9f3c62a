"""Updates within the backward pass: the gradient of a large parameter is used, and freed, as soon as it is whole.

The three inner products of VGG-16 have gradients of half a gigabyte, which otherwise last until all others are computed. Where the native
library computes an inner product, its gradient is not even there as a whole: it is used by blocks of rows. The weights get the same bits:
a rule works on one element of a parameter at a time, and nothing reads a parameter that one layer owns once that layer's gradients are
computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor

from caffetools.layers.native_product import gradient_by_rows
from caffetools.net.net import Net
from caffetools.solver.callbacks import Callback
from caffetools.solver.update import UpdateRule

# Gradients of fewer bytes are not worth a call each.
_LEAST_BYTES = 1 << 22
# Between the backward pass and the update these are called, and a callback may read gradients there.
_HOOKS = ("on_before_update", "on_log")


class EarlyUpdates:
    """The parameters of a net that may be updated within its backward pass.

    Args:
        net: The training net.
        rule: Its update rule.
    """

    def __init__(self, net: Net, rule: UpdateRule):
        self._net, self._rule = net, rule

    def are_exact(self, callbacks: Iterable[Callback]) -> bool:
        """Return whether an update is that of one backward pass alone, of which no ``callbacks`` and no norm need all gradients at once."""
        rule = self._rule
        return rule.iter_size == 1 and rule.clip < 0 and self._net.device.type == "cpu" and not any(map(_may_read_gradients, callbacks))

    @contextmanager
    def made(self, rate: float, iteration: int) -> Iterator[None]:
        """Update large parameters as their gradients are accumulated within the block, as :meth:`UpdateRule.apply` would after it.

        Args:
            rate: As for the rule.
            iteration: As for the rule.
        """

        def update(parameter: Tensor) -> None:
            if parameter.grad is None:
                return  # its rows are updated already
            self._rule.apply_to(parameter, rate, iteration)
            parameter.grad = None

        large = self._large()
        handles = [parameter.register_post_accumulate_grad_hook(update) for parameter in large]  # type: ignore[no-untyped-call]
        try:
            with ExitStack() as stack:
                for parameter in large:
                    # A hook of the user's gets the whole gradient.
                    if not parameter._backward_hooks:  # noqa: SLF001
                        take = partial(self._rule.apply_rows, parameter, rate=rate, iteration=iteration)
                        stack.enter_context(gradient_by_rows(parameter, take))
                yield
        except BaseException:
            self._rule.forget_early()
            raise
        finally:
            for handle in handles:
                handle.remove()

    def _large(self) -> list[Tensor]:
        owners = Counter(id(blob) for layer in self._net.layers for blob in layer.blobs)
        shared = {id(blob.shared_owner) for layer in self._net.layers for blob in layer.blobs if hasattr(blob, "shared_owner")}
        return [
            parameter
            for parameter in (entry.parameter for entry in self._net.learnable)
            if parameter.requires_grad
            and parameter.nbytes >= _LEAST_BYTES
            and parameter.grad is None
            and owners[id(parameter)] == 1
            and id(parameter) not in shared
        ]


def _may_read_gradients(callback: Callback) -> bool:
    hooks = [getattr(callback, name) for name in _HOOKS]
    return any(_module(hook) not in _READ_NONE for hook in hooks)


def _module(hook: Callable[..., None]) -> str:
    return str(getattr(hook, "__module__", ""))


# Modules of callbacks that read no gradients.
_READ_NONE = ("caffetools.solver.callbacks", "caffetools.solver.logs.caffe_log")
