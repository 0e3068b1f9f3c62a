"""Which processes of a training still run, for the message of one that has lost the connection to another.

Nothing is exchanged while all goes well: each process only looks once a second whether another one has asked. A process that has ended,
that is stopped, or whose machine is lost does not answer.
"""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_HOST, _QUESTION, _PRESENT = "presence/host", "presence/question", "presence/present"
# Seconds between two looks at the store.
_INTERVAL = 1.0


class Presence:
    """The answering thread of one process, and its question to the others.

    Args:
        store: The store that all processes share.
        rank: This process.
        size: Number of processes.
    """

    def __init__(self, store: Store, rank: int, size: int):
        self._store = store
        self._rank, self._size = rank, size
        self._ended = threading.Event()
        store.set(f"{_HOST}/{rank}", socket.gethostname())
        self._first_host: str = store.get(f"{_HOST}/0").decode()
        self._thread = threading.Thread(target=self._answer, name="caffetools-presence", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def ask(self) -> None:
        """Ask all processes whether they run; :meth:`lost` looks at the answers."""
        try:
            self._store.set(_QUESTION, "")
            self._store.set(f"{_PRESENT}/{self._rank}", "")
        except RuntimeError:
            # lost() finds that there is no store any more.
            return

    def lost(self) -> str:
        """Return which processes did not answer the question of :meth:`ask`, with their machines; "" where all did.

        The store is on the machine of process 0, so a store that cannot be reached stands for that process.
        """
        hosts: dict[str, list[int]] = defaultdict(list)
        try:
            for rank in range(self._size):
                if not self._store.check([f"{_PRESENT}/{rank}"]):
                    hosts[self._store.get(f"{_HOST}/{rank}").decode()].append(rank)
        except RuntimeError:
            hosts = defaultdict(list, {self._first_host: [0]})
        return " and ".join(f"{_named(ranks)} of {self._size} on {host}" for host, ranks in hosts.items())

    def _answer(self) -> None:
        while not self._ended.wait(_INTERVAL):
            try:
                if self._store.check([_QUESTION]):
                    self._store.set(f"{_PRESENT}/{self._rank}", "")
                    return
            except RuntimeError:
                return


def _named(ranks: list[int]) -> str:
    """Return ``process 2``, or ``processes 2, 3 and 5``."""
    *others, last = map(str, ranks)
    return f"processes {', '.join(others)} and {last}" if others else f"process {last}"
