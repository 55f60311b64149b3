"""Time and memory of `unialign convert` both ways, beside an fsynced copy of the same bytes.

    python benchmarks/convert.py --out benchmarks/results/convert.json
    python benchmarks/convert.py --size tiny     a trial of the script, seconds

A synthetic checkpoint of the full size (2.12 B float32 and T5-XXL bfloat16, 18 GB, plus the
autoencoder) is written to --work, converted to a bundle and back, and compared bit for bit. Memory
is the process's anonymous memory (RssAnon), sampled ten times a second; the page cache is not in
it. Disks are noisy: compare ratios of one run. Needs 75 GB of disk, and Linux.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

CHUNK = 64 * 2**20
LIMITS = {"anonymous_gib": 3.0, "times_a_copy": 3.0}


def make(folder: Path, size: str) -> None:
    """Writes the checkpoint in the published layout, with random bits that are finite numbers."""
    from unialign_jax.convert import autoencoder_names, layout, names, t5_names
    from unialign_jax.convert.weight_writer import Planned, write_weights
    from unialign_jax.data.tokenizer import train_tokenizer
    from unialign_jax.models.autoencoder import AutoencoderConfig
    from unialign_jax.models.mmdit_config import MMDiTConfig
    from unialign_jax.models.t5 import T5Config

    network, encoder, autoencoder = MMDiTConfig(), T5Config(), AutoencoderConfig()
    if size == "medium":
        network, encoder = MMDiTConfig(layers=6), T5Config(layers=6)
    elif size == "tiny":
        network = MMDiTConfig(width=128, heads=2, layers=2, text_width=64)
        encoder = T5Config(width=64, heads=2, layers=2, mlp_width=128)
        autoencoder = AutoencoderConfig(widths=(32, 32, 32, 32))
    noise = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32)
    half = ml_dtypes.bfloat16
    for name, table, abstract, dtype, stem, config in (
        (
            "transformer",
            names.table(network),
            names.abstract_parameters(network),
            np.float32,
            "diffusion_pytorch_model",
            layout.transformer_json(network),
        ),
        (
            "text_encoder",
            t5_names.table(encoder),
            t5_names.abstract_parameters(encoder),
            half,
            "model",
            layout.text_encoder_json(encoder, "bfloat16"),
        ),
        (
            "vae",
            autoencoder_names.table(autoencoder),
            autoencoder_names.abstract_parameters(autoencoder),
            np.float32,
            "diffusion_pytorch_model",
            layout.autoencoder_json(autoencoder, 1024),
        ),
    ):
        from unialign_jax.convert.tables import their_shapes

        shapes = their_shapes(table, abstract)
        planned = [Planned(key, np.dtype(dtype), shape) for key, shape in shapes.items()]

        def read(key: str, shapes=shapes, dtype=dtype) -> np.ndarray:
            # Another stretch of the noise for every tensor.
            return np.resize(np.roll(noise, hash_of(key)), shapes[key]).astype(dtype)

        if name == "transformer":
            buffer = names.position_buffer(network)
            planned.append(Planned(names.POSITION_BUFFER, buffer.dtype, buffer.shape))
            plain = read

            def read(key: str, plain=plain, buffer=buffer) -> np.ndarray:
                return buffer if key == names.POSITION_BUFFER else plain(key)

        inside = folder / name
        inside.mkdir(parents=True)
        write_weights(inside, stem, planned, read)
        (inside / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer").mkdir()
    train_tokenizer(["a photograph"], 128).save(folder / "tokenizer/tokenizer.json")
    index = layout.model_index(["transformer", "text_encoder", "vae", "tokenizer"])
    (folder / "model_index.json").write_text(json.dumps(index))


def hash_of(name: str) -> int:
    """The same number in every process."""
    return sum(ord(letter) * 31**i for i, letter in enumerate(name)) % (1 << 22)


def weights_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@dataclasses.dataclass(frozen=True)
class Cost:
    seconds: float
    anonymous_gib: float


def run(command: list[str]) -> Cost:
    """Runs a command and watches its memory."""
    begin, peak = time.monotonic(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
    os.sync()
    return Cost(time.monotonic() - begin, peak / 2**30)


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return 1024 * int(found[0]) if found else 0


def copy(files: list[Path], folder: Path) -> float:
    """Seconds that a copy takes, each file synced to the disk."""
    folder.mkdir()
    begin = time.monotonic()
    for i, file in enumerate(files):
        with file.open("rb") as source, (folder / str(i)).open("wb") as target:
            while chunk := source.read(CHUNK):
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
    os.sync()
    seconds = time.monotonic() - begin
    shutil.rmtree(folder)
    return seconds


def same(left: Path, right: Path) -> int:
    """The number of tensors, or SystemExit naming one whose bits differ."""
    from unialign_jax.convert.weight_files import open_weights

    count = 0
    for name in ("transformer", "text_encoder", "vae"):
        a, b = open_weights(left / name), open_weights(right / name)
        if a.shapes != b.shapes:
            raise SystemExit(f"{name}: other tensors after the round trip")
        for key in a:
            before, after = a[key], b[key]
            if before.dtype != after.dtype or before.tobytes() != after.tobytes():
                raise SystemExit(f"{name}: {key} is not what it was")
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("full", "medium", "tiny"), default="full")
    parser.add_argument("--work", type=Path, default=Path("runs/convert_benchmark"))
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    source, bundle, back = (args.work / name for name in ("source", "bundle", "back"))
    print("making the checkpoint", flush=True)
    make(source, args.size)
    files = weights_of(source)
    gigabytes = sum(file.stat().st_size for file in files) / 1e9
    program = [sys.executable, "-m", "unialign_jax", "convert"]
    copies = [copy(files, args.work / "copy")]
    to_jax = run([*program, "to-jax", str(source), str(bundle)])
    copies.append(copy(files, args.work / "copy"))
    to_torch = run([*program, "to-torch", str(bundle), str(back)])
    copies.append(copy(files, args.work / "copy"))
    tensors = same(source, back)
    figures = {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/convert.py --size {args.size}",
        "device": f"cpu, {os.cpu_count()} cores, {platform.machine()}",
        "gigabytes": round(gigabytes, 2),
        "tensors_bit_for_bit": tensors,
        "fsynced_copy_seconds": [round(seconds, 1) for seconds in copies],
        "limits": LIMITS,
    }
    for name, cost, around in (
        ("to-jax", to_jax, copies[0:2]),
        ("to-torch", to_torch, copies[1:3]),
    ):
        figures[name] = {
            "seconds": round(cost.seconds, 1),
            "times_a_copy": round(cost.seconds / (sum(around) / 2), 2),
            "anonymous_gib": round(cost.anonymous_gib, 2),
        }
    print(json.dumps(figures, indent=2))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
