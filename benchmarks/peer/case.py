"""What is timed: sizes, and the weights, inputs and draws that both sides get."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax.models import functional
from unialign_jax.models.mmdit import MMDiT
from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.objective import Batch, Draws, TextTokens, sample_draws
from unialign_jax.objective_config import ObjectiveConfig
from unialign_jax.training.optimizer import OptimizerConfig

HEAD_DIM = 64
# Prime, so that no two rows of a matrix are alike where the block of normals is repeated.
BLOCK = 1_000_003
STD = 0.02
GUIDANCE = 7.0
# Noise levels of the sampling step that is timed.
LEVELS = (0.75, 0.7)
# No warm-up: the check of two steps is to see an update.
OPTIMIZER = OptimizerConfig(warmup_steps=0)


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      layers: joint blocks.
      width: channels; heads have 64 of them.
      batch: samples in a step.
      latents: side of the square latents, of 16 channels.
      text: tokens of a text.
      dtype: of the computation; parameters are float32.
      remat: of our side, a key of `mmdit_config.REMAT_POLICIES` or "none".
      unroll: whether our side compiles every block by itself.
    """

    layers: int
    width: int
    batch: int = 4
    latents: int = 32
    text: int = 64
    dtype: str = "float32"
    remat: str = "none"
    unroll: bool = False

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"

    @functools.cached_property
    def network(self) -> MMDiTConfig:
        """Sizes of the published model but for layers and width."""
        return MMDiTConfig(
            width=self.width,
            heads=max(1, self.width // HEAD_DIM),
            layers=self.layers,
            dtype=self.dtype,
            remat=self.remat,
            unroll=self.unroll,
        )

    @functools.cached_property
    def objective(self) -> ObjectiveConfig:
        """The default objective; features are aligned at a third of the depth, as in the paper."""
        return ObjectiveConfig(align_depth=max(1, self.layers // 3))

    @property
    def tokens(self) -> TextTokens:
        return TextTokens(self.network.vocab_size - 1, 1, np.ones((1, self.text), np.int32))

    @functools.cached_property
    def transformer(self) -> functional.Functional:
        return functional.build(lambda rngs: MMDiT(self.network, rngs))

    def weights(self) -> Any:
        """Our parameter tree as NumPy arrays, nothing of it zero: no term of the loss is idle."""
        block = np.random.default_rng(0).standard_normal(BLOCK, np.float32) * np.float32(STD)
        leaves, structure = jax.tree.flatten(self.transformer.abstract)
        arrays, start = [], 0
        for leaf in leaves:
            repeats = -(-(start + leaf.size) // BLOCK)
            flat = np.tile(block, repeats)[start : start + leaf.size]
            arrays.append(flat.reshape(leaf.shape))
            start = (start + leaf.size) % BLOCK
        return jax.tree.unflatten(structure, arrays)

    def batch_arrays(self) -> Batch:
        """A step on generation with captions and both teacher features."""
        random, config = np.random.default_rng(1), self.network

        def normal(*shape: int) -> np.ndarray:
            return random.standard_normal(shape, np.float32)

        def ids() -> np.ndarray:
            return random.integers(3, config.vocab_size - 1, (self.batch, self.text), np.int32)

        return Batch(
            target=normal(self.batch, self.latents, self.latents, config.channels),
            instruction_ids=ids(),
            caption_ids=ids(),
            caption_weight=None,
            image_features=normal(self.batch, config.adapter_out),
            text_features=normal(self.batch, config.adapter_out),
        )

    def embeddings(self) -> np.ndarray:
        """What the frozen text encoder would give: captions, instructions, the null text."""
        shape = (2 * self.batch + 1, self.text, self.network.text_width)
        return np.random.default_rng(2).standard_normal(shape, np.float32)

    def draws(self, step: int, seed: int = 0) -> Draws:
        """The random numbers that our training step draws for itself."""
        batch = jax.tree.map(jnp.asarray, self.batch_arrays())
        key = jax.random.fold_in(jax.random.key(seed), step)
        return jax.tree.map(np.asarray, sample_draws(key, batch, self.objective))


def parse_size(text: str) -> tuple[int, int]:
    """Layers and width of `6x384`."""
    layers, _, width = text.partition("x")
    return int(layers), int(width)
