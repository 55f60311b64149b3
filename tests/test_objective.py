"""The dual-stream loss in closed form: what it asks of the network and what it makes of the answer.

A stand-in network records its branches and answers with given features.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.stand_in import (
    MASK,
    SOURCE,
    TOKENS,
    WIDTH,
    B,
    L,
    StandIn,
    encode,
    loss,
    make_batch,
    normal,
)
from unialign_jax import objective
from unialign_jax.diffusion import flow
from unialign_jax.objective_config import ObjectiveConfig

QUICK = settings(max_examples=10, deadline=None, derandomize=True)


def test_parity_preset_has_the_reference_s_values() -> None:
    expected = {
        "image_weight": 1.0,
        "text_weight": 0.2,
        "answer_scale": 1.0,
        "contrastive_weight": 0.05,
        "align_weight": 0.1,
        "align_depth": 8,
        "align_stop_step": 0,
        "image_alignment": "pooled",
        "image_weighting": "x0",
        "timestep_density": "logit_normal",
        "timestep_shift": 1.0,
        "text_weighting": "inverse_time",
        "text_over_pads": True,
        "text_tasks": ("generate", "edit", "perceive", "compose"),
        "answer_least_time": 1e-3,
        "text_dropout": 0.1,
        "condition_dropout": 0.0,
        "contrastive_group": 4,
        "stratify_group": 4,
        "perceive_text_image": "target",
        "accumulate": "sum",
    }
    assert dataclasses.asdict(ObjectiveConfig.parity()) == expected
    assert ObjectiveConfig.parity(align_depth=2).align_depth == 2


def test_defaults_depart_from_parity_in_groups_perception_and_accumulation_only() -> None:
    ours, theirs = ObjectiveConfig(), ObjectiveConfig.parity()
    different = {
        field.name
        for field in dataclasses.fields(ours)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    }
    assert different == {
        "contrastive_group",
        "stratify_group",
        "perceive_text_image",
        "accumulate",
    }


def test_unknown_switch_value_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"objective\.text_weighting.*inverse_time, flat"):
        ObjectiveConfig(text_weighting="linear")


@QUICK
@given(st.lists(st.floats(0, 2), min_size=4, max_size=4))
def test_total_is_the_weighted_sum_of_the_terms(weights: list[float]) -> None:
    image, text, contrastive, align = weights
    total, report, _ = loss(
        image_weight=image, text_weight=text, contrastive_weight=contrastive, align_weight=align
    )
    assert set(report.terms) == set(objective.TERMS)
    by_term = dict(zip(objective.TERMS, (image, text, contrastive, align, align), strict=True))
    expected = sum(by_term[name] * float(value) for name, value in report.terms.items())
    assert total == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_branches_compute_only_what_a_loss_reads() -> None:
    _, _, network = loss()
    (_, image), (_, text) = network.branches
    assert image.velocity and image.image_hidden and image.mid_image
    assert not (image.logits or image.text_hidden or image.mid_text or image.mid_image_tokens)
    assert text.logits and text.text_hidden and text.mid_text
    assert not (text.velocity or text.image_hidden or text.mid_image)


def test_without_teacher_features_there_are_no_alignment_terms() -> None:
    _, report, network = loss(make_batch(image_features=None, text_features=None))
    assert set(report.terms) == {"image", "text", "contrastive"}
    assert not any(heads.reads_middle for _, heads in network.branches)


def test_text_encoder_is_called_once_with_masked_captions_and_instructions_or_the_null_text() -> (
    None
):
    calls = []
    batch, config = make_batch(), ObjectiveConfig(text_dropout=0.5)
    draws = objective.sample_draws(jax.random.key(0), batch, config)

    def counting(ids: Any) -> Any:
        calls.append(ids)
        return encode(ids)

    _, report = objective.dual_stream_loss(
        StandIn(), counting, batch, draws, config, task="generate", tokens=TOKENS
    )
    (ids,) = calls
    masked = report.intermediates["txt_xt"]
    dropped = np.asarray(draws.dropout_uniform < 0.5)
    assert 0 < dropped.sum() < len(dropped)
    instruction = np.where(dropped[:, None], TOKENS.null_ids, batch.instruction_ids)
    np.testing.assert_array_equal(ids, np.concatenate([masked, instruction]))


def test_text_branch_has_timestep_0_the_clean_target_and_no_conditions() -> None:
    batch = make_batch(conditions=SOURCE)
    _, report, network = loss(batch, task="edit")
    branch = network.branches[1][0]
    np.testing.assert_array_equal(branch.timestep, 0)
    np.testing.assert_array_equal(branch.latents, batch.target)
    np.testing.assert_array_equal(branch.text, encode(report.intermediates["txt_xt"]))
    assert branch.conditions == ()


@pytest.mark.parametrize(("setting", "chosen"), [("source", "source"), ("target", "target")])
def test_perception_describes_the_source_unless_told_otherwise(setting: str, chosen: str) -> None:
    batch = make_batch(conditions=SOURCE)
    _, _, network = loss(batch, task="perceive", perceive_text_image=setting)
    expected = SOURCE[0] if chosen == "source" else batch.target
    np.testing.assert_array_equal(network.branches[1][0].latents, expected)
    np.testing.assert_array_equal(network.branches[0][0].conditions[0], SOURCE[0])


def test_answers_have_a_text_branch_only() -> None:
    label_mask = np.tile(np.arange(L) >= 3, (B, 1))
    batch = make_batch(label_mask=label_mask)
    total, report, network = loss(batch, task="answer")
    ((branch, heads),) = network.branches
    assert heads.logits and not (heads.text_hidden or heads.mid_text or heads.velocity)
    np.testing.assert_array_equal(branch.latents, batch.target)
    assert set(report.terms) == {"text"}
    assert total == pytest.approx(0.2 * float(report.terms["text"]))
    hidden = np.asarray(report.intermediates["txt_xt"]) == MASK
    assert hidden.any() and not hidden[:, :3].any()


def test_image_branch_gets_the_noisy_target_at_its_timestep() -> None:
    batch = make_batch()
    _, report, network = loss(batch)
    seen, branch = report.intermediates, network.branches[0][0]
    np.testing.assert_allclose(branch.timestep, 1000 * seen["img_sigmas"], rtol=1e-6)
    noise = objective.sample_draws(jax.random.key(0), batch, ObjectiveConfig()).noise
    expected = flow.interpolate(batch.target, noise, seen["img_sigmas"])
    np.testing.assert_allclose(branch.latents, expected, rtol=1e-6)


@pytest.mark.parametrize("weighting", flow.WEIGHTINGS)
def test_true_velocity_costs_nothing(weighting: str) -> None:
    batch = make_batch()
    noise = objective.sample_draws(jax.random.key(0), batch, ObjectiveConfig()).noise
    network = StandIn(velocity=noise - batch.target)
    _, report, _ = loss(batch, network, image_weighting=weighting)
    assert float(report.terms["image"]) == pytest.approx(0, abs=1e-9)


def test_velocity_weighting_is_the_squared_error_of_the_velocity() -> None:
    batch = make_batch()
    noise = objective.sample_draws(jax.random.key(0), batch, ObjectiveConfig()).noise
    _, report, network = loss(batch, image_weighting="velocity")
    expected = jnp.mean(jnp.square(network.velocity - (noise - batch.target)))
    assert float(report.terms["image"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("chance", "dropped"), [(0.0, False), (1.0, True)])
def test_text_dropout_puts_the_null_text_in_the_image_branch(chance: float, dropped: bool) -> None:
    batch = make_batch()
    _, _, network = loss(batch, text_dropout=chance)
    ids = np.tile(TOKENS.null_ids, (B, 1)) if dropped else batch.instruction_ids
    np.testing.assert_array_equal(network.branches[0][0].text, encode(ids))


def test_condition_dropout_empties_the_conditions_of_some_rows_and_leaves_the_target() -> None:
    batch = make_batch(conditions=SOURCE)
    _, _, network = loss(batch, task="edit")
    np.testing.assert_array_equal(network.branches[0][0].conditions[0], SOURCE[0])
    uniform = objective.sample_draws(jax.random.key(0), batch, ObjectiveConfig()).condition_uniform
    chance = float(np.sort(uniform)[1] + 1e-6)
    _, _, network = loss(batch, task="edit", condition_dropout=chance)
    emptied = np.all(np.asarray(network.branches[0][0].conditions[0]) == 0, axis=(1, 2, 3))
    np.testing.assert_array_equal(emptied, np.asarray(uniform) < chance)
    assert emptied.sum() == 2


def test_alignment_ends_at_its_stop_step_and_is_still_reported() -> None:
    before, report, _ = loss(step=9, align_stop_step=10)
    after, later, _ = loss(step=10, align_stop_step=10)
    aligned = 0.1 * float(report.terms["align_image"] + report.terms["align_text"])
    assert before - after == pytest.approx(aligned, rel=1e-4)
    assert set(later.terms) == set(report.terms)
    assert loss(step=10**6)[0] == pytest.approx(before)


def test_token_alignment_is_the_mean_over_tokens_of_the_teacher_s_grid() -> None:
    teacher = normal(11, B, 2, 2, WIDTH)
    _, report, network = loss(make_batch(image_features=teacher), image_alignment="tokens")
    image = network.branches[0][1]
    assert image.mid_image_tokens and not image.mid_image
    tokens, expected = normal(5, B, 4, WIDTH), teacher.reshape(B, 4, WIDTH)
    cosine = jnp.sum(tokens * expected, -1) / (
        jnp.linalg.norm(tokens, axis=-1) * jnp.linalg.norm(expected, axis=-1)
    )
    assert float(report.terms["align_image"]) == pytest.approx(1 - float(cosine.mean()), rel=1e-5)


def test_token_alignment_resizes_a_finer_teacher_and_refuses_a_pooled_one() -> None:
    row = normal(12, B, 1, 1, WIDTH)
    fine, same = jnp.tile(row, (1, 6, 6, 1)), jnp.tile(row, (1, 2, 2, 1))
    terms = [
        float(loss(make_batch(image_features=f), image_alignment="tokens")[1].terms["align_image"])
        for f in (fine, same)
    ]
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)
    with pytest.raises(ValueError, match="rows, columns"):
        loss(image_alignment="tokens")


def test_draws_are_a_function_of_the_key() -> None:
    batch, config = make_batch(), ObjectiveConfig(timestep_density="uniform")
    first, again, other = (
        objective.sample_draws(jax.random.key(seed), batch, config) for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
        assert not np.allclose(a, b)
    assert first.noise.shape == batch.target.shape
    assert float(first.density.min()) >= 0 and float(first.density.max()) < 1


def test_noise_levels_follow_density_and_shift() -> None:
    u = jnp.array([0.0, 0.25, 0.5, 0.999])
    levels = objective.noise_levels(u, ObjectiveConfig(timestep_density="uniform"))
    np.testing.assert_allclose(levels["sigmas"], [1, 0.75, 0.5, 0.001], rtol=1e-6)
    shifted = objective.noise_levels(
        u, ObjectiveConfig(timestep_density="uniform", timestep_shift=3.0)
    )
    np.testing.assert_allclose(
        shifted["sigmas"], flow.shift_sigma(levels["sigmas"], 3.0), rtol=1e-6
    )
    middle = objective.noise_levels(jnp.zeros(1), ObjectiveConfig())
    assert float(middle["sigmas"][0]) == pytest.approx(0.5)
    mode = objective.noise_levels(jnp.zeros(1), ObjectiveConfig(timestep_density="mode"))
    assert float(mode["sigmas"][0]) == pytest.approx(0.001)


@pytest.mark.parametrize("task", ["edit", "compose"])
def test_without_its_text_branch_a_task_keeps_its_image_terms_and_nothing_else(task: str) -> None:
    batch = make_batch(conditions=SOURCE)
    total, report, network = loss(batch, task=task, text_tasks=("generate",))
    whole, with_text, _ = loss(batch, task=task)
    assert set(report.terms) == {"image", "align_image"}
    assert set(with_text.terms) > set(report.terms)
    for name in report.terms:
        assert float(report.terms[name]) == float(with_text.terms[name])
    assert len(network.branches) == 1 and network.branches[0][1].velocity
    assert total < whole


def test_tasks_that_keep_their_text_branch_are_as_before() -> None:
    assert loss(text_tasks=("generate",))[0] == loss()[0]
    assert loss(task="answer", text_tasks=())[0] == loss(task="answer")[0]


def test_a_task_without_an_image_branch_is_no_text_task() -> None:
    with pytest.raises(ValueError, match="answer"):
        ObjectiveConfig(text_tasks=("answer",))
