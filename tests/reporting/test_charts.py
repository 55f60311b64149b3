"""Charts as SVG."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest

from unialign_jax.reporting.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, line_chart
from unialign_jax.reporting.curves import Curve


def test_an_axis_leads_its_ends_to_its_places():
    axis = Axis(0, 10, 100, 200)
    assert [axis(0), axis(5), axis(10)] == [100, 150, 200]
    turned = Axis(0.01, 1, 200, 0, logarithmic=True)
    assert [turned(0.01), turned(0.1), turned(1)] == pytest.approx([200, 100, 0])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 0.0021, [0, 0.0005, 0.001, 0.0015, 0.002]),
        (3, 3, [2.6, 2.8, 3.0, 3.2, 3.4]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert Axis(low, high, 0, 1).ticks() == pytest.approx(ticks)


def test_ticks_of_a_logarithmic_axis_are_1_2_5_or_powers():
    assert Axis(0.9, 12, 0, 1, logarithmic=True).ticks() == pytest.approx([1, 2, 5, 10])
    wide = Axis(1e-6, 1, 0, 1, logarithmic=True).ticks()
    assert wide == pytest.approx([10.0**p for p in range(-6, 1)])


def test_a_chart_stays_in_its_frame_and_tells_its_values():
    points = np.stack([np.arange(1.0, 51.0), 10.0 ** -np.linspace(0, 3, 50)], 1)
    chart = line_chart("Loss <all>", [Curve("raw", points * [1, 3], "raw"), Curve("run", points)])
    assert "Loss &lt;all&gt;" in chart and "log scale" in chart
    label = html.unescape(re.search(r'aria-label="([^"]+)"', chart)[1])
    assert label == "Loss <all>, logarithmic scale, by step: run from 1 to 0.001"
    numbers = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", chart)
    x, y = np.array(numbers, float).T
    assert x.min() >= LEFT and x.max() <= WIDTH - RIGHT
    assert y.min() >= TOP - 0.1 and y.max() <= HEIGHT - BOTTOM + 0.1
    data = json.loads(html.unescape(re.search(r'data-chart="([^"]+)"', chart)[1]))
    assert [curve["name"] for curve in data["curves"]] == ["run"]
    assert data["curves"][0]["points"][0] == [1.0, "1"]


def test_a_single_point_is_a_chart():
    assert "<path" in line_chart("one", [Curve("run", np.array([[5.0, 2.0]]))])
