"""Stand-ins for external repositories, so that Debian's Bazel 4 works without a network.

The rule sets that its built-in tools load are re-exports of native rules; a PyPI package is an empty
library, the real package comes from the Python on the path (.venv).
"""

_NATIVE = {
    "rules_cc": ("cc", [
        "cc_binary",
        "cc_import",
        "cc_library",
        "cc_proto_library",
        "cc_test",
        "cc_toolchain",
        "cc_toolchain_suite",
        "cc_libc_top_alias",
        "fdo_prefetch_hints",
        "fdo_profile",
        "objc_import",
        "objc_library",
    ]),
    "rules_java": ("java", [
        "java_binary",
        "java_import",
        "java_library",
        "java_lite_proto_library",
        "java_package_configuration",
        "java_plugin",
        "java_proto_library",
        "java_runtime",
        "java_test",
        "java_toolchain",
    ]),
    "rules_proto": ("proto", ["proto_library"]),
    "rules_python": ("python", [
        "py_binary",
        "py_library",
        "py_test",
    ]),
}

def _native_rules_impl(ctx):
    ctx.file("WORKSPACE", "workspace(name = %r)\n" % ctx.name)
    ctx.file(ctx.attr.folder + "/BUILD")
    ctx.file(ctx.attr.folder + "/defs.bzl", "".join([
        "%s = getattr(native, %r, None)\n" % (rule, rule)
        for rule in ctx.attr.rules
    ]))

_native_rules = repository_rule(
    implementation = _native_rules_impl,
    attrs = {
        "folder": attr.string(),
        "rules": attr.string_list(),
    },
)

def _packages_impl(ctx):
    ctx.file("WORKSPACE", "workspace(name = %r)\n" % ctx.name)
    for package in ctx.attr.packages:
        ctx.file(
            package + "/BUILD",
            "py_library(name = %r, visibility = [\"//visibility:public\"])\n" % package,
        )

_packages = repository_rule(
    implementation = _packages_impl,
    attrs = {"packages": attr.string_list()},
)

def _coverage_impl(ctx):
    ctx.file("WORKSPACE", "workspace(name = %r)\n" % ctx.name)
    ctx.file("empty.sh")
    ctx.file("BUILD", """filegroup(
    name = "coverage_report_generator",
    srcs = ["empty.sh"],
    visibility = ["//visibility:public"],
)
""")

_coverage = repository_rule(implementation = _coverage_impl)

def stub_repositories(pypi):
    """Declares every stand-in.

    Args:
      pypi: names of the PyPI packages that BUILD files mention, as in @pypi//NAME.
    """
    for name, (folder, rules) in _NATIVE.items():
        _native_rules(
            name = name,
            folder = folder,
            rules = rules,
        )
    _packages(
        name = "pypi",
        packages = pypi,
    )
    _coverage(name = "remote_coverage_tools")
