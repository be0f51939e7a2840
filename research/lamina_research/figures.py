"""Line and bar plots of claims, with intervals over seeds, for ``results/figures``."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lamina.files import write_text
from lamina.intervals import Estimate
from lamina_research.seeds import interval

# Okabe and Ito's palette: told apart by every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"

Series = Mapping[str, Sequence[Sequence[float]]]  # by name: for each point one value per seed; a NaN leaves a gap


@dataclass(frozen=True)
class Plot:
    """Series with their 95% intervals over seeds, and levels (controls), which are horizontal lines."""

    title: str
    ylabel: str
    x: Sequence[Any]  # the numbers, or the names of groups of bars, over which the series are drawn
    series: Series
    levels: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def draw(self, axes: Axes) -> None:
        for (name, level), colour, style in zip(
            self.levels.items(), COLOURS[len(self.series) :] * 9, ("--", ":", "-.") * 9, strict=False
        ):
            axes.axhline(interval(level).mean, color=colour, linestyle=style, label=name)
        axes.set(title=self.title, ylabel=self.ylabel)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        # Beside the plot: with many levels there is no empty corner.
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)

    def styled(self) -> Iterator[tuple[str, list[Estimate], str, str, int]]:
        """Name, intervals, colour and marker of each series, and how often all colours were used before it."""
        for n, (name, points) in enumerate(self.series.items()):
            colour, marker = COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]
            yield name, [interval(values) for values in points], colour, marker, n // len(COLOURS)


@dataclass(frozen=True)
class LinePlot(Plot):
    """Lines; the interval is a band."""

    xlabel: str = ""
    log_x: bool = False

    def draw(self, axes: Axes) -> None:
        for name, intervals, colour, marker, repeats in self.styled():
            axes.plot(
                self.x, [i.mean for i in intervals], ("-", "--", ":")[repeats % 3], color=colour, marker=marker, label=name
            )  # fmt: skip
            bounds = ([i.low for i in intervals], [i.high for i in intervals])
            axes.fill_between(self.x, *bounds, color=colour, alpha=0.18, linewidth=0)
        if self.log_x:
            axes.set_xscale("symlog" if min(self.x) <= 0 else "log", base=2)
            axes.set_xticks(self.x, [f"{x:g}" for x in self.x])
            axes.set_xticks([], minor=True)
        axes.set_xlabel(self.xlabel)
        super().draw(axes)


class BarPlot(Plot):
    """Groups of bars side by side, one group for each name in ``x``; the interval is a whisker."""

    def draw(self, axes: Axes) -> None:
        means = [i.mean for _, intervals, *_ in self.styled() for i in intervals if math.isfinite(i.mean)]
        # Bars start at 0. Where they would all be about as high, points on an axis of their own show the differences.
        close = bool(means) and min(means) > 0.5 * max(means)
        width = 0.8 / len(self.series)
        for n, (name, intervals, colour, marker, repeats) in enumerate(self.styled()):
            places = np.arange(len(self.x)) + (n - (len(self.series) - 1) / 2) * width
            heights = [i.mean for i in intervals]
            whiskers = ([i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals])
            if close:
                axes.errorbar(places, heights, whiskers, color=colour, label=name, fmt=marker, capsize=3)
            else:
                axes.bar(
                    places, heights, 0.9 * width, yerr=whiskers, color=colour, label=name, capsize=3, ecolor="#444444",
                    hatch=("", "///", "...")[repeats % 3], edgecolor="white",
                )  # fmt: skip
        slanted: dict[str, Any] = (
            {"rotation": 20, "ha": "right", "rotation_mode": "anchor"} if max(map(len, self.x)) > 12 else {}
        )
        axes.set_xticks(range(len(self.x)), self.x, **slanted)
        super().draw(axes)


def draw(plots: Sequence[Plot]) -> Figure:
    """Plots side by side, each with its own legend."""
    figure = Figure(figsize=(7.6 * len(plots), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
        plot.draw(axes)
    return figure


def save(plots: Sequence[Plot], path: Path) -> Path:
    """Draws ``plots`` side by side into the SVG file ``path``; the same plots give the same bytes.

    Raises LaminaError when the file can't be written.
    """
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "lamina", "svg.fonttype": "path"}):
        draw(plots).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return write_text(path, buffer.getvalue())
