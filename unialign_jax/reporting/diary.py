"""What a demo was asked for, what it chose, what it called and how long that took: `demo.json`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from unialign_jax.data.prepared import write_json
from unialign_jax.errors import UserError
from unialign_jax.reporting.material import Making

FILE = "demo.json"


@dataclasses.dataclass
class Diary:
    """Kept in the demo's directory, so that a stopped demo continues with the same choices.

    Attributes:
        options: as they were given, without the directory.
        steps: of training; 0 until they are chosen.
        commands: that were called, as one would type them.
        seconds: by stage, and "total"; summed over the starts.
        starts: how often the demo was started. The time of one that was killed is not known.
    """

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: int = 0
    commands: list[str] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    starts: int = 0

    @classmethod
    def load(cls, directory: Path) -> Diary | None:
        """The diary of a directory, None if there is none.

        Raises:
            UserError: it cannot be read.
        """
        path = directory / FILE
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}). Delete it to start the demo anew."
            ) from error

    def save(self, directory: Path) -> None:
        """Writes it; the old one stays whole until the new one is complete.

        Raises:
            UserError: the directory cannot be written.
        """
        write_json(directory / FILE, dataclasses.asdict(self))

    def spend(self, name: str, seconds: float) -> None:
        """Adds to the time of a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def remember(self, command: str) -> None:
        """Keeps a command, once."""
        if command not in self.commands:
            self.commands.append(command)

    def making(self) -> Making:
        """How the run was made."""
        return Making(
            config=str(self.options.get("config", "")),
            commands=tuple(self.commands),
            train_seconds=self.seconds.get("train"),
        )
