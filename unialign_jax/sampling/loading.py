"""Models from disk: a run directory, a bundle, or the name of a bundle of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from unialign_jax.bundle.contents import DESCRIPTION, TOKENIZER, is_bundle, read_description
from unialign_jax.bundle.shipped import find_model, what_models_are
from unialign_jax.config import load_json
from unialign_jax.errors import UserError
from unialign_jax.models.functional import Params
from unialign_jax.models.switches import weight_switches
from unialign_jax.parallel import rules
from unialign_jax.parallel.mesh import MeshConfig, make_mesh
from unialign_jax.sampling.model import Model, build_model, check_parameters, require_pixels

# Of a data set's `source`: what an evaluation asks for. Its paths stay on the machine.
_OF_THE_DATA = ("name", "level", "pixels")


def load_model(
    path: str | Path,
    weights: str = "ema",
    *,
    dtype: str | None = None,
    step: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[Model, Params, int]:
    """Reads a model.

    Args:
      path: a directory that `unialign train` or `unialign bundle` wrote, or the name of a bundle of
        the package.
      weights: of a run: "ema" for the moving average, "raw" for the last weights. A bundle has one
        of them; "raw" is refused where it has the average.
      dtype: compute dtype in place of the model's, for example "bfloat16".
      step: a saved step; None is the newest, and the only one of a bundle.
      mesh: where the parameters go, whole on every device; None is `default_mesh()`.

    Returns:
      The model, its float32 parameters and the step that they were saved at.

    Raises:
      UserError: not a model, damaged, no such step, or parameters that do not fit the config.
    """
    from unialign_jax.bundle.read import read_bundle
    from unialign_jax.bundle.weights import load_params

    path = find_model(path)
    sharding = rules.replicated(mesh or default_mesh())
    if not is_bundle(path):
        model = read_model(path, dtype=dtype)
        params, step = load_params(path, weights, step=step, sharding=sharding)
        check_parameters(model, params, path)
        return model, params, step
    made_from = read_description(path)["made_from"]
    for what, asked, has in (
        ("step", made_from["step"] if step is None else step, made_from["step"]),
        ("weights", made_from["weights"] if weights == "ema" else weights, made_from["weights"]),
    ):
        if asked != has:
            raise UserError(f"{path}: this bundle has {what} {has}, not {asked}.")
    model = read_model(path, dtype=dtype)
    _, params = read_bundle(path, sharding)
    check_parameters(model, params, path)
    return model, params, made_from["step"]


def read_model(path: Path, *, dtype: str | None = None) -> Model:
    """Everything about a model but its parameters.

    Args:
      path: the folder of a run or bundle.
      dtype: compute dtype in place of the model's.

    Raises:
      UserError: not a model, or a wrong config or tokenizer.
    """
    from unialign_jax.data.tokenizer import TextTokenizer

    config, where = model_config(path), path / (DESCRIPTION if is_bundle(path) else "config.json")
    tokenizer = TextTokenizer.from_file(path / TOKENIZER)
    try:
        model = build_model(config, tokenizer, dtype=dtype)
        require_pixels(model)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return model


def model_config(path: Path) -> dict[str, Any]:
    """The config of a run or bundle as nested dicts; a bundle's has what sampling needs.

    Raises:
      UserError: not a model, or a file that cannot be read.
    """
    if is_bundle(path):
        return read_description(path)["config"]
    if not (path / "config.json").is_file():
        found = "not a run directory (no config.json)" if path.exists() else "not there"
        raise UserError(f"{path} is {found}. {what_models_are()}")
    return load_json(path / "config.json")


def data_source(path: Path) -> dict[str, Any]:
    """What the data of a run or bundle were made of: {"name", "level", ...}, {} if unknown."""
    if is_bundle(path):
        return read_description(path)["made_from"]["data"]
    file = Path(str(model_config(path).get("data", {}).get("path", ""))) / "dataset.json"
    source = load_json(file).get("source") if file.is_file() else None
    if not isinstance(source, dict):
        return {}
    return {key: source[key] for key in _OF_THE_DATA if key in source}


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
    from unialign_jax.bundle.write import check_destination, write_bundle

    run = Path(run).expanduser()
    if is_bundle(run):
        raise UserError(f"{run}: is a bundle; a bundle is made from a run directory.")
    check_destination(Path(destination).expanduser(), overwrite)
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


def default_mesh(devices: list | None = None) -> Mesh:
    """The devices that a batch is split over: this process's accelerators, or one CPU."""
    if devices is None:
        devices = jax.local_devices()
        devices = devices[:1] if devices[0].platform == "cpu" else devices
    return make_mesh(MeshConfig(), devices)
