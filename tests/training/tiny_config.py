"""The smallest config that trains: two tasks on photographs of 16 pixels."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Both networks have one or two layers; the vocabulary is that of a tokenizer trained here."""
    return ConfigDict(
        {
            "seed": 0,
            "init_from": "",
            "model": {
                "width": 32,
                "heads": 2,
                "layers": 2,
                "channels": 3,
                "text_width": 16,
                "vocab_size": 256,
                "sample_size": 16,
                "position_table_size": 24,
                "adapter_hidden": 16,
                "adapter_out": 8,
                "text_positions": 8,
            },
            "text_encoder": {
                "vocab_size": 256,
                "width": 16,
                "kv_dim": 8,
                "heads": 2,
                "layers": 1,
                "mlp_width": 32,
                "relative_buckets": 8,
                "train": False,
            },
            "objective": {"align_depth": 1},
            "data": {
                "path": "set by the test",
                "image_size": 16,
                "text_length": 8,
                "mixture": {"generate": 1.0, "edit": 1.0},
                "workers": 0,
            },
            "train": {
                "steps": 8,
                "global_batch": 8,
                "micro_batches": 1,
                "log_every": 1,
                "sample_every": 0,
            },
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2, "freeze": ("null_image",)},
            "ema": {"decay": 0.99},
            "checkpoint": {"every_steps": 2, "keep": 2},
            "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
            "sample": {"steps": 4},
        }
    )
