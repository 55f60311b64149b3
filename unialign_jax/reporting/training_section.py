"""The training of a report: its curves, and sample grids from on the way."""

from __future__ import annotations

from unialign_jax.reporting.charts import line_chart
from unialign_jax.reporting.curves import Curve, smoothed, task_curves, term_curves, values_of
from unialign_jax.reporting.markup import Markup, number, picture, tag
from unialign_jax.reporting.material import Material

TERMS = {
    "loss": "Loss, all terms weighted",
    "loss/image": "Image term: flow matching",
    "loss/text": "Text term: masked diffusion",
    "loss/contrastive": "Contrastive term",
    "loss/align_image": "Alignment of the image stream",
    "loss/align_text": "Alignment of the text stream",
}
BY_TASK = {"loss/image": "Image term by task", "loss/text": "Text term by task"}
OTHERS = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm, before clipping",
    "images_per_second": "Images per second",
}


def training_section(material: Material) -> Markup:
    """Curves of every term, of the tasks, of learning rate and speed; then the sample grids."""
    lines, reference = material.metrics, material.reference
    charts = []
    for key, title in TERMS.items():
        curves = term_curves(lines, reference, key)
        charts += [line_chart(title, curves)] if curves else []
    for key, title in BY_TASK.items():
        curves = task_curves(lines, key)
        charts += [line_chart(title, curves)] if len(curves) > 1 else []
    for key, title in OTHERS.items():
        points = values_of(lines, key)
        if len(points):
            # The learning rate is exact; the others wander.
            points = points if key == "lr" else smoothed(points)
            # A rate hardly changes: without its zero, that little would fill the chart.
            span = (0.0, 1.1 * float(points[:, 1].max())) if key == "images_per_second" else None
            charts.append(line_chart(title, [Curve("this run", points, 0)], y_range=span))
    return tag(
        "section",
        tag("h2", "Training"),
        tag("p", _explanation(material)),
        tag("div", charts, class_="charts"),
        _grids(material),
        id="training",
    )


def _explanation(material: Material) -> str:
    text = (
        f"{len(material.metrics)} logged steps; dots are single steps, lines are smoothed. A "
        "step trains one task, whose losses differ."
    )
    if material.reference:
        last = max(line["step"] for line in material.reference)
        text += (
            f" Dashed: the reference curve that comes with this config, a run of {last:,} steps "
            "(runs of another length have another learning rate at the same step)."
        )
    return text


def _grids(material: Material) -> Markup | None:
    if not material.grids:
        return None
    figures = [
        tag(
            "details",
            tag("summary", f"step {number(step)}"),
            picture(path, f"sample grid at step {step}", class_="grid", loading="lazy"),
            # The last shows where it came to; the others are a click away.
            open=step == material.grids[-1][0],
        )
        for step, path in material.grids
    ]
    return tag("div", tag("h3", "Samples on the way"), figures)
