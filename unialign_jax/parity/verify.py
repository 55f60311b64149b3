"""Runs every comparison that a directory of goldens allows, and says what it did not cover."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import jax

from unialign_jax.errors import UserError
from unialign_jax.parity import (
    components,
    losses,
    pipeline,
    preprocess,
    samplers,
    schedules,
    transformer,
)
from unialign_jax.parity.golden import GoldenDirectory, Row, failure

COVERED: dict[str, Callable[[GoldenDirectory], None]] = {
    "tiny_transformer": transformer.verify,
    "losses": losses.verify,
    "samplers": samplers.verify,
    "scheduler_tables": schedules.verify,
    "components": components.verify,
    "preprocess": preprocess.verify,
    "e2e": pipeline.verify,
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """All comparisons of a directory.

    Attributes:
      rows: one per compared tensor or value.
      not_covered: groups of the directory that this program does not check.
    """

    rows: list[Row]
    not_covered: list[str]

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)


def verify_directory(root: Path, groups: list[str] | None = None) -> Verdict:
    """Compares this implementation with the goldens in `root`, in float32.

    Args:
      root: a directory with `inventory.json` and the groups that it lists.
      groups: those to check; all covered ones unless given.

    Raises:
      UserError: no inventory, an unreadable file, an unknown group.
    """
    goldens = GoldenDirectory(root)
    present = goldens.groups()
    wanted = groups or [g for g in present if g in COVERED]
    for group in wanted:
        if group not in COVERED or group not in present:
            known = ", ".join(g for g in present if g in COVERED)
            raise UserError(f"no group {group!r} to check in {root}; it has {known or 'none'}")
    with jax.default_matmul_precision("highest"):
        for group in wanted:
            try:
                COVERED[group](goldens)
            except (KeyError, IndexError, ValueError, TypeError) as error:
                goldens.add(failure(f"{group}/(all)", "(group)", f"could not be run: {error!r}"))
    for group in wanted:
        goldens.rows.extend(goldens.unchecked(group))
    if not goldens.rows:
        covered = ", ".join(COVERED)
        raise UserError(
            f"{root} has nothing to compare: its inventory.json lists none of {covered}"
        )
    return Verdict(goldens.rows, sorted(set(present) - set(COVERED)))


def as_json(verdict: Verdict) -> list[dict[str, object]]:
    """The rows as plain dictionaries; a difference that does not exist is null."""
    rows = []
    for row in verdict.rows:
        entry = dataclasses.asdict(row)
        for key in ("max_abs", "max_rel"):
            entry[key] = entry[key] if math.isfinite(entry[key]) else None
        rows.append(entry)
    return rows


def table(verdict: Verdict, *, every_row: bool = False) -> str:
    """A text table: every comparison, or the worst of each case and all that failed."""
    chosen = verdict.rows if every_row else _worst_per_case(verdict.rows)
    counts: dict[str, int] = {}
    for row in verdict.rows:
        counts[row.case] = counts.get(row.case, 0) + 1
    case_width = max([len(row.case) for row in chosen] + [4])
    tensor_width = min(max([len(row.tensor) for row in chosen] + [6]), 56)
    lines = [
        f"{'case':{case_width}}  {'tensor':{tensor_width}}  {'max abs':>9}  {'max rel':>9}  "
        f"{'tolerance':>9}  of"
    ]
    for row in chosen:
        name = row.tensor[-tensor_width:]
        end = str(counts[row.case]) if row.ok else f"{counts[row.case]}  FAILED  {row.note}"
        lines.append(
            f"{row.case:{case_width}}  {name:{tensor_width}}  {row.max_abs:9.1e}  "
            f"{row.max_rel:9.1e}  {row.tolerance:9.1e}  {end}".rstrip()
        )
    failed = sum(not row.ok for row in verdict.rows)
    lines += ["", *_summary(verdict.rows), ""]
    lines.append(f"{len(verdict.rows)} comparisons, {failed} failed")
    if verdict.not_covered:
        lines.append(f"not covered: {', '.join(verdict.not_covered)}")
    return "\n".join(lines)


def _summary(rows: list[Row]) -> list[str]:
    """Per group: comparisons, the largest relative difference, the largest share of a tolerance."""
    lines = [f"{'group':18}  {'comparisons':>11}  {'failed':>6}  {'max rel':>9}  of tolerance"]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.case.split("/")[0], []).append(row)
    for group, members in groups.items():
        good = [row for row in members if row.ok]
        largest = max((row.max_rel for row in good), default=float("nan"))
        share = max((_share(row) for row in good), default=float("nan"))
        failed = len(members) - len(good)
        lines.append(f"{group:18}  {len(members):11}  {failed:6}  {largest:9.1e}  {share:12.0%}")
    return lines


def _worst_per_case(rows: list[Row]) -> list[Row]:
    worst: dict[str, Row] = {}
    for row in rows:
        if row.ok and (row.case not in worst or _share(row) > _share(worst[row.case])):
            worst[row.case] = row
    failed = [row for row in rows if not row.ok]
    return sorted([*worst.values(), *failed], key=lambda row: row.case)


def _share(row: Row) -> float:
    return row.max_rel / row.tolerance if row.tolerance else 0.0
