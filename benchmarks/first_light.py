"""Compile time, step time and memory of the photo configs, and compile time against depth.

    python benchmarks/first_light.py --out benchmarks/results/first_light.json

Every case runs in a process of its own, without a compilation cache, on synthetic batches. Machines
are noisy: compare figures of one run with each other.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

# name -> (config, overrides)
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "photos:small": ("photos:small", {}),
    "photos": ("photos", {}),
    "photos:small, 6 layers": ("photos:small", {"model.layers": 6}),
    "photos:small, 24 layers": ("photos:small", {"model.layers": 24}),
}
STEPS = 10


def measure(case: str) -> dict[str, object]:
    """Compiles and runs the generate step of a case in this process."""
    import jax
    import numpy as np

    from unialign_jax import config as configs
    from unialign_jax.data.tokenizer import train_tokenizer
    from unialign_jax.models.functional import count_parameters
    from unialign_jax.training.programs import lower, place_batch
    from unialign_jax.training.setup import make_setup

    name, changes = CASES[case]
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    config = configs.to_plain(configs.load_config(name, overrides))
    setup = make_setup(config, train_tokenizer(["a photograph"], config["model"]["vocab_size"]))
    size, length, rows = setup.data.image_size, setup.data.text_length, setup.train.global_batch
    random = np.random.default_rng(0)
    batch = place_batch(
        {
            "target": random.integers(0, 256, (rows, size, size, 3), np.uint8),
            "conditions": (),
            "instruction_ids": random.integers(3, 100, (rows, length), np.int32),
            "caption_ids": random.integers(3, 100, (rows, length), np.int32),
            "caption_weight": np.ones(rows, np.float32),
        },
        setup,
    )
    with jax.set_mesh(setup.mesh):
        state = setup.init()
        begin = time.monotonic()
        lowered = lower(setup, "generate", batch)
        traced = time.monotonic()
        program = lowered.compile()
        compiled = time.monotonic()
        seconds = []
        for _ in range(STEPS + 1):
            start = time.monotonic()
            state, metrics = program(state, batch)
            jax.block_until_ready(metrics)
            seconds.append(time.monotonic() - start)
    return {
        "parameters": count_parameters(setup.abstract.params),
        "batch": rows,
        "trace_seconds": round(traced - begin, 2),
        "compile_seconds": round(compiled - traced, 2),
        "step_seconds_median": round(statistics.median(seconds[1:]), 4),
        "step_seconds_min": round(min(seconds[1:]), 4),
        "temporary_mib": round(program.memory_analysis().temp_size_in_bytes / 2**20, 1),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Measures every case and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--case", choices=CASES, help="measure one case and print it")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case)))
        return
    environment = {**os.environ, "UNIALIGN_COMPILATION_CACHE": "off"}
    figures = {}
    for case in CASES:
        command = [sys.executable, __file__, "--case", case]
        result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        figures[case] = json.loads(result.stdout)
        print(f"{case:26} {figures[case]}", flush=True)
    import jax

    report = {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/first_light.py",
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "jax": jax.__version__,
        "figures": figures,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
