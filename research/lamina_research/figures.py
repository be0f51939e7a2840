"""Line and bar plots of claims, with intervals, for ``results/figures``."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lamina.files import write_text
from lamina_research.seeds import Interval

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


@dataclass(frozen=True)
class BarPlot:
    """Groups of bars side by side, one group for each name, one bar for each series; a NaN mean leaves a gap."""

    title: str
    ylabel: str
    names: Sequence[str]
    bars: Mapping[str, Sequence[Interval]]
    levels: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Panels:
    """Plots side by side, over the same lines or not; each has its legend."""

    plots: Sequence[LinePlot | BarPlot]


Plot = LinePlot | BarPlot | Panels


def draw(plot: Plot) -> Figure:
    """The plot as a matplotlib figure: a line at its means with its 95% interval as a band, a bar with its interval as a whisker."""
    plots: Sequence[LinePlot | BarPlot] = plot.plots if isinstance(plot, Panels) else (plot,)
    figure = Figure(figsize=(7.6 * len(plots), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, one in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
        _draw(axes, one)
    return figure


def _draw(axes: Axes, plot: LinePlot | BarPlot) -> None:
    (_lines if isinstance(plot, LinePlot) else _bars)(axes, plot)  # type: ignore[arg-type]
    used = len(plot.lines if isinstance(plot, LinePlot) else plot.bars)
    for (name, level), colour, style in zip(
        plot.levels.items(), COLOURS[used:] * 9, ("--", ":", "-.") * 9, strict=False
    ):
        axes.axhline(level.mean, color=colour, linestyle=style, label=name)
    axes.set(title=plot.title, ylabel=plot.ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    # Beside the plot: with many levels there is no empty corner.
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)


def _lines(axes: Axes, plot: LinePlot) -> None:
    for n, ((name, intervals), colour, marker) in enumerate(
        zip(plot.lines.items(), COLOURS * 9, MARKERS * 9, strict=False)
    ):
        dashes = ("-", "--", ":")[n // len(COLOURS) % 3]  # when colours begin anew
        axes.plot(plot.x, [i.mean for i in intervals], dashes, color=colour, marker=marker, label=name)
        low = [math.nan if i.low is None else i.low for i in intervals]
        high = [math.nan if i.high is None else i.high for i in intervals]
        axes.fill_between(plot.x, low, high, color=colour, alpha=0.18, linewidth=0)
    if plot.log_x:
        axes.set_xscale("symlog" if min(plot.x) <= 0 else "log", base=2)
        axes.set_xticks(plot.x, [f"{x:g}" for x in plot.x])
        axes.set_xticks([], minor=True)
    axes.set_xlabel(plot.xlabel)


def _bars(axes: Axes, plot: BarPlot) -> None:
    means = [i.mean for intervals in plot.bars.values() for i in intervals if math.isfinite(i.mean)]
    # Bars are read from 0 on: where they would hardly differ, points on an axis of their own show more and mislead no one.
    close = bool(means) and min(means) > 0.5 * max(means)
    wide = 0.8 / len(plot.bars)
    for n, ((name, intervals), colour, marker) in enumerate(
        zip(plot.bars.items(), COLOURS * 9, MARKERS * 9, strict=False)
    ):
        places = [i + (n - (len(plot.bars) - 1) / 2) * wide for i in range(len(plot.names))]
        below = [i.mean - (i.mean if i.low is None else i.low) for i in intervals]
        above = [(i.mean if i.high is None else i.high) - i.mean for i in intervals]
        heights = [i.mean for i in intervals]
        if close:
            axes.errorbar(places, heights, (below, above), color=colour, label=name, fmt=marker, capsize=3)
        else:
            axes.bar(
                places, heights, 0.9 * wide, yerr=(below, above), color=colour, label=name, capsize=3, ecolor="#444444",
                hatch=("", "///", "...")[n // len(COLOURS) % 3], edgecolor="white",
            )  # fmt: skip
    axes.set_xticks(range(len(plot.names)), plot.names, rotation=20 if max(map(len, plot.names)) > 12 else 0)


def save(plot: Plot, path: Path) -> Path:
    """Draws ``plot`` into the SVG file ``path``; the same plot gives the same bytes.

    Raises LaminaError when the file can't be written.
    """
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "lamina", "svg.fonttype": "path"}):
        draw(plot).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return write_text(path, buffer.getvalue())
