"""One way to stop long work from outside: a token that the work checks between its steps."""

from __future__ import annotations

import threading

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
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the work to stop. May be called from any thread or signal handler, any number of times."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._event.is_set()

    def raise_if_cancelled(self, what: str = "the work") -> None:
        """Raise :class:`~caffetools.errors.Cancelled` if :meth:`cancel` was called.

        Args:
            what: Name of the work, for the message.
        """
        if self.cancelled:
            raise Cancelled(f"{what} was cancelled")

    def wait(self, seconds: float) -> bool:
        """Sleep up to ``seconds``, or until cancelled; return whether it was cancelled."""
        return self._event.wait(seconds)
