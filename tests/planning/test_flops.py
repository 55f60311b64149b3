"""FLOPs from the traced step equal arithmetic from the sizes alone, within one per cent."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from tests.planning.stage import stage
from unialign_jax.models.attention import SplashSettings, attention
from unialign_jax.models.t5 import T5Config
from unialign_jax.planning import closed_form, flops, program
from unialign_jax.planning.batch import Case
from unialign_jax.planning.topology import parse, stand_ins


def counts(config, case):
    """(plan, closed form) for one device, without a compiler."""
    target = parse("gpu:h200")
    plan = program.plan(config, target, case, stand_ins(1))
    encoder = T5Config(**{k: v for k, v in config["text_encoder"].items() if k != "train"})
    sizes = closed_form.sizes_of(
        config, task=case.task, conditions=case.conditions, batch=config["train"]["global_batch"]
    )
    network = plan.setup.model.config
    return plan.flops, closed_form.step(
        network, encoder, sizes, fused=network.attention == "splash"
    )


def check(counted, expected):
    assert counted.model == pytest.approx(expected.model, rel=0.01)
    assert counted.text_encoder == pytest.approx(expected.text_encoder, rel=0.01)
    assert counted.repeated == pytest.approx(expected.repeated, rel=0.01, abs=1)
    assert counted.hardware == pytest.approx(expected.hardware, rel=0.01)


@pytest.mark.parametrize(
    ("case", "remat"),
    [
        (Case("generate"), "full"),
        (Case("edit", 1), "dots"),
        (Case("compose", 3), "none"),
        (Case("answer"), "full"),
    ],
    ids=str,
)
def test_a_narrow_step_has_the_flops_of_the_closed_form(case, remat):
    check(*counts(stage(model__remat=remat), case))


@pytest.mark.parametrize("switch", ["stem_channels", "detail_channels"])
def test_convolutions_have_the_flops_of_the_closed_form(switch):
    more = counts(stage(**{f"model__{switch}": 32}), Case("edit", 1))
    without = counts(stage(), Case("edit", 1))
    added, expected = (a.model - b.model for a, b in zip(more, without, strict=True))
    assert added == pytest.approx(expected, rel=0.01) and added > 0


@pytest.mark.parametrize("remat", ["full", "dots_attention"])
def test_a_narrow_step_with_splash_has_the_flops_of_the_closed_form(remat):
    config = stage(model__remat=remat, model__attention="splash", train__global_batch=2)
    check(*counts(config, Case("generate")))


def test_the_published_size_has_the_flops_of_the_closed_form():
    counted, expected = counts(stage(narrow=False, train__global_batch=2), Case("generate"))
    check(counted, expected)
    # reference/pod_probe.md, section 8: counted there in another program, TFLOP per sample.
    # It runs the last block whole; ours leaves out what no head reads.
    unread = 18 * (1024 + 256) * 1536**2
    assert counted.model / 2 + 3 * unread == pytest.approx(12.0e12, rel=0.01)
    # There with splash attention, whose backward has 3 products more: 6 T^2 D in 24 layers, twice.
    splash = 2 * 24 * 6 * 1280**2 * 1536
    executed = (counted.model + counted.repeated) / 2 + 4 * unread + splash
    assert executed == pytest.approx(16.7e12, rel=0.01)


def test_micro_batches_do_not_change_the_model_flops():
    whole = counts(stage(), Case("generate"))[0].model
    pieces = counts(stage(train__micro_batches=2), Case("generate"))[0].model
    # The contrastive loss compares within a piece: half of a small part.
    assert pieces == pytest.approx(whole, rel=0.001)


# ------------------------------------------------------------------ the counter itself


def of(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops.count(jax.make_jaxpr(function)(*arguments)).total


def test_a_product_costs_two_flops_per_multiply_add():
    assert of(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7


def test_a_convolution_counts_its_window_and_inputs():
    def convolve(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

    assert of(convolve, (2, 8, 8, 3), (3, 3, 3, 4)) == 2 * (2 * 8 * 8 * 4) * 3 * 3 * 3


def test_a_scan_counts_its_length():
    def loop(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=11)[0]

    assert of(loop, (4, 4), (4, 4)) == 11 * 2 * 4**3


def test_what_nothing_reads_is_not_counted():
    def body(c, x):
        return c @ c, x @ x

    def loop(x, xs):
        return jax.lax.scan(body, x, xs)[0]

    assert of(loop, (4, 4), (5, 4, 4)) == 5 * 2 * 4**3
    assert of(lambda a: (a, a @ a)[0], (4, 4)) == 0


def test_shard_map_counts_every_device():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("x")
    product = jax.shard_map(lambda a: a @ a.T, mesh=mesh, in_specs=split, out_specs=split)
    assert of(product, (8, 16)) == 4 * 2 * 2 * 2 * 16


def test_remat_counts_the_forward_again():
    def f(x, w):
        return jnp.sum(jnp.sin(jnp.sin(x @ w) @ w))

    plain = of(jax.value_and_grad(f), (8, 8), (8, 8))
    again = of(jax.value_and_grad(jax.checkpoint(f)), (8, 8), (8, 8))
    # Two products forward, two for the gradient of x; then the two forward ones again.
    assert (plain, again) == (4 * 2 * 8**3, 6 * 2 * 8**3)


def splash(remat, saved=None):
    kernels = pytest.importorskip(
        "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel"
    )
    masks = pytest.importorskip(
        "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask"
    )
    mask = masks.MultiHeadMask([masks.FullMask((256, 256))] * 2)
    kernel = kernels.make_splash_mha(
        mask, head_shards=1, q_seq_shards=1, residual_checkpoint_name="attention"
    )

    def loss(x):
        y = jax.vmap(kernel)(x, x, x)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    if remat:
        policy = jax.checkpoint_policies.save_only_these_names(*([saved] if saved else []))
        loss = jax.checkpoint(loss, policy=policy)
    x = jax.ShapeDtypeStruct((3, 2, 256, 64), jnp.bfloat16)
    return flops.count(jax.make_jaxpr(jax.value_and_grad(loss))(x))


def test_splash_attention_is_counted_by_its_products():
    product = 2 * 3 * 2 * 256 * 256 * 64
    forward_and_backward = splash(remat=False)
    # Two products forward, seven backward, three of which repeat another.
    assert forward_and_backward.attention == (2 + 7) * product
    assert forward_and_backward.repeated == 3 * product
    assert forward_and_backward.attention_depth == 64
    assert splash(remat=True).attention == (2 + 2 + 7) * product


@pytest.mark.parametrize("tokens_minor", [True, False])
def test_one_backward_kernel_is_counted_with_five_products(tokens_minor):
    settings = SplashSettings(tokens_minor=tokens_minor)
    attend = functools.partial(attention, backend="splash", splash_settings=settings)
    x = jax.ShapeDtypeStruct((3, 256, 2, 64), jnp.bfloat16)
    gradient = jax.grad(lambda x: jnp.sum(attend(x, x, x).astype(jnp.float32)))
    counted = flops.count(jax.make_jaxpr(gradient)(x))
    product = 2 * 3 * 2 * 256 * 256 * 64
    assert (counted.attention, counted.repeated) == ((2 + 5) * product, product)


def test_a_saved_kernel_does_not_run_again():
    product = 2 * 3 * 2 * 256 * 256 * 64
    assert splash(remat=True, saved="attention").attention == (2 + 7) * product
