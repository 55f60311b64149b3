"""Weights and switches of the dual-stream objective."""

from __future__ import annotations

import dataclasses
from typing import Any

from unialign_jax.diffusion import flow, masked

IMAGE_TASKS = ("generate", "edit", "perceive", "compose")
TEXT_WEIGHTINGS = ("inverse_time", "flat")
IMAGE_ALIGNMENTS = ("pooled", "tokens")
ACCUMULATIONS = ("mean", "sum")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and switches of the loss. None of them changes the weights' layout.

    Attributes:
      image_weight: weight of the flow-matching term.
      text_weight: weight of the masked-text term.
      answer_scale: multiplies that weight in steps on answers, where a word or two among all
        positions of a text are to be learnt; 1 is the reference.
      contrastive_weight: weight of the cross-modal term.
      align_weight: weight of each intrinsic-modal term.
      align_depth: block, from 1, after which the adapters read the streams.
      align_stop_step: step from which the intrinsic-modal terms weigh 0; 0 is never.
      image_alignment: "pooled" compares the adapter of the mean token with the mean teacher token
        (the reference); "tokens" compares token by token on the teacher's grid.
      image_weighting: one of `flow.WEIGHTINGS`; "x0" is the reference.
      timestep_density: one of `flow.DENSITIES`.
      timestep_shift: shift of the training noise levels; 1 (none) is the reference.
      text_weighting: "inverse_time" is 1/t over all positions (the reference); "flat" is the mean
        over masked tokens.
      text_tasks: training tasks with an image branch whose steps have a text branch too, and the
        terms that need both; the reference has it in all of them. Without it a step costs less.
      text_over_pads: whether padding after the first end token counts in the text term; the
        reference counts it, and learns by it where captions end.
      answer_least_time: smallest text time of a step on answers. At the reference's, 0.001, half of
        all one-word answers are seen by the network; at 1 none is.
      text_dropout: chance that the image branch sees the null text, for guidance.
      condition_dropout: chance that it sees empty (zero) condition images, for image guidance; the
        reference never drops them.
      contrastive_group: rows contrasted with each other; 0 is the global batch, the reference 4.
      stratify_group: rows over which text times are stratified; 0 is the global batch, the
        reference 4.
      perceive_text_image: image of the text branch in perception: "source" (what the caption
        describes) or "target" (the reference).
      accumulate: "mean" or "sum" (the reference) of the micro-batches' gradients.
    """

    image_weight: float = 1.0
    text_weight: float = 0.2
    answer_scale: float = 1.0
    contrastive_weight: float = 0.05
    align_weight: float = 0.1
    align_depth: int = 8
    align_stop_step: int = 0
    image_alignment: str = "pooled"
    image_weighting: str = "x0"
    timestep_density: str = "logit_normal"
    timestep_shift: float = 1.0
    text_weighting: str = "inverse_time"
    text_tasks: tuple[str, ...] = IMAGE_TASKS
    text_over_pads: bool = True
    answer_least_time: float = masked.EPS
    text_dropout: float = 0.1
    condition_dropout: float = 0.0
    contrastive_group: int = 0
    stratify_group: int = 0
    perceive_text_image: str = "source"
    accumulate: str = "mean"

    def __post_init__(self) -> None:
        for field, allowed in (
            ("image_alignment", IMAGE_ALIGNMENTS),
            ("image_weighting", flow.WEIGHTINGS),
            ("timestep_density", flow.DENSITIES),
            ("text_weighting", TEXT_WEIGHTINGS),
            ("perceive_text_image", ("source", "target")),
            ("accumulate", ACCUMULATIONS),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"objective.{field} is {getattr(self, field)!r}; one of {', '.join(allowed)}"
                )
        if not masked.EPS <= self.answer_least_time <= 1:
            raise ValueError(
                f"objective.answer_least_time is {self.answer_least_time}; from {masked.EPS} to 1"
            )
        unknown = set(self.text_tasks) - set(IMAGE_TASKS)
        if unknown:
            raise ValueError(
                f"objective.text_tasks has {', '.join(sorted(unknown))}; "
                f"some of {', '.join(IMAGE_TASKS)}"
            )

    @classmethod
    def parity(cls, **overrides: Any) -> ObjectiveConfig:
        """The reference's objective, number for number."""
        reference: dict[str, Any] = {
            "contrastive_group": 4,
            "stratify_group": 4,
            "perceive_text_image": "target",
            "accumulate": "sum",
        }
        return cls(**{**reference, **overrides})
