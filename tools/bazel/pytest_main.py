"""Runs one test file under Bazel: `py_test` starts a program, pytest is told which file."""

import sys

import pytest

if __name__ == "__main__":
    # The sandbox is read-only outside its own output folders.
    code = pytest.main([*sys.argv[1:], "-p", "no:cacheprovider"])
    # A file whose tests are all slow has nothing to run, which is no failure.
    sys.exit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code)
