"""Sizes of Qwen2.5-VL's vision tower, and what follows from the sizes of its images alone.

Windows, order and angles are computed in NumPy, at trace time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unialign_jax.models.checks import check_dtype, check_sizes

if TYPE_CHECKING:
    from jaxtyping import Float, Int

CHANNELS = 3
_ROTARY_BASE = 10000.0

Grid = tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """Sizes of the tower; the defaults are those of Qwen2.5-VL-7B.

    Attributes:
      depth: number of blocks.
      width: channels of a patch in the blocks.
      heads: attention heads; `width` is a multiple, by a multiple of 4.
      mlp_width: channels inside the gated MLP.
      out_width: channels of the tokens that come out.
      patch_size: height and width of a patch in pixels.
      merge: patches per side of the square that becomes one token.
      frames: images that a patch spans in time; a still is repeated.
      window: height and width of an attention window in pixels.
      full_blocks: numbers, from 0, of the blocks that attend over whole images. Numbers that no
        block has are without effect, as in the original.
      dtype: compute and output dtype. Norms, softmax and rotations are float32 whatever it is.
      param_dtype: dtype in which the parameters are created.
    """

    depth: int = 32
    width: int = 1280
    heads: int = 16
    mlp_width: int = 3420
    out_width: int = 3584
    patch_size: int = 14
    merge: int = 2
    frames: int = 2
    window: int = 112
    full_blocks: tuple[int, ...] = (7, 15, 23, 31)
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_dtype("dtype", self.dtype)
        check_dtype("param_dtype", self.param_dtype)
        check_sizes(
            self,
            *("depth", "width", "heads", "mlp_width", "out_width"),
            *("patch_size", "merge", "frames", "window"),
        )
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width {self.width} is not a multiple of 4 x {self.heads} heads, which positions "
                "in two dimensions need"
            )
        if self.window < self.patch_size * self.merge:
            raise ValueError(
                f"window is {self.window} pixels: at least one token, {self.patch_size} x "
                f"{self.merge}"
            )

    @property
    def patch_channels(self) -> int:
        """Numbers of one patch, flattened as (channel, frame, row, column)."""
        return CHANNELS * self.frames * self.patch_size**2

    @property
    def window_tokens(self) -> int:
        """Tokens per side of a window."""
        return self.window // self.merge // self.patch_size


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the patches of a grid lie, and which of them see each other.

    Tokens (squares of merge x merge patches) are sorted by window, so that a window is contiguous.

    Attributes:
      order: int32 [N], the token at each place of the sorted row.
      window_ends: int32, number of patches before each window and in all; windows may be empty.
      frame_ends: the same of images, or of a video's frames.
      angles: float32 [P, K / 2] in radians, unsorted; rows turn the first half, columns the second.
    """

    order: Int[np.ndarray, " N"]
    window_ends: Int[np.ndarray, " W"]
    frame_ends: Int[np.ndarray, " F"]
    angles: Float[np.ndarray, "P half"]

    def sort(self, x: np.ndarray) -> np.ndarray:
        """[P, ...] from the order of the patches to that of the windows."""
        count = len(self.order)
        return x.reshape(count, len(x) // count, *x.shape[1:])[self.order].reshape(x.shape)


def check_grid(grid: Iterable[Sequence[int]], merge: int) -> Grid:
    """The grid as a tuple of (frames, rows, columns) in patches.

    Raises:
      ValueError: not three positive numbers each, or sides that do not divide by `merge`.
    """
    images = []
    for image in grid:
        sizes = tuple(int(n) for n in image)
        if len(sizes) != 3 or min(sizes) < 1 or sizes[1] % merge or sizes[2] % merge:
            raise ValueError(
                f"the grid has {sizes}: give (frames, rows, columns) in patches, rows and columns "
                f"multiples of {merge}"
            )
        images.append((sizes[0], sizes[1], sizes[2]))
    if not images:
        raise ValueError("the grid is empty: give (frames, rows, columns) for each image")
    return tuple(images)


def layout(grid: Iterable[Sequence[int]], config: QwenVisionConfig) -> Layout:
    """The layout of one or more images whose patches follow each other.

    An image's tokens are cut into windows from the top left corner; those at the right and the
    bottom are smaller. Where a side divides exactly the original counts one more window, an empty
    one, and `window_ends` has it too. The angles of a head's K channels are position x
    10000^(-k / (K / 4)), k = 0 .. K / 4 - 1.

    Args:
      grid: (frames, rows, columns) of each image, in patches.
      config: of the tower.

    Raises:
      ValueError: as `check_grid`.
    """
    side, unit = config.window_tokens, config.merge**2
    order, window_sizes, frame_sizes, angles = [], [], [], []
    quarter = config.width // config.heads // 4
    turns = _ROTARY_BASE ** -(np.arange(quarter) / quarter)
    tokens = 0
    for frames, rows, columns in check_grid(grid, config.merge):
        down, across = rows // config.merge, columns // config.merge
        t, r, c = np.indices((frames, down, across)).reshape(3, -1)
        windows_down, windows_across = down // side + 1, across // side + 1
        window = (t * windows_down + r // side) * windows_across + c // side
        # Stable: inside a window the tokens stay in row-major order.
        order.append(tokens + np.argsort(window, kind="stable"))
        count = frames * windows_down * windows_across
        window_sizes.append(unit * np.bincount(window, minlength=count))
        frame_sizes.append(np.full(frames, rows * columns))
        tokens += frames * down * across
        r, c, r_in, c_in = np.indices((down, across, config.merge, config.merge)).reshape(4, -1)
        row, column = config.merge * r + r_in, config.merge * c + c_in
        of_frame = np.concatenate([np.outer(row, turns), np.outer(column, turns)], axis=1)
        angles.append(np.tile(of_frame, (frames, 1)))
    return Layout(
        np.concatenate(order).astype(np.int32),
        _ends(window_sizes),
        _ends(frame_sizes),
        np.concatenate(angles).astype(np.float32),
    )


def _ends(sizes: list[np.ndarray]) -> np.ndarray:
    return np.cumsum(np.concatenate([[0], *sizes])).astype(np.int32)


def segments(ends: np.ndarray) -> np.ndarray:
    """int32 [P]: the number of the segment in which each patch lies."""
    return np.repeat(np.arange(len(ends) - 1, dtype=np.int32), np.diff(ends))
