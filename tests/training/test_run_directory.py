"""The run directory: made once, continued by the same config only."""

from __future__ import annotations

from pathlib import Path

import pytest

from unialign_jax.errors import UsageError, UserError
from unialign_jax.training.run_directory import RunDirectory, is_harmless

CONFIG = {"seed": 0, "train": {"steps": 10, "log_every": 1}, "model": {"width": 8}}


def with_checkpoint(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.create(CONFIG)
    (run.checkpoints / "4").mkdir()
    return run


def test_a_new_directory_has_its_layout(tmp_path: Path) -> None:
    tokenizer = tmp_path / "t.json"
    tokenizer.write_text("{}")
    run = RunDirectory(tmp_path / "deep" / "run")
    assert run.create(CONFIG, tokenizer) == []
    names = {path.name for path in run.path.iterdir()}
    assert names == {"config.json", "tokenizer.json", "checkpoints", "samples"}
    assert run.load_config() == CONFIG


def test_harmless_keys_may_change_and_are_named(tmp_path: Path) -> None:
    run = with_checkpoint(tmp_path)
    longer = {**CONFIG, "train": {"steps": 20, "log_every": 5}}
    assert run.create(longer) == ["train.log_every: 1 -> 5", "train.steps: 10 -> 20"]
    assert run.load_config()["train"]["steps"] == 20


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    run = with_checkpoint(tmp_path)
    other = {"seed": 1, "train": {"steps": 20, "log_every": 1}, "model": {"width": 16}}
    with pytest.raises(UserError) as caught:
        run.create(other)
    message = str(caught.value)
    assert "seed: 0 -> 1" in message and "model.width: 8 -> 16" in message
    assert "train.steps" not in message and str(tmp_path) in message
    assert run.load_config() == CONFIG


def test_other_values_are_accepted_on_demand(tmp_path: Path) -> None:
    run = with_checkpoint(tmp_path)
    other = {**CONFIG, "model": {"width": 16}}
    assert run.create(other, accept_changes=True) == ["model.width: 8 -> 16"]
    assert run.load_config() == other


def test_before_the_first_checkpoint_any_config_may_start_over(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.create(CONFIG)
    assert run.create({**CONFIG, "seed": 5}) == []


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text("{}")
    second.write_text('{"a": 1}')
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG, first)
    (run.checkpoints / "4").mkdir()
    with pytest.raises(UserError, match="another tokenizer"):
        run.create(CONFIG, second)


def test_a_path_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"{tmp_path}/file.* cannot be written \(Not a directory"):
        RunDirectory(tmp_path / "file" / "run").create(CONFIG)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
        RunDirectory(tmp_path / "run").create(CONFIG)


def test_a_remote_path_is_refused() -> None:
    with pytest.raises(UsageError, match="gs://bucket/run: the run directory must be a local path"):
        RunDirectory("gs://bucket/run")


def test_what_a_step_computes_is_never_harmless() -> None:
    assert is_harmless("train.steps") and is_harmless("mesh.fsdp") and is_harmless("sample.steps")
    for key in ("seed", "train.global_batch", "train.micro_batches", "model.width", "data.mixture"):
        assert not is_harmless(key)
