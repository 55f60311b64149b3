"""The BUILD files name every file once and depend on what the files import."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project import (
    COME_WITH_JAX,
    ROOT,
    declared,
    locked_versions,
    normalise,
    project_files,
    run_time_imports,
    sources,
    third_party,
)


class Target:
    """One rule of a BUILD file: its kind, label, sources as paths, and dependencies as labels."""

    def __init__(self, folder: Path, call: ast.Call):
        arguments = {keyword.arg: keyword.value for keyword in call.keywords}
        self.folder = folder
        self.kind = ast.unparse(call.func)
        self.name = ast.literal_eval(arguments["name"]) if "name" in arguments else ""
        package = folder.relative_to(ROOT).as_posix().removeprefix(".")
        self.label = f"//{package}:{self.name}"
        self.package = package
        self.srcs = set(self._files(arguments.get("srcs")))
        listed = arguments.get("deps")
        self.deps = {self._full(dep) for dep in _strings(listed)}

    def _files(self, value: ast.expr | None) -> Iterator[Path]:
        if isinstance(value, ast.BinOp):
            yield from self._files(value.left)
            yield from self._files(value.right)
        elif isinstance(value, ast.Call):
            keywords = {keyword.arg: keyword.value for keyword in value.keywords}
            excluded = {p for x in _strings(keywords.get("exclude")) for p in self.folder.glob(x)}
            for pattern in _strings(value.args[0]):
                # Bazel's glob does not enter folders that have a BUILD file of their own.
                for path in self.folder.glob(pattern):
                    between = [p for p in path.parents if self.folder in p.parents]
                    if not any((folder / "BUILD").exists() for folder in between):
                        yield from {path} - excluded
        elif value is not None:
            yield from (self.folder / name for name in _strings(value) if ":" not in name)

    def _full(self, label: str) -> str:
        if label.startswith(":"):
            return f"//{self.package}{label}"
        if label.startswith("//") and ":" not in label:
            return f"{label}:{label.rsplit('/', 1)[-1]}"
        return label


def _strings(node: ast.expr | None) -> list[str]:
    found = [] if node is None else [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return [value for value in found if isinstance(value, str)]


@functools.cache
def targets() -> dict[str, Target]:
    found = {}
    for build in project_files():
        if build.name == "BUILD":
            for node in ast.parse(build.read_text()).body:
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                    target = Target(build.parent, node.value)
                    if target.name:
                        found[target.label] = target
    return found


def reachable(label: str) -> set[str]:
    """A target and all it depends on."""
    todo, seen = [label], set()
    while todo:
        label = todo.pop()
        if label not in seen:
            seen.add(label)
            todo += targets()[label].deps if label in targets() else []
    return seen


def owners(path: Path) -> list[Target]:
    return [target for target in targets().values() if path in target.srcs]


@pytest.mark.parametrize("folder", ["unialign_jax", "configs", "tests"])
def test_every_python_file_belongs_to_a_target(folder):
    left_out = [str(path.relative_to(ROOT)) for path in sources(folder) if not owners(path)]
    assert left_out == []


def test_every_room_has_a_build_file_of_its_own():
    rooms = [path.parent for path in (ROOT / "unialign_jax").glob("*/__init__.py")]
    assert len(rooms) >= 9
    for room in rooms:
        assert f"//unialign_jax/{room.name}:{room.name}" in targets()


def test_every_test_file_is_a_test_target():
    for path in sources("tests"):
        if path.name.startswith("test_"):
            kinds = {target.kind for target in owners(path)}
            assert kinds == {"pytest_tests"}, f"{path}: {kinds}"


def test_every_dependency_in_a_build_file_exists():
    known = set(re.findall(r'^ +"(\w+)",$', (ROOT / "WORKSPACE").read_text(), flags=re.M))
    for target in targets().values():
        for dep in target.deps:
            if dep.startswith("@pypi//"):
                name = dep.removeprefix("@pypi//")
                assert name in known, f"{target.label}: {dep} is not listed in WORKSPACE"
                assert normalise(name) in locked_versions(), f"{target.label}: {dep} is not locked"
            else:
                assert dep in targets(), f"{target.label} depends on {dep}, which does not exist"


def test_targets_depend_on_what_their_files_import():
    optional = declared("convert") | COME_WITH_JAX
    for target in targets().values():
        if target.kind not in {"py_library", "pytest_tests"} or not target.srcs:
            continue
        within = reachable(target.label)
        direct_pypi = {normalise(dep.removeprefix("@pypi//")) for dep in within if dep[0] == "@"}
        files = set().union(*(targets()[label].srcs for label in within if label in targets()))
        for path in target.srcs:
            # The face of the package names what stands on it; nothing is imported until asked for.
            if path == ROOT / "unialign_jax" / "__init__.py":
                continue
            missing = third_party(path) - direct_pypi - optional - {"pytest"}
            assert not missing, f"{target.label}: {path.name} imports {missing}"
            for name in run_time_imports(path):
                module = ROOT / Path(*name.split("."))
                if name.split(".")[0] in {"unialign_jax", "tests", "configs"}:
                    for file in (module.with_suffix(".py"), module / "__init__.py"):
                        assert not file.exists() or file in files, f"{target.label} lacks {file}"


def test_bazel_ignores_the_environment():
    assert ".venv" in (ROOT / ".bazelignore").read_text().split()
