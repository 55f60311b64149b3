"""The optimiser against torch.optim.AdamW, and its schedule, clipping and freezing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unialign_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer


def make_params(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "transformer": {
            "image_in": {"kernel": rng.normal(size=(5, 4)).astype(np.float32)},
            "blocks": {"bias": rng.normal(size=(3, 4)).astype(np.float32)},
            "null_image": rng.normal(size=(2, 4)).astype(np.float32),
        }
    }


def apply_steps(config: OptimizerConfig, params: dict, gradients: list[dict]) -> dict:
    tx, _ = make_optimizer(config)
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("clip_scale", [1.0, 12.0])
def test_three_steps_equal_torch_adamw_with_gradient_clipping(clip_scale: float) -> None:
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(
        learning_rate=1e-2,
        warmup_steps=2,
        weight_decay=0.1,
        clip=2.0,
        clip_scale=clip_scale,
        freeze=(),
    )
    params = make_params()
    # The middle gradient is below the clip, the others above.
    gradients = [
        jax.tree.map(lambda x, s=scale: s * x, make_params(seed))
        for seed, scale in [(1, 3.0), (2, 0.01), (3, 1.0)]
    ]
    ours = apply_steps(config, params, gradients)

    trained = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in jax.tree.leaves(params)]
    theirs = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1, eps=1e-8)
    for step, gradient in enumerate(gradients):
        for group in theirs.param_groups:
            group["lr"] = 1e-2 * min(1.0, step / 2)
        for parameter, leaf in zip(trained, jax.tree.leaves(gradient), strict=True):
            # The reference sums its micro-batches; Adam does not see the scale, the clip does.
            parameter.grad = torch.from_numpy(leaf * np.float32(clip_scale))
        torch.nn.utils.clip_grad_norm_(trained, 2.0)
        theirs.step()
    for mine, other in zip(jax.tree.leaves(ours), trained, strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_the_first_step_has_rate_zero() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    params = make_params()
    after = apply_steps(config, params, [make_params(1)])
    jax.tree.map(np.testing.assert_array_equal, params, after)


def test_warm_up_is_linear_and_then_constant() -> None:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=3e-5, warmup_steps=2000))
    rates = [float(schedule(step)) for step in (0, 1, 1000, 2000, 50_000)]
    np.testing.assert_allclose(rates, [0, 1.5e-8, 1.5e-5, 3e-5, 3e-5], rtol=1e-6)


def test_cosine_decay_ends_at_zero() -> None:
    schedule = learning_rate_schedule(
        OptimizerConfig(learning_rate=2.0, warmup_steps=10, decay_steps=30)
    )
    rates = [float(schedule(step)) for step in (10, 20, 30, 40)]
    np.testing.assert_allclose(rates, [2.0, 1.0, 0.0, 0.0], atol=1e-6)


def test_frozen_parameters_neither_move_nor_decay_nor_have_moments() -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    params = make_params()
    after = apply_steps(config, params, [make_params(1)])
    np.testing.assert_array_equal(
        after["transformer"]["null_image"], params["transformer"]["null_image"]
    )
    moved = np.abs(after["transformer"]["blocks"]["bias"] - params["transformer"]["blocks"]["bias"])
    assert moved.min() > 0
    state = make_optimizer(config)[0].init(params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert (2, 4) not in shapes
    assert shapes.count((5, 4)) == 2


def test_frozen_gradients_do_not_count_in_the_clipped_norm() -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip=1e6, eps=1.0)
    params, gradient = make_params(), make_params(1)
    huge = jax.tree.map(jnp.asarray, gradient)
    huge["transformer"]["null_image"] = huge["transformer"]["null_image"] * 1e12
    jax.tree.map(
        np.testing.assert_array_equal,
        apply_steps(config, params, [gradient]),
        apply_steps(config, params, [huge]),
    )


def test_a_decay_shorter_than_the_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="decay_steps=5"):
        OptimizerConfig(warmup_steps=10, decay_steps=5)


def make_blocks(seed: int) -> dict:
    """Kernels as the networks have them: [layers, in, out...]."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    layers = {
        "qkv": {"kernel": normal(2, 6, 3, 2, 4), "bias": normal(2, 3, 2, 4)},
        "up": {"kernel": normal(2, 6, 10)},
        "down": {"kernel": normal(2, 10, 6)},
    }
    blocks = {"layers": layers, "modulation": {"kernel": normal(2, 6, 5)}}
    return {"transformer": {"blocks": blocks, "patch": {"kernel": normal(5, 6)}}}


def test_muon_updates_the_matrices_inside_the_blocks_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    config = OptimizerConfig(
        algorithm="muon", learning_rate=0.0, muon_rate=0.1, warmup_steps=0, weight_decay=0.1, clip=0
    )
    # One step: from the second on, optax corrects the momentum's bias and PyTorch does not.
    params, gradients = make_blocks(0), [make_blocks(1)]
    after = apply_steps(config, params, gradients)
    of = lambda tree, name: tree["transformer"]["blocks"]["layers"][name]["kernel"]
    slices = [("up", np.s_[0]), ("up", np.s_[1]), ("down", np.s_[1])]
    slices += [("qkv", np.s_[layer, :, part]) for layer in range(2) for part in range(3)]
    for name, part in slices:
        # PyTorch keeps matrices as [out, in].
        matrix = of(params, name)[part].reshape(of(params, name)[part].shape[0], -1).T.copy()
        weight = torch.nn.Parameter(torch.tensor(matrix))
        peer = torch.optim.Muon([weight], lr=0.1, weight_decay=0.1)
        for gradient in gradients:
            weight.grad = torch.tensor(
                of(gradient, name)[part].reshape(matrix.shape[1], -1).T.copy()
            )
            peer.step()
        ours = np.asarray(of(after, name)[part]).reshape(matrix.shape[1], -1).T
        moved = np.abs(weight.detach().numpy() - matrix).max()
        # PyTorch iterates in bfloat16.
        np.testing.assert_allclose(ours, weight.detach().numpy(), atol=0.03 * moved)
    # With a rate of 0, what AdamW updates stays.
    for name in ("patch",):
        np.testing.assert_array_equal(
            after["transformer"][name]["kernel"], params["transformer"][name]["kernel"]
        )


def test_muon_leaves_everything_but_the_matrices_to_adamw() -> None:
    params, gradients = make_blocks(0), [make_blocks(seed) for seed in (1, 2)]
    common = {"learning_rate": 0.1, "warmup_steps": 0, "clip": 1.5}
    muon = apply_steps(
        OptimizerConfig(algorithm="muon", muon_rate=0.0, **common), params, gradients
    )
    adam = apply_steps(OptimizerConfig(**common), params, gradients)
    flat = jax.tree_util.tree_leaves_with_path(muon)
    compared = 0
    for path, value in flat:
        name = jax.tree_util.keystr(path)
        expected, start = adam, params
        for key in path:
            expected, start = expected[key.key], start[key.key]
        if "layers" in name and "kernel" in name:
            np.testing.assert_allclose(value, start, rtol=0.05)
        else:
            np.testing.assert_allclose(value, expected, rtol=1e-6)
            compared += 1
    assert compared == 3


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="adamw, muon"):
        OptimizerConfig(algorithm="sgd")
