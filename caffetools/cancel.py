"""One way to stop long work from outside: a token that the work checks between its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue

from caffetools.errors import Cancelled


class CancelToken:
    """A thread-safe flag that asks running work to stop.

    Work that takes a token checks it between records, batches or iterations. After :meth:`cancel` it stops at the next check,
    leaves whole, resumable files behind, and raises :class:`~caffetools.errors.Cancelled` (training returns normally with
    ``stopped=True`` after its snapshot).

    Example:
        >>> token = CancelToken()
        >>> token.cancelled
        False
        >>> token.cancel()
        >>> token.cancelled
        True
    """

    def __init__(self) -> None:
        self._cancelled = False
        # Unlike a lock or an Event, its put may interrupt itself: a signal handler may cancel.
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._callbacks: list[Callable[[], object]] = []

    def cancel(self) -> None:
        """Ask the work to stop. May be called from any thread or signal handler, any number of times."""
        first, self._cancelled = not self._cancelled, True
        self._wakeups.put(None)
        if first:
            for callback in tuple(self._callbacks):
                callback()

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._cancelled

    def raise_if_cancelled(self, what: str = "the work") -> None:
        """Raise :class:`~caffetools.errors.Cancelled` if :meth:`cancel` was called.

        Args:
            what: Name of the work, for the message.
        """
        if self._cancelled:
            raise Cancelled(f"{what} was cancelled")

    def wait(self, seconds: float) -> bool:
        """Sleep up to ``seconds``, or until cancelled; return whether it was cancelled."""
        if not self._cancelled:
            with suppress(Empty):
                self._wakeups.get(timeout=seconds)
                # For another thread that waits.
                self._wakeups.put(None)
        return self._cancelled

    @contextmanager
    def calling(self, callback: Callable[[], object]) -> Iterator[None]:
        """Call ``callback`` once when the token is cancelled while the block runs; at once if it is cancelled already.

        Args:
            callback: Called in the thread that cancels; for work that waits for another process and cannot check the token.
        """
        self._callbacks.append(callback)
        try:
            if self._cancelled:
                callback()
            yield
        finally:
            self._callbacks.remove(callback)
