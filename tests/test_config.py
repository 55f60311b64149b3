"""Configs: found by name, overridden with checked types, turned into dataclasses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from unialign_jax import config as configs
from unialign_jax.errors import UsageError, UserError

SOURCE = """
from ml_collections import ConfigDict

def get_config(size="small"):
    return ConfigDict({
        "seed": 0,
        "name": "a",
        "train": {"steps": 10 if size == "small" else 1000, "rate": 0.5, "shuffle": True},
        "optimizer": {"freeze": ("null_image",)},
    })
"""


@dataclasses.dataclass(frozen=True)
class Section:
    steps: int
    rate: float = 0.5
    shuffle: bool = False
    freeze: tuple[str, ...] = ()
    depth: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps is negative")


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return str(path)


def test_a_file_is_loaded_with_its_argument(file: str) -> None:
    assert configs.load_config(file).train.steps == 10
    assert configs.load_config(f"{file}:large").train.steps == 1000


def test_overrides_are_parsed_by_the_type_of_their_field(file: str) -> None:
    config = configs.load_config(
        file,
        [
            "--config.train.steps=7",
            "--config.train.rate=2",
            "--config.train.shuffle=false",
            "--config.name",
            "b",
            "--config.optimizer.freeze=('x','y')",
        ],
    )
    assert config.train.to_dict() == {"steps": 7, "rate": 2.0, "shuffle": False}
    assert config.name == "b" and config.optimizer.freeze == ("x", "y")


def test_the_resolved_config_is_locked(file: str) -> None:
    config = configs.load_config(file)
    with pytest.raises(AttributeError):
        config.train.stepz = 3
    with pytest.raises(TypeError):
        config.train.steps = "many"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.train.stpes=3",
            "unknown config key `train.stpes`; the nearest is `train.steps`",
        ),
        ("--config.steps=3", "unknown config key `steps`; the nearest is `train.steps`"),
        ("--config.trian.steps=3", "the nearest is `train.steps`"),
        (
            "--config.train.steps=abc",
            "config key `train.steps` takes a value of type int, got 'abc'",
        ),
        ("--config.train.shuffle=7", "config key `train.shuffle` takes a value of type bool"),
        ("--config.train=3", "config key `train` is a section; set one of: train.rate"),
        ("--steps=3", "unknown option `--steps=3`"),
        ("stray", "unexpected argument `stray`"),
    ],
)
def test_a_wrong_override_is_explained(file: str, argument: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        configs.load_config(file, [argument])
    assert message in str(caught.value)


def test_an_unknown_config_names_what_is_shipped(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "photos.py").write_text(SOURCE)
    (tmp_path / "sizes.py").write_text("WIDTH = 3\n")
    monkeypatch.setattr(configs, "config_directories", lambda: [tmp_path])
    assert configs.load_config("photos").seed == 0
    with pytest.raises(UsageError, match="no config named `phots`; the nearest is `photos`"):
        configs.load_config("phots")
    assert configs.available_configs() == ["photos"]
    with pytest.raises(UsageError, match="config file not found: there/no.py"):
        configs.load_config("there/no.py")


def test_what_a_config_file_raises_is_reported_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    return undefined\n")
    with pytest.raises(UserError, match=r"broken.py: NameError: .*undefined"):
        configs.load_config(str(path))
    path.write_text("WIDTH = 3\n")
    with pytest.raises(UserError, match="has no `get_config"):
        configs.load_config(str(path))
    path.write_text("def get_config():\n    return {}\n")
    with pytest.raises(UsageError, match="takes no argument"):
        configs.load_config(f"{path}:x")


def test_json_round_trips_and_tuples_compare_equal_to_lists(file: str, tmp_path: Path) -> None:
    config = configs.load_config(file)
    configs.save_json(config, tmp_path / "config.json")
    loaded = configs.load_json(tmp_path / "config.json")
    assert loaded["optimizer"]["freeze"] == ["null_image"]
    assert configs.diff(config, loaded) == []
    assert [path.name for path in tmp_path.glob("config*")] == ["config.json"]


def test_differences_are_named_with_both_values() -> None:
    found = configs.diff({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4})
    assert list(map(str, found)) == ["a.b: 1 -> 3", "a.c: 2 -> (absent)", "d: (absent) -> 4"]


def test_a_missing_or_damaged_config_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is this a run directory"):
        configs.load_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a config"):
        configs.load_json(tmp_path / "config.json")


def test_a_section_becomes_a_dataclass() -> None:
    values = ConfigDict({"steps": 3, "rate": 1, "freeze": ["a"], "extra": 1, "depth": None})
    built = configs.to_dataclass(Section, values, where="train", ignore=("extra",))
    assert built == Section(steps=3, rate=1.0, freeze=("a",), depth=None)
    assert isinstance(built.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 3, "rat": 1.0}, "unknown config key `train.rat`; the nearest is `train.rate`"),
        ({"rate": 1.0}, "config key `train.steps` is missing"),
        ({"steps": 1.5}, "config key `train.steps` takes a value of type int, got 1.5"),
        ({"steps": True}, "config key `train.steps` takes a value of type int, got True"),
        ({"steps": 3, "shuffle": 1}, "config key `train.shuffle` takes a value of type bool"),
        ({"steps": 3, "freeze": "a"}, "config key `train.freeze` takes a value of type tuple"),
        ({"steps": 3, "depth": "a"}, "config key `train.depth` takes a value of type int"),
        ({"steps": -1}, "config section `train`: steps is negative"),
    ],
)
def test_a_wrong_section_is_explained(values: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        configs.to_dataclass(Section, values, where="train")
    assert message in str(caught.value)
