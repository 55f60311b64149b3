"""Who may import whom: the floors of the house, the bare core, and interfaces that have gone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import unialign_jax

PACKAGE = Path(unialign_jax.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)

# Each room stands only on rooms of a lower floor. A room is a folder or a module of the top level.
FLOORS = {
    "errors": 0,
    "config_files": 0,
    "config": 1,
    "compilation_cache": 1,
    "parallel": 1,
    "diffusion": 2,
    "models": 3,
    "objective_config": 3,
    "objective": 4,
    "bundle": 4,
    "data": 5,
    "caching": 6,
    "convert": 6,
    "sampling": 7,
    "training": 8,
    "parity": 9,
    "evaluation": 9,
    "planning": 9,
    "reporting": 10,
    "commands": 11,
    "cli": 12,
    "__main__": 13,
}

# These import with jax, flax, optax and numpy alone: accelerator images often lack the rest.
CORE = (
    "models",
    "objective",
    "training.step",
    "sampling.pipeline",
    "diffusion",
    "parallel",
)
NOT_IN_CORE = (
    "PIL",
    "array_record",
    "clu",
    "etils",
    "grain",
    "jaxtyping",
    "ml_collections",
    "orbax",
    "rich",
    "safetensors",
    "skimage",
    "tensorboardX",
    "tensorflow_datasets",
    "tokenizers",
    "torch",
    "transformers",
)

# Names that JAX, Flax and Orbax have replaced, with what took their place.
GONE = {
    "pjit": "jax.jit with shardings",
    "xmap": "jax.shard_map",
    "jax.experimental.shard_map": "jax.shard_map",
    "jax.experimental.maps": "jax.set_mesh",
    "jax.experimental.pjit": "jax.jit",
    "jax.tree_map": "jax.tree.map",
    "jax.tree_util.tree_map": "jax.tree.map",
    "jax.sharding.use_mesh": "jax.set_mesh",
    "flax.linen": "flax.nnx",
    "orbax.checkpoint.CheckpointManager": "orbax.checkpoint.v1",
    "ocp.CheckpointManager": "orbax.checkpoint.v1",
    "CheckpointManager": "orbax.checkpoint.v1",
    "PyTreeCheckpointer": "orbax.checkpoint.v1",
    "save_pytree": "orbax.checkpoint.v1.save",
    "load_pytree": "orbax.checkpoint.v1.load",
    # These import TensorFlow.
    "clu.metric_writers": "unialign_jax.training.metrics",
    "clu.periodic_actions": "unialign_jax.training.progress",
}


def name_of(path: Path) -> str:
    """data/sources/jsonl.py -> data.sources.jsonl; a folder's __init__.py -> the folder."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def floor_breaks(path: Path) -> list[str]:
    room = name_of(path).split(".")[0]
    found = []
    for line, target in imports(path):
        top, _, inner = target.partition(".")
        other = inner.split(".")[0]
        if top != "unialign_jax" or other not in FLOORS or other == room:
            continue
        if FLOORS[other] >= FLOORS[room]:
            found.append(f"{path.name}:{line}: {room} imports {other}, which is not below it")
    return found


# The package's own __init__.py stands on no floor: it resolves its names when they are asked for.
@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path)], ids=name_of)
def test_a_room_stands_on_lower_floors_only(path):
    assert name_of(path).split(".")[0] in FLOORS, "a room without a floor: add it to FLOORS"
    assert floor_breaks(path) == []


def test_the_floor_check_sees_an_import_from_above(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    wrong = tmp_path / "models" / "wrong.py"
    wrong.write_text("def f():\n    from unialign_jax.training import step\n    return step\n")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert floor_breaks(wrong)[0] == "wrong.py:2: models imports training, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_neither_tensorflow_nor_torch_is_imported(path):
    torch_allowed = name_of(path).split(".")[0] == "convert"
    for line, target in imports(path):
        top = target.split(".")[0]
        assert top != "tensorflow", f"{path}:{line}"
        assert torch_allowed or top not in {"torch", "transformers", "diffusers"}, f"{path}:{line}"


def replaced_names(path: Path) -> list[str]:
    """Uses of names that are gone, outside comments and texts."""
    found = []

    def report(node, name):
        found.append(f"{path.name}:{node.lineno}: {name}, use {GONE.get(name, name)}")

    for line, target in imports(path):
        for name in {target, target.split(".")[-1]} & set(GONE):
            found.append(f"{path.name}:{line}: {name}, use {GONE[name]}")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            for name in {ast.unparse(node), node.attr} & set(GONE):
                report(node, name)
        elif isinstance(node, ast.With):
            for item in node.items:
                # `with mesh:` sets the old thread-local mesh; `with jax.set_mesh(mesh):` is a call.
                if not isinstance(item.context_expr, ast.Call):
                    name = ast.unparse(item.context_expr)
                    if name.split(".")[-1].endswith("mesh"):
                        found.append(f"{path.name}:{node.lineno}: with {name}, use jax.set_mesh")
        # Without axis_types a mesh has Explicit axes, under which ordinary code fails.
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "jax.make_mesh"
            and "axis_types" not in {keyword.arg for keyword in node.keywords}
        ):
            found.append(f"{path.name}:{node.lineno}: jax.make_mesh without axis_types")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_replaced_interface_is_used(path):
    assert replaced_names(path) == []


def test_the_check_for_replaced_interfaces_sees_them(tmp_path):
    source = tmp_path / "old.py"
    source.write_text(
        "from jax.experimental.shard_map import shard_map\n"
        "import orbax.checkpoint as ocp\n"
        "def f(mesh):\n"
        "    with mesh:\n"
        "        return jax.tree_map(g, ocp.CheckpointManager('x')), jax.make_mesh((8,), ('a',))\n"
    )
    lines = {found.split(":")[1] for found in replaced_names(source)}
    assert lines == {"1", "4", "5"}
    assert len(replaced_names(source)) >= 5


def test_the_core_imports_with_jax_flax_optax_and_numpy_alone():
    script = f"""
import builtins, importlib, pkgutil, sys
import flax, flax.nnx, flax.struct, jax, numpy, optax
absent = set({NOT_IN_CORE!r})
needed_by_flax = absent & set(sys.modules)

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in absent - needed_by_flax:
            raise ModuleNotFoundError(name + ' is hidden', name=name)

sys.meta_path.insert(0, Hide())
plain = builtins.__import__

def watched(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get('__name__', '')
    if importer.startswith('unialign_jax') and name.split('.')[0] in absent:
        raise ModuleNotFoundError(importer + ' imports ' + name, name=name)
    return plain(name, globals, locals, fromlist, level)

builtins.__import__ = watched
for name in {CORE!r}:
    module = importlib.import_module('unialign_jax.' + name)
    for inner in pkgutil.walk_packages(getattr(module, '__path__', []), module.__name__ + '.'):
        importlib.import_module(inner.name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_everything_brings_neither_tensorflow_nor_torch():
    names = [f"unialign_jax.{name_of(path)}".rstrip(".") for path in MODULES]
    # A network in PyTorch; `convert --check` imports it when it is asked for.
    apart = ("__main__", "convert.torch_layers", "convert.torch_model")
    names = [name for name in names if not name.endswith(apart)]
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "found = {'tensorflow', 'torch', 'transformers', 'diffusers'} & set(sys.modules)\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_imports_without_jax_and_resolves_its_face_lazily():
    script = (
        "import sys, unialign_jax as ua\n"
        "assert 'jax' not in sys.modules\n"
        "assert 'Pipeline' in dir(ua)\n"
        "assert ua.Pipeline.__module__ == 'unialign_jax.sampling.pipeline'\n"
        "try: ua.Pipelin\n"
        "except AttributeError as error: assert 'Pipelin' in str(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
