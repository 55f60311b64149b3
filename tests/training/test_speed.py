"""The estimate of a step's time."""

from __future__ import annotations

from pathlib import Path

import pytest

from unialign_jax import config as configs
from unialign_jax.sampling.model import build_model
from unialign_jax.training import speed

TINY = Path(__file__).parent / "tiny_config.py"


def tiny(**mixture: float) -> dict:
    config = configs.to_plain(configs.load_config(str(TINY)))
    config["data"]["mixture"] = mixture
    return config


def token_layers(config: dict) -> float:
    return speed.token_layers(config, build_model(config, None))


def test_a_step_counts_the_tokens_of_its_branches() -> None:
    # 16 pixels in patches of 2 are 64 tokens; texts are 8; 2 blocks; 1 frozen encoder layer.
    encoder = 8 / 3
    assert token_layers(tiny(answer=1.0)) == pytest.approx(2 * 72 + encoder)
    assert token_layers(tiny(generate=1.0)) == pytest.approx(2 * (72 + 72) + 2 * encoder)
    assert token_layers(tiny(edit=1.0)) == pytest.approx(2 * (72 + 136) + 2 * encoder)
    mean = (3 * token_layers(tiny(answer=1.0)) + token_layers(tiny(edit=1.0))) / 4
    assert token_layers(tiny(answer=3.0, edit=1.0)) == pytest.approx(mean)


def test_tasks_without_a_text_branch_and_a_first_mixture_count_less() -> None:
    config = tiny(edit=1.0)
    config["objective"]["text_tasks"] = ["generate"]
    alone = 2 * 136 + 8 / 3
    assert token_layers(config) == pytest.approx(alone)
    config["data"] |= {"first_mixture": {"answer": 1.0}, "first_steps": 2}
    # Two of eight steps.
    assert token_layers(config) == pytest.approx((2 * 72 + 8 / 3) / 4 + alone * 3 / 4)


def test_a_text_encoder_that_is_trained_takes_three_times_as_long() -> None:
    config = tiny(answer=1.0)
    config["text_encoder"]["train"] = True
    assert token_layers(config) == pytest.approx(2 * 72 + 8)


def test_a_step_is_measured_at_the_sizes_of_the_config() -> None:
    seconds = speed.step_seconds(tiny(generate=1.0), seconds=0.01)
    assert 1e-5 < seconds < 60
