"""Deliberate mistakes in the two diffusion processes and in the objective."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tests.parity.mistakes import Patch, around, mistake
from unialign_jax import objective
from unialign_jax.diffusion import alignment, flow, masked


@mistake("generate_loss", "txt_log_probs")
def mask_token_may_be_predicted(patch: Patch) -> None:
    def raised(f, logits, tokens, mask_id):
        return f(logits.at[..., mask_id].add(-masked.NEGATIVE), tokens, mask_id)

    around(patch, masked, "substitute", raised)


@mistake("generate_loss", "txt_weighted_nll")
def mask_token_counts_in_the_normaliser_of_the_loss(patch: Patch) -> None:
    def raised(f, logits, tokens, targets, mask_id):
        return f(logits.at[..., mask_id].add(-masked.NEGATIVE), tokens, targets, mask_id)

    around(patch, masked, "target_log_probs", raised)


@mistake("generate_loss", "loss_caption")
def visible_tokens_are_predicted_too(patch: Patch) -> None:
    def all_masked(f, logits, tokens, targets, mask_id):
        return f(logits, jnp.full_like(tokens, mask_id), targets, mask_id)

    around(patch, masked, "target_log_probs", all_masked)


@mistake("single_losses", "log_probs")
def visible_tokens_are_not_carried_over(patch: Patch) -> None:
    def all_masked(f, logits, tokens, mask_id):
        return f(logits, jnp.full_like(tokens, mask_id), mask_id)

    around(patch, masked, "substitute", all_masked)


@mistake("generate_loss", "loss_caption")
def text_loss_has_no_1_over_t(patch: Patch) -> None:
    def unweighted(f, logits, ids, corrupted, *rest):
        ones = jnp.ones_like(corrupted["t"])
        return f(logits, ids, {**corrupted, "dsigma": ones, "sigma": jnp.log(2 * ones)}, *rest)

    around(patch, objective, "text_loss", unweighted)


@mistake("generate_loss", "loss_caption")
def text_loss_is_a_mean_over_masked_positions(patch: Patch) -> None:
    def over_masked(f, logits, ids, corrupted, config, tokens, *rest):
        _, weighted = f(logits, ids, corrupted, config, tokens, *rest)
        return jnp.sum(weighted) / jnp.sum(corrupted["xt"] == tokens.mask_id), weighted

    around(patch, objective, "text_loss", over_masked)


@mistake("label_mask", "loss")
def denominator_counts_labelled_positions_only(patch: Patch) -> None:
    def over_labels(f, logits, ids, corrupted, config, tokens, label_mask):
        _, weighted = f(logits, ids, corrupted, config, tokens, label_mask)
        return jnp.sum(weighted) / jnp.sum(label_mask), weighted

    around(patch, objective, "text_loss", over_labels)


@mistake("label_mask", "xt")
def question_is_masked_too(patch: Patch) -> None:
    around(patch, masked, "mask_tokens", lambda f, *a: f(*a[:4]))


@mistake("label_mask", "weighted_nll")
def question_is_learnt_where_it_is_visible_only(patch: Patch) -> None:
    def inverted(f, logits, ids, corrupted, config, tokens, label_mask):
        return f(logits, ids, corrupted, config, tokens, ~label_mask)

    around(patch, objective, "text_loss", inverted)


@mistake("single_losses", "xt")
def tokens_are_masked_above_the_chance(patch: Patch) -> None:
    around(patch, masked, "mask_tokens", lambda f, x, p, u, *rest: f(x, 1 - p, 1 - u, *rest))


@mistake("generate_loss", "txt_move_chance")
def total_noise_is_taken_for_the_chance(patch: Patch) -> None:
    around(patch, masked, "mask_chance", lambda f, sigma: sigma)


@mistake("single_losses", "t_b4_plain")
def times_are_not_stratified(patch: Patch) -> None:
    def independent(f, uniform, group=0, minimum=masked.EPS):
        return (1 - minimum) * uniform + minimum

    around(patch, masked, "antithetic_times", independent)


@mistake("single_losses", "t_b4_plain")
def times_reach_0(patch: Patch) -> None:
    around(patch, masked, "antithetic_times", lambda f, u, g=0, minimum=0: f(u, g, 0.0))


@mistake("single_losses", "move_chance")
def schedule_is_not_cut_short_by_eps(patch: Patch) -> None:
    around(patch, masked, "total_noise", lambda f, t, eps=0: f(t, 0.0))


@mistake("single_losses", "loss")
def contrastive_loss_looks_in_one_direction(patch: Patch) -> None:
    def one_way(f, image, text, *, temperature=alignment.TEMPERATURE, **_):
        u, w = alignment.unit(image, 1e-12), alignment.unit(text, 1e-12)
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(u @ w.T / temperature)))

    around(patch, alignment, "contrastive_loss", one_way)


@mistake("generate_loss", "loss_contrastive")
def temperature_is_a_tenth(patch: Patch) -> None:
    patch.setitem(alignment.contrastive_loss.__kwdefaults__, "temperature", 0.1)


@mistake("single_losses", "loss")
def contrastive_features_have_no_unit_length(patch: Patch) -> None:
    around(patch, alignment, "unit", lambda f, x, eps: x if eps == 1e-12 else f(x, eps))


@mistake("single_losses", "grad_text")
def contrastive_loss_stops_the_gradient_of_the_text(patch: Patch) -> None:
    def stopped(f, image, text, **rest):
        return f(image, jax.lax.stop_gradient(text), **rest)

    around(patch, alignment, "contrastive_loss", stopped)


@mistake("single_losses", "loss")
def alignment_is_the_sum_over_the_batch(patch: Patch) -> None:
    around(patch, alignment, "cosine_loss", lambda f, x, y, weight=None: f(x, y) * x.shape[0])


@mistake("generate_loss", "loss_image_align")
def alignment_is_the_negative_cosine(patch: Patch) -> None:
    around(patch, alignment, "cosine_loss", lambda f, *a, **k: f(*a, **k) - 1)


@mistake("generate_loss", "loss_image_align")
def image_is_aligned_with_the_text_features(patch: Patch) -> None:
    def crossed(f, image, batch, *others):
        return f(image, batch.replace(image_features=batch.text_features), *others)

    around(patch, objective, "_align_image", crossed)


@mistake("single_losses", "grad")
def gradient_is_not_normalised(patch: Patch) -> None:
    patch.setattr(alignment, "normalise_gradient", lambda x: 1 * x)


@mistake("generate_loss", "total")
def alignment_weight_is_shared_between_its_two_terms(patch: Patch) -> None:
    def halved(f, terms, *rest):
        return f({k: v / 2 if k.startswith("align") else v for k, v in terms.items()}, *rest)

    around(patch, objective, "_total", halved)


@mistake("generate_loss", "total")
def total_is_a_plain_sum(patch: Patch) -> None:
    around(patch, objective, "_total", lambda f, terms, *rest: sum(terms.values()))


@mistake("generate_loss", "loss_image")
def image_loss_is_in_velocity_space(patch: Patch) -> None:
    around(patch, objective, "image_loss", lambda f, *a: f(*a[:4], "velocity"))


@mistake("generate_loss", "loss_image")
def image_loss_is_a_sum(patch: Patch) -> None:
    around(patch, objective, "image_loss", lambda f, v, *a: f(v, *a) * v[0].size)


@mistake("generate_loss", "loss_image")
def velocity_is_data_minus_noise(patch: Patch) -> None:
    around(patch, objective, "image_loss", lambda f, v, *a: f(-v, *a))


@mistake("tables", "out")
def noise_and_data_are_swapped_in_the_interpolation(patch: Patch) -> None:
    around(patch, flow, "interpolate", lambda f, x, noise, sigma: f(noise, x, sigma))


@mistake("single_losses", "sigmas_0_1")
def training_table_ascends(patch: Patch) -> None:
    around(patch, flow, "training_sigmas", lambda f, *shift: f(*shift)[::-1])


@mistake("generate_loss", "img_timesteps")
def training_levels_are_shifted(patch: Patch) -> None:
    around(patch, flow, "training_sigmas", lambda f, shift=1.0: f(3.0))


@mistake("single_losses", "index_0_1")
def level_is_rounded_to_the_nearest(patch: Patch) -> None:
    around(patch, flow, "level_index", lambda f, u: f(u + 0.5 / flow.TRAINING_LEVELS))


@mistake("single_losses", "mode_u_scale_1p29")
def mode_density_has_the_other_sign(patch: Patch) -> None:
    around(patch, flow, "mode", lambda f, u, scale=0: f(u, -scale))


@mistake("generate_loss", "img_dropout_mask")
def texts_above_the_dropout_chance_are_dropped(patch: Patch) -> None:
    def inverted(f, batch, draws, config, *rest):
        other = jnp.where(draws.dropout_uniform < config.text_dropout, 1.0, 0.0)
        return f(batch, draws.replace(dropout_uniform=other), config, *rest)

    around(patch, objective, "_instruction_ids", inverted)


@mistake("generate_loss", "img_text_embeds_used")
def dropped_text_is_zeros_instead_of_the_null_text(patch: Patch) -> None:
    def zeros(f, batch, draws, config, embeds, seen):
        kept = draws.dropout_uniform >= config.text_dropout
        text = embeds["instruction"] * kept[:, None, None]
        return f(batch, draws, config, {**embeds, "instruction": text}, seen)

    around(patch, objective, "_image_branch", zeros)


@mistake("generate_loss", "img_velocity")
def image_branch_reads_the_masked_caption(patch: Patch) -> None:
    def masked_text(f, batch, draws, config, embeds, seen):
        return f(batch, draws, config, {**embeds, "instruction": embeds["caption"]}, seen)

    around(patch, objective, "_image_branch", masked_text)


@mistake("generate_loss", "txt_logits")
def text_branch_has_the_timestep_of_its_masks(patch: Patch) -> None:
    def timed(f, batch, *rest):
        branch = f(batch, *rest)
        return branch.replace(timestep=branch.timestep + 500.0)

    around(patch, objective, "_text_branch", timed)


@mistake("edit_loss", "txt_logits")
def text_branch_of_an_edit_sees_the_source(patch: Patch) -> None:
    def source(f, batch, *rest):
        return f(batch.replace(target=batch.conditions[0]), *rest)

    around(patch, objective, "_text_branch", source)


@mistake("edit_loss", "img_velocity")
def conditions_are_noised_like_the_target(patch: Patch) -> None:
    def noised(f, batch, draws, config, *rest):
        sigmas = objective.noise_levels(draws.density, config)["sigmas"]
        noisy = tuple(flow.interpolate(c, draws.noise, sigmas) for c in batch.conditions)
        return f(batch.replace(conditions=noisy), draws, config, *rest)

    around(patch, objective, "_image_branch", noised)
