"""pyproject, lock, wheel, licence and Makefile agree with each other and with the code."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import unialign_jax
from tests.project import (
    COME_WITH_JAX,
    DISTRIBUTIONS,
    PROJECT,
    ROOT,
    declared,
    locked_versions,
    normalise,
    project_files,
    sources,
    third_party,
)


def test_the_version_stands_in_one_form():
    assert PROJECT["project"]["version"] == unialign_jax.__version__


def test_every_import_of_the_package_is_a_declared_dependency():
    allowed = declared() | COME_WITH_JAX
    optional = set().union(
        *(declared(name) for name in PROJECT["project"]["optional-dependencies"])
    )
    # A network in PyTorch, which `convert --check` imports when it is asked for.
    apart = {ROOT / f"unialign_jax/convert/torch_{name}.py" for name in ("layers", "model")}
    for path in [*sources("unialign_jax"), *sources("configs")]:
        if path in apart:
            continue
        undeclared = third_party(path) - allowed
        assert undeclared <= optional, f"{path}: {undeclared - optional} in no dependency list"
        for name in undeclared:
            tree = ast.parse(path.read_text())
            at_top = {n for node in tree.body for n in _names_imported_by(node)}
            assert name not in at_top, f"{path}: {name} is optional, import it where it is used"


def _names_imported_by(node: ast.stmt) -> set[str]:
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    tops = {name.split(".")[0] for name in names}
    return {normalise(DISTRIBUTIONS.get(top, top)) for top in tops}


def test_the_base_install_has_neither_tensorflow_nor_torch():
    assert not declared() & {"tensorflow", "tensorflow-cpu", "torch", "tqdm"}
    locked = set(locked_versions())
    assert not locked & {"tensorflow", "tensorflow-cpu", "torch", "torchvision"}


def test_the_lock_has_every_dependency_and_meets_the_floors():
    locked = locked_versions()
    extras = PROJECT["project"]["optional-dependencies"]
    for spec in [*PROJECT["project"]["dependencies"], *extras["demo"], *extras["dev"]]:
        name, floor = re.match(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)$", spec).groups()
        version = locked[normalise(name)]
        numbers = [[int(n) for n in re.findall(r"\d+", text)] for text in (version, floor)]
        assert numbers[0] >= numbers[1], f"{name} is locked at {version}, below {floor}"


def test_the_lock_has_hashes_and_names_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert not re.search(r"^--(index-url|extra-index-url|find-links)", text, flags=re.M)
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.M)[1:]
    assert len(entries) > 50
    assert all("--hash=sha256:" in entry for entry in entries)


def test_no_committed_text_names_a_folder_of_one_machine():
    # Put together from parts, so that this file does not contain what it looks for.
    forbidden = re.compile(
        "|".join(f"/{name}/" for name in ("work", "root", "opt/wheels", "opt/pypi"))
    )
    for path in project_files():
        if path.suffix in {".npz", ".png", ".jpg", ".safetensors"}:
            continue
        found = forbidden.search(path.read_text(errors="ignore"))
        assert not found, f"{path} names {found[0]}"


def test_the_licence_is_the_one_that_pyproject_names():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_console_script_leads_to_a_function():
    module, _, name = PROJECT["project"]["scripts"]["unialign"].partition(":")
    assert module == "unialign_jax.cli"
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_configs(tmp_path):
    call = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in sources("unialign_jax"):
        assert str(path.relative_to(ROOT)) in names
    for path in sources("configs"):
        assert f"unialign_jax/configs/{path.name}" in names
    for path in project_files():
        if ROOT / "unialign_jax/bundled" in path.parents and path.name != "BUILD":
            assert str(path.relative_to(ROOT)) in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"unialign_jax", f"unialign_jax-{unialign_jax.__version__}.dist-info"}
    assert not [name for name in names if name.endswith("/BUILD")]


@pytest.mark.slow
def test_a_bundle_beside_the_code_is_in_the_wheel_whole(tmp_path):
    """In a copy of the package, with files named as Orbax names them."""
    copy, left_out = tmp_path / "copy", shutil.ignore_patterns("__pycache__")
    for name in ("unialign_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    bundle = copy / "unialign_jax/bundled/tiny"
    inside = ("unialign.json", "tokenizer.json", "transformer/orbax.checkpoint")
    inside += tuple(f"transformer/state/{name}" for name in ("_METADATA", "manifest.ocdbt", "d/1f"))
    for name in inside:
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(b"")
    call = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(call, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"unialign_jax/bundled/tiny/{name}" for name in inside} <= names


@pytest.mark.slow
def test_configs_are_found_in_an_installed_wheel(tmp_path):
    call = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(call, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import unialign_jax.config as c, pathlib\n"
        f"assert pathlib.Path(c.__file__).is_relative_to({str(tmp_path)!r}), c.__file__\n"
        "assert 'photos' in c.available_configs(), c.available_configs()\n"
        "c.load_config('photos')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_git_ignores_what_the_commands_leave_behind():
    patterns = (ROOT / ".gitignore").read_text().split()
    for left in (".venv/", "/unialign_demo/", "uv.lock", "__pycache__/"):
        assert any(fnmatch.fnmatch(left, pattern) for pattern in patterns), left


def test_the_makefile_explains_every_target():
    text = (ROOT / "Makefile").read_text()
    named = set(re.search(r"^\.PHONY: (.*)$", text, flags=re.M)[1].split())
    explained = set(re.findall(r"^([a-z-]+):.*## ", text, flags=re.M))
    assert named == explained
    assert {"help", "demo", "test", "test-slow", "lint", "bazel", "lock"} <= named
