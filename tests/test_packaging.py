"""The project's files agree with each other: pyproject, lock, BUILD files, wheel, licence."""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import unialign_jax

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Where the name that is imported differs from the name that is installed.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "google": "protobuf",
    "ml_dtypes": "ml-dtypes",
    "orbax": "orbax-checkpoint",
    "skimage": "scikit-image",
}
# They come with each other and with nothing else; BUILD files name the first.
COME_WITH_JAX = {"jaxlib", "ml-dtypes"}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(group: str | None = None) -> set[str]:
    """Normalised names that pyproject asks for, in the base or in an extra."""
    extras = PROJECT["project"]["optional-dependencies"]
    specs = PROJECT["project"]["dependencies"] if group is None else extras[group]
    return {normalise(re.match(r"[\w.-]+", spec)[0]) for spec in specs}


def run_time_imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, except for type checkers only."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def third_party(path: Path) -> set[str]:
    """Normalised distributions behind a file's imports."""
    tops = {name.split(".")[0] for name in run_time_imports(path)}
    tops -= {*sys.stdlib_module_names, "unialign_jax", "configs", "tests", "__future__"}
    return {normalise(DISTRIBUTIONS.get(top, top)) for top in tops}


def sources(folder: str) -> list[Path]:
    found = (ROOT / folder).rglob("*.py")
    return sorted(path for path in found if "__pycache__" not in path.parts)


# ---------------------------------------------------------------------- pyproject and lock


def test_the_version_stands_in_one_form():
    assert PROJECT["project"]["version"] == unialign_jax.__version__


def test_every_import_of_the_package_is_a_declared_dependency():
    allowed = declared() | COME_WITH_JAX
    optional = set().union(
        *(declared(name) for name in PROJECT["project"]["optional-dependencies"])
    )
    for path in [*sources("unialign_jax"), *sources("configs")]:
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


def locked_versions() -> dict[str, str]:
    pattern = re.compile(r"^([\w.-]+)==([^\s;\\]+)", flags=re.M)
    return dict(pattern.findall((ROOT / "requirements.lock").read_text()))


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


def project_files() -> list[Path]:
    """Files that git has or would take; all files of a checkout without git."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0 and listed.stdout:
        found = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        found = [path for path in ROOT.rglob("*") if ".venv" not in path.parts]
    return sorted(path for path in found if path.is_file())


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
    tops = {name.split("/")[0] for name in names}
    assert tops == {"unialign_jax", f"unialign_jax-{unialign_jax.__version__}.dist-info"}
    assert not [name for name in names if name.endswith("/BUILD")]


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


# ---------------------------------------------------------------------- BUILD files


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
