"""The next batches, read and placed on the devices by a thread while a step computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """Runs an iterator ahead by a few items on a thread.

    Args:
        items: the iterator; its errors are raised from `next` at the place of the failed item.
        place: turns an item into what `next` returns, e.g. by moving it to the devices.
        depth: how many finished items wait at most.
    """

    def __init__(self, items: Iterator[Any], place: Callable[[Any], Item], depth: int = 2):
        self._items, self._place = items, place
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                entry = self._place(next(self._items)), None
            except BaseException as error:
                entry = None, error
            while not self._stop.is_set():
                try:
                    self._queue.put(entry, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if entry[1] is not None:
                return

    def next(self) -> tuple[Item, float]:
        """The next item and the seconds spent waiting for it.

        Raises:
            StopIteration: the iterator has ended.
            Exception: whatever the iterator or `place` raised.
        """
        start = time.perf_counter()
        item, error = self._queue.get()
        if error is not None:
            raise error
        return item, time.perf_counter() - start  # type: ignore[return-value]

    def close(self) -> None:
        """Stops the thread and closes the iterator, if it can be closed."""
        self._stop.set()
        self._thread.join(timeout=10)
        close = getattr(self._items, "close", None)
        if close is not None and not self._thread.is_alive():
            close()
