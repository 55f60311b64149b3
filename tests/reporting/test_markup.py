"""Elements, escaping and pictures."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

from unialign_jax.reporting.markup import Markup, join, number, percent, picture, tag


def test_texts_and_attributes_are_escaped_and_markup_is_not():
    made = tag("p", "<b> & 'x'", Markup("<i>kept</i>"), title='"<q>"')
    assert made == "<p title=\"&quot;&lt;q&gt;&quot;\">&lt;b&gt; &amp; 'x'<i>kept</i></p>"


def test_attributes_have_their_html_names_and_may_be_left_out():
    assert tag("td", class_="a", data_label="b", hidden=None, open=True, x=False) == (
        '<td class="a" data-label="b" open></td>'
    )
    assert tag("meta", name="viewport") == '<meta name="viewport">'


def test_children_may_be_lists_numbers_or_nothing():
    assert join([["a", [1, 0.25]], None, ("b",)]) == "a10.25b"


def test_a_picture_carries_its_pixels_and_its_size(tmp_path):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    for image in (pixels, tmp_path / "x.png"):
        made = picture(image, "a <picture>")
        assert 'alt="a &lt;picture&gt;"' in made and 'width="6" height="4"' in made
        data = base64.b64decode(re.search(r"base64,([^\"]+)", made)[1])
        assert (np.asarray(Image.open(io.BytesIO(data))) == pixels).all()


def test_numbers_are_short():
    assert percent(0.9449) == "94.5 %"
    assert [number(x) for x in (0.012345, 12.345, 1234.5)] == ["0.0123", "12.3", "1,234"]
