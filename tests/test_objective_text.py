"""The masked-text term in closed form: weightings, padding, labels, records without a caption."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.stand_in import END, MASK, TOKENS, B, L, StandIn, V, loss, make_batch, normal
from unialign_jax import objective
from unialign_jax.objective_config import TEXT_WEIGHTINGS, ObjectiveConfig

EQUAL = jnp.zeros((B, L, V))
# A caption of three words, its end, and padding.
PADDED = np.tile(np.array([4, 5, 6, END, END, END], np.int32), (B, 1))
ENDED = 4


def corrupted(ids: Any, share: float = 0.5, **switches: Any) -> dict[str, Any]:
    """Text masked at even times, by uniforms of which `share` is small."""
    uniform = jnp.where(jax.random.uniform(jax.random.key(5), ids.shape) < share, 0.0, 0.9999999)
    config = ObjectiveConfig(**switches)
    return objective.corrupt_text(ids, jnp.full(len(ids), 0.5), uniform, config, MASK)


def text_loss(
    logits: Any, ids: Any, seen: dict[str, Any], *, label_mask=None, weight=None, **switches: Any
) -> tuple[float, np.ndarray]:
    value, parts = objective.text_loss(
        logits, ids, seen, ObjectiveConfig(**switches), TOKENS, label_mask, weight
    )
    return float(value), np.asarray(parts)


def test_equal_logits_cost_the_logarithm_of_the_words_without_the_mask() -> None:
    _, report, _ = loss(network=StandIn(logits=EQUAL), text_weighting="flat")
    assert float(report.terms["text"]) == pytest.approx(math.log(V - 1), rel=1e-5)


def test_inverse_time_weighs_each_masked_token_and_divides_by_all_positions() -> None:
    _, report, _ = loss(network=StandIn(logits=EQUAL))
    seen = report.intermediates
    masked = np.asarray(seen["txt_xt"]) == MASK
    weights = masked / np.asarray(seen["txt_t"])[:, None]
    expected = math.log(V - 1) * weights.sum() / (B * L)
    assert float(report.terms["text"]) == pytest.approx(expected, rel=1e-4)


def test_expected_loss_of_equal_logits_does_not_depend_on_the_time() -> None:
    """A token is masked with chance t and weighs 1/t."""
    ids = jnp.full((100, 1000), 3)
    uniform = jnp.tile((jnp.arange(1000) + 0.5) / 1000, (100, 1))
    seen = objective.corrupt_text(ids, jnp.full(100, 0.5), uniform, ObjectiveConfig(), MASK)
    _, parts = text_loss(jnp.zeros((100, 1000, V)), ids, seen)
    np.testing.assert_allclose(parts.mean(axis=1)[10:], math.log(V - 1), rtol=5e-3)


@pytest.mark.parametrize("weighting", TEXT_WEIGHTINGS)
def test_text_without_a_masked_token_costs_nothing(weighting: str) -> None:
    ids = make_batch().caption_ids
    value, parts = text_loss(
        normal(1, B, L, V), ids, corrupted(ids, share=0.0), text_weighting=weighting
    )
    assert value == 0 and not parts.any()


def test_visible_tokens_do_not_count() -> None:
    ids = make_batch().caption_ids
    seen = corrupted(ids)
    visible = (np.asarray(seen["xt"]) != MASK)[..., None]
    logits, other = normal(1, B, L, V), normal(2, B, L, V)
    garbled, _ = text_loss(jnp.where(visible, other, logits), ids, seen)
    assert garbled == pytest.approx(text_loss(logits, ids, seen)[0])


def test_padding_after_the_first_end_token_can_be_left_out() -> None:
    seen = corrupted(PADDED, share=1.0)
    pads = (np.arange(L) >= ENDED)[None, :, None]
    logits = normal(1, B, L, V)
    garbled = jnp.where(pads, 9 * normal(2, B, L, V), logits)
    for weighting in TEXT_WEIGHTINGS:
        alone, parts = text_loss(
            logits[:, :ENDED],
            PADDED[:, :ENDED],
            {**seen, "xt": seen["xt"][:, :ENDED]},
            text_weighting=weighting,
        )
        assert (parts[:, ENDED - 1] > 0).all(), "the first end token is learnt"
        without = {"text_over_pads": False, "text_weighting": weighting}
        for version in (logits, garbled):
            value, _ = text_loss(version, PADDED, seen, **without)
            assert value == pytest.approx(alone, rel=1e-5)
        over = [text_loss(x, PADDED, seen, text_weighting=weighting)[0] for x in (logits, garbled)]
        assert over[0] != pytest.approx(over[1], rel=1e-3)


def test_labels_restrict_the_terms_and_not_the_denominator() -> None:
    ids = make_batch().caption_ids
    seen, labels = corrupted(ids, share=1.0), jnp.arange(L)[None] >= 4
    whole, parts = text_loss(EQUAL, ids, seen)
    value, labelled = text_loss(EQUAL, ids, seen, label_mask=jnp.broadcast_to(labels, (B, L)))
    assert value == pytest.approx(whole * 2 / L, rel=1e-5)
    np.testing.assert_array_equal(labelled[:, :4], 0)
    np.testing.assert_array_equal(labelled[:, 4:], parts[:, 4:])


def test_answer_scale_multiplies_the_total_of_answers_and_of_nothing_else() -> None:
    labels = jnp.broadcast_to(jnp.arange(L) >= 4, (B, L))
    answers = [
        loss(make_batch(label_mask=labels), task="answer", answer_scale=scale)[0]
        for scale in (1.0, 3.0)
    ]
    assert answers[1] == pytest.approx(3 * answers[0], rel=1e-6)
    assert loss(answer_scale=3.0)[0] == loss()[0]


def test_answers_can_be_masked_at_late_times_only() -> None:
    ids, draws = make_batch().caption_ids, (jnp.arange(B) + 0.5) / B
    labels = jnp.broadcast_to(jnp.arange(L) >= 4, (B, L))
    late = ObjectiveConfig(answer_least_time=0.6)
    seen = objective.corrupt_text(ids, draws, jnp.zeros((B, L)), late, MASK, labels)
    strata = np.mod((np.arange(B) + 0.5) / B / B + np.arange(B) / B, 1)
    np.testing.assert_allclose(seen["t"], 0.6 + 0.4 * strata, rtol=1e-6)
    captions = objective.corrupt_text(ids, draws, jnp.zeros((B, L)), late, MASK)
    assert captions["t"].min() < 0.6
    last = ObjectiveConfig(answer_least_time=1.0)
    seen = objective.corrupt_text(ids, draws, jnp.full((B, L), 0.99), last, MASK, labels)
    np.testing.assert_array_equal(seen["xt"] == MASK, labels)
    for time in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"answer_least_time is .*from 0\.001 to 1"):
            ObjectiveConfig(answer_least_time=time)


@pytest.mark.parametrize("weighting", TEXT_WEIGHTINGS)
def test_record_without_a_caption_is_as_if_it_were_not_there(weighting: str) -> None:
    ids, logits = make_batch().caption_ids, normal(1, B, L, V)
    seen, kept = corrupted(ids), np.array([0, 1, 3])
    weight = jnp.array([1.0, 1.0, 0.0, 1.0])
    part = {key: value[kept] for key, value in seen.items()}
    expected, _ = text_loss(logits[kept], ids[kept], part, text_weighting=weighting)
    value, _ = text_loss(logits, ids, seen, weight=weight, text_weighting=weighting)
    assert value == pytest.approx(expected, rel=1e-5)


def test_missing_caption_takes_the_record_out_of_every_term_of_the_text_branch_only() -> None:
    weight = jnp.array([1.0, 1.0, 0.0, 1.0])
    batch = make_batch(caption_weight=weight)
    garbled = batch.replace(
        caption_ids=np.where(np.arange(B)[:, None] == 2, 7, batch.caption_ids),
        text_features=batch.text_features.at[2].set(100.0),
    )
    _, all_there, _ = loss(make_batch())
    reports = [loss(b)[1].terms for b in (batch, garbled)]
    for term in objective.TERMS:
        assert float(reports[0][term]) == pytest.approx(float(reports[1][term]), rel=1e-5)
    for term in ("image", "align_image"):
        assert float(reports[0][term]) == pytest.approx(float(all_there.terms[term]), rel=1e-6)
    for term in ("text", "contrastive", "align_text"):
        assert float(reports[0][term]) != pytest.approx(float(all_there.terms[term]), rel=1e-3)


@pytest.mark.parametrize("weighting", TEXT_WEIGHTINGS)
def test_batch_without_any_caption_has_zero_text_terms_and_no_nan(weighting: str) -> None:
    batch = make_batch(caption_weight=jnp.zeros(B))

    def total(logits: Any) -> Any:
        config = ObjectiveConfig(text_weighting=weighting)
        draws = objective.sample_draws(jax.random.key(0), batch, config)
        value, report = objective.dual_stream_loss(
            StandIn(logits=logits),
            lambda ids: jnp.asarray(ids, jnp.float32)[..., None],
            batch,
            draws,
            config,
            task="generate",
            tokens=TOKENS,
        )
        return value, report.terms

    (value, terms), slope = jax.value_and_grad(total, has_aux=True)(normal(1, B, L, V))
    assert np.isfinite(value)
    for term in ("text", "contrastive", "align_text"):
        assert float(terms[term]) == 0
    np.testing.assert_array_equal(slope, 0)


def test_times_are_stratified_over_the_configured_group() -> None:
    ids = np.tile(make_batch().caption_ids, (2, 1))
    seen = corrupted(ids, stratify_group=4)
    np.testing.assert_allclose(seen["t"][:4], seen["t"][4:])
    assert len(np.unique(corrupted(ids)["t"])) == 8


def test_contrastive_group_reaches_the_loss() -> None:
    _, whole, _ = loss()
    _, pairs, _ = loss(contrastive_group=2)
    assert float(pairs.terms["contrastive"]) < float(whole.terms["contrastive"])
    assert float(loss(contrastive_group=1)[1].terms["contrastive"]) == pytest.approx(0, abs=1e-6)
