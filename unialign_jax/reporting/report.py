"""The report of a run: one HTML file that needs nothing else, not even a script."""

from __future__ import annotations

from pathlib import Path

from unialign_jax import __version__
from unialign_jax.data.prepared import write_text
from unialign_jax.reporting import words
from unialign_jax.reporting.details_section import details_section
from unialign_jax.reporting.making_section import making_section
from unialign_jax.reporting.markup import Markup, number, tag
from unialign_jax.reporting.material import Material
from unialign_jax.reporting.samples_section import samples_section
from unialign_jax.reporting.scores_section import scores_section
from unialign_jax.reporting.training_section import training_section

HERE = Path(__file__).parent
STYLE, SCRIPT = HERE / "report.css", HERE / "report.js"


def write_report(material: Material, path: Path) -> None:
    """Writes the report.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, render(material))


def render(material: Material) -> str:
    """The report as HTML."""
    sections = []
    if material.scores is not None:
        sections.append(("Scores", scores_section(material)))
    if material.shown:
        sections.append(("Samples", samples_section(material)))
    if material.scores is not None:
        sections.append(("Details", details_section(material.scores)))
    if material.metrics:
        sections.append(("Training", training_section(material)))
    sections.append(("Making", making_section(material)))
    title = _title(material)
    # The text of these two elements is not escaped in HTML.
    style = tag("style", Markup(STYLE.read_text("utf-8")))
    script = tag("script", Markup(SCRIPT.read_text("utf-8")))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        style,
    )
    links = [tag("a", name, href=f"#{name.lower()}") for name, _ in sections]
    body = tag(
        "body",
        tag("header", _heading(material, title), tag("nav", links, aria_label="sections")),
        tag("main", [section for _, section in sections]),
        tag("footer", f"unialign_jax {__version__}"),
        script,
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _title(material: Material) -> str:
    if material.scores is None:
        return "A training run"
    count = len(material.scores["scores"])
    tasks = {1: "one task", 6: "six tasks"}.get(count, f"{count} tasks")
    return f"One network, {tasks}: scenes, level {material.scores['level']}"


def _heading(material: Material, title: str) -> list[Markup]:
    scores, config = material.scores, material.config
    facts = {
        "level": scores["level"] if scores else None,
        "pixels": f"{config['data']['image_size']} × {config['data']['image_size']}",
        "parameters": words.parameters_in_words(material.parameters),
        "steps": f"{material.steps:,}",
        "training": _minutes(material),
        "images per second": _rate(material),
    }
    tiles = [
        tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items() if value
    ]
    name = material.making.config
    return [
        tag("p", f"unialign_jax, {name}" if name else "unialign_jax", class_="over"),
        tag("h1", title),
        tag("dl", tiles, class_="facts"),
    ]


def _minutes(material: Material) -> str | None:
    seconds = material.train_seconds
    return None if seconds is None else words.minutes_in_words(seconds)


def _rate(material: Material) -> str | None:
    rate = material.images_per_second
    return None if rate is None else number(rate)
