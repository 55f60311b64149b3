"""What to change, in which order, when a program does not fit or wastes its links."""

from __future__ import annotations

from unialign_jax.planning.hardware import GIB
from unialign_jax.planning.program import Plan

# From the least recomputation to the most.
REMAT_ORDER = ("none", "dots_attention", "dots", "attention", "full")
LARGEST_FSDP = 64


def advice(plan: Plan) -> list[str]:
    """Sentences with the overrides to use; empty where there is nothing to say."""
    return _to_fit(plan) if not plan.memory.fits else _to_be_fast(plan)


def _to_fit(plan: Plan) -> list[str]:
    mesh, remat = plan.mesh, plan.setup.model.config.remat
    memory, lines = plan.memory, []
    need, limit = memory.total / GIB, memory.limit / GIB
    lines.append(f"{need:.1f} GiB are needed and {limit:.2f} are there, on every chip")
    if memory.arguments > memory.limit / 2:
        fsdp = _larger_fsdp(plan)
        if fsdp:
            lines.append(
                f"the state alone takes {memory.arguments / GIB:.1f} GiB: shard it further with "
                f"--config.mesh.fsdp={fsdp} --config.mesh.data=-1"
            )
    if remat != "full":
        lines.append(
            "keep less for the backward: --config.model.remat=full (a fifth to a quarter more "
            "FLOPs, the smallest memory)"
        )
    # Temporaries grow with the samples that are worked on at once.
    count = plan.setup.train.micro_batches
    parts = mesh["data"] * mesh["fsdp"]
    rows = plan.setup.train.global_batch // parts
    room = max(memory.limit - memory.arguments, 0.05 * memory.limit)
    wanted = max(1, int(rows / count * room / max(memory.temporaries, 1.0) * 0.9))
    fitting = max((n for n in range(1, rows + 1) if rows % n == 0 and n <= wanted), default=1)
    if fitting < rows // count:
        lines.append(
            f"fewer samples at once: --config.train.micro_batches={rows // fitting} keeps the "
            f"global batch of {rows * parts} ({fitting} per chip at a time; the contrastive loss "
            f"sees only those), or --config.train.global_batch={fitting * count * parts}"
        )
    fsdp = _larger_fsdp(plan)
    if fsdp and memory.arguments <= memory.limit / 2:
        lines.append(f"smaller shards of the state: --config.mesh.fsdp={fsdp}")
    if mesh["context"] == 1 and rows <= count:
        lines.append(
            "one sample per chip does not fit: split samples over chips with "
            "--config.mesh.context=2, or take chips with more memory (v5p)"
        )
    return lines


def _larger_fsdp(plan: Plan) -> int:
    """The next size of the fsdp axis up to 64 that the devices allow; 0 for none."""
    mesh = plan.mesh
    within = plan.topology.devices // plan.topology.slices
    size = mesh["fsdp"] * 2
    while size <= min(LARGEST_FSDP, within):
        if within % (size * mesh["context"] * mesh["tensor"]) == 0:
            return size
        size *= 2
    return 0


def _to_be_fast(plan: Plan) -> list[str]:
    lines = []
    mesh = plan.mesh
    if mesh["fsdp"] > LARGEST_FSDP:
        lines.append(
            f"mesh.fsdp={mesh['fsdp']} is above {LARGEST_FSDP}: the TPU compiler turns gathers and "
            "scatters over so many chips into blocking all-reduces of whole weights; use "
            f"--config.mesh.fsdp={LARGEST_FSDP} --config.mesh.data=-1"
        )
    whole = sum(
        one.executions * one.bytes
        for one in plan.collectives
        if one.kind == "all-reduce" and one.synchronous and "fsdp" in one.axes
    )
    everything = sum(one.executions * one.bytes for one in plan.collectives)
    if everything and whole > 0.5 * everything:
        lines.append(
            f"{whole / 1e9:.1f} GB of all-reduces over fsdp per step block the chips: weights or "
            "activations are summed whole; compare other sizes of mesh.fsdp"
        )
    if plan.estimate and plan.estimate["by"] == "synchronous_collectives":
        lines.append(
            "collectives that nothing hides take most of the step: raise --config.train."
            "global_batch (their bytes do not grow with it)"
        )
    if plan.memory.total < 0.5 * plan.memory.limit and plan.setup.model.config.remat == "full":
        lines.append(
            "less than half of the memory is used: a larger batch, or a remat policy that keeps "
            "more (attention, dots, dots_attention), would use it; see --search"
        )
    return lines
