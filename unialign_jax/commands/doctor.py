"""`unialign doctor`: what this machine offers, what is missing, and the command that mends it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unialign_jax import __version__

HELP = "versions, devices, attention backend, what is missing and how to get it"

DISTRIBUTION = "unialign-jax"

# "jax[cuda13]>=0.10; extra == 'cuda'" -> name, its extras, its floor, the extra that asks for it
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(?:\[(?P<extras>[^]]*)\])?[^;]*?(?:>=\s*(?P<floor>[\d.]+))?[^;]*"
    r"(?:;.*?(?:extra\s*==\s*['\"](?P<extra>[\w-]+)['\"]).*)?$"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `unialign doctor`."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.epilog = (
        "Reads nothing and writes nothing. Exits with 1 where a package that every command needs\n"
        "is missing or too old, otherwise with 0.\n\nexample:\n  unialign doctor"
    )


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Prints the report.

    Returns:
        1 where a base package is missing or too old or JAX finds no device, else 0.
    """
    del extra
    report = examine()
    print(json.dumps(report, indent=2) if args.json else render(report))
    return 1 if report["problems"] else 0


def examine() -> dict[str, Any]:
    """The whole report as JSON-able values.

    `problems` stop every command, `missing` only what an extra is for, `hints` only cost speed.
    """
    base, extras = requirements()
    packages, problems = {}, []
    for name, (floor, spec) in sorted(base.items()):
        packages[name] = installed_version(name)
        if packages[name] is None:
            problems.append({"what": f"{name} is missing", "remedy": install_command([spec])})
        elif floor and _numbers(packages[name]) < _numbers(floor):
            what = f"{name} {packages[name]} is older than {floor}"
            problems.append({"what": what, "remedy": install_command([spec])})
    if not base:
        what = f"{DISTRIBUTION} is not installed, so its requirements are unknown"
        problems.append({"what": what, "remedy": "python -m pip install -e . (in the checkout)"})

    missing = {}
    for extra, wanted in sorted(extras.items()):
        absent = [name for name in wanted if installed_version(name) is None]
        if absent:
            specs = sorted({_keep_version(wanted[name][1]) for name in absent})
            missing[extra] = {"packages": absent, "remedy": install_command(specs)}

    devices, attention = examine_devices(problems)
    return {
        "unialign_jax": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "packages": packages,
        "devices": devices,
        "attention": attention,
        "problems": problems,
        "missing": missing,
        "hints": accelerator_hints({device["platform"] for device in devices}),
    }


def examine_devices(problems: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, str]]:
    """JAX's devices and the attention backend per compute dtype; adds to `problems` on failure."""
    try:
        import jax

        from unialign_jax.models.attention import default_backend

        found = jax.devices()
        devices = [{"platform": d.platform, "kind": d.device_kind} for d in found]
        dtypes = ("bfloat16", "float32")
        attention = {dtype: default_backend(found[0].platform, dtype) for dtype in dtypes}
    except (ImportError, RuntimeError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        remedy = "unset JAX_PLATFORMS" if platforms else install_command(["jax"])
        problems.append({"what": f"JAX finds no device: {error}", "remedy": remedy})
        return [], {}
    return devices, attention


def accelerator_hints(platforms: set[str]) -> list[dict[str, str]]:
    """An accelerator that this machine has and JAX does not use, with the remedy."""
    if not platforms or platforms & {"gpu", "cuda", "rocm", "tpu"}:
        return []
    seen = None
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        seen, package = "an NVIDIA GPU", "jax[cuda13]"
    elif Path("/dev/accel0").exists() or "TPU_ACCELERATOR_TYPE" in os.environ:
        seen, package = "a TPU", "jax[tpu]"
    if seen is None:
        return []
    if "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return [{"what": f"JAX_PLATFORMS hides {seen}", "remedy": "unset JAX_PLATFORMS"}]
    remedy = install_command([f"{package}=={installed_version('jax')}"])
    return [{"what": f"this machine has {seen}, JAX runs on the CPU", "remedy": remedy}]


def requirements() -> tuple[dict[str, tuple[str, str]], dict[str, dict[str, tuple[str, str]]]]:
    """What the installed package asks for.

    Returns:
        Base packages as name -> (floor, requirement), and the same per extra. A requirement such as
        jax[tpu] counts as the packages that this extra of jax brings.
    """
    base: dict[str, tuple[str, str]] = {}
    extras: dict[str, dict[str, tuple[str, str]]] = {}
    for text in _requires(DISTRIBUTION):
        match = _REQUIREMENT.match(text)
        if match is None:
            continue
        spec = text.split(";")[0].strip()
        entry = (match["floor"] or "", spec)
        if match["extra"] is None:
            base[match["name"]] = entry
            continue
        names = [match["name"]]
        for inner in (match["extras"] or "").split(","):
            names += _brought_by(match["name"], inner.strip())
        extras.setdefault(match["extra"], {}).update(dict.fromkeys(names, entry))
    return base, extras


def installed_version(name: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def install_command(specs: Sequence[str]) -> str:
    """The command that installs requirements into the Python that runs this."""
    python = shlex.quote(sys.executable)
    has_pip = importlib.util.find_spec("pip") is not None
    head = f"{python} -m pip install" if has_pip else f"uv pip install --python {python}"
    return " ".join([head, *map(shlex.quote, specs)])


def render(report: dict[str, Any]) -> str:
    """The report as text for a terminal."""
    lines = [
        f"unialign_jax {report['unialign_jax']}, Python {report['python']}, {report['platform']}",
        f"{report['cpus']} CPU cores, {report['memory_gib']:.0f} GiB memory",
        "",
    ]
    lines += [f"  {name:<22} {version or '-'}" for name, version in report["packages"].items()]
    kinds = [f"{device['platform']} ({device['kind']})" for device in report["devices"]]
    counted = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    attention = ", ".join(f"{dtype}: {name}" for dtype, name in report["attention"].items())
    lines += ["", f"devices    {', '.join(counted) or 'none'}", f"attention  {attention or '-'}"]
    for title, entries in (("problem", report["problems"]), ("hint", report["hints"])):
        for entry in entries:
            lines += ["", f"{title}: {entry['what']}", f"  {entry['remedy']}"]
    if report["missing"]:
        lines += ["", "optional, not installed:"]
    for extra, entry in report["missing"].items():
        lines.append(f"  [{extra}] {', '.join(entry['packages'])}")
        lines.append(f"      {entry['remedy']}")
    lines += ["", "mend the problems above" if report["problems"] else "everything needed is here"]
    return "\n".join(lines)


def _requires(distribution: str) -> list[str]:
    try:
        return importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _brought_by(distribution: str, extra: str) -> list[str]:
    """Packages that only an extra of another distribution brings."""
    matches = [_REQUIREMENT.match(text) for text in _requires(distribution)] if extra else []
    return [m["name"] for m in matches if m is not None and m["extra"] == extra]


def _keep_version(spec: str) -> str:
    """jax[tpu]>=0.10 as jax[tpu]==0.10.2 where jax 0.10.2 is installed: no version changes."""
    name, bracket, rest = spec.partition("[")
    version = installed_version(name) if bracket else None
    return f"{name}[{rest.split(']')[0]}]=={version}" if version else spec


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _memory_gib() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return 0.0
