"""The scenes teacher on disk and at work: a dual encoder with its tokenizer.

```
T/teacher.json          sizes, how it was trained and how well; written last
T/teacher.safetensors   the weights, float32, names joined by dots
T/tokenizer.json        of the texts that it was trained on
```
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from unialign_jax.caching.files import whole_file, write_json
from unialign_jax.config import to_dataclass
from unialign_jax.data import prepared
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.errors import UserError
from unialign_jax.models.functional import Params
from unialign_jax.models.teachers import scenes

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int32, UInt8

FORMAT = 1
CONFIG_FILE = "teacher.json"
WEIGHTS_FILE = "teacher.safetensors"


class ScenesTeacher:
    """A trained dual encoder; satisfies `caching.teacher.Teacher`.

    Args:
        params: its parameters.
        config: its sizes.
        tokenizer: of its texts.
        text_length: L, ids per text; longer texts are cut.
        training: how it was trained, kept with it.
    """

    name = "scenes"

    def __init__(
        self,
        params: Params,
        config: scenes.DualEncoderConfig,
        tokenizer: TextTokenizer,
        text_length: int,
        training: Mapping[str, Any],
    ):
        self.config, self.tokenizer, self.text_length = config, tokenizer, text_length
        self.training = dict(training)
        self._params = params
        network = scenes.build(config)
        self._pooled = jax.jit(lambda p, x: network.bind(p).image_features(x))
        self._grid = jax.jit(lambda p, x: network.bind(p).image_grid(x))
        self._text = jax.jit(lambda p, ids, mask: network.bind(p).text_features(ids, mask))

    @property
    def pixels(self) -> int:
        """P, height and width of the images that it takes."""
        return self.config.pixels

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of weights, sizes and tokenizer."""
        code = hashlib.sha256()
        for name, value in sorted(flatten(self._params).items()):
            code.update(name.encode() + value.tobytes())
        sizes = [FORMAT, dataclasses.asdict(self.config), self.text_length]
        code.update(json.dumps([*sizes, self.tokenizer.to_json()]).encode())
        return code.hexdigest()

    def image_features(
        self, images: UInt8[np.ndarray, "B P P 3"], *, grid: bool = False
    ) -> Float[np.ndarray, "B A"] | Float[np.ndarray, "B R R A"]:
        """float32 features of whole images or, with `grid`, of every patch."""
        return np.asarray((self._grid if grid else self._pooled)(self._params, images))

    def text_features(self, texts: Sequence[str]) -> Float[np.ndarray, "B A"]:
        """float32 features of texts."""
        return self.id_features(self.tokenizer.encode_batch(texts, self.text_length)[0])

    def id_features(self, ids: Int32[np.ndarray, "B L"]) -> Float[np.ndarray, "B A"]:
        """float32 features of texts that are tokens already."""
        return np.asarray(self._text(self._params, ids, text_mask(ids, self.tokenizer.end_id)))

    def save(self, directory: Path) -> None:
        """Writes the teacher; a folder with `teacher.json` is complete.

        Raises:
            UserError: the folder cannot be written.
        """
        (directory / CONFIG_FILE).unlink(missing_ok=True)
        weights = safetensors.numpy.save(flatten(self._params))
        for name, content in (
            (prepared.TOKENIZER_FILE, self.tokenizer.to_json().encode()),
            (WEIGHTS_FILE, weights),
        ):
            with whole_file(directory / name) as file:
                file.write(content)
        described = {
            "format": FORMAT,
            "network": dataclasses.asdict(self.config),
            "text_length": self.text_length,
            "weights": hashlib.sha256(weights).hexdigest(),
            "training": self.training,
        }
        write_json(directory / CONFIG_FILE, described)

    @classmethod
    def load(cls, directory: Path) -> ScenesTeacher:
        """Reads what `save` wrote.

        Raises:
            UserError: no teacher there, a damaged one, or one of another format.
        """
        path = directory / CONFIG_FILE
        if not path.is_file():
            raise UserError(f"no teacher at {directory} (no {CONFIG_FILE})")
        remedy = "name another --teacher-dir, or delete the folder to train it again"
        try:
            described = json.loads(path.read_text("utf-8"))
            if described["format"] != FORMAT:
                raise UserError(
                    f"{path}: format {described['format']}, this program reads {FORMAT}: {remedy}"
                )
            config = to_dataclass(
                scenes.DualEncoderConfig, described["network"], where=f"{path}: network"
            )
            data = (directory / WEIGHTS_FILE).read_bytes()
            if hashlib.sha256(data).hexdigest() != described["weights"]:
                raise ValueError(f"{WEIGHTS_FILE} is not what was written")
            params = _fitted(safetensors.numpy.load(data), scenes.build(config).abstract)
            tokenizer = TextTokenizer.from_file(directory / prepared.TOKENIZER_FILE)
            length, training = int(described["text_length"]), dict(described["training"])
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{directory}: the teacher cannot be read ({error}): {remedy}"
            ) from error
        return cls(params, config, tokenizer, length, training)


def text_mask(ids: Int32[np.ndarray, "B L"], end_id: int) -> Bool[np.ndarray, "B L"]:
    """True for the tokens of each text and its first end token, False for the padding after it."""
    ended = np.cumsum(ids == end_id, axis=-1) - (ids == end_id)
    return ended == 0


def flatten(params: Params) -> dict[str, np.ndarray]:
    """`{"a": {"b": x}}` -> `{"a.b": x}`, as NumPy arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {_dotted(path): np.asarray(leaf) for path, leaf in leaves}


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(str(key.key) for key in path)


def _fitted(tensors: dict[str, np.ndarray], abstract: Params) -> Params:
    """The tensors as a tree like `abstract`; ValueError where a name or shape differs."""
    rest = dict(tensors)

    def pick(path: Sequence[Any], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        value = rest.pop(_dotted(path), None)
        if value is None or value.shape != leaf.shape:
            found = "missing" if value is None else f"of shape {value.shape}, not {leaf.shape}"
            raise ValueError(f"{_dotted(path)} is {found}")
        return jnp.asarray(value, leaf.dtype)

    params = jax.tree_util.tree_map_with_path(pick, abstract)
    if rest:
        raise ValueError(f"{', '.join(sorted(rest))}: not part of this network")
    return params
