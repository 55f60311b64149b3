"""The scenes teacher on disk: what is read back is what was written, or an error says why not."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from unialign_jax.caching.scenes_teacher import ScenesTeacher, flatten, text_mask
from unialign_jax.data.tokenizer import train_tokenizer
from unialign_jax.errors import UserError
from unialign_jax.models.teachers.scenes import DualEncoderConfig, build

TEXTS = ["a red circle", "a blue square on grey", ""]
CONFIG = DualEncoderConfig(
    pixels=16, patch_size=4, vocab_size=160, features=8, width=16, heads=2, layers=1
)

INIT = jax.jit(build(CONFIG).init)


def make(seed: int = 0, length: int = 12) -> ScenesTeacher:
    params = INIT(jax.random.key(seed))
    return ScenesTeacher(params, CONFIG, train_tokenizer(TEXTS, 160), length, {"seed": seed})


@pytest.fixture(scope="module")
def teacher():
    return make()


@pytest.fixture
def folder(teacher, tmp_path):
    teacher.save(tmp_path / "teacher")
    return tmp_path / "teacher"


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_a_teacher_read_back_says_the_same(teacher, folder):
    again = ScenesTeacher.load(folder)
    assert again.fingerprint == teacher.fingerprint
    assert (again.pixels, again.training) == (16, {"seed": 0})
    for grid in (False, True):
        np.testing.assert_array_equal(
            again.image_features(pictures(), grid=grid),
            teacher.image_features(pictures(), grid=grid),
        )
    np.testing.assert_array_equal(again.text_features(TEXTS), teacher.text_features(TEXTS))


def test_it_is_kept_without_pickle(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "teacher.json",
        "teacher.safetensors",
        "tokenizer.json",
    ]


def test_a_text_has_the_same_features_whatever_it_is_padded_to(teacher):
    longer = make(length=24)
    assert longer.fingerprint != teacher.fingerprint
    np.testing.assert_allclose(longer.text_features(TEXTS), teacher.text_features(TEXTS), atol=1e-5)
    others = ["a much longer text about something else", "", TEXTS[2]]
    for place, text in enumerate(TEXTS):
        among = others[:place] + [text] + others[place + 1 :]
        np.testing.assert_allclose(
            teacher.text_features(among)[place], teacher.text_features(TEXTS)[place], atol=1e-5
        )


def test_a_texts_own_tokens_end_with_its_first_end_token():
    ids = np.array([[5, 6, 1, 1, 1], [5, 6, 7, 8, 1], [1, 1, 1, 1, 1], [5, 6, 7, 8, 9]])
    wanted = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(text_mask(ids, 1), np.array(wanted, bool))


def test_other_weights_are_another_teacher(teacher):
    assert make(seed=1).fingerprint != teacher.fingerprint
    assert make(seed=0).fingerprint == teacher.fingerprint


def test_parameters_have_dotted_names(teacher):
    names = flatten(INIT(jax.random.key(0)))
    assert names["text.token_embedding.embedding"].shape == (160, 16)
    assert names["log_temperature"].shape == ()


def spoil_weights(folder):
    path = folder / "teacher.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def change(folder, **values):
    path = folder / "teacher.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "teacher.json").unlink(), r"no teacher at .*\(no teacher.json\)"),
        (lambda f: (f / "teacher.json").write_text("{"), "cannot be read.*--teacher-dir"),
        (lambda f: (f / "teacher.safetensors").unlink(), "cannot be read.*No such file"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer at"),
        (spoil_weights, "teacher.safetensors is not what was written"),
        (lambda f: change(f, format=9), "format 9, this program reads 1"),
        (lambda f: change(f, network={"pixels": 16}), "patch_size` is missing"),
    ],
)
def test_a_teacher_that_cannot_be_read_is_named(folder, spoil, said):
    spoil(folder)
    with pytest.raises(UserError, match=said):
        ScenesTeacher.load(folder)


def test_weights_of_other_sizes_are_refused(folder):
    network = json.loads((folder / "teacher.json").read_text())["network"]
    change(folder, network={**network, "width": 32})
    with pytest.raises(UserError, match=r"is of shape .*, not .*"):
        ScenesTeacher.load(folder)
    change(folder, network={**network, "features": 4})
    with pytest.raises(UserError, match=r"image_out.* is of shape"):
        ScenesTeacher.load(folder)
