"""The project's own files: where they are, what they import and what they ask for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

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
# Folders of the checkout that are imported.
OURS = {"unialign_jax", "configs", "tests", "benchmarks"}
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
    tops -= {*sys.stdlib_module_names, *OURS, "__future__"}
    return {normalise(DISTRIBUTIONS.get(top, top)) for top in tops}


def sources(folder: str) -> list[Path]:
    found = (ROOT / folder).rglob("*.py")
    return sorted(path for path in found if "__pycache__" not in path.parts)


def locked_versions() -> dict[str, str]:
    pattern = re.compile(r"^([\w.-]+)==([^\s;\\]+)", flags=re.M)
    return dict(pattern.findall((ROOT / "requirements.lock").read_text()))


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
