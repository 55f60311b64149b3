"""Models from disk or from the Hub: a run directory, a bundle, PyTorch weights, or a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from unialign_jax.bundle.contents import (
    AUTOENCODER,
    DESCRIPTION,
    TEXT_ENCODER,
    TOKENIZER,
    TRANSFORMER,
    is_bundle,
    read_description,
)
from unialign_jax.bundle.shipped import find_model, is_torch_directory, what_models_are
from unialign_jax.config import load_json
from unialign_jax.errors import UserError
from unialign_jax.models.functional import Params
from unialign_jax.parallel import rules
from unialign_jax.parallel.mesh import MeshConfig, make_mesh
from unialign_jax.sampling.model import Model, build_model, check_parameters

# Of a data set's `source`: what an evaluation asks for. Its paths stay on the machine.
_OF_THE_DATA = ("name", "level", "pixels")


def load_model(
    path: str | Path,
    weights: str = "ema",
    *,
    dtype: str | None = None,
    step: int | None = None,
    mesh: Mesh | None = None,
    param_dtype: str | None = "float32",
    revision: str | None = None,
) -> tuple[Model, Params, int]:
    """Reads a model.

    Args:
      path: a directory that `unialign train`, `unialign bundle` or `unialign convert` wrote, one of
        the published PyTorch layout, the name of a bundle of the package, or OWNER/NAME on the Hub.
      weights: of a run: "ema" for the moving average, "raw" for the last weights. A bundle has one
        of them; "raw" is refused where it has the average.
      dtype: compute dtype in place of the model's, for example "bfloat16".
      step: a saved step; None is the newest, and the only one of a bundle.
      mesh: where the parameters go, each split as its rule says; None is `default_mesh()`.
      param_dtype: dtype of the parameters; None leaves them as they are stored.
      revision: branch, tag or commit of a model on the Hub.

    Returns:
      The model, its parameters and the step that they were saved at (0 where none is known).

    Raises:
      UserError: not a model, damaged, no such step, or parameters that do not fit the config.
    """
    from unialign_jax.bundle.read import Bundle
    from unialign_jax.bundle.weights import load_params

    path = find_model(path, revision)
    mesh = mesh or default_mesh()
    if is_torch_directory(path):
        return _load_torch(path, dtype, mesh, param_dtype)
    if not is_bundle(path):
        model = read_model(path, dtype=dtype)
        params, step = load_params(
            path, weights, step=step, sharding=rules.replicated(mesh), wanted=placed(model, mesh)
        )
        check_parameters(model, params, path)
        return model, _cast(params, param_dtype), step
    made_from = read_description(path)["made_from"]
    for what, asked, has in (
        ("step", made_from["step"] if step is None else step, made_from["step"]),
        ("weights", made_from["weights"] if weights == "ema" else weights, made_from["weights"]),
    ):
        if asked != has:
            raise UserError(f"{path}: this bundle has {what} {has}, not {asked}.")
    model, bundle = read_model(path, dtype=dtype), Bundle(path)
    check_parameters(model, {name: bundle.shapes(name) for name in model.networks}, path)
    wanted = placed(model, mesh)
    params = {name: bundle.load(name, wanted[name], param_dtype) for name in model.networks}
    return model, params, made_from["step"] or 0


def placed(model: Model, mesh: Mesh) -> dict[str, Any]:
    """The parameters of every network as `jax.ShapeDtypeStruct`, sharded by the rules."""

    def one(network: Any) -> Any:
        places = rules.shardings(network.axes, network.abstract, mesh)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            network.abstract,
            places,
        )

    return {name: one(network) for name, network in model.networks.items()}


def _load_torch(
    path: Path, dtype: str | None, mesh: Mesh, param_dtype: str | None
) -> tuple[Model, Params, int]:
    """A model of the published layout, parameter by parameter onto the devices."""
    from unialign_jax.convert import directory

    found = directory.open_directory(path)
    model = build_model(found.config, found.tokenizer(), dtype=dtype)
    params = {
        name: found.parts[name].load(wanted, param_dtype)
        for name, wanted in placed(model, mesh).items()
    }
    return model, params, 0


def _cast(params: Params, dtype: str | None) -> Params:
    return params if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def read_model(path: Path, *, dtype: str | None = None) -> Model:
    """Everything about a model but its parameters.

    Args:
      path: the folder of a run or bundle.
      dtype: compute dtype in place of the model's.

    Raises:
      UserError: not a model, one that lacks its text encoder or tokenizer, or a wrong config.
    """
    from unialign_jax.data.tokenizer import TextTokenizer

    config, where = model_config(path), path / (DESCRIPTION if is_bundle(path) else "config.json")
    if is_bundle(path):
        _check_complete(path)
    tokenizer = TextTokenizer.from_file(path / TOKENIZER)
    try:
        return build_model(config, tokenizer, dtype=dtype)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_complete(path: Path) -> None:
    """Refuses a bundle that holds a part of a model only."""
    description = read_description(path)
    needed = [TRANSFORMER, TEXT_ENCODER]
    needed += [AUTOENCODER] if description["config"].get("autoencoder") else []
    missing = [name for name in needed if name not in description["components"]]
    missing += [] if TOKENIZER in description["files"] else [TOKENIZER]
    if missing:
        raise UserError(
            f"{path}: this bundle has no {', '.join(missing)}: it is a part of a model. Training "
            "can start from it (init_from); to sample, convert it again with the other parts: "
            "`unialign convert to-jax SRC DST --components BUNDLE`."
        )


def model_config(path: Path) -> dict[str, Any]:
    """The config of a run or bundle as nested dicts; a bundle's has what sampling needs.

    Raises:
      UserError: not a model, or a file that cannot be read.
    """
    if is_bundle(path):
        return read_description(path)["config"]
    if is_torch_directory(path):
        from unialign_jax.convert.directory import open_directory

        return open_directory(path).config
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


def default_mesh(devices: list | None = None) -> Mesh:
    """The devices that a batch is split over: this process's accelerators, or one CPU."""
    if devices is None:
        devices = jax.local_devices()
        devices = devices[:1] if devices[0].platform == "cpu" else devices
    return make_mesh(MeshConfig(), devices)
