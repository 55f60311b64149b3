"""Line charts as inline SVG; the colours are those of the page (`report.css`)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from unialign_jax.reporting.curves import Curve, is_logarithmic
from unialign_jax.reporting.markup import Markup, number, tag

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 32
# A step between ticks is one of these times a power of ten.
NICE = (1.0, 2.0, 5.0, 10.0)


class Axis:
    """A scale from values to pixels.

    Args:
        low, high: the values to be shown.
        begin, end: their places in pixels.
        logarithmic: whether equal factors have equal lengths.
    """

    def __init__(
        self, low: float, high: float, begin: float, end: float, *, logarithmic: bool = False
    ):
        if high <= low:
            low, high = (low / 2, high * 2) if logarithmic else (low - 0.5, high + 0.5)
        self.low, self.high, self.logarithmic = low, high, logarithmic
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self._begin + (value - low) / (high - low) * (self._end - self._begin)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the scale, about `count` of them."""
        if self.logarithmic:
            return self._powers(count)
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * nice for nice in NICE if power * nice >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]

    def _powers(self, count: int) -> list[float]:
        """1, 2 and 5 times powers of ten, or powers of ten alone where there are many."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for nice in ((1, 2, 5), (1, 3), (1,)):
            found = [n * 10.0**p for p in powers for n in nice]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= count + 2:
                break
        return found


def line_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x_name: str = "step",
    y_format: Callable[[float], str] = number,
    y_range: tuple[float, float] | None = None,
    x_format: Callable[[float], str] = "{:,.0f}".format,
) -> Markup:
    """A chart with its title, legend and, with a pointer or arrow keys, the values at a place.

    Args:
        title: of the chart.
        curves: at least one with a point. Those of style "raw" are drawn as dots.
        x_name: what x counts.
        y_format: how values are written.
        y_range: least and greatest y; None takes the curves'.
        x_format: how places are written.
    """
    drawn = [curve for curve in curves if len(curve.points)]
    xs = np.concatenate([curve.points[:, 0] for curve in drawn])
    logarithmic = y_range is None and is_logarithmic(drawn)
    low, high = y_range or _span(drawn, logarithmic)
    x = Axis(min(float(xs.min()), 0.0), float(xs.max()), LEFT, WIDTH - RIGHT)
    y = Axis(low, high, HEIGHT - BOTTOM, TOP, logarithmic=logarithmic)
    lines = [curve for curve in drawn if curve.style != "raw"]
    data = {
        "x": [x.low, x.high, LEFT, WIDTH - RIGHT],
        "unit": x_name,
        "curves": [
            {
                "name": curve.name,
                "points": [[_round(a), y_format(float(b))] for a, b in curve.points],
            }
            for curve in lines
        ],
    }
    described = "; ".join(
        f"{curve.name} from {y_format(curve.points[0, 1])} to {y_format(curve.points[-1, 1])}"
        for curve in lines
    )
    scale = "logarithmic scale, " if logarithmic else ""
    svg = tag(
        "svg",
        _grid(x, y, x_name, x_format, y_format),
        [_draw(curve, x, y) for curve in drawn],
        tag("line", class_="cursor", y1=TOP, y2=HEIGHT - BOTTOM, visibility="hidden"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        aria_hidden="true",
    )
    plot = tag(
        "div",
        svg,
        class_="plot",
        role="img",
        aria_label=f"{title}, {scale}by {x_name}: {described}",
        tabindex="0",
        data_chart=json.dumps(data),
    )
    return tag(
        "figure",
        tag("figcaption", title, tag("small", " log scale") if logarithmic else None),
        plot,
        _legend(drawn),
        tag("output", class_="readout", aria_live="polite"),
        class_="chart",
    )


def _span(curves: Sequence[Curve], logarithmic: bool) -> tuple[float, float]:
    """The range of the lines, and of nearly all raw dots: a few stray ones may lie outside."""
    values = []
    for curve in curves:
        column = curve.points[:, 1]
        values += list(np.quantile(column, (0.01, 0.99)) if curve.style == "raw" else column)
    low, high = float(min(values)), float(max(values))
    if logarithmic:
        margin = (high / low) ** 0.04
        return low / margin, high * margin
    # A scale that nearly reaches zero starts there.
    low = 0.0 if 0 <= low < 0.4 * high else low
    margin = 0.05 * (high - low)
    return (low if low == 0 else low - margin), high + margin


def _grid(
    x: Axis,
    y: Axis,
    x_name: str,
    x_format: Callable[[float], str],
    y_format: Callable[[float], str],
) -> list[Markup]:
    parts = []
    for value in y.ticks():
        at = _round(y(value))
        parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
        parts.append(tag("text", y_format(value), x=LEFT - 7, y=_round(at + 4), text_anchor="end"))
    for value in x.ticks(4):
        at = _round(x(value))
        parts.append(tag("text", x_format(value), x=at, y=HEIGHT - 12, text_anchor="middle"))
    # In the corner below the values, where no tick of x stands.
    parts.append(tag("text", x_name, x=LEFT - 7, y=HEIGHT - 12, text_anchor="end", class_="unit"))
    return parts


def _draw(curve: Curve, x: Axis, y: Axis) -> Markup:
    places = [
        (_round(x(float(a))), _round(y(float(b)))) for a, b in curve.points if y.low <= b <= y.high
    ]
    if curve.style == "raw":
        dots = "".join(f"M{a} {b}h0" for a, b in places)
        return tag("path", d=dots, class_="raw")
    path = "M" + "L".join(f"{a} {b}" for a, b in places)
    if len(places) == 1:
        path += "h0"
    return tag("path", d=path, class_=_class(curve))


def _legend(curves: Sequence[Curve]) -> Markup | None:
    if len(curves) < 2:
        return None
    keys = [tag("li", tag("i", class_=_class(curve)), curve.name) for curve in curves]
    return tag("ul", keys, class_="legend")


def _class(curve: Curve) -> str:
    return f"line c{curve.style}" if isinstance(curve.style, int) else curve.style


def _round(value: float) -> float:
    return round(float(value), 1)
