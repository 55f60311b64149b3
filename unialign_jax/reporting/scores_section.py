"""The scores of a report: one table with intervals and baselines, and their way over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unialign_jax.reporting import words
from unialign_jax.reporting.charts import line_chart
from unialign_jax.reporting.curves import Curve
from unialign_jax.reporting.markup import Markup, percent, tag
from unialign_jax.reporting.material import Material


def scores_section(material: Material) -> Markup:
    """The table of scores, what the columns mean, and scores against training time."""
    scores = material.scores
    assert scores is not None
    names = [name for name in words.BASELINES if _has_baseline(scores, name)]
    split = words.SPLITS.get(scores["split"], scores["split"])
    heads = ["Task", "Score", "95 % interval", *(name.capitalize() for name in names)]
    table = tag(
        "table",
        tag("caption", f"Scores at {words.world_of(scores)}"),
        tag("thead", tag("tr", [tag("th", head, scope="col") for head in heads])),
        tag("tbody", [_row(scores, task, names) for task in words.in_order(scores["scores"])]),
        class_="scores",
    )
    meanings = [
        tag("div", tag("dt", mark, name.capitalize()), tag("dd", meaning))
        for mark, name, meaning in (
            (tag("i", class_="key fill"), "score", "of the model"),
            (tag("i", class_="key interval"), "interval", "holds the true score 19 times in 20"),
            *((tag("i", class_=f"key {n}"), n, words.BASELINES[n]) for n in names),
        )
    ]
    return tag(
        "section",
        tag("h2", "Scores"),
        tag(
            "p",
            f"{scores['items']} items per task, seed {scores['seed']}: {split}. The truth is known "
            "exactly: scenes are read back from the pixels, captions and answers from the words.",
        ),
        table,
        tag("dl", meanings, class_="meanings"),
        _over_time(material),
        id="scores",
    )


def _has_baseline(scores: Mapping[str, Any], name: str) -> bool:
    return any(name in of_task for of_task in scores["baselines"].values())


def _row(scores: Mapping[str, Any], task: str, names: list[str]) -> Markup:
    score, baselines = scores["scores"][task], scores["baselines"].get(task, {})
    interval = scores["details"].get(task, {}).get("interval")
    between = f"{percent(interval[0])} to {percent(interval[1])}" if interval else ""
    score_cell = [tag("b", percent(score)), _bar(score, interval, baselines)]
    if task in words.MEAN_OF:
        score_cell.insert(1, tag("small", words.MEAN_OF[task]))
    return tag(
        "tr",
        tag("th", task, tag("small", words.ASKED.get(task, "")), scope="row"),
        tag("td", score_cell, class_="score"),
        tag("td", between, data_label="95 % interval", class_="number"),
        [
            tag(
                "td",
                percent(baselines[name]) if name in baselines else "–",
                data_label=name.capitalize(),
                class_="number" if name in baselines else "number absent",
            )
            for name in names
        ],
    )


def _bar(score: float, interval: list[float] | None, baselines: Mapping[str, float]) -> Markup:
    """The score as a length, with interval and baselines; the numbers stand beside it."""
    parts = [tag("i", class_="fill", style=f"width:{100 * score:.1f}%")]
    for name, value in baselines.items():
        if name in words.BASELINES:
            parts.append(tag("i", class_=name, style=f"left:{100 * value:.1f}%"))
    if interval:
        low, high = interval
        place = f"left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"
        parts.append(tag("i", class_="interval", style=place))
    return tag("div", parts, class_="bar", aria_hidden="true")


def _over_time(material: Material) -> Markup | None:
    lines = material.over_time
    if not lines:
        return None
    tasks = words.in_order(dict.fromkeys(task for line in lines for task in line["scores"]))
    curves = []
    for task in tasks:
        points = [
            (line["seconds"] / 60, line["scores"][task]) for line in lines if task in line["scores"]
        ]
        curves.append(Curve(task, np.asarray(points, np.float64), words.colour_of(task)))
    chart = line_chart(
        "Score against training time",
        curves,
        x_name="min",
        x_format="{:.3g}".format,
        y_format="{:.0%}".format,
        y_range=(0.0, 1.0),
    )
    return tag("div", chart, class_="charts wide")
