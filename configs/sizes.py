"""Model sizes, in one place. Each function returns plain dicts for a config's sections."""


def full() -> dict:
    """UniAlignment as published: 2,123,838,884 parameters beside a frozen T5-XXL encoder."""
    return {
        "model": {
            "width": 1536,
            "heads": 24,
            "layers": 24,
            "patch_size": 2,
            "channels": 16,
            "text_width": 4096,
            "vocab_size": 32100,
            "sample_size": 128,
            "position_table_size": 192,
            "null_image_tokens": 8,
            "adapter_hidden": 2048,
            "adapter_out": 3584,
            "text_positions": 0,
            "condition_segments": False,
            "time_features_float16": False,
            "dtype": "bfloat16",
            "remat": "full",
        },
        "text_encoder": {
            "vocab_size": 32128,
            "width": 4096,
            "kv_dim": 64,
            "heads": 64,
            "layers": 24,
            "mlp_width": 10240,
            "relative_buckets": 32,
            "relative_max_distance": 128,
            "dtype": "bfloat16",
            # Frozen: it is read in bfloat16 and need not be kept in more.
            "param_dtype": "bfloat16",
            "train": False,
        },
    }


def autoencoder() -> dict:
    """The autoencoder of Stable Diffusion 3, as a config's section."""
    return {
        "widths": (128, 256, 512, 512),
        "blocks": 2,
        "latent_channels": 16,
        "image_channels": 3,
        "norm_groups": 32,
        "scale": 1.5305,
        "shift": 0.0609,
        "dtype": "float32",
        "param_dtype": "float32",
    }


def small(
    *,
    pixels: int,
    patch: int,
    width: int,
    layers: int,
    vocabulary: int,
    text_length: int,
    text_layers: int = 2,
) -> dict:
    """A network for RGB images of `pixels` x `pixels` without an autoencoder, trained on a CPU.

    The T5 encoder beside it is small enough to be trained with it, and text tokens carry learned
    positions.
    """
    sizes = full()
    sizes["model"].update(
        width=width,
        heads=width // 32,
        layers=layers,
        patch_size=patch,
        channels=3,
        text_width=width,
        vocab_size=vocabulary,
        sample_size=pixels,
        position_table_size=pixels // patch,
        adapter_hidden=width,
        adapter_out=width,
        text_positions=text_length,
        dtype="float32",
        remat="none",
    )
    sizes["text_encoder"].update(
        vocab_size=vocabulary,
        width=width,
        kv_dim=32,
        heads=width // 32,
        layers=text_layers,
        mlp_width=2 * width,
        dtype="float32",
        param_dtype="float32",
        train=True,
    )
    return sizes
