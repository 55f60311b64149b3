"""Examples of every training task: a pure function of (level, task, seed, index, split)."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from unialign_jax.data import images
from unialign_jax.data.sources.scenes import drawing, edits, questions
from unialign_jax.data.sources.scenes.language import captions, place_name, point_at, refer
from unialign_jax.data.sources.scenes.random_scenes import MOST_TRIES, draw_scene, is_clear
from unialign_jax.data.sources.scenes.world import (
    Level,
    Scene,
    Thing,
    is_held_out,
    scene_is_held_out,
)
from unialign_jax.data.tasks import Record, Task, Turn

if TYPE_CHECKING:
    from jaxtyping import UInt8

MAP_KINDS = ("segment", "depth", "edges")
_MAP_WORDS = {
    "segment": ("segment {}", "mask {}"),
    "depth": ("depth map", "map the depth"),
    "edges": ("edge map", "map the edges"),
}


@dataclasses.dataclass(frozen=True)
class Example:
    """One example with its truth.

    Attributes:
        id: a name, unique within the seed and split.
        task: a training task.
        kind: the kind of edit, map or question; "1 reference", ... for a composition; "generate".
        truth: scene of the target; for `perceive` and `answer`, of the image that goes in.
        sources: scenes of the condition images.
        instruction: what the image branch is told; "" for `generate` and `answer`.
        captions: of what the text branch sees, in every wording; none for `answer`.
        question, answer: of `answer`.
        subject: what an edit or a segmentation is about; None where there is no such thing.
    """

    id: str
    task: Task
    kind: str
    truth: Scene
    sources: tuple[Scene, ...] = ()
    instruction: str = ""
    captions: tuple[str, ...] = ()
    question: str = ""
    answer: str = ""
    subject: Thing | None = None


def make_example(
    level: Level,
    task: Task,
    index: int,
    *,
    seed: int,
    held_out: bool,
    references: int | None = None,
) -> Example:
    """Example `index` of a task.

    Args:
        level: of the world.
        task: a training task.
        index: 0 and up; equal arguments give equal examples.
        seed: of the whole set.
        held_out: True: the scenes hold a combination that training never shows; False: none does.
        references: number of references of a composition; None draws it.
    """
    parts = [seed, zlib.crc32(f"{level.name}/{task}/{references}".encode()), index, held_out]
    rng = np.random.default_rng(parts)
    name = str(task) if references is None else f"{task}_{references}"
    name = f"{name}-{'held-out-' if held_out else ''}{index:06d}"
    if task is Task.EDIT:
        return _edit(level, rng, name, held_out)
    if task is Task.COMPOSE:
        return _compose(level, rng, name, held_out, references)
    scene = draw_scene(level, rng, held_out=held_out)
    if task is Task.PERCEIVE:
        return _perceive(level, rng, name, scene)
    if task is Task.ANSWER:
        kind = tuple(questions.KINDS)[index % len(questions.KINDS)]
        question, answer = questions.draw_question(level, scene, kind, rng)
        return Example(name, task, kind, scene, question=question, answer=answer)
    if task is not Task.GENERATE:
        raise ValueError(f"{task} is no training task")
    return Example(name, task, "generate", scene, captions=captions(scene))


def _edit(level: Level, rng: np.random.Generator, name: str, held_out: bool) -> Example:
    kind = tuple(edits.KINDS)[rng.integers(len(edits.KINDS))]
    for _ in range(MOST_TRIES):
        source = draw_scene(level, rng, held_out=held_out)
        edit = edits.draw_edit(level, source, kind, rng)
        if edit is None or not is_clear(edit.truth):
            continue
        if held_out or not scene_is_held_out(edit.truth):
            return Example(
                name,
                Task.EDIT,
                kind,
                edit.truth,
                (source,),
                edit.instruction,
                captions(edit.truth),
                subject=edit.subject,
            )
    raise RuntimeError(f"no edit of kind {kind} found at level {level.name}")


def _perceive(level: Level, rng: np.random.Generator, name: str, scene: Scene) -> Example:
    kind = MAP_KINDS[rng.integers(len(MAP_KINDS))]
    form = _MAP_WORDS[kind][rng.integers(len(_MAP_WORDS[kind]))]
    index = int(rng.integers(len(scene.things)))
    return Example(
        name,
        Task.PERCEIVE,
        kind,
        scene,
        (scene,),
        form.format(point_at(level, scene.things[index])),
        captions(scene),
        subject=scene.things[index] if kind == "segment" else None,
    )


def _compose(
    level: Level, rng: np.random.Generator, name: str, held_out: bool, references: int | None
) -> Example:
    count = references or 1 + int(rng.integers(level.most_references))
    truth = draw_scene(level, rng, held_out=held_out, count=count)
    # References come in the order in which they are named, which is that of reading.
    told = sorted(range(count), key=lambda i: truth.things[i].place)
    verb = ("put", "place")[rng.integers(2)]
    parts = [
        f"{verb} {refer(truth.things, i)} {place_name(level, truth.things[i].place)}" for i in told
    ]
    sources = tuple(_portrait(level, rng, truth.things[i], held_out) for i in told)
    return Example(
        name,
        Task.COMPOSE,
        f"{count} reference{'s' if count > 1 else ''}",
        truth,
        sources,
        f"{' and '.join(parts)} on {truth.background}",
        captions(truth),
    )


def _portrait(level: Level, rng: np.random.Generator, thing: Thing, held_out: bool) -> Scene:
    """A thing alone, in any place and before any background."""
    ground = level.backgrounds[rng.integers(len(level.backgrounds))]
    places = [
        dataclasses.replace(thing, place=place, shift=(0.0, 0.0)) for place in range(level.places)
    ]
    if not held_out:
        places = [alone for alone in places if not is_held_out(alone, level.name)]
    return Scene.of(level, ground, (places[rng.integers(len(places))],))


def source_images(example: Example, pixels: int) -> tuple[UInt8[np.ndarray, "P P 3"], ...]:
    """The images that go in: the conditions, or the image that is asked about."""
    scenes = (example.truth,) if example.task is Task.ANSWER else example.sources
    return tuple(drawing.render(scene, pixels) for scene in scenes)


def target_image(example: Example, pixels: int) -> UInt8[np.ndarray, "P P 3"]:
    """The image that is wanted (for `answer`: the one that is asked about)."""
    if example.task is not Task.PERCEIVE:
        return drawing.render(example.truth, pixels)
    if example.kind == "segment":
        assert example.subject is not None
        index = example.truth.things.index(example.subject)
        return drawing.segmentation(example.truth, index, pixels)
    draw = drawing.depth_map if example.kind == "depth" else drawing.edge_map
    return draw(example.truth, pixels)


def to_record(example: Example, pixels: int) -> Record:
    """An example as a record, its images as PNG."""

    def png(picture: np.ndarray) -> bytes:
        return images.encode(Image.fromarray(picture))

    answers = example.task is Task.ANSWER
    return Record(
        id=example.id,
        task=example.task,
        target=png(target_image(example, pixels)),
        height=pixels,
        width=pixels,
        conditions=() if answers else tuple(map(png, source_images(example, pixels))),
        instruction=example.instruction,
        captions=example.captions,
        turns=(Turn(f"Q: {example.question} A: ", False), Turn(example.answer, True))
        if answers
        else (),
        map_kind=example.kind if example.task is Task.PERCEIVE else "",
    )


def all_texts(level: Level) -> Iterator[str]:
    """Texts that hold every word of a level, for a tokenizer."""
    words = (*level.sizes, *level.colours, *level.shapes, *level.backgrounds, *questions.NUMBERS)
    yield " ".join(words)
    yield "what colour is the shape? where is it? how many objects? yes no"
    yield "above below left of right of top bottom middle Q: A: , and a on background"
    yield "make paint move put add draw remove erase turn into replace with resize to change"
    yield "segment mask the depth map edge edges place with against big little"
