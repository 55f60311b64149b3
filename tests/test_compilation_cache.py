"""Where compiled programs are kept, and how that is changed."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from unialign_jax.compilation_cache import SWITCH, enable_compilation_cache


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(SWITCH, raising=False)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_it_lies_in_the_users_cache(tmp_path: Path) -> None:
    assert enable_compilation_cache() == tmp_path / "home" / "unialign_jax" / "compiled"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "home/unialign_jax/compiled")


def test_it_can_be_moved_or_turned_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(SWITCH, "off")
    assert enable_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv(SWITCH, str(tmp_path / "mine"))
    assert enable_compilation_cache() == tmp_path / "mine"


def test_a_cache_set_through_jax_is_left_alone(tmp_path: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    assert enable_compilation_cache() == tmp_path / "theirs"
