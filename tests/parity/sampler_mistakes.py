"""Deliberate mistakes in the samplers and their tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.mistakes import Patch, around, mistake
from unialign_jax.diffusion import flow, masked
from unialign_jax.parity import samplers as parity_samplers
from unialign_jax.sampling import samplers


@mistake("image_run", "guided_velocity_first")
def guidance_starts_from_the_prompt(patch: Patch) -> None:
    around(patch, flow, "guide", lambda f, u, c, scale: c + scale * (c - u))


@mistake("image_run", "guided_velocity_first")
def halves_of_the_guided_batch_are_swapped(patch: Patch) -> None:
    around(patch, flow, "guide", lambda f, u, c, scale: f(c, u, scale))


@mistake("image_run", "guided_velocity_first")
def negative_half_has_no_conditions(patch: Patch) -> None:
    def branch(f, text, timestep, latents, conditions):
        empty = tuple(c.at[: len(c) // 2].set(0) for c in conditions)
        return f(text, timestep, latents, empty)

    around(patch, samplers, "Branch", branch)


@mistake("image_run", "out_latents")
def euler_step_goes_the_other_way(patch: Patch) -> None:
    around(patch, flow, "euler_step", lambda f, x, v, a, b: f(x, v, b, a))


@mistake("tables", "trajectory")
def euler_step_has_the_length_of_its_level(patch: Patch) -> None:
    around(patch, flow, "euler_step", lambda f, x, v, a, b: f(x, v, a, 0 * a))


@mistake("image_run", "guided_velocity_first")
def sampler_gives_the_network_the_level_instead_of_the_timestep(patch: Patch) -> None:
    around(patch, samplers, "Branch", lambda f, text, t, *rest: f(text, t / 1000, *rest))


@mistake("tables", "steps4_sigmas")
def table_does_not_end_at_0(patch: Patch) -> None:
    def ending(f, sigmas, shift):
        levels = f(sigmas, shift)
        return np.append(levels[:-1], levels[-2])

    around(patch, flow, "custom_sigmas", ending)


@mistake("tables", "steps28_sigmas")
def sampling_table_is_not_shifted(patch: Patch) -> None:
    around(patch, flow, "sampling_sigmas", lambda f, steps, shift: f(steps, 1.0))


@mistake("tables", "steps28_sigmas")
def sampling_table_is_shifted_once(patch: Patch) -> None:
    def once(f, steps, shift):
        return flow.custom_sigmas(np.linspace(1, 0.001, steps), shift)

    around(patch, flow, "sampling_sigmas", once)


@mistake("tables", "steps20_sigmas")
def sampling_table_is_the_plain_one(patch: Patch) -> None:
    around(patch, flow, "sampling_sigmas", lambda f, steps, shift: f(steps, shift, "plain"))


@mistake("tables", "custom_sigmas")
def given_levels_are_not_shifted(patch: Patch) -> None:
    around(patch, flow, "custom_sigmas", lambda f, sigmas, shift: f(sigmas, 1.0))


@mistake("text_run", "tokens_after_step")
def gumbel_noise_multiplies(patch: Patch) -> None:
    def multiplied(f, weights, uniform):
        return jnp.argmax(weights * -jnp.log(uniform + 1e-10), axis=-1).astype(jnp.int32)

    around(patch, masked, "gumbel_argmax", multiplied)


@mistake("text_run", "out_tokens")
def most_probable_token_is_taken(patch: Patch) -> None:
    around(patch, masked, "gumbel_argmax", lambda f, w, u: f(w, jnp.full_like(u, 0.5)))


@mistake("text_run", "tokens_after_step")
def filled_tokens_are_drawn_again(patch: Patch) -> None:
    def redrawn(f, tokens, *args):
        return f(jnp.full_like(tokens, args[-1]), *args)

    around(patch, masked, "reverse_step", redrawn)


@mistake("text_run", "tokens_after_step")
def no_token_stays_masked(patch: Patch) -> None:
    around(patch, masked, "posterior", lambda f, p, a, b, m: f(p, a, b, m).at[..., m].set(0))


@mistake("text_run", "q_first")
def chances_of_two_times_are_swapped(patch: Patch) -> None:
    around(patch, masked, "posterior", lambda f, p, a, b, m: f(p, b, a, m))


@mistake("text_run", "tokens_after_step")
def cache_is_never_renewed(patch: Patch) -> None:
    around(patch, jax.lax, "cond", lambda f, valid, reuse, compute: reuse())


@mistake("text_run", "cache_used")
def cache_is_never_used(patch: Patch) -> None:
    def without(f, *args, cache, **options):
        return f(*args, cache=False, **options)

    around(patch, parity_samplers, "sample_text", without)


@mistake("text_run", "cache_used")
def cache_is_renewed_only_when_all_tokens_have_changed(patch: Patch) -> None:
    around(patch, jnp, "all", lambda f, unchanged: jnp.any(unchanged))


@mistake("text_run_left_masked", "out_tokens")
def last_pass_is_left_out(patch: Patch) -> None:
    def unfinished(f, *args, **options):
        _, trace = f(*args, **options)
        return trace.tokens[-1], trace

    around(patch, parity_samplers, "sample_text", unfinished)


@mistake("text_run", "first_log_probs")
def text_sampler_tells_the_network_its_time(patch: Patch) -> None:
    around(patch, samplers, "Branch", lambda f, text, t, *rest: f(text, t + 500, *rest))


@mistake("text_run", "q_last")
def decoding_ends_at_a_thousandth(patch: Patch) -> None:
    patch.setattr(samplers, "TEXT_END_TIME", 1e-3)
