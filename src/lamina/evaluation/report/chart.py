"""Markup that escapes what it is given, and charts drawn as SVG with it: no scripts, no files, both colour schemes.

Colours, dashes and text sizes are left to the page's style sheet (classes ``s0``, ``s1``, ... one for each line).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 300  # units of the drawing, which the page scales
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 34, 52  # margins around the plot
STYLES = 8  # line styles that the style sheet knows


class Html(str):
    """Text that is markup already. Every other string is escaped by :func:`tag`."""


def tag(name: str, /, *children: str | None, **attributes: object) -> Html:
    """An element. Children that are not :class:`Html` are escaped, None is left out, and so is an attribute of None.

    In an attribute's name an underscore stands for a hyphen, and one at the end is dropped (``class_``).
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in ("meta", "link", "img", "br"):
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str | None) -> Html:
    """Children one after the other, escaped unless they are markup; None is left out."""
    return Html("".join(c if isinstance(c, Html) else escape(c) for c in children if c is not None))


@dataclass(frozen=True)
class Line:
    """One line of a chart; ``low`` and ``high`` bound its interval. Points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    level: bool = False  # a single value, drawn across the whole width
    marks: bool = True  # a dot at each point

    @property
    def values(self) -> list[float]:
        return [v for v in (*self.y, *self.low, *self.high) if math.isfinite(v)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten) that cover ``low`` to ``high``."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 times each where they are few, that cover ``low`` to ``high`` (both positive)."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = (1, 2, 5) if last - first <= 2 else (1,)
    values = [m * 10.0**p for p in range(first, last + 1) for m in marks]
    start = max((i for i, v in enumerate(values) if v <= low * 1.001), default=0)
    stop = min((i for i, v in enumerate(values) if v >= high * 0.999), default=len(values) - 1)
    return values[start : max(stop, start + 1) + 1]


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def line_chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    x_marks: Sequence[float] | None = None,
    log_y: bool = False,
) -> Html | None:
    """A figure with its title, an SVG chart and a legend; None when no line has a finite value.

    ``x_marks``: the x values that occur, drawn at equal distances (budgets k); None: x is a number line (steps).
    """
    lines = [line for line in lines if line.values]
    if not lines:
        return None
    values = [v for line in lines for v in line.values]
    log_y = log_y and min(values) > 0
    y_ticks = (log_ticks if log_y else ticks)(min(values), max(values))
    scale_y = math.log if log_y else float
    bottom, top = scale_y(y_ticks[0]), scale_y(y_ticks[-1])
    if x_marks is None:
        xs = [x for line in lines if not line.level for x in line.x] or [0.0, 1.0]
        x_ticks = [x for x in ticks(min(xs), max(xs), 4) if min(xs) <= x <= max(xs)]
        left, right = min(xs), max(xs)
    else:
        x_ticks, left, right = list(x_marks), -0.4, len(x_marks) - 0.6

    def at_x(x: float) -> float:
        place = x if x_marks is None else list(x_marks).index(x)
        return round(LEFT + (place - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(y: float) -> float:
        return round(HEIGHT - BOTTOM - (scale_y(y) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    drawn = [tag("text", y_label, x=4, y=16, class_="label")]
    for y in y_ticks:
        drawn.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at_y(y), y2=at_y(y), class_="grid"))
        drawn.append(tag("text", _number(y), x=LEFT - 8, y=at_y(y), dy="0.35em", class_="tick end"))
    for x in x_ticks:
        drawn.append(tag("text", _number(x), x=at_x(x), y=HEIGHT - BOTTOM + 20, class_="tick middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(tag("text", x_label, x=middle, y=HEIGHT - 8, class_="label middle"))
    legend = []
    for number, line in enumerate(lines):
        style = f"s{number % STYLES}"
        drawn.append(tag("g", *_draw(line, at_x, at_y), class_=style))
        sample = tag("svg", tag("line", x1=0, x2=26, y1=6, y2=6), viewBox="0 0 26 12", class_=style, aria_hidden="true")
        legend.append(tag("li", sample, line.name))
    summary = f"{title}. {y_label} against {x_label}, {_number(min(values))} to {_number(max(values))}; " + ", ".join(
        line.name for line in lines
    )
    svg = tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=summary)
    return tag("figure", tag("figcaption", title), svg, tag("ul", *legend, class_="legend"), class_="chart")


def _draw(line: Line, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> list[Html]:
    if line.level:
        height = at_y(line.y[0])
        label = tag("title", f"{line.name}: {_number(line.y[0])}")
        return [tag("line", label, x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height)]
    drawn = []
    band = [b for b in zip(line.x, line.low, line.high, strict=False) if math.isfinite(b[1]) and math.isfinite(b[2])]
    if len(band) > 1:
        outline = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
        drawn.append(tag("polygon", points=" ".join(f"{at_x(x)},{at_y(y)}" for x, y in outline), class_="band"))
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    drawn.append(tag("polyline", points=" ".join(f"{at_x(x)},{at_y(y)}" for x, y in points)))
    if line.marks:
        for x, y in points:
            label = tag("title", f"{line.name} at {_number(x)}: {_number(y)}")
            drawn.append(tag("circle", label, cx=at_x(x), cy=at_y(y), r=4))
    return drawn


def interval_mark(mean: float, low: float, high: float, left: float, right: float) -> Html:
    """A mean with its interval on an axis from ``left`` to ``right``: one row of a table at a glance."""

    def at(value: float) -> float:
        return round(6 + 108 * (value - left) / ((right - left) or 1), 1)

    return tag(
        "svg",
        tag("line", x1=6, x2=114, y1=8, y2=8, class_="axis"),
        tag("line", x1=at(low), x2=at(high), y1=8, y2=8, class_="range"),
        tag("line", x1=at(mean), x2=at(mean), y1=2, y2=14, class_="mean"),
        viewBox="0 0 120 16",
        class_="mark",
        aria_hidden="true",
    )


def bar(share: float) -> Html:
    """A bar that fills ``share`` (0 to 1) of its width."""
    width = round(100 * min(max(share, 0.0), 1.0), 1)
    return tag(
        "svg",
        tag("rect", x=0, y=2, width=100, height=8, rx=2, class_="axis"),
        tag("rect", x=0, y=2, width=width, height=8, rx=2, class_="filled"),
        viewBox="0 0 100 12",
        class_="bar",
        aria_hidden="true",
    )
