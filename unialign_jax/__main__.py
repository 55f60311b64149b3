"""`python -m unialign_jax` is the command line `unialign`."""

from __future__ import annotations

import sys

from unialign_jax.cli import main

# Grain's worker processes import the main module again: the guard keeps them from starting over.
if __name__ == "__main__":
    sys.exit(main())
