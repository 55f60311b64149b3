"""Reading scenes back: perfect on the truth, at chance on noise, tolerant of blur and noise."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.scenes.pictures import blurred, noisy, some_scenes
from tests.evaluation.scenes.stand_ins import noise
from unialign_jax.data.sources.scenes.drawing import render
from unialign_jax.data.sources.scenes.world import LEVELS, Scene, Thing, same
from unialign_jax.evaluation.scenes.reader import read_scene, read_scenes

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "evaluation.md"
# Heights that the tables of the document were measured at, and the number of scenes.
MEASURED = {"demo": (16, 200), "full": (32, 100)}


def share_read(scenes: list[Scene], images: list[np.ndarray]) -> float:
    readings = read_scenes(images, scenes[0].level)
    return float(
        np.mean([same(a, b.scene) for a, b in zip(scenes, readings, strict=True)]),
    )


@pytest.mark.parametrize("background", LEVELS["demo"].backgrounds)
def test_every_single_thing_of_the_demo_is_read_in_every_place(background):
    level = LEVELS["demo"]
    scenes = [
        Scene(level.name, background, (Thing(*kind, place),))
        for kind, place in itertools.product(level.kinds, range(level.places))
    ]
    assert share_read(scenes, [render(scene, 16) for scene in scenes]) == 1


@pytest.mark.parametrize(
    ("level", "pixels", "count"),
    [("demo", 16, 300), ("demo", 32, 100), ("demo", 64, 60)]
    + [("full", 32, 80), ("full", 64, 30), ("full", 128, 15)],
)
def test_the_truth_is_read_without_a_mistake(level, pixels, count):
    scenes = some_scenes(level, count)
    assert share_read(scenes, [render(scene, pixels) for scene in scenes]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("level", "pixels"), [("full", 32), ("full", 64), ("demo", 16)])
def test_a_thousand_true_scenes_are_read_without_a_mistake(level, pixels):
    scenes = some_scenes(level, 1000, seed=5)
    assert share_read(scenes, [render(scene, pixels) for scene in scenes]) == 1


def test_every_allowed_size_can_be_read():
    for level in LEVELS.values():
        for pixels in level.pixels:
            scene = some_scenes(level.name, 1)[0]
            assert same(read_scene(render(scene, pixels), level.name).scene, scene)


def test_a_thing_behind_another_is_read():
    things = (
        Thing("large", "red", "ring", 4, (-0.15, 0.15)),
        Thing("large", "blue", "square", 5, (0.15, -0.15)),
    )
    scene = Scene.of(LEVELS["full"], "grey", things)
    reading = read_scene(render(scene, 32), "full")
    assert same(reading.scene, scene)
    assert [thing.colour for thing in reading.scene.things] == ["red", "blue"]


def test_shifts_are_found_to_within_a_template():
    scene = Scene("full", "black", (Thing("large", "green", "cross", 4, (0.11, -0.07)),))
    (found,) = read_scene(render(scene, 32), "full").scene.things
    assert found.shift == pytest.approx((0.11, -0.07), abs=0.03)


@pytest.mark.parametrize("level", LEVELS)
def test_a_thing_too_many_is_read_too(level):
    colours, places = (
        ("red", "green", "blue", "yellow"),
        (0, 2, 6, 8) if level == "full" else range(4),
    )
    count = LEVELS[level].most_things + 1
    things = tuple(
        Thing("small", colour, "circle", place)
        for colour, place in list(zip(colours, places, strict=True))[:count]
    )
    scene = Scene.of(LEVELS[level], "black", things)
    picture = render(scene, LEVELS[level].pixels[0])
    assert len(read_scene(picture, level).scene.things) == count


def test_an_empty_picture_holds_nothing():
    reading = read_scene(np.full((16, 16, 3), 240, np.uint8), "demo")
    assert reading.scene == Scene("demo", "white", ())
    assert reading.at(0) is None
    assert reading.error < 0.01


@pytest.mark.parametrize(("level", "pixels"), [("demo", 16), ("full", 32)])
def test_noise_is_read_at_chance(level, pixels):
    scenes = some_scenes(level, 40)
    images = [noise(seed, pixels) for seed in range(len(scenes))]
    assert share_read(scenes, images) == 0
    readings = read_scenes(images, level)
    right = np.mean(
        [a.background == b.scene.background for a, b in zip(scenes, readings, strict=True)]
    )
    assert 0.1 < right < 0.6


@pytest.mark.parametrize("shape", [(15, 15, 3), (16, 32, 3), (16, 16), (16, 16, 4), (8, 8, 3)])
def test_a_picture_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="multiple of 16"):
        read_scene(np.zeros(shape, np.uint8), "demo")


def test_the_reading_of_a_picture_does_not_depend_on_its_neighbours():
    scenes = some_scenes("demo", 5)
    images = [noisy(render(scene, 16), 40, k) for k, scene in enumerate(scenes)]
    together = read_scenes(images, "demo")
    for image, reading in zip(images, together, strict=True):
        assert read_scene(image, "demo").scene == reading.scene


def test_confidence_is_lower_for_what_is_hard_to_tell():
    scene = Scene("demo", "black", (Thing("large", "red", "cross", 0),))
    clear, unclear = (
        read_scene(image, "demo")
        for image in (render(scene, 16), noisy(blurred(render(scene, 16), 1), 40, 0))
    )
    assert clear.at(0) == Thing("large", "red", "cross", 0)
    assert clear.confidence[0] > unclear.confidence[0] > 0
    assert min(clear.confidence[1:]) == 1
    assert (clear.blur, unclear.blur) == (0, 1)
    assert clear.error < unclear.error


def shares(level: str, spoil) -> list[float]:
    """The share read per column of the document's table."""
    pixels, count = MEASURED[level]
    scenes = some_scenes(level, count)
    images = [render(scene, pixels) for scene in scenes]
    return [
        share_read(scenes, [spoil(image, sigma, k) for k, image in enumerate(images)])
        for sigma in sigmas(spoil)
    ]


def blur(image: np.ndarray, sigma: float, _: int) -> np.ndarray:
    return blurred(image, sigma)


def sigmas(spoil) -> tuple[float, ...]:
    return (0, 0.5, 0.75, 1, 1.5, 2, 3) if spoil is blur else (0, 16, 32, 64, 96, 128)


def documented(level: str, spoil) -> list[float]:
    """The row of a level in the document's table of blur or noise, as shares."""
    heading = "blur" if spoil is blur else "noise"
    table = re.search(rf"(?m)^\| {heading}.*\n\|[-| ]+\n((?:\|.*\n)+)", DOCUMENT.read_text())
    row = next(line for line in table[1].splitlines() if f"`{level}`" in line)
    return [float(cell) / 100 for cell in row.strip("| ").split("|")[1:]]


@pytest.mark.parametrize("spoil", [blur, noisy])
@pytest.mark.parametrize("level", ["demo", pytest.param("full", marks=pytest.mark.slow)])
def test_blur_and_noise_cost_what_the_document_says(level, spoil):
    found = shares(level, spoil)
    # The width of a few pictures, for other versions of NumPy.
    assert found == pytest.approx(documented(level, spoil), abs=0.03)
    assert all(b <= a + 0.02 for a, b in itertools.pairwise(found)), "more is worse"
    assert found[1] == 1, "a little does no harm"
