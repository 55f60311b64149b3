"""The trained embedding of the mask token: a vector of its own, put into T5's token table.

The published weights come with it in a `.pth` file (uniAlignment.md 2.4). Such a file is a pickle;
it is read by `torch.load(weights_only=True)` alone, which makes arrays and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unialign_jax.convert.parts import FLOATS, Made, Readable
from unialign_jax.convert.weight_files import SUFFIX, read_header
from unialign_jax.errors import UserError

PICKLES = (".pth", ".pt", ".bin")
MASK_ID = 32099


def read_vector(path: Path) -> np.ndarray:
    """A vector, [E], from a `.safetensors` or `.pth` file that holds one array.

    Raises:
      UserError: more or less than one vector, torch is missing, or the file is not safe to read.
    """
    if not path.is_file():
        raise UserError(f"{path}: is not there, or no file.")
    arrays = read_pickle(path) if path.suffix in PICKLES else _read_safetensors(path)
    if len(arrays) != 1:
        raise UserError(f"{path}: holds {len(arrays)} arrays; a mask-token embedding is one.")
    (vector,) = arrays.values()
    vector = vector.reshape(-1) if sum(n > 1 for n in vector.shape) == 1 else vector
    if vector.ndim != 1 or vector.dtype not in FLOATS:
        raise UserError(
            f"{path}: its array is {vector.dtype} {vector.shape}; a mask-token embedding is a "
            "vector of floating-point numbers."
        )
    if not np.all(np.isfinite(vector.astype(np.float32))):
        raise UserError(f"{path}: the mask-token embedding has numbers that are not finite.")
    return vector


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch file, by `torch.load(weights_only=True)`.

    Raises:
      UserError: torch is not installed, or the file holds anything but tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: is a pickle, which PyTorch alone reads safely: install it "
            "(`pip install unialign-jax[convert]`), or save the tensors as safetensors."
        ) from error
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever pickle, zip and torch raise for a wrong file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: cannot be read as tensors alone ({reason[:200]}). A file that holds other "
            "objects could run code and is not opened."
        ) from error
    if isinstance(found, torch.Tensor):
        found = {"": found}
    if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise UserError(f"{path}: holds something else than tensors by name.")
    return {str(name): _as_numpy(tensor) for name, tensor in found.items()}


def _as_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    if not path.name.endswith(SUFFIX):
        raise UserError(f"{path}: a mask-token embedding is a .safetensors or .pth file.")
    return {name: tensor.read() for name, tensor in read_header(path).items()}


def with_vector(table: Readable, vector: np.ndarray, mask_id: int, path: Path) -> Made:
    """A token table, [V, E], with the vector as the row of the mask token, in the table's dtype.

    Raises:
      UserError: the vector is not as wide as the table, or the table has no such row.
    """
    rows, width = table.shape
    if vector.shape != (width,):
        raise UserError(
            f"{path}: the mask-token embedding has {vector.size} numbers, the token table of the "
            f"text encoder {width} per token."
        )
    if mask_id >= rows:
        raise UserError(f"mask id {mask_id} is not a row of a token table of {rows}.")

    def make() -> np.ndarray:
        whole = np.array(table.read())
        whole[mask_id] = vector.astype(whole.dtype)
        return whole

    return Made(tuple(table.shape), table.dtype, make)
