"""The samples of a report: what went in, was wanted and came out, and whether it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unialign_jax.reporting import words
from unialign_jax.reporting.markup import Markup, picture, tag
from unialign_jax.reporting.material import Material

if TYPE_CHECKING:
    import numpy as np

    from unialign_jax.evaluation.scenes.results import Shown


def samples_section(material: Material) -> Markup:
    """The shown items, by task."""
    by_task: dict[str, list[Shown]] = {}
    for item in material.shown:
        by_task.setdefault(item.task, []).append(item)
    tasks = words.in_order(by_task)
    return tag(
        "section",
        tag("h2", "Samples"),
        tag("p", "The first items of every task as they come, not chosen."),
        tag(
            "nav",
            [tag("a", task, href=f"#samples-{task}") for task in tasks],
            aria_label="tasks",
        ),
        [_task(task, by_task[task], material.lines) for task in tasks],
        id="samples",
    )


def _task(task: str, items: Sequence[Shown], lines: Mapping[tuple[str, str], Any]) -> Markup:
    right = sum(item.right for item in items)
    given = max(len(item.sources) for item in items)
    shape = f"given-{given}" if items[0].made is not None else "texts"
    return tag(
        "article",
        tag("h3", task, tag("small", f"{right} of these {len(items)} right")),
        tag(
            "div",
            [_card(item, lines.get((item.task, item.id), {})) for item in items],
            class_=f"cards {shape}",
        ),
        id=f"samples-{task}",
    )


def _card(item: Shown, line: Mapping[str, Any]) -> Markup:
    scene = line.get("read")
    pictures = [
        _picture(source, f"given {k + 1}" if len(item.sources) > 1 else "given", item.text)
        for k, source in enumerate(item.sources)
    ]
    if item.truth is not None:
        pictures.append(_picture(item.truth, "wanted", item.text))
    if item.made is not None:
        said = words.scene_in_words(scene) if scene else item.text
        pictures.append(_picture(item.made, "sampled", said))
    lines = [_line("asked", item.text)] if item.text else []
    if item.truth_text:
        lines.append(_line("truth", item.truth_text))
    if item.made is None:
        lines.append(_line("said", item.made_text or "(nothing)"))
    elif scene:
        lines += _reading(scene, line["truth"], item.right)
    return tag(
        "figure",
        tag("div", pictures, class_="pictures"),
        tag("figcaption", _verdict(item), tag("dl", lines)),
        class_="card",
    )


def _picture(image: np.ndarray, label: str, said: str) -> Markup:
    alt = f"{label}: {said}" if said else label
    return tag("div", picture(image, alt, class_="pixels"), tag("span", label))


def _line(name: str, *text: Any) -> Markup:
    return tag("div", tag("dt", name), tag("dd", *text))


def _reading(read: Mapping[str, Any], truth: Mapping[str, Any], right: bool) -> list[Markup]:
    """What was read in a picture, and what is wrong with it."""
    lines = [_line("read", _marked(read, truth))]
    missing = [thing for thing in truth["things"] if thing not in read["things"]]
    if missing:
        lines.append(_line("missing", ", ".join(map(words.thing_in_words, missing))))
    elif not right and read == truth:
        lines.append(_line("but", "something else in the picture was changed"))
    return lines


def _marked(read: Mapping[str, Any], truth: Mapping[str, Any]) -> list[Any]:
    """The scene that was read, in words; what the truth does not have is marked."""
    parts: list[Any] = [] if read["things"] else ["nothing, "]
    for thing in read["things"]:
        text = words.thing_in_words(thing)
        parts += [text if thing in truth["things"] else tag("mark", text), ", "]
    ground = read["background"]
    parts += ["on ", ground if ground == truth["background"] else tag("mark", ground)]
    return parts


def _verdict(item: Shown) -> Markup:
    """Right or wrong in a word and a sign; of a map its IoU beside it."""
    word, sign = ("right", "✓") if item.right else ("wrong", "✗")
    text = f"{word}, IoU {item.score:.2f}" if item.task in words.MEAN_OF else word
    kind = None if item.kind == item.task else tag("span", item.kind, class_="kind")
    badge = tag("b", tag("span", sign, aria_hidden="true"), f" {text}", class_=word)
    return tag("p", badge, kind, class_="verdict")
