"""The small files of the published layout: what diffusers and transformers read beside weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from unialign_jax.models.autoencoder import AutoencoderConfig
from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.models.t5 import T5Config

# Of the libraries that the reference names in its requirements; the layout is theirs.
DIFFUSERS, TRANSFORMERS = "0.31.0", "4.52.2"
PIPELINE, TRANSFORMER_CLASS = "UniAlignmentPipeline", "SD3JointModelFlexible"
PARAMETERS_WITHOUT_ADAPTERS = 2_102_856_100


def transformer_json(config: MMDiTConfig) -> dict[str, Any]:
    """`config.json` of the transformer, with the keys of SD3's."""
    return {
        "_class_name": TRANSFORMER_CLASS,
        "_diffusers_version": DIFFUSERS,
        "attention_head_dim": config.width // config.heads,
        "caption_projection_dim": config.width,
        "dual_attention_layers": [],
        "in_channels": config.channels,
        "joint_attention_dim": config.text_width,
        "num_attention_heads": config.heads,
        "num_layers": config.layers,
        "out_channels": config.channels,
        "patch_size": config.patch_size,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": config.position_table_size,
        "qk_norm": None,
        "sample_size": config.sample_size,
        "vocab_size": config.vocab_size,
    }


def text_encoder_json(config: T5Config, dtype: str) -> dict[str, Any]:
    """`config.json` of a T5 v1.1 encoder."""
    return {
        "architectures": ["T5EncoderModel"],
        "classifier_dropout": 0.0,
        "d_ff": config.mlp_width,
        "d_kv": config.kv_dim,
        "d_model": config.width,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "num_decoder_layers": config.layers,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": config.relative_max_distance,
        "relative_attention_num_buckets": config.relative_buckets,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformers_version": TRANSFORMERS,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def autoencoder_json(config: AutoencoderConfig, sample_size: int) -> dict[str, Any]:
    """`config.json` of SD3's autoencoder."""
    levels = len(config.widths)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "block_out_channels": list(config.widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": config.blocks,
        "mid_block_add_attention": True,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.image_channels,
        "sample_size": sample_size,
        "scaling_factor": config.scale,
        "shift_factor": config.shift,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def scheduler_json(shift: float) -> dict[str, Any]:
    """`scheduler_config.json` of the sampler."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": DIFFUSERS,
        "num_train_timesteps": 1000,
        "shift": shift,
    }


def tokenizer_class(file: Path | None) -> str:
    """The class of transformers for a `tokenizer.json`: T5's for its kind of model (Unigram)."""
    kind = "" if file is None else json.loads(file.read_text("utf-8")).get("model", {}).get("type")
    return "T5TokenizerFast" if kind in ("", "Unigram") else "PreTrainedTokenizerFast"


def model_index(components: list[str], tokenizer: str = "T5TokenizerFast") -> dict[str, Any]:
    """`model_index.json`, which names library and class of every component that is there."""
    classes = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", tokenizer],
        "transformer": ["diffusers", TRANSFORMER_CLASS],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    return {
        "_class_name": PIPELINE,
        "_diffusers_version": DIFFUSERS,
        **{name: classes[name] for name in sorted(components)},
    }


def tokenizer_files(kind: str, text_length: int) -> dict[str, dict[str, Any]]:
    """What stands beside `tokenizer.json`; texts are padded with `</s>`, as in training."""
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return {
        "tokenizer_config.json": {
            **special,
            "model_max_length": text_length,
            "tokenizer_class": kind,
            **({"extra_ids": 100} if kind == "T5TokenizerFast" else {}),
        },
        "special_tokens_map.json": special,
    }


def readme(
    name: str, whole: bool, adapters: bool, config: MMDiTConfig | None, components: list[str]
) -> str:
    """The text that says what a written folder is and how to load it.

    Args:
      name: of the model.
      whole: the layout of diffusers, not a bare training checkpoint.
      adapters: whether the semantic adapters are in it.
      config: of the transformer; None where there is none.
      components: what is in it.
    """
    if config is None or (whole and len(components) < _WHOLE):
        return (
            f"# {name}\n\nComponents of a UniAlignment model, written by unialign_jax: "
            f"{', '.join(components)}. Each folder loads alone, with the names of the PyTorch "
            "reference.\n"
        )
    sizes = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(config).items() if k in _SHOWN)
    strict = "" if adapters else ", strict=False"
    note = "" if adapters else _NO_ADAPTERS
    if not whole:
        return _CHECKPOINT.format(name=name, sizes=sizes, strict=strict, note=note)
    return _DIRECTORY.format(name=name, sizes=sizes, note=note)


_WHOLE = 3
_SHOWN = ("width", "heads", "layers", "patch_size", "channels", "text_width", "vocab_size")
_NO_ADAPTERS = (
    "\nThe two semantic adapters, which only training needs, were left out: D-DiT's classes load "
    "it as it is, the reference's with strict=False.\n"
)
_DIRECTORY = """\
---
library_name: diffusers
pipeline_tag: text-to-image
---
# {name}

A UniAlignment model (arXiv 2509.23760) in the layout of the PyTorch reference, written by
unialign_jax. Sizes of the transformer: {sizes}.
{note}
With the reference (its folder `modules` on the path):

```python
from modules.pipeline import UniAlignmentPipeline

pipe = UniAlignmentPipeline.from_pretrained("path/of/this/folder")
```

The components load alone too:

```python
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, T5EncoderModel

vae = AutoencoderKL.from_pretrained("path/of/this/folder", subfolder="vae")
text_encoder = T5EncoderModel.from_pretrained("path/of/this/folder", subfolder="text_encoder")
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder", subfolder="tokenizer")
```

and back in JAX:

```bash
unialign sample --model path/of/this/folder --prompt "a red cube" --out out
```
"""
_CHECKPOINT = """\
# {name}

A training checkpoint of a UniAlignment transformer (arXiv 2509.23760) with the key names of the
PyTorch reference, written by unialign_jax. Sizes: {sizes}.
{note}
With the reference, `train.py --resume` takes the folder, or by hand:

```python
from safetensors.torch import load_file

state = load_file("consolidated.00-of-01.safetensors")
model.load_state_dict(state{strict})
```
"""
