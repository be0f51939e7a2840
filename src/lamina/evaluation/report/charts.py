"""Charts as inline SVG by matplotlib: no scripts, colours of the page's style sheet, the same bytes for the same lines."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

#: Matplotlib draws in stand-in colours, which become the page's own: they follow its light and dark scheme.
COLOURS = {f"#0000c{n}": f"var(--c{n})" for n in range(8)}
COLOURS |= {"#0000d0": "var(--line)", "#0000d1": "var(--soft)", "#0000d2": "var(--card)"}
LINES, (GRID, TEXT, CARD) = tuple(COLOURS)[:8], tuple(COLOURS)[8:]
#: Line n has the colour n mod 8. The second eight have other dashes and other marks than the first.
#: Matplotlib's marks, and how the legend draws them.
MARKS = {
    "o": "M14 5a3 3 0 1 0 6 0a3 3 0 1 0 -6 0",
    "s": "M14 2H20V8H14Z",
    "^": "M17 2L20 8H14Z",
    "D": "M17 1L21 5L17 9L13 5Z",
}
DASHES = ("", (6, 2.7), (2, 2), (6, 2.7, 1.3, 2.7), (9.3, 3.3), (1.3, 3.3), (4, 2), (8, 2, 2, 2, 2, 2))
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9,
    "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": GRID,
    "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": TEXT, "ytick.labelcolor": TEXT, "grid.color": GRID, "axes.grid.axis": "y",
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0, "grid.linewidth": 0.6,
}  # fmt: skip


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


@dataclass(frozen=True)
class Chart:
    """A chart with its title, and the name of each line with a piece of the line."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, Markup], ...]


def style_of(n: int, marks: bool = True) -> dict[str, Any]:
    """How the line number n is drawn."""
    colour, turn = LINES[n % len(LINES)], n // len(LINES)
    style: dict[str, Any] = {
        "color": colour,
        "linewidth": 1.6,
        "linestyle": (0, DASHES[(n + turn) % len(DASHES)] or None),
    }
    if marks:
        style |= {"marker": tuple(MARKS)[turn % len(MARKS)], "markersize": 5.5, "markeredgecolor": CARD}
    return style


def legend_key(n: int, marks: bool = True) -> Markup:
    """A piece of the line number n, with its mark."""
    style = style_of(n, marks)
    colour, dashes = COLOURS[style["color"]], style["linestyle"][1] or ()
    # Matplotlib's dashes are in widths of the line.
    dash = " ".join(f"{length * style['linewidth']:.3g}" for length in dashes) or "none"
    mark = f'<path d="{MARKS[style["marker"]]}" fill="{colour}"/>' if marks else ""
    return Markup(
        f'<svg aria-hidden="true" viewBox="0 0 34 10"><path d="M0 5H34" stroke="{colour}" stroke-width="{style["linewidth"]}" '
        f'stroke-dasharray="{dash}"/>{mark}</svg>'
    )


def number(value: float, _: object = None) -> str:
    """A tick's or a summary's number."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def line_chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    x_marks: Sequence[float] | None = None,
    log_y: bool = False,
) -> Chart | None:
    """A chart; None when no line has a finite value. A line without one is left out, and the others look as they would beside it.

    ``x_marks``: the x values that occur, drawn at equal distances (budgets k); None: x is a number line (steps).
    """
    marked = {n: line.marks and not line.level for n, line in enumerate(lines) if line.values}
    styles = {n: style_of(n, marks) for n, marks in marked.items()}
    if not styles:
        return None
    values = [v for line in lines for v in line.values]
    with rc_context({**SETTINGS, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.2, 2.7), layout="constrained")
        axes = figure.subplots()
        for n, style in styles.items():
            line = lines[n]
            if line.level:
                axes.axhline(line.y[0], **style)
                continue
            x = [list(x_marks).index(x) if x_marks else x for x in line.x]
            points = [point for point in zip(x, line.y, strict=True) if math.isfinite(point[1])]
            band = [b for b in zip(x, line.low, line.high, strict=False) if math.isfinite(b[1] + b[2])]
            if len(band) > 1:
                along, low, high = zip(*band, strict=True)
                axes.fill_between(along, low, high, color=style["color"], alpha=0.17, linewidth=0)
            axes.plot(*zip(*points, strict=True), **style)
        axes.set(xlabel=x_label)
        axes.set_title(y_label, loc="left", fontsize=9)
        if x_marks:
            axes.set_xticks(range(len(x_marks)), [number(x) for x in x_marks])
            axes.set_xlim(-0.4, len(x_marks) - 0.6)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(number))
        if log_y and min(values) > 0:
            axes.set_yscale("log")
            decades = math.log10(max(values) / min(values))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades <= 2 else (1,)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(number))
        names = ", ".join(lines[n].name for n in styles)
        summary = f"{title}. {y_label} against {x_label}, {number(min(values))} to {number(max(values))}; {names}"
        svg = _inline(figure, summary)
    return Chart(title, svg, tuple((lines[n].name, legend_key(n, marks)) for n, marks in marked.items()))


def _inline(figure: Figure, summary: str) -> Markup:
    """The figure as an element of the page, with ``summary`` as its title."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    body = svg.partition("</defs>")[2]  # what follows its style sheet
    body = re.sub(r' id="[\w.]+_\d+"', "", body)  # names of groups, which would occur in every chart
    body = re.sub("|".join(COLOURS), lambda colour: COLOURS[colour[0]], body)
    label = escape(summary)
    head = f'<svg role="img" aria-label="{label}" viewBox="{box[1]}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(f"{head}\n <title>{label}</title>{body.rstrip()}")
