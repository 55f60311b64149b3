"""Copies in blocks are copies, and reading ahead changes nothing but the time."""

from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import pytest

from unialign_jax.bundle.copying import contiguous, read_ahead

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64, np.int8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((301, 517), (1, 0)),
        ((6, 129, 257), (2, 1, 0)),
        ((130, 3, 4, 131), (3, 1, 2, 0)),
        ((140, 9, 150), (0, 2, 1)),
        ((1, 300, 400), (2, 1, 0)),
        ((3, 3, 200, 150), (3, 2, 0, 1)),
    ],
)
def test_any_transposed_view_becomes_itself_in_c_order(shape, axes, dtype):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    view = array.transpose(axes)
    made = contiguous(view)
    assert made.flags.c_contiguous and made.dtype == view.dtype
    np.testing.assert_array_equal(made, view)


def test_every_second_row_and_a_reversed_axis_too():
    array = np.random.default_rng(0).integers(0, 100, (600, 300)).astype(np.float32)
    for view in (array[::2].T, array[:, ::-1].T, array.T[::-1], array[::-1, ::-1]):
        np.testing.assert_array_equal(contiguous(view), view)


def test_items_come_in_order_and_no_more_wait_than_allowed():
    read, most = [], 0

    def one(item):
        read.append(item)
        return item * item

    for item, square in read_ahead(range(20), one, lambda item: 10, ahead=30):
        assert square == item * item
        most = max(most, len(read) - item)
    assert read == list(range(20))
    assert most <= 5


def test_an_error_of_reading_arrives_and_leaves_no_thread():
    def fail(item):
        if item == 3:
            raise ValueError("three")
        return item

    before = threading.active_count()
    with pytest.raises(ValueError, match="three"):
        list(read_ahead(range(10), fail, lambda item: 1, ahead=2))
    assert threading.active_count() == before
