"""Group `scheduler_tables`, and the noise schedules and densities of group `losses`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from unialign_jax.diffusion import flow, masked
from unialign_jax.parity.golden import LOOSE, GoldenDirectory, GoldenFile, compare

GROUP = "scheduler_tables"


def verify(goldens: GoldenDirectory) -> None:
    """Compares the sampling and training tables and the single operations."""
    index = goldens.json(f"{GROUP}/index.json")
    for name in goldens.files(f"{GROUP}/shift", ".npz"):
        case = name.split("/")[-1].removesuffix(".npz")
        file = goldens.open(name)
        shift = float(case.removeprefix("shift").replace("p", "."))
        _verify_table(file, shift)
        levels = flow.training_sigmas(shift)
        for key, value in (("sigma_min", levels[-1]), ("sigma_max", levels[0])):
            if key in index.get(case, {}):
                goldens.add(compare(file.case, f"index.{key}", value, index[case][key], 1e-6))
    _verify_operations(goldens)


def _verify_table(file: GoldenFile, shift: float) -> None:
    levels = flow.training_sigmas(shift)
    file.check("train_sigmas", levels, 1e-6)
    file.check("train_timesteps", levels * flow.TRAINING_LEVELS, 1e-6)
    file.check("sigma_min_f64", float(levels[-1]), 1e-6)
    file.check("sigma_max_f64", float(levels[0]), 1e-6)
    for key in [k for k in file.arrays if k.startswith("steps") and k.endswith("_sigmas")]:
        steps = int(key.removeprefix("steps").removesuffix("_sigmas"))
        sigmas = flow.sampling_sigmas(steps, shift)
        file.check(key, sigmas, 1e-6)
        file.check(f"steps{steps}_timesteps", sigmas[:-1] * flow.TRAINING_LEVELS, 1e-6)
    if "custom_in" in file:
        sigmas = flow.custom_sigmas(file.get("custom_in"), shift)
        file.check("custom_sigmas", sigmas, 1e-6)
        file.check("custom_timesteps", sigmas[:-1] * flow.TRAINING_LEVELS, 1e-6)


def _verify_operations(goldens: GoldenDirectory) -> None:
    name = f"{GROUP}/euler_constant_velocity.npz"
    if goldens.lists(name):
        _verify_euler(goldens.open(name))
    for name in goldens.files(f"{GROUP}/scale_noise", ".npz"):
        file = goldens.open(name)
        sigma = jnp.asarray(file.get("timesteps")) / flow.TRAINING_LEVELS
        file.check("out", flow.interpolate(file.get("sample"), file.get("noise"), sigma))


def _verify_euler(file: GoldenFile) -> None:
    x, velocity, sigmas = (jnp.asarray(file.get(k)) for k in ("x", "velocity", "sigmas"))
    trajectory = [x]
    for i in range(len(sigmas) - 1):
        trajectory.append(flow.euler_step(trajectory[-1], velocity, sigmas[i], sigmas[i + 1]))
    file.check("trajectory", jnp.stack(trajectory))
    file.check("timesteps", sigmas[:-1] * flow.TRAINING_LEVELS)


def verify_text_noise(goldens: GoldenDirectory) -> None:
    """`losses/noise_schedule`, `sample_t` and `subs`, as far as they are there."""
    for name, check in (
        ("losses/noise_schedule.npz", _verify_noise),
        ("losses/sample_t.npz", _verify_times),
        ("losses/subs.npz", _verify_substitution),
    ):
        if goldens.lists(name):
            check(goldens.open(name))


def _verify_noise(file: GoldenFile) -> None:
    t, eps = jnp.asarray(file.get("t")), float(file.get("eps"))
    sigma = masked.total_noise(t, eps)
    file.check_each("total_noise", sigma)
    # At t = 1 the float32 rate is good to about 1e-5 only.
    file.check_each("rate_noise", masked.rate_noise(t, eps), LOOSE)
    file.check("move_chance", masked.mask_chance(sigma))
    file.check_each("loss_weight", masked.loss_weight(t, eps), LOOSE)
    file.check("importance_t", masked.importance_time(t, eps))
    file.check("sigma_min", eps + masked.total_noise(jnp.float32(0), eps))
    file.check("sigma_max", masked.total_noise(jnp.float32(1), eps))


def _verify_times(file: GoldenFile) -> None:
    minimum = float(file.get("sampling_eps"))
    for key in [k for k in file.arrays if k.startswith("eps_b")]:
        size = key.removeprefix("eps_b")
        times = masked.antithetic_times(jnp.asarray(file.get(key)), minimum=minimum)
        file.check(f"t_b{size}_plain", times)
        if f"t_b{size}_importance" in file:
            file.check(f"t_b{size}_importance", masked.importance_time(times))


def _verify_substitution(file: GoldenFile) -> None:
    mask_id = int(file.get("mask_index"))
    tokens = masked.mask_tokens(
        file.get("x0").astype(np.int32), file.get("move_chance"), file.get("uniform"), mask_id
    )
    file.check("xt", tokens)
    file.check("log_probs", masked.substitute(jnp.asarray(file.get("logits")), tokens, mask_id))


def verify_densities(goldens: GoldenDirectory) -> None:
    """`losses/timestep_density`: densities, table look-ups, weightings."""
    name = "losses/timestep_density.npz"
    if not goldens.lists(name):
        return
    file = goldens.open(name)
    table = flow.training_sigmas()
    for key in [k for k in file.arrays if k.startswith("logit_normal_in_")]:
        suffix = key.removeprefix("logit_normal_in_")
        mean, std = (_number(part) for part in suffix.split("_"))
        # Recorded draws have the mean and deviation in them.
        standard = (jnp.asarray(file.get(key)) - mean) / std
        u = flow.logit_normal(standard, mean, std)
        file.check(f"logit_normal_u_{suffix}", u)
        if f"index_{suffix}" in file:
            index = np.asarray(flow.level_index(u))
            file.check(f"index_{suffix}", index)
            file.check(f"sigmas_{suffix}", table[index], 1e-7)
            file.check(f"timesteps_{suffix}", table[index] * flow.TRAINING_LEVELS, 1e-7)
    uniform = jnp.asarray(file.get("uniform_in"))
    file.check("uniform_u", uniform)
    for key in [k for k in file.arrays if k.startswith("mode_u_scale_")]:
        file.check(key, flow.mode(uniform, _number(key.removeprefix("mode_u_scale_"))))
    grid = jnp.asarray(file.get("sigma_grid"))
    # The reference's names; its logit-normal weighting is 1.
    for theirs, ours in (("sigma_sqrt", "velocity"), ("cosmap", "cosmap"), ("logit_normal", "x0")):
        if f"weighting_{theirs}" in file:
            file.check_each(f"weighting_{theirs}", flow.loss_weight(grid, ours))


def _number(text: str) -> float:
    """Reads a number from a recorded name: m0p5 is -0.5."""
    return float(text.replace("m", "-").replace("p", "."))
