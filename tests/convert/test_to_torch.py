"""What is written for PyTorch: names, dtypes, files, and classes that load it without complaint."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.convert.conftest import ENCODER, FILES, GOLDENS, TRANSFORMER, VAE, converted, equal
from unialign_jax.bundle.leaves import leaves_of
from unialign_jax.convert import layout
from unialign_jax.convert.names import abstract_parameters
from unialign_jax.convert.to_torch import Options, prepare, to_torch
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.diffusion import flow
from unialign_jax.errors import UserError
from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.sampling.exporting import open_source
from unialign_jax.sampling.pipeline import Pipeline


@pytest.fixture(scope="session")
def bundle(original, tmp_path_factory):
    """The golden components as a bundle; not to be changed."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    converted(original, path)
    return path


@pytest.fixture
def source(bundle):
    return open_source(bundle)


@pytest.fixture(scope="session")
def written(bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "tiny"
    to_torch(open_source(bundle), path, Options())
    return path


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_tensor_is_cast_to_the_dtype_asked_for(original, source, tmp_path, dtype):
    to_torch(source, tmp_path / "x", Options(dtype=dtype))
    for file in FILES:
        before, after = load_file(original / file), load_file(tmp_path / "x" / file)
        cast = {name: array.astype(dtype) for name, array in before.items()}
        assert equal(cast, after) == []
    config = json.loads((tmp_path / "x/text_encoder/config.json").read_text())
    assert config["torch_dtype"] == dtype


def test_a_number_that_float16_cannot_hold_names_its_tensor(source, tmp_path):
    def large(order):
        for leaf in source.leaves["vae"](order):
            yield dataclasses.replace(leaf, read=lambda leaf=leaf: leaf.read() + 1e6)

    wrong = dataclasses.replace(source, leaves={**source.leaves, "vae": large})
    with pytest.raises(UserError, match=r"conv_in.weight has no finite value in float16"):
        to_torch(wrong, tmp_path / "x", Options(dtype="float16"))
    assert list(tmp_path.iterdir()) == []


def test_above_a_size_weights_are_written_in_files_with_an_index(original, source, tmp_path):
    to_torch(source, tmp_path / "x", Options(limit=100_000))
    folder = tmp_path / "x/transformer"
    parts = sorted(folder.glob("*.safetensors"))
    assert len(parts) > 2
    assert all(file.stat().st_size < 150_000 for file in parts)
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    state = {name: array for file in parts for name, array in load_file(file).items()}
    assert set(index["weight_map"]) == set(state)
    assert equal(load_file(original / TRANSFORMER), state) == []


def test_a_training_checkpoint_is_the_transformer_alone(original, source, tmp_path):
    to_torch(source, tmp_path / "x", Options(layout="checkpoint"))
    file = tmp_path / "x/consolidated.00-of-01.safetensors"
    assert equal(load_file(original / TRANSFORMER), load_file(file)) == []
    names = sorted(path.name for path in (tmp_path / "x").iterdir())
    assert names == ["README.md", "config.json", file.name, "unialign_export.json"]


@pytest.mark.parametrize("component", ["text_encoder", "vae"])
def test_a_component_alone_goes_there_and_back(original, tmp_path, component):
    converted(original / component, tmp_path / "bundle")
    to_torch(open_source(tmp_path / "bundle"), tmp_path / "back", Options())
    (file,) = (original / component).glob("*.safetensors")
    after = load_file(tmp_path / "back" / component / file.name)
    assert equal(load_file(file), after) == []
    assert not (tmp_path / "back/model_index.json").exists()
    with pytest.raises(UserError, match="no transformer to write a checkpoint of"):
        to_torch(open_source(tmp_path / "bundle"), tmp_path / "x", Options(layout="checkpoint"))


def test_what_is_only_a_teacher_is_not_written(tmp_path):
    converted(GOLDENS / "components/siglip", tmp_path / "bundle")
    with pytest.raises(UserError, match="holds siglip; written are transformer, text_encoder, vae"):
        to_torch(open_source(tmp_path / "bundle"), tmp_path / "x", Options())


def test_without_adapters(source, tmp_path):
    done = to_torch(source, tmp_path / "x", Options(adapters=False))
    state = load_file(tmp_path / "x" / TRANSFORMER)
    assert not any("siglip_adapter" in name for name in state)
    numbers = sum(a.size for n, a in state.items() if n != "pos_embed.pos_embed")
    assert done.parameters == numbers
    assert "adapters" in (tmp_path / "x/README.md").read_text()


def test_the_full_size_without_adapters_is_counted(source):
    full = MMDiTConfig()
    zeros = {"model": dataclasses.asdict(full)}

    def leaves(order, config=full):
        import jax

        abstract = jax.tree.map(
            lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_parameters(config)
        )
        return leaves_of(abstract)

    big = dataclasses.replace(source, config=zeros, leaves={"transformer": leaves})
    _, made = prepare(big, Options(adapters=False, layout="checkpoint"))
    planned = made["transformer"].planned
    numbers = sum(
        int(np.prod(tensor.shape)) for tensor in planned if tensor.name != "pos_embed.pos_embed"
    )
    assert numbers == layout.PARAMETERS_WITHOUT_ADAPTERS == 2_102_856_100


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("stem_channels", 4),
        ("detail_channels", 4),
        ("text_positions", 12),
        ("condition_segments", True),
        ("qk_norm", True),
        ("rotary_fastest", 1.0),
        ("prediction", "image"),
    ],
)
def test_switches_that_change_the_weights_are_refused_by_name(source, tmp_path, switch, value):
    config = {**source.config, "model": {**source.config["model"], switch: value}}
    with pytest.raises(UserError, match=rf"model.{switch} = {value} change what the weights are"):
        to_torch(dataclasses.replace(source, config=config), tmp_path / "x", Options())
    assert not (tmp_path / "x").exists()


def test_the_shipped_model_is_refused_for_its_switches(tmp_path):
    from unialign_jax.bundle.shipped import find_model

    with pytest.raises(UserError, match="text_positions = 18"):
        to_torch(open_source(find_model("scenes")), tmp_path / "x", Options())


def test_arrays_that_are_not_those_of_the_network_are_refused(source, tmp_path):
    def fewer(order):
        return [leaf for leaf in source.leaves["transformer"](order) if leaf.layer != 1]

    wrong = dataclasses.replace(source, leaves={**source.leaves, "transformer": fewer})
    with pytest.raises(UserError, match=r"(?s)not the arrays of a transformer.*layer 1: missing"):
        to_torch(wrong, tmp_path / "x", Options())


def test_a_run_is_written_with_its_average_or_its_last_weights(tmp_path, run_of_reference):
    for weights in ("ema", "raw"):
        to_torch(open_source(run_of_reference, weights), tmp_path / weights, Options())
    ema, raw = (load_file(tmp_path / w / TRANSFORMER) for w in ("ema", "raw"))
    assert set(equal(ema, raw)) == set(ema) - {"pos_embed.pos_embed"}
    params = Pipeline.from_pretrained(run_of_reference, "raw").params["transformer"]
    np.testing.assert_array_equal(
        raw["text_proj_out.weight"].T, np.asarray(params["text_head"]["kernel"])
    )


@pytest.fixture(scope="session")
def run_of_reference(tmp_path_factory):
    """A run without any switch, with random weights."""
    import copy

    import jax

    from tests.sampling.conftest import CAPTIONS, CONFIG, VOCABULARY, random_state
    from unialign_jax.data.tokenizer import train_tokenizer
    from unialign_jax.training.checkpoints import Checkpoints
    from unialign_jax.training.run_directory import RunDirectory
    from unialign_jax.training.setup import make_setup

    folder = tmp_path_factory.mktemp("reference_run")
    tokenizer = train_tokenizer(CAPTIONS, VOCABULARY)
    tokenizer.save(folder / "trained.json")
    config = copy.deepcopy(CONFIG)
    config["model"]["text_positions"] = 0
    setup = make_setup(config, tokenizer, jax.devices()[:1])
    directory = RunDirectory(folder / "run")
    directory.create(config, folder / "trained.json")
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(random_state(setup.abstract), 7, config, {"next_step": 7})
    checkpoints.close()
    return directory.path


# ---------------------------------------------------------------------- live


def test_the_torch_transformer_loads_it_strictly_and_passes_the_goldens(written):
    torch = pytest.importorskip("torch")
    from unialign_jax.convert.torch_layers import Sizes
    from unialign_jax.convert.torch_model import Transformer

    with np.load(GOLDENS / "e2e/pipeline_io.npz") as file:
        steps = file["gen_latents_trajectory"]
        embeds, negative = file["gen_prompt_embeds"], file["gen_negative_embeds"]
        start = file["gen_in_latents"]
    config = json.loads((written / "transformer/config.json").read_text())
    state = {n: torch.from_numpy(a) for n, a in load_file(written / TRANSFORMER).items()}
    extra = {
        "adapter_hidden_dim": state["siglip_adapter_img.fc.0.weight"].shape[0],
        "adapter_out_dim": state["siglip_adapter_img.fc.2.weight"].shape[0],
        "null_image_tokens": state["null_image_embd"].shape[1],
        "mask_index": 127,
    }
    model = Transformer(Sizes.from_json(config, extra))
    model.load_state_dict(state, strict=True)
    sigmas = flow.sampling_sigmas(4, 3.0)
    with torch.no_grad():
        x = torch.from_numpy(start)
        t = torch.tensor([1000.0 * float(sigmas[0])] * len(x))
        both = [model(torch.from_numpy(e), t, x)[0] for e in (negative, embeds)]
        velocity = both[0] + 7.0 * (both[1] - both[0])
        x = x + (float(sigmas[1]) - float(sigmas[0])) * velocity
    np.testing.assert_allclose(x.numpy(), steps[1], atol=2e-5 * np.abs(steps[1]).max())


def test_stock_classes_load_the_components_without_complaint(written, original):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    diffusers = pytest.importorskip("diffusers")
    encoder, info = transformers.T5EncoderModel.from_pretrained(
        written, subfolder="text_encoder", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    vae, info = diffusers.AutoencoderKL.from_pretrained(
        written, subfolder="vae", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for module, file in ((encoder, ENCODER), (vae, VAE)):
        state = module.state_dict()
        for name, array in load_file(original / file).items():
            assert torch.equal(state[name], torch.from_numpy(array))
    assert vae.config.scaling_factor == 1.5305 and vae.config.shift_factor == 0.0609
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
        written, subfolder="scheduler"
    )
    assert scheduler.config.shift == 3.0


def unigram(path):
    """A tokenizer of T5's kind, with its special tokens and its hundred extra ids."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    words = ["▁", "▁a", "▁cat", "▁on", "▁chair", "▁two", "▁dogs", "▁and", "▁red", "▁ball", "s"]
    letters = [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    extra = [f"<extra_id_{i}>" for i in range(99, -1, -1)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(word, -2.0) for word in words] + letters + [(name, 0.0) for name in extra]
    # A letter that is a word of its own stands once.
    vocabulary = list(dict(vocabulary).items())
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *extra])
    tokenizer.save(str(path))


@pytest.mark.parametrize("kind", ["as trained here", "of T5's kind"])
def test_the_written_tokenizer_gives_the_ids_that_training_sees(published, tmp_path, kind):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    file = published / "tokenizer/tokenizer.json"
    if kind == "of T5's kind":
        unigram(file)
    converted(published, tmp_path / "bundle")
    to_torch(open_source(tmp_path / "bundle"), tmp_path / "back", Options())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back/tokenizer")
    ours = TextTokenizer.from_file(file)
    for text in ("a cat on a chair", "", "two dogs and a red ball at night"):
        ids = theirs(text, padding="max_length", truncation=True, max_length=24)["input_ids"]
        assert ids == ours.encode(text, 24)[0].tolist()
