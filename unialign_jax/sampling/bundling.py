"""A bundle from a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unialign_jax.bundle.contents import DESCRIPTION, TOKENIZER, is_bundle
from unialign_jax.bundle.folder import check_destination
from unialign_jax.bundle.write import WHAT, write_bundle
from unialign_jax.errors import UserError
from unialign_jax.models.switches import weight_switches
from unialign_jax.sampling.loading import data_source, load_model, model_config


def bundle_run(
    run: str | Path,
    destination: str | Path,
    weights: str = "ema",
    *,
    step: int | None = None,
    dtype: str = "float32",
    name: str | None = None,
    config_name: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Makes a bundle from a run directory.

    Args:
      run: a directory that `unialign train` wrote.
      destination: the bundle's folder.
      weights: "ema" or "raw".
      step: a saved step; None is the newest.
      dtype: of the stored arrays.
      name: of the model; the destination's if None.
      config_name: what the run was started with, such as "scenes:demo"; recorded together with the
        keys in which the run differs from it.
      overwrite: replaces a bundle.

    Returns:
      The bundle's description.

    Raises:
      UserError: not a run, no such step, a destination that is taken or cannot be written.
    """
    run = Path(run).expanduser()
    if is_bundle(run):
        raise UserError(f"{run}: is a bundle; a bundle is made from a run directory.")
    check_destination(Path(destination).expanduser(), overwrite, DESCRIPTION, WHAT)
    config = model_config(run)
    model, params, step = load_model(run, weights, step=step)
    return write_bundle(
        destination,
        config=config,
        params=params,
        tokenizer=run / TOKENIZER,
        switches=weight_switches(model.config),
        made_from={
            "config": config_name,
            "changed": _changed(config, config_name),
            "seed": config.get("seed"),
            "step": step,
            "weights": weights,
            "data": data_source(run),
        },
        dtype=dtype,
        name=name,
        overwrite=overwrite,
    )


def _changed(config: dict[str, Any], name: str | None) -> list[str]:
    """The keys in which a run differs from a shipped config, but for those of one machine."""
    from unialign_jax.config import diff, load_config

    if name is None:
        return []
    machine = ("data.path", "data.workers", "mesh.")
    found = diff(load_config(name), config)
    return [str(change) for change in found if not change.key.startswith(machine)]
