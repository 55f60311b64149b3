"""`unialign plan`: what a training stage needs on a TPU slice, before it is rented."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from unialign_jax import config as configs
from unialign_jax.errors import UsageError

HELP = """Compile a training stage for a TPU slice on this machine, and say what it needs.

inputs   a config (by name or file) and a topology; neither data nor a TPU
outputs  per program: GiB per chip against the compiler's limit and the largest buffers, FLOPs,
         collectives, bounds and an estimate of the step time and MFU, chip-hours; advice

Topologies are v5e:16x16, v6e:16x16, v5p:4x4x4, tpu7x:4x4x4 and other shapes; `gpu:h200` (or
gpu:h200:8) is answered by arithmetic, without a compiler. Exit code 3: something does not fit.

example  unialign plan --config photos --topology v5e:2x2 --task generate --quick \\
             --config.train.global_batch=8
         unialign plan --config photos --topology v5p:8x8x8 --slices 2 --price 4.2 --json \\
             --config.mesh.fsdp=64 --config.train.global_batch=8192"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options; `--config.KEY=VALUE` arguments are read by `run`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME_OR_FILE",
        help="a shipped config (photos, photos:ARGUMENT) or the path of one",
    )
    parser.add_argument("--topology", required=True, help="v5e:16x16, v5p:4x4x4, gpu:h200, ...")
    parser.add_argument("--slices", type=int, default=1, help="slices of that shape (default: 1)")
    parser.add_argument(
        "--task",
        default="",
        help="one or more training tasks, with commas; compose:2 has two conditions (default: the "
        "tasks of the config's mixture)",
    )
    parser.add_argument(
        "--per-chip-batch",
        type=float,
        help="samples of a step per device, in place of the config's train.global_batch",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compile in a third of the time: memory and collectives, no estimate of the time",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes, remat policies and batches; print the settings that fit, best first",
    )
    parser.add_argument("--price", type=float, default=0.0, help="dollars per chip and hour")
    parser.add_argument("--stage-steps", type=int, help="steps of the stage (default: train.steps)")
    parser.add_argument(
        "--attention-efficiency",
        type=float,
        default=0.6,
        help="share of the matrix units that attention kernels reach in the estimate (0.6)",
    )
    parser.add_argument("--json", action="store_true", help="print a list with one object each")


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Runs the command; see HELP."""
    config = configs.to_plain(configs.load_config(args.config, extra))
    _check(args)
    # The compiler for TPUs is asked on a CPU: an accelerator of this machine is left alone.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from unialign_jax.parallel.mesh import MeshConfig
    from unialign_jax.planning import topology as topologies
    from unialign_jax.planning.batch import cases, share, with_values
    from unialign_jax.planning.program import plan
    from unialign_jax.planning.render import render
    from unialign_jax.planning.report import to_json, whole_stage

    target = topologies.parse(args.topology, args.slices)
    wanted = cases(config, args.task)
    if target.compiles:
        devices = topologies.devices(target)
    else:
        devices = topologies.stand_ins(target.devices)
    if args.per_chip_batch:
        samples = args.per_chip_batch * target.devices
        if samples != int(samples):
            raise UsageError(
                f"--per-chip-batch {args.per_chip_batch} on {target.devices} devices is no whole "
                "number of samples"
            )
        config = with_values(config, {"train.global_batch": int(samples)})
    if args.search:
        return _search(args, config, target, wanted, devices)
    MeshConfig(**config["mesh"]).shape(target.devices, target.slices)
    steps = args.stage_steps or config["train"]["steps"]
    rows: list[dict[str, Any]] = []
    for case in wanted:
        _say(f"{case} on {target.name}: tracing and compiling ...")
        done = plan(
            config,
            target,
            case,
            devices,
            quick=args.quick,
            attention_efficiency=args.attention_efficiency,
        )
        _say(f"{case} on {target.name}: {done.seconds:.0f} s")
        part = share(config, case) if not args.task else 1.0
        rows.append(to_json(done, steps=steps, share=part, price=args.price))
        if not args.json:
            print(render(rows[-1]) + "\n", flush=True)
    if args.json:
        print(json.dumps(rows, indent=1))
    elif len(rows) > 1 and not args.task:
        total = ", ".join(f"{k.replace('_', ' ')} {v:,.0f}" for k, v in whole_stage(rows).items())
        print(f"whole stage: {total}")
    return 0 if all(row["fits"] for row in rows) else 3


def _search(
    args: argparse.Namespace, config: dict[str, Any], target: Any, wanted: list, devices: list
) -> int:
    """The ranked list; the search is over the program with the most tokens."""
    from unialign_jax.planning.report import achieved, samples_per_second, to_json
    from unialign_jax.planning.search import search

    case = max(wanted, key=lambda case: case.conditions)
    found = search(config, target, case, devices, say=_say)
    if args.json:
        steps = args.stage_steps or config["train"]["steps"]
        rows = [
            {**to_json(done, steps=steps, price=args.price), "overrides": candidate.overrides}
            for candidate, done in found
        ]
        print(json.dumps(rows, indent=1))
        return 0 if found else 3
    if not found:
        print(f"nothing fits {target.name}: not even one sample per device with full remat")
        return 3
    print(f"{case} on {target.name}, by the serial bound (quick compiles give no estimate):")
    for candidate, done in found:
        gib = done.memory.gib()
        print(
            f"  {samples_per_second(done) / target.chips:6.2f} samples/s/chip  "
            f"{100 * achieved(done):3.0f} % MFU  {gib['total']:6.2f} of {gib['limit']} GiB  "
            f"{candidate.overrides}"
        )
    return 0


def _check(args: argparse.Namespace) -> None:
    for name, least in (("per_chip_batch", 0.0), ("stage_steps", 0), ("price", -1e-9)):
        value = getattr(args, name)
        if value is not None and value <= least:
            raise UsageError(f"--{name.replace('_', '-')} is {value}: it must be above 0")
    if not 0 < args.attention_efficiency <= 1:
        raise UsageError(f"--attention-efficiency is {args.attention_efficiency}: from 0 to 1")


def _say(text: str) -> None:
    print(f"plan: {text}", file=sys.stderr, flush=True)
