"""pytest files as Bazel tests."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_tests(name, srcs, deps, data = [], size = "medium"):
    """One py_test per test file, named by its path without .py, and a test_suite of them all.

    Args:
      name: name of the suite.
      srcs: test files, each run by a pytest of its own.
      deps: libraries that the tests import; pytest and tests/conftest.py are added.
      data: files that the tests read.
      size: Bazel's size of each test, which sets its time limit.
    """
    tests = []
    for src in srcs:
        test = src[:-len(".py")]
        tests.append(test)
        py_test(
            name = test,
            size = size,
            srcs = [
                src,
                "//tools/bazel:pytest_main.py",
            ],
            args = [native.package_name() + "/" + src],
            data = data + ["//:pyproject.toml"],
            main = "//tools/bazel:pytest_main.py",
            deps = deps + [
                "//tests:conftest",
                "@pypi//pytest",
            ],
        )
    native.test_suite(
        name = name,
        tests = tests,
    )
