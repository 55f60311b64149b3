"""The details of a report: scores by kind and by attribute, and what is taken for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unialign_jax.reporting import words
from unialign_jax.reporting.markup import Markup, percent, tag

PARTS = ("right", "kept")


def details_section(scores: Mapping[str, Any]) -> Markup:
    """Tables by attribute and by kind, and confusion matrices."""
    details = scores["details"]
    tasks = words.in_order(details)
    by_kind = [_by_kind(task, details[task]) for task in tasks]
    confusion = scores.get("confusion") or {}
    return tag(
        "section",
        tag("h2", "Where it is right and where not"),
        _by_attribute(scores, tasks),
        tag("h3", "By kind"),
        tag("div", by_kind, class_="columns"),
        [
            tag("h3", "What is read as what"),
            tag(
                "p",
                "Things of generated and described scenes. Rows: the truth; columns: what was "
                "read, in percent of the row; n: how many. Column “none”: things that are missing; "
                "row “none”: things that should not be there.",
            ),
            tag("div", [_matrix(name, of) for name, of in confusion.items()], class_="columns"),
        ]
        if confusion
        else None,
        id="details",
    )


def _by_attribute(scores: Mapping[str, Any], tasks: Sequence[str]) -> Markup | None:
    found = {task: scores["details"][task].get("by_attribute") for task in tasks}
    found = {task: shares for task, shares in found.items() if shares}
    if not found:
        return None
    attributes = list(dict.fromkeys(name for shares in found.values() for name in shares))
    rows = [
        tag(
            "tr",
            tag("th", task, scope="row"),
            [_share(shares.get(name)) for name in attributes],
        )
        for task, shares in found.items()
    ]
    table = tag(
        "table",
        tag("caption", f"Share of things (background and count: of scenes), {_world(scores)}"),
        tag("thead", tag("tr", tag("td"), [tag("th", name, scope="col") for name in attributes])),
        tag("tbody", rows),
        class_="heat",
    )
    return tag("div", tag("h3", "By attribute"), _scrolling(table, "by attribute"))


def _world(scores: Mapping[str, Any]) -> str:
    return words.world_of(scores)


def _share(share: float | None) -> Markup:
    if share is None:
        return tag("td", "–")
    return tag("td", percent(share), style=f"--heat:{100 * share:.0f}%", class_="good")


def _by_kind(task: str, details: Mapping[str, Any]) -> Markup | None:
    kinds = details.get("by_kind") or {}
    if len(kinds) < 2:
        return None
    parts = [name for name in PARTS if any(name in found for found in kinds.values())]
    heads = ["", "items", words.MEAN_OF.get(task, "score"), *parts]
    rows = [
        tag(
            "tr",
            tag("th", kind, scope="row"),
            tag("td", found["items"]),
            _share(found["score"]),
            [_share(found.get(name)) for name in parts],
        )
        for kind, found in kinds.items()
    ]
    table = tag(
        "table",
        tag("caption", task),
        tag("thead", tag("tr", [tag("th", head, scope="col") for head in heads])),
        tag("tbody", rows),
        class_="heat",
    )
    return _scrolling(table, f"{task} by kind")


def _matrix(attribute: str, confusion: Mapping[str, Any]) -> Markup:
    labels, counts = confusion["labels"], confusion["counts"]
    rows = []
    for i, (label, row) in enumerate(zip(labels, counts, strict=True)):
        total = sum(row)
        cells = []
        for j, count in enumerate(row):
            share = count / total if total else 0.0
            text = f"{100 * share:.0f}" if count else "·"
            cells.append(
                tag(
                    "td",
                    text,
                    title=f"{label} read as {labels[j]}: {count} of {total}",
                    style=f"--heat:{100 * share:.0f}%" if count else None,
                    class_="good" if i == j else "bad",
                )
            )
        rows.append(tag("tr", tag("th", label, scope="row"), cells, tag("td", total)))
    head = [tag("th", tag("span", label), scope="col") for label in [*labels, "n"]]
    table = tag(
        "table",
        tag("caption", attribute),
        tag("thead", tag("tr", tag("td"), head)),
        tag("tbody", rows),
        class_="heat matrix",
    )
    return _scrolling(table, f"confusion of {attribute}")


def _scrolling(table: Markup, label: str) -> Markup:
    """A table that scrolls by itself where the page is too narrow for it, by keys too."""
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)
