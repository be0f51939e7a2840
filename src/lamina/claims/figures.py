"""Line plots of claims, with intervals, for ``results/figures``."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lamina.claims.intervals import Interval
from lamina.files import write_text

# Okabe and Ito's palette: told apart by every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"


@dataclass(frozen=True)
class LinePlot:
    """Lines over ``x``, each with one interval per x, and levels (controls) that don't depend on x."""

    title: str
    xlabel: str
    ylabel: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[Interval]]
    levels: Mapping[str, Interval] = field(default_factory=dict)
    log_x: bool = False


def draw(plot: LinePlot) -> Figure:
    """The plot as a matplotlib figure. A line is drawn at its means, its 95% interval as a band of the same colour."""
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (name, intervals), colour, marker in zip(plot.lines.items(), COLOURS * 9, MARKERS * 9, strict=False):
        axes.plot(plot.x, [i.mean for i in intervals], color=colour, marker=marker, label=name)
        low = [math.nan if i.low is None else i.low for i in intervals]
        high = [math.nan if i.high is None else i.high for i in intervals]
        axes.fill_between(plot.x, low, high, color=colour, alpha=0.18, linewidth=0)
    rest = COLOURS[len(plot.lines) :] * 9
    for (name, level), colour, style in zip(plot.levels.items(), rest, ("--", ":", "-.") * 9, strict=False):
        axes.axhline(level.mean, color=colour, linestyle=style, label=name)
    if plot.log_x:
        axes.set_xscale("symlog" if min(plot.x) <= 0 else "log", base=2)
        axes.set_xticks(plot.x, [f"{x:g}" for x in plot.x])
        axes.set_xticks([], minor=True)
    axes.set(title=plot.title, xlabel=plot.xlabel, ylabel=plot.ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    # Beside the plot: with many levels there is no empty corner.
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    return figure


def save(plot: LinePlot, path: Path) -> Path:
    """Draws ``plot`` into the SVG file ``path``; the same plot gives the same bytes.

    Raises LaminaError when the file can't be written.
    """
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "lamina", "svg.fonttype": "path"}):
        draw(plot).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return write_text(path, buffer.getvalue())
