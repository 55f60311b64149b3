"""Runs `unialign train`, with a signal raised at a named point: `[SIGNAL POINT STEP] train ...`.

Points: `logged` is after the line of STEP was written, `saving` while its checkpoint is being
written in the background.
"""

from __future__ import annotations

import os
import signal
import sys

from unialign_jax import cli
from unialign_jax.training import checkpoints, metrics


def strike_after(owner: type, name: str, step_of: int, number: int, step: int) -> None:
    """Makes `owner.name` raise a signal in this process after its call for `step`."""
    original = getattr(owner, name)

    def method(self: object, *args: object, **kwargs: object) -> object:
        result = original(self, *args, **kwargs)
        if args[step_of] == step:
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, method)


if __name__ == "__main__":
    # tensorboardX imports torch where there is one, which takes longer than these runs.
    sys.modules["torch"] = None  # type: ignore[assignment]
    if sys.argv[1] == "train":
        sys.exit(cli.main(sys.argv[1:]))
    number = getattr(signal, sys.argv[1])
    if sys.argv[2] == "logged":
        strike_after(metrics.MetricsWriter, "write", 0, number, int(sys.argv[3]))
    else:
        strike_after(checkpoints.Checkpoints, "save", 1, number, int(sys.argv[3]))
    sys.exit(cli.main(sys.argv[4:]))
