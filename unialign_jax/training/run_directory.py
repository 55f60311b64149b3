"""The run directory: what lies where, and whether a config may continue a run.

```
config.json      the resolved config
tokenizer.json   the tokenizer the records were prepared with
checkpoints/     one folder per saved step (Orbax)
metrics.jsonl    one line per logged step
events*          TensorBoard
samples/         sample grids
```
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from unialign_jax import config as configs
from unialign_jax.config import Difference
from unialign_jax.errors import UsageError, UserError, bullets

# Keys (or sections) that may change between two starts of one run: they say how long it runs,
# what it reports, where it runs, never what is computed in a step.
HARMLESS = (
    "train.steps",
    "train.log_every",
    "train.sample_every",
    "checkpoint",
    "sample",
    "mesh",
    "data.path",
    "data.workers",
    "data.max_bad_share",
)


class RunDirectory:
    """Paths of one run. Creating the object touches nothing on disk."""

    def __init__(self, path: str | os.PathLike[str]):
        if "://" in str(path):
            raise UsageError(f"{path}: the run directory must be a local path.")
        self.path = Path(path).expanduser().absolute()
        self.config = self.path / "config.json"
        self.tokenizer = self.path / "tokenizer.json"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples"

    def recorded(self) -> dict[str, Any] | None:
        """The config that the run was last started with; None where nothing is saved yet."""
        if not self.config.exists() or not self.has_checkpoints():
            return None
        return configs.load_json(self.config)

    def create(
        self,
        config: Any,
        tokenizer: str | os.PathLike[str] | None = None,
        accept_changes: bool = False,
    ) -> list[str]:
        """Makes the directory for a config, or checks that this config may continue it.

        Args:
            config: the resolved config.
            tokenizer: a `tokenizer.json` to keep with the run.
            accept_changes: any key may differ from the run's config.

        Returns:
            Differences from the config that the run was last started with.

        Raises:
            UserError: the directory cannot be written, or holds a run of another config.
        """
        changed: list[Difference] = []
        before = self.recorded()
        if before is not None:
            changed = changes(before, config, self.path, accept_changes)
        for directory in (self.path, self.checkpoints, self.samples):
            make_directory(directory)
        check_writable(self.path)
        try:
            configs.save_json(config, self.config)
            if tokenizer is not None:
                self._keep_tokenizer(Path(tokenizer))
        except OSError as error:
            raise unwritable(self.path, error) from error
        return [str(difference) for difference in changed]

    def has_checkpoints(self) -> bool:
        """Whether any step was saved. Until then a run can be started again in any way."""
        return self.checkpoints.is_dir() and any(
            path.name.isdecimal() for path in self.checkpoints.iterdir()
        )

    def _keep_tokenizer(self, tokenizer: Path) -> None:
        if not self.tokenizer.exists() or not self.has_checkpoints():
            shutil.copyfile(tokenizer, self.tokenizer)
        elif self.tokenizer.read_bytes() != tokenizer.read_bytes():
            raise UserError(
                f"{self.path}: was trained with another tokenizer than {tokenizer}. Use the data "
                "it was started with, or another --workdir."
            )

    def load_config(self) -> dict[str, Any]:
        """The resolved config as nested dicts.

        Raises:
            UserError: this is no run directory.
        """
        return configs.load_json(self.config)


def changes(
    before: Any, after: Any, where: str | os.PathLike[str], accept_changes: bool = False
) -> list[Difference]:
    """The differences between two configs of one run.

    Raises:
        UserError: keys differ that are not harmless, and they were not accepted; lists them.
    """
    found = configs.diff(before, after)
    harmful = [difference for difference in found if not is_harmless(difference.key)]
    if harmful and not accept_changes:
        raise UserError(
            f"{where}: belongs to another config. Differing keys:\n{bullets(map(str, harmful))}\n"
            "Use the config that started this run, another --workdir, or --accept-changes to "
            "continue with these values."
        )
    return found


def is_harmless(key: str) -> bool:
    """Whether a dotted config key may change between two starts of one run."""
    return any(key == name or key.startswith(f"{name}.") for name in HARMLESS)


def make_directory(path: Path) -> None:
    """Creates a directory with its parents.

    Raises:
        UserError: it cannot be created, e.g. because a file of that name exists.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def check_writable(path: Path) -> None:
    """Writes and removes a small file.

    Raises:
        UserError: the directory cannot be written, or the disk is full.
    """
    probe = path / f".writable-{os.getpid()}"
    try:
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """The message for a directory that cannot be written, from the system's own words."""
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}). "
        "Choose another --workdir, or make room and check its permissions."
    )
