"""SigLIP against the reference's recorded numbers and against transformers itself."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file

from tests.parity import copies
from unialign_jax.convert.siglip_names import (
    siglip_config_from_json,
    siglip_from_torch,
    siglip_to_torch,
)
from unialign_jax.models.teachers.siglip import build, normalise
from unialign_jax.models.teachers.siglip_config import (
    SigLIPConfig,
    TextConfig,
    TowerConfig,
    VisionConfig,
)
from unialign_jax.models.teachers.siglip_images import to_siglip
from unialign_jax.parity import siglip as parity
from unialign_jax.parity.golden import GoldenDirectory

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"
GOLDEN_FILES = (parity.CONFIG, parity.WEIGHTS, parity.NUMBERS)
# Two rows of pixels are left over at the bottom, two columns on the right.
TINY = SigLIPConfig(
    vision=VisionConfig(width=12, layers=2, heads=3, mlp_width=20, image_size=14, patch_size=4),
    text=TextConfig(width=8, layers=2, heads=2, mlp_width=16, vocab_size=40, positions=9),
)


def random_params(config: SigLIPConfig, seed: int):
    """Every parameter random, with deviations near those of trained ones."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.normal(0, leaf.shape[-1] ** -0.5, leaf.shape).astype(leaf.dtype)
    return jax.tree.map(draw, build(config).abstract)


def random_images(config: SigLIPConfig, count: int, seed: int = 0):
    size = config.vision.image_size
    return np.random.default_rng(seed).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


class Encoder:
    """The functions of the model over one set of parameters, compiled."""

    def __init__(self, params, config: SigLIPConfig):
        network = build(config)
        compiled = lambda name: jax.jit(lambda p, *args: getattr(network.bind(p), name)(*args))
        image, text, logits = (compiled(n) for n in ("encode_image", "encode_text", "logits"))
        self.image = lambda images: image(params, jnp.asarray(images))
        self.text = lambda ids: text(params, jnp.asarray(ids, jnp.int32))
        self.logits = lambda images, texts: logits(params, images, texts)


@pytest.fixture(scope="module")
def tiny():
    return Encoder(random_params(TINY, 0), TINY)


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = (np.asarray(each, np.float32) for each in (actual, expected))
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= tolerance * np.max(np.abs(expected))


@pytest.fixture(scope="module")
def golden():
    """What we compute, and what is recorded, by the recorded names."""
    config = siglip_config_from_json(json.loads((GOLDENS / parity.CONFIG).read_text()))
    params = siglip_from_torch(load_file(GOLDENS / parity.WEIGHTS), config)
    io = dict(np.load(GOLDENS / parity.NUMBERS))
    encoder = Encoder(params, config)
    image = encoder.image(io["pixel_values"].transpose(0, 2, 3, 1))
    text = encoder.text(io["input_ids"])
    logits = encoder.logits(image.pooled, text.pooled)
    actual = {
        "vision_last_hidden": image.hidden,
        "vision_pooler": image.pooled,
        "get_image_features": image.pooled,
        "image_embeds": normalise(image.pooled),
        "text_last_hidden": text.hidden,
        "text_pooler": text.pooled,
        "get_text_features": text.pooled,
        "text_embeds": normalise(text.pooled),
        "logits_per_image": logits,
        "logits_per_text": logits.T,
    }
    return actual, io


@pytest.mark.parametrize(
    "name",
    [
        "vision_last_hidden",
        "vision_pooler",
        "get_image_features",
        "image_embeds",
        "text_last_hidden",
        "text_pooler",
        "get_text_features",
        "text_embeds",
        "logits_per_image",
        "logits_per_text",
    ],
)
def test_output_equals_the_reference(golden, name):
    actual, recorded = golden
    assert_close(actual[name], recorded[name])


def test_verification_compares_or_reads_every_recorded_array(tmp_path):
    goldens = GoldenDirectory(copies.copy(tmp_path, *GOLDEN_FILES))
    parity.verify(goldens)
    assert len(goldens.rows) == 10
    assert all(row.ok for row in goldens.rows)
    assert goldens.unchecked("components") == []


def test_verification_notices_a_wrong_number(tmp_path):
    copies.copy(tmp_path, *GOLDEN_FILES)
    copies.change(tmp_path, parity.NUMBERS, copies.raised("text_pooler", 1e-4))
    goldens = GoldenDirectory(tmp_path)
    parity.verify(goldens)
    assert [row.tensor for row in goldens.rows if not row.ok] == ["text_pooler"]


@pytest.mark.parametrize("left_out", GOLDEN_FILES)
def test_verification_skips_what_an_inventory_leaves_out(tmp_path, left_out):
    listed = [name for name in GOLDEN_FILES if name != left_out]
    goldens = GoldenDirectory(copies.copy(tmp_path, *listed))
    parity.verify(goldens)
    assert goldens.rows == []


# Images that patches do not tile with a text tower of another width; and one of everything.
LIVE_SIZES = {
    "odd": {
        "vision": (40, 3, 5, 56, {"image_size": 31, "patch_size": 7}),
        "text": (24, 2, 3, 30, {"vocab_size": 50, "max_position_embeddings": 12}),
        "projection": 40,
    },
    "least": {
        "vision": (16, 1, 1, 24, {"image_size": 8, "patch_size": 8}),
        "text": (16, 1, 1, 40, {"vocab_size": 99, "max_position_embeddings": 33}),
        "projection": None,
    },
}


def tower(width, layers, heads, mlp_width, others):
    return others | {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp_width,
    }


@pytest.fixture(scope="module", params=LIVE_SIZES)
def live(request):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = LIVE_SIZES[request.param]
    config = transformers.SiglipConfig(
        vision_config=tower(*sizes["vision"]),
        text_config=tower(*sizes["text"])
        | {"projection_size": sizes["projection"], "bos_token_id": 2, "eos_token_id": 3},
    )
    torch.manual_seed(7)
    model = transformers.SiglipModel(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # biases start at zero, norms at one: make each count
            parameter.data += 0.2 * torch.randn_like(parameter)
        if name.startswith("text_model.embeddings"):
            parameter.data *= 0.03  # only small inputs tell a norm's eps of 1e-6 from 1e-5
    return torch, model, siglip_config_from_json(config.to_dict())


def run_live(torch, model, images, ids):
    with torch.no_grad():
        return model(
            input_ids=torch.from_numpy(ids),
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        )


@pytest.mark.parametrize("missing_tokens", [0, 5])
def test_output_equals_transformers_at_other_sizes(live, missing_tokens):
    torch, model, config = live
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    encoder = Encoder(siglip_from_torch(state, config), config)
    images, rng = random_images(config, 3), np.random.default_rng(1)
    ids = rng.integers(0, config.text.vocab_size, (4, config.text.positions - missing_tokens))
    expected = run_live(torch, model, images, ids)
    image, text = encoder.image(images), encoder.text(ids)
    assert_close(image.hidden, expected.vision_model_output.last_hidden_state)
    assert_close(image.pooled, expected.vision_model_output.pooler_output)
    assert_close(text.hidden, expected.text_model_output.last_hidden_state)
    assert_close(text.pooled, expected.text_model_output.pooler_output)
    assert_close(encoder.logits(image.pooled, text.pooled), expected.logits_per_image)


def test_exported_weights_run_in_transformers(live):
    torch, model, config = live
    params = random_params(config, 5)
    state = siglip_to_torch(params, config)
    model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()})
    encoder, images = Encoder(params, config), random_images(config, 2)
    ids = np.arange(2 * config.text.positions).reshape(2, -1) % config.text.vocab_size
    image, text = encoder.image(images), encoder.text(ids)
    expected = run_live(torch, model, images, ids)
    assert_close(encoder.logits(image.pooled, text.pooled), expected.logits_per_image)


def live_processor(size):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    # Versions before 5 have PIL under the plain name; later ones keep that for torchvision.
    kind = getattr(transformers, "SiglipImageProcessorPil", None)
    kind = kind or getattr(transformers, "SiglipImageProcessor", None)
    if kind is None:
        pytest.skip("this transformers has no SigLIP image processor on PIL")
    return kind(size={"height": size, "width": size})


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
@pytest.mark.parametrize(("width", "height", "size"), [(61, 40, 28), (17, 90, 28), (9, 11, 30)])
def test_images_equal_those_of_transformers(mode, width, height, size):
    processor = live_processor(size)
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    actual = to_siglip(image, size).transpose(2, 0, 1)
    assert actual.dtype == np.float32
    # Both round the same uint8 pixel, in another order.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1.2e-7)


def test_an_image_of_the_right_size_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    actual = to_siglip(pixels, 14)
    np.testing.assert_array_equal(np.rint((actual + 1) * 127.5).astype(np.uint8), pixels)
    assert to_siglip(np.zeros((4, 5, 3), np.uint8), 14).max() == -1
    assert to_siglip(np.full((4, 5, 3), 255, np.uint8), 14).min() == 1


def test_alpha_is_dropped():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    np.testing.assert_array_equal(
        to_siglip(Image.fromarray(pixels), 14), to_siglip(pixels[..., :3].copy(), 14)
    )


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)],
)
def test_arrays_that_are_no_pixels_are_refused(array):
    with pytest.raises(ValueError, match="give uint8"):
        to_siglip(array, 14)


def test_padding_counts_because_the_last_token_is_pooled(tiny):
    ids = np.array([[5, 6, 7]])
    short, padded = tiny.text(ids), tiny.text(np.pad(ids, ((0, 0), (0, 6)), constant_values=1))
    assert padded.hidden.shape == (1, 9, 8)
    assert np.max(np.abs(short.pooled - padded.pooled)) > 1e-2
    other_pad = tiny.text(np.pad(ids, ((0, 0), (0, 6)), constant_values=0))
    assert np.max(np.abs(other_pad.pooled - padded.pooled)) > 1e-2


@pytest.mark.parametrize("position", [0, 4, 8])
def test_every_token_reaches_the_pooled_text(tiny, position):
    ids = np.arange(9)[None]
    changed = ids.copy()
    changed[0, position] = 39
    assert np.max(np.abs(tiny.text(ids).pooled - tiny.text(changed).pooled)) > 1e-3


@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 11), (11, 11)])
def test_every_patch_reaches_the_pooled_image(tiny, row, column):
    images = random_images(TINY, 1)
    changed = images.copy()
    changed[0, row, column] += 1
    assert np.max(np.abs(tiny.image(images).pooled - tiny.image(changed).pooled)) > 1e-4


def test_pixels_that_no_patch_covers_do_not_count(tiny):
    images = random_images(TINY, 1)
    changed = images.copy()
    changed[:, 12:], changed[:, :, 12:] = 0, 0
    first, second = tiny.image(images), tiny.image(changed)
    assert first.hidden.shape == (1, 9, 12)
    np.testing.assert_array_equal(first.pooled, second.pooled)


def test_rows_of_a_batch_are_independent(tiny):
    images, ids = random_images(TINY, 3), np.arange(27).reshape(3, 9)
    for encode, batch in ((tiny.image, images), (tiny.text, ids)):
        together = encode(batch)
        for i in range(3):
            alone = encode(batch[i : i + 1])
            assert_close(alone.pooled[0], together.pooled[i], 2e-6)
            assert_close(alone.hidden[0], together.hidden[i], 2e-6)


def test_logits_are_scaled_and_shifted_cosines():
    params = random_params(TINY, 3)
    params["logit_scale"] = np.log(np.array([10.0], np.float32))
    params["logit_bias"] = np.array([-4.0], np.float32)
    images = np.eye(3, 12, dtype=np.float32) * 7
    texts = np.stack([images[0] * 5, -images[1], images[0] + images[1]])
    logits = Encoder(params, TINY).logits(images, texts)
    assert logits.dtype == jnp.float32
    half = 10 / np.sqrt(2) - 4
    np.testing.assert_allclose(logits, [[6, -4, half], [-4, -14, half], [-4, -4, -4]], atol=1e-5)


def test_fresh_logits_start_at_the_papers_scale_and_bias():
    # This generator's programs compile in a quarter of the default one's time.
    params = jax.jit(build(TINY).init)(jax.random.key(0, impl="unsafe_rbg"))
    np.testing.assert_allclose(np.exp(params["logit_scale"]), [10.0], rtol=1e-6)
    np.testing.assert_allclose(params["logit_bias"], [-10.0])
    kernel = params["image"]["blocks"]["query"]["kernel"]
    assert not np.array_equal(kernel[0], kernel[1]), "layers must differ"


def test_bfloat16_compute_keeps_float32_parameters_and_stays_near_float32(tiny):
    half = dataclasses.replace(TINY, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(build(half).abstract)} == {jnp.dtype("float32")}
    encoder, ids = Encoder(random_params(TINY, 0), half), np.arange(18).reshape(2, 9)
    images = random_images(TINY, 2)
    for actual, expected in (
        (encoder.image(images), tiny.image(images)),
        (encoder.text(ids), tiny.text(ids)),
    ):
        for ours, theirs in zip(actual, expected, strict=True):
            assert ours.dtype == jnp.bfloat16
            assert_close(ours, theirs, tolerance=0.05)


def test_parameters_can_be_created_in_bfloat16():
    config = dataclasses.replace(TINY, param_dtype="bfloat16", dtype="bfloat16")
    params = random_params(config, 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    encoder = Encoder(params, config)
    image, text = encoder.image(random_images(TINY, 1)), encoder.text(np.zeros((1, 3)))
    assert image.pooled.dtype == text.pooled.dtype == jnp.bfloat16
    assert encoder.logits(image.pooled, text.pooled).dtype == jnp.float32


def test_every_parameter_names_its_logical_axes_without_the_layer_axis():
    network = build(TINY)
    is_axes = lambda node: isinstance(node, tuple)
    axes = jax.tree.leaves_with_path(network.axes, is_leaf=is_axes)
    leaves = jax.tree.leaves_with_path(network.abstract)
    for (path, names), (same_path, leaf) in zip(axes, leaves, strict=True):
        assert path == same_path
        assert set(names) <= {"embed", "heads", "mlp", "vocab", None}, path
        stacked = any(key.key == "blocks" for key in path)
        assert len(names) == leaf.ndim - stacked, path


def test_builds_and_runs_in_tree_mode(tiny):
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        out = Encoder(random_params(TINY, 0), TINY).text(np.arange(3)[None])
    np.testing.assert_array_equal(out.pooled, tiny.text(np.arange(3)[None]).pooled)


def test_compiled_size_does_not_grow_with_depth():
    def lines(layers):
        deeper = lambda sizes: dataclasses.replace(sizes, layers=layers)
        network = build(SigLIPConfig(deeper(TINY.vision), deeper(TINY.text)))
        images = jax.ShapeDtypeStruct((1, 14, 14, 3), jnp.float32)
        run = jax.jit(lambda params, images: network.bind(params).encode_image(images))
        return len(run.lower(network.abstract, images).as_text().splitlines())

    assert lines(2) == lines(9)


@pytest.mark.parametrize("shape", [(1, 13, 14, 3), (1, 28, 28, 3), (1, 3, 14, 14), (14, 14, 3)])
def test_images_of_another_shape_are_refused(tiny, shape):
    with pytest.raises(ValueError, match=r"takes \(batch, 14, 14, 3\)"):
        tiny.image(np.zeros(shape, np.float32))


def test_images_of_whole_numbers_are_refused(tiny):
    with pytest.raises(ValueError, match=r"uint8, this encoder takes floats in \[-1, 1\]"):
        tiny.image(np.zeros((1, 14, 14, 3), np.uint8))


@pytest.mark.parametrize("shape", [(1, 10), (1, 0), (9,)])
def test_texts_without_positions_for_them_are_refused(tiny, shape):
    with pytest.raises(ValueError, match="lengths of 1 to 9"):
        tiny.text(np.zeros(shape))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TowerConfig(width=10, heads=3), "width 10 is not a multiple of heads 3"),
        (lambda: TextConfig(vocab_size=0), "vocab_size is 0"),
        (lambda: VisionConfig(image_size=8, patch_size=9), "patch_size 9 is above image_size 8"),
        (lambda: SigLIPConfig(dtype="float64"), "dtype is 'float64'"),
        (lambda: SigLIPConfig(param_dtype="int8"), "param_dtype is 'int8'"),
    ],
)
def test_impossible_sizes_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()
