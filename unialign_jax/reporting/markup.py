"""HTML from Python: elements whose texts and attributes are escaped, pictures as data URIs."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

VOID = frozenset({"br", "col", "hr", "img", "meta"})


class Markup(str):
    """A piece of HTML, as against a text that is still to be escaped."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: `Markup`, texts (escaped), lists of both, or None, which leaves nothing.
        attributes: `class_` is `class`, `data_x` is `data-x`; True is an attribute without a value,
            None and False leave it out.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{html.escape(_plain(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Markup:
    """Children one after the other, texts escaped."""
    pieces = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            pieces.append(child)
        elif isinstance(child, list | tuple):
            pieces.append(join(child))
        else:
            pieces.append(html.escape(_plain(child), quote=False))
    return Markup("".join(pieces))


def picture(image: np.ndarray | Path, alt: str, **attributes: Any) -> Markup:
    """An image as a PNG data URI, with its own size so that nothing moves while it loads.

    Args:
        image: uint8 [H, W, 3], or the path of a PNG file.
        alt: what it shows, for those who do not see it.
        attributes: of the element.
    """
    if isinstance(image, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", optimize=True)
        data, (height, width) = buffer.getvalue(), image.shape[:2]
    else:
        data = image.read_bytes()
        width, height = Image.open(io.BytesIO(data)).size
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return tag("img", src=source, alt=alt, width=width, height=height, **attributes)


def percent(share: float) -> str:
    """A share of 1 in percent, to a tenth: `94.5 %`."""
    return f"{100 * share:.1f} %"


def number(value: float) -> str:
    """A short number: `0.0123`, `12.3`, `1,234`."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _plain(value: Any) -> str:
    """A text, or a number without needless digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
