"""Moving large arrays: transposed at the speed of memory, read ahead while others are written."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")

# Side of a block that is copied at once: both its rows and its columns stay in the cache.
_BLOCK = 128
_SMALL = 2**16
# Read before they are asked for, in bytes.
AHEAD = 256 * 2**20


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order.

    NumPy copies a transposed matrix row by row, which fetches every cache line anew for each of its
    numbers; in blocks it is four times as fast.
    """
    if array.flags.c_contiguous or array.size < _SMALL or array.ndim < 2:
        return np.asarray(array, order="C")
    strides = [abs(s) if n > 1 else np.inf for s, n in zip(array.strides, array.shape, strict=True)]
    fast, last = int(np.argmin(strides)), array.ndim - 1
    if fast == last:
        return np.asarray(array, order="C")
    made = np.empty(array.shape, array.dtype)
    # Types of other libraries are moved as the integers that NumPy knows.
    plain = np.dtype(f"u{array.dtype.itemsize}") if array.dtype.itemsize <= 8 else array.dtype
    source, target = array.view(plain), made.view(plain)
    for i in range(0, array.shape[fast], _BLOCK):
        for j in range(0, array.shape[last], _BLOCK):
            block = [slice(None)] * array.ndim
            block[fast], block[last] = slice(i, i + _BLOCK), slice(j, j + _BLOCK)
            target[tuple(block)] = source[tuple(block)]
    return made


def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item], Result],
    size: Callable[[Item], int],
    ahead: int = AHEAD,
) -> Iterator[tuple[Item, Result]]:
    """(item, what is read of it) in order; the next ones are read in a thread meanwhile.

    Args:
      items: what is to be read.
      read: runs in one thread of its own.
      size: bytes of an item.
      ahead: bytes that wait at most, about.
    """
    waiting: collections.deque[tuple[Item, Future[Result]]] = collections.deque()
    total = 0
    with ThreadPoolExecutor(1) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                total += size(item)
                while total > ahead:
                    first, done = waiting.popleft()
                    total -= size(first)
                    yield first, done.result()
            while waiting:
                first, done = waiting.popleft()
                yield first, done.result()
        finally:
            pool.shutdown(cancel_futures=True)
