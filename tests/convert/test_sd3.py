"""A start from Stable Diffusion 3: the image stream computes what diffusers computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert.conftest import converted
from unialign_jax.convert.recognise import recognise
from unialign_jax.errors import UserError
from unialign_jax.models import functional
from unialign_jax.models.mmdit import Branch, Heads, MMDiT

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SIZES = {
    "vocab_size": 61,
    "adapter_hidden": 12,
    "adapter_out": 10,
    "null_image_tokens": 8,
}


@pytest.fixture(scope="module", params=[(2, 2), (3, 3)], ids=["2x2", "3x3"])
def model(request):
    """A tiny `SD3Transformer2DModel` with random weights; no pooled text enters."""
    layers, heads = request.param
    torch.manual_seed(layers)
    model = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=heads,
        joint_attention_dim=24,
        caption_projection_dim=64 * heads,
        pooled_projection_dim=12,
        pos_embed_max_size=12,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.05 * torch.randn_like(parameter))
        for name, parameter in model.named_parameters():
            if "text_embedder" in name:
                parameter.zero_()
    return model.eval()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "transformer")
    return tmp_path / "transformer"


def test_what_is_done_to_each_tensor_is_listed(model, folder):
    found = recognise(folder, sizes=SIZES)
    assert found.kind == "sd3"
    renamed = [
        f"{a}.{kind} -> {b}.{kind}"
        for a, b in (("norm_out.linear", "image_norm_out.linear"), ("proj_out", "image_proj_out"))
        for kind in ("weight", "bias")
    ]
    assert sorted(found.notes("renamed")) == sorted(renamed)
    assert len(found.notes("dropped")) == 4
    assert all("text_embedder" in name for name in found.notes("dropped"))
    last = f"transformer_blocks.{model.config.num_layers - 1}"
    assert all(line.startswith(f"{last}.norm1_context") for line in found.notes("adapted"))
    drawn = {name.rsplit(".", 1)[0] for name in found.notes("initialised")}
    assert drawn == {
        f"{last}.attn.to_add_out",
        f"{last}.ff_context.net.0.proj",
        f"{last}.ff_context.net.2",
        "text_proj_out",
        ["null_image_embd"][0],
        *(f"siglip_adapter_{a}.fc.{i}" for a in ("img", "text") for i in (0, 2)),
    }


@pytest.mark.parametrize("t", [3.0, 500.0, 998.0])
def test_the_velocity_is_that_of_sd3(model, folder, tmp_path, t):
    bundle = converted(folder, tmp_path / "start", sizes=SIZES)
    config = recognise(folder, sizes=SIZES).parts["transformer"].config
    network = functional.build(lambda rngs: MMDiT(config, rngs))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), network.abstract
    )
    params = bundle.load("transformer", wanted)
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((2, 8, 12, 4)).astype(np.float32)
    text = rng.standard_normal((2, 7, 24)).astype(np.float32)
    with torch.no_grad():
        theirs = model(
            torch.from_numpy(latents).permute(0, 3, 1, 2),
            torch.from_numpy(text),
            torch.zeros(2, 12),
            torch.full((2,), t),
        ).sample.permute(0, 2, 3, 1)
    branch = Branch(jnp.asarray(text), jnp.full((2,), t), jnp.asarray(latents))
    ours = network.bind(params)(branch, Heads(velocity=True, logits=True))
    peak = float(theirs.abs().max())
    np.testing.assert_allclose(ours.velocity, theirs.numpy(), atol=2e-5 * peak)
    # The text stream of the last block is new; its gates are closed, so nothing is disturbed.
    assert np.isfinite(np.asarray(ours.logits)).all()


def test_what_is_new_follows_the_seed(folder, tmp_path):
    def drawn(name, seed):
        bundle = converted(folder, tmp_path / name, sizes=SIZES, seed=seed)
        leaves = {leaf.path: leaf for leaf in bundle.leaves("transformer")}
        return leaves["text_head/kernel"].read()

    first, again, other = drawn("a", 0), drawn("b", 0), drawn("c", 1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert 0 < np.abs(first).max() < 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"qk_norm": "rms_norm"}, "norms of queries"), ({"dual_attention_layers": (0,)}, "second")],
)
def test_stable_diffusion_3_5_is_refused(tmp_path, options, reason):
    model = diffusers.SD3Transformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=1,
        joint_attention_dim=24,
        caption_projection_dim=64,
        pooled_projection_dim=12,
        pos_embed_max_size=12,
        **options,
    )
    model.save_pretrained(tmp_path / "transformer")
    with pytest.raises(UserError, match=f"Stable Diffusion 3.5, with .*{reason}"):
        recognise(tmp_path / "transformer")
