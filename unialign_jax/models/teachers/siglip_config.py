"""Sizes of the SigLIP encoder."""

from __future__ import annotations

import dataclasses

from unialign_jax.models.checks import check_dtype, check_sizes


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Sizes that both towers have.

    Attributes:
      width: channels of the residual stream.
      layers: number of blocks.
      heads: attention heads; `width` is a multiple.
      mlp_width: channels inside the MLP.
    """

    width: int = 1152
    layers: int = 27
    heads: int = 16
    mlp_width: int = 4304

    def __post_init__(self) -> None:
        check_sizes(self, *(field.name for field in dataclasses.fields(self)))
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """Sizes of the image tower.

    Attributes:
      image_size: height and width of the images, in pixels.
      patch_size: height and width of a patch. Where it does not divide `image_size`, the pixels
        that are left over at the bottom and on the right are not looked at.
    """

    image_size: int = 384
    patch_size: int = 14

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size {self.patch_size} is above image_size {self.image_size}")

    @property
    def rows(self) -> int:
        """Rows, and columns, of the grid of patches."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class TextConfig(TowerConfig):
    """Sizes of the text tower.

    Attributes:
      vocab_size: rows of the token table.
      positions: the longest text, in tokens.
    """

    vocab_size: int = 32000
    positions: int = 64


@dataclasses.dataclass(frozen=True)
class SigLIPConfig:
    """Sizes of both towers; the defaults are those of google/siglip-so400m-patch14-384.

    Attributes:
      vision: of the image tower; its width is that of the common space.
      text: of the text tower.
      dtype: compute and output dtype. Norms, softmax and logits are float32 whatever it is.
      param_dtype: dtype in which the parameters are created.
    """

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_dtype("dtype", self.dtype)
        check_dtype("param_dtype", self.param_dtype)

    @property
    def features(self) -> int:
        """F, channels of the pooled features of images and texts."""
        return self.vision.width
