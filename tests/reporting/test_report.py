"""The report: whole, by itself, and with everything in it."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from tests.reporting.made_up import BASELINES, SCORES, STEPS
from unialign_jax.errors import UserError
from unialign_jax.reporting.markup import percent
from unialign_jax.reporting.report import render, write_report

VOID = {"br", "col", "hr", "img", "input", "link", "meta", "source"}


class Page(HTMLParser):
    """Checks that elements nest, and collects texts, attributes and ids."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.texts.append(data)
        if "tr" in self.open:
            self.rows[-1][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, found, value in self.attributes if found == name]


@pytest.fixture(scope="module")
def text(material):
    return render(material)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_it_is_well_formed_and_its_links_lead_to_its_parts(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for target in page.values("href"):
        assert target[0] == "#" and target[1:] in ids


def test_it_needs_nothing_from_elsewhere(text, page):
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    assert all(source.startswith("data:image/png;base64,") for source in page.values("src"))
    names = {tag for tag, _, _ in page.attributes}
    assert not names & {"link", "iframe", "object", "embed"}


def test_every_score_stands_with_its_interval_and_baselines(page):
    for task, score in SCORES.items():
        row = next(row for row in page.rows if row[0].startswith(task) and len(row) == 6)
        assert row[1].startswith(percent(score))
        assert row[2] == f"{percent(score - 0.05)} to {percent(score + 0.03)}"
        assert row[3:5] == [percent(value) for value in BASELINES.values()]
        assert row[5] == ("1.0 %" if task == "edit" else "–")


def test_every_table_of_scores_names_the_level(text):
    assert "Scores at level demo, 16 pixels" in text
    assert text.count("level demo, 16 pixels") == 2


def test_the_heading_tells_level_size_steps_and_time(text):
    head = text[: text.index("</header>")]
    for fact in ("scenes:tiny", "level demo", "16 × 16", f"{STEPS}", "7.4 minutes", "parameters"):
        assert fact in head, fact


def test_samples_are_shown_with_what_was_asked_and_said_and_a_verdict_in_words(text, page):
    for task in SCORES:
        article = text[text.index(f'id="samples-{task}"') :]
        article = article[: article.index("</article>")]
        assert article.count("</figure>") == 3
        assert article.count("✓") == 2 and article.count("✗") == 1
        assert article.count("right") >= 2 and "wrong" in article
        if task != "caption":
            assert f"do {task} number 0 &lt;b&gt;&amp;" in article
        if task in ("caption", "answer"):
            assert f"{task} said 1 &lt;i&gt;" in article and "a red circle" in article
        else:
            assert article.count("wanted</span>") == article.count("sampled</span>") == 3
    assert "IoU 0.25" in text
    # Item 1 was read before another background than the truth's only where it is marked.
    assert "<mark>white</mark>" in text


def test_pictures_keep_their_pixels_and_say_what_they_show(page):
    pixelated = [attrs for attrs in page.attributes if attrs == ("img", "class", "pixels")]
    # Per item: sources, truth and sample.
    assert len(pixelated) == 3 * (2 + 1 + 1 + 3 + 3 + 4)
    assert all(page.values("alt"))


def test_texts_are_escaped(text):
    assert "<b>&" not in text.replace("&lt;b&gt;&amp;", "")
    assert "unialign prepare scenes --out &lt;x&gt;" in text


def test_details_by_kind_and_attribute_and_confusions_are_tables(page):
    assert ["first kind", "100", percent(0.8125)] in page.rows
    assert ["generate", percent(0.9375), percent(0.5625)] in page.rows
    assert ["red", "90", "10", "·", "10"] in page.rows


def test_every_term_of_the_loss_has_a_chart(text):
    for title in ("Loss, all terms weighted", "Image term", "Text term", "Learning rate"):
        assert f"<figcaption>{title}" in text
    assert "by task" in text
    assert "Contrastive term" not in text, "a term that was not logged"
    assert "reference</li>" not in text


def test_reference_and_scores_over_time_are_drawn_where_they_are(material):
    lines = [{"step": k + 1, "seconds": 60.0 * k, "scores": {"edit": k / 10}} for k in range(5)]
    with_both = dataclasses.replace(material, reference=material.metrics, over_time=lines)
    text = render(with_both)
    Page(text)
    assert "Score against training time" in text
    assert text.count("reference</li>") == 3


def test_a_run_without_scores_has_curves_and_grids_alone(material):
    bare = dataclasses.replace(material, scores=None, shown=[], lines={})
    text = render(bare)
    page = Page(text)
    assert {"training", "making"} <= set(page.values("id"))
    assert "samples" not in page.values("id") and "scores" not in page.values("id")
    assert f"step {STEPS}" in text


def test_some_tasks_may_be_missing(material):
    scores = dict(material.scores)
    for key in ("scores", "baselines", "details"):
        scores[key] = {"answer": scores[key]["answer"]}
    scores["confusion"] = {}
    some = [item for item in material.shown if item.task == "answer"]
    text = render(dataclasses.replace(material, scores=scores, shown=some))
    Page(text)
    assert "one task" in text and "What is read as what" not in text


def test_values_that_are_not_finite_break_nothing(material):
    broken = [line | {"loss": float("nan"), "loss/image": 0.0} for line in material.metrics]
    Page(render(dataclasses.replace(material, metrics=broken)))


def test_it_is_written_whole_or_the_folder_is_named(material, tmp_path):
    write_report(material, tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text("utf-8").startswith("<!doctype html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        write_report(material, tmp_path / "file" / "report.html")


def test_the_same_material_gives_the_same_report(material, text):
    assert render(material) == text
