"""The drawn world: the held-out split, what scenes look like, words that can be read back."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unialign_jax.data.sources.scenes import drawing
from unialign_jax.data.sources.scenes.language import (
    captions,
    parse_caption,
    place_name,
    point_at,
    refer,
)
from unialign_jax.data.sources.scenes.random_scenes import LEAST_VISIBLE, draw_scene
from unialign_jax.data.sources.scenes.world import (
    LEVELS,
    Scene,
    Thing,
    held_out_combinations,
    level_named,
    same,
    scene_is_held_out,
)
from unialign_jax.errors import UsageError

levels = st.sampled_from(list(LEVELS.values()))
seeds = st.integers(0, 2**32 - 1)


def test_the_levels_are_as_rich_as_promised() -> None:
    demo, full = LEVELS["demo"], LEVELS["full"]
    assert min(demo.pixels) >= 16 and demo.places == 4 and len(demo.shapes) >= 4
    assert (len(demo.colours), len(demo.sizes), len(demo.backgrounds)) == (6, 2, 3)
    assert demo.most_things == 2
    assert full.pixels == (32, 64, 128) and full.places == 9 and full.jitter > 0
    assert len(full.shapes) >= 6 and len(full.colours) == 8
    assert full.most_things == full.most_references == 3


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_fifteen_percent_of_the_combinations_are_held_out_and_all_their_parts_are_not(level):
    hidden = held_out_combinations(level.name)
    every = [(kind, place) for kind in level.kinds for place in range(level.places)]
    assert hidden < set(every) and len(hidden) == round(0.15 * len(every))
    # Every look is shown in most places, and every place loses the same share.
    assert max(Counter(kind for kind, _ in hidden).values()) <= level.places // 2
    places = Counter(place for _, place in hidden)
    assert max(places.values()) - min(places.values()) <= 2
    for part in range(3):
        lost = Counter(kind[part] for kind, _ in hidden)
        share = len(every) / len({kind[part] for kind in level.kinds})
        assert all(0.05 < count / share < 0.25 for count in lost.values()), lost


def test_the_split_is_fixed() -> None:
    names = {
        level: sorted(f"{' '.join(kind)} {place}" for kind, place in held_out_combinations(level))
        for level in LEVELS
    }
    assert names["demo"][:3] == [
        "large blue circle 3",
        "large blue triangle 3",
        "large cyan circle 3",
    ]
    digests = {
        level: hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        for level, lines in names.items()
    }
    assert digests == {"demo": "7ffdbebb23879e1d", "full": "8efda9f166b6f843"}


@settings(deadline=None, max_examples=50)
@given(levels, seeds, st.booleans())
def test_scenes_lie_on_the_side_of_the_split_that_was_asked_for(level, seed, held_out) -> None:
    scene = draw_scene(level, np.random.default_rng(seed), held_out=held_out)
    assert scene_is_held_out(scene) == held_out
    assert 1 <= len(scene.things) <= level.most_things
    assert len({thing.place for thing in scene.things}) == len(scene.things)
    assert len({thing.kind for thing in scene.things}) == len(scene.things)


@settings(deadline=None, max_examples=50)
@given(levels, seeds, st.booleans())
def test_every_wording_of_a_caption_reads_back_as_its_scene(level, seed, held_out) -> None:
    scene = draw_scene(level, np.random.default_rng(seed), held_out=held_out)
    for text in captions(scene):
        read = parse_caption(text, level)
        assert read is not None and same(read, scene), text
        spaced = text.upper().replace(",", " ,  ")
        assert parse_caption(spaced, level) == read
    assert len(set(captions(scene))) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle top left on black",
        "a large red circle on black",
        "a large red circle top left",
        "a large red circle top left on mauve",
        "a large red circle top left and on black",
        "a large red circle top left and a small red circle top left on black",
        "a big red circle top left, a big blue square top right black background",
        "a large red circle top left on black background",
        "a big red circle top left on black",
        "large red circle top left on black",
    ],
)
def test_what_is_no_caption_is_not_read_as_one(text: str) -> None:
    assert parse_caption(text, LEVELS["demo"]) is None


def test_the_order_of_things_in_a_caption_does_not_matter() -> None:
    level = LEVELS["demo"]
    one = parse_caption(
        "a large red circle top left and a small blue cross top right on grey", level
    )
    two = parse_caption(
        "a small blue cross top right and a large red circle top left on grey", level
    )
    assert one is not None and two is not None and same(one, two)


@settings(deadline=None, max_examples=30)
@given(levels, seeds)
def test_names_single_a_thing_out(level, seed) -> None:
    scene = draw_scene(level, np.random.default_rng(seed), held_out=False, count=level.most_things)
    names = [refer(scene.things, index) for index in range(len(scene.things))]
    assert len(set(names)) == len(names)
    for thing, words in zip(scene.things, names, strict=True):
        matching = [t for t in scene.things if set(words.split()[1:]) <= set(t.kind)]
        assert matching == [thing]


@settings(deadline=None, max_examples=30)
@given(levels, seeds)
def test_pointing_at_a_thing_says_its_colour_shape_and_place(level, seed) -> None:
    scene = draw_scene(level, np.random.default_rng(seed), held_out=False)
    for thing in scene.things:
        words = f"{thing.colour} {thing.shape} {place_name(level, thing.place)}"
        assert point_at(level, thing) == f"the {words}"
        # Every wording of the caption says it in the same order.
        assert all(words in caption for caption in captions(scene))


def test_scenes_differ_by_anything_but_shifts_and_order() -> None:
    level = LEVELS["demo"]
    a, b = Thing("large", "red", "circle", 0), Thing("small", "blue", "cross", 3)
    scene = Scene.of(level, "black", (a, b))
    assert same(scene, Scene.of(level, "black", (b, dataclasses.replace(a, shift=(0.1, 0.0)))))
    for other in (
        Scene.of(level, "grey", (a, b)),
        Scene.of(level, "black", (a,)),
        Scene.of(level, "black", (a, dataclasses.replace(b, place=2))),
        Scene.of(level, "black", (a, dataclasses.replace(b, size="large"))),
    ):
        assert not same(scene, other)


def test_pictures_have_the_colours_of_the_table_where_nothing_is_mixed() -> None:
    level = LEVELS["demo"]
    scene = Scene.of(level, "white", (Thing("large", "green", "square", 2),))
    picture = drawing.render(scene, 64)
    assert picture.dtype == np.uint8 and picture.shape == (64, 64, 3)
    assert tuple(picture[48, 16]) == drawing.COLOURS["green"]
    assert tuple(picture[10, 50]) == drawing.BACKGROUNDS["white"]
    # A square of half side 0.97 x 0.49 cells: its share of the picture.
    changed = (picture != np.asarray(drawing.BACKGROUNDS["white"], np.uint8)).any(-1).mean()
    assert changed == pytest.approx((2 * 0.97 * 0.49 / 2) ** 2, abs=0.03)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi),
        ("square", 1.94**2),
        ("triangle", 2 * 1.9 / 2),
        ("cross", 2 * 2 * 0.6 - 0.6**2),
        ("diamond", 2 * 1.1**2 - 4 * 0.1**2),
        ("ring", np.pi * 0.75),
    ],
)
def test_a_shape_covers_the_area_that_geometry_says(shape: str, area: float) -> None:
    thing = Thing("small", "red", shape, 4)
    reach = drawing.radius("full", thing)
    covered = drawing.mask("full", thing, 128).sum() / 128**2 / reach**2
    assert covered == pytest.approx(area, rel=0.05)


def test_what_is_nearer_hides_what_is_behind() -> None:
    level = LEVELS["full"]
    near = Thing("large", "red", "square", 4, (-0.15, 0.0))
    far = Thing("large", "blue", "square", 1, (0.15, 0.0))
    scene = Scene.of(level, "black", (near, far))
    assert scene.things == (far, near)
    seen = drawing.coverage(scene, 64)
    alone = [drawing.mask("full", thing, 64) for thing in scene.things]
    assert np.array_equal(seen[1], alone[1])
    assert seen[0].sum() < alone[0].sum()
    assert np.all(seen.sum(0) <= 1 + 1e-6)
    both = (alone[0] == 1) & (alone[1] == 1)
    assert both.any()
    assert np.all(drawing.render(scene, 64)[both] == drawing.COLOURS["red"])


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_enough_of_every_thing_is_in_sight(seed) -> None:
    level = LEVELS["full"]
    scene = draw_scene(level, np.random.default_rng(seed), held_out=False, count=3)
    seen = drawing.coverage(scene, 64).sum((1, 2))
    whole = [drawing.mask("full", thing, 64).sum() for thing in scene.things]
    assert np.all(seen / whole > LEAST_VISIBLE - 0.1)


def test_maps_show_the_thing_its_depth_and_its_border() -> None:
    level = LEVELS["demo"]
    top, bottom = Thing("large", "red", "square", 0), Thing("large", "blue", "square", 3)
    scene = Scene.of(level, "grey", (bottom, top))
    inside = {
        0: np.s_[4:12, 4:12],
        3: np.s_[20:28, 20:28],
    }
    mask = drawing.segmentation(scene, scene.things.index(bottom), 32)
    assert np.all(mask[inside[3]] == 255) and np.all(mask[inside[0]] == 0)
    depth = drawing.depth_map(scene, 32)
    assert depth[inside[0]].min() > 0 and depth[inside[0]].max() < depth[inside[3]].min()
    assert np.all(depth[:16, 16:] == 0)
    edges = drawing.edge_map(scene, 32)[..., 0] > 0
    assert np.all(edges <= (depth[..., 0] > 0)) and not edges[inside[0]].any()
    # The border of a filled square of n pixels has 4 (n - 1) of them.
    for place, half in ((0, np.s_[:16, :16]), (3, np.s_[16:, 16:])):
        side = np.sqrt((depth[half][..., 0] > 0).sum())
        assert edges[half].sum() == 4 * (side - 1), place


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(UsageError, match=r"demo, full"):
        level_named("dmeo")
