"""The report: the page of a synthetic evaluation, and errors for damaged records."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import LaminaError
from lamina.evaluation.record import Evaluation
from lamina.evaluation.report.charts import Line, line_chart
from lamina.evaluation.report.page import write_report

BUDGETS = (1, 2, 4, 8, 16)


def png(width: int, height: int) -> bytes:
    """A grey PNG, written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes((x * 255 // width + y) % 256 for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def estimate(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def evaluation() -> dict[str, Any]:
    """A made-up record of the shape that ``lamina evaluate`` writes."""

    def actions(name: str, role: str, k: int | None, loss: float, accuracy: float) -> dict[str, Any]:
        return {
            "name": name,
            "role": role,
            "k": k,
            "loss": estimate(loss, 0.043),
            "accuracy": estimate(accuracy, 0.031),
            "nmse": None,
        }

    def frames(name: str, role: str, k: int | None, psnr: float, ssim: float) -> dict[str, Any]:
        return {
            "name": name,
            "role": role,
            "k": k,
            "psnr": estimate(psnr, 0.41),
            "ssim": estimate(ssim, 0.012),
            "lpips": None,
        }

    losses, accuracies = (0.91, 0.82, 0.71, 0.64, 0.62), (0.63, 0.67, 0.72, 0.752, 0.761)
    psnr, ssim = (22.4, 23.5, 24.6, 25.3, 25.6), (0.71, 0.74, 0.772, 0.79, 0.797)
    steps = list(range(10, 3001, 10))
    return {
        "format": 1,
        "lamina": "0.1.0",
        "method": "flexlam",
        "run": "demo/run",
        "checkpoint": "9f2c7d51b2e04f53a1c0b8d9e7f6a5b4c3d2e1f00112233445566778899aabb",
        "created": "2026-01-15T12:34:56+00:00",
        "data": {
            "path": "demo/my_way_home",
            "split": "test",
            "episodes": 12,
            "transitions": 903,
            "fps": 8.75,
            "trained_on": ["demo/my_way_home"],
        },
        "gap_seconds": [0.1, 0.2],
        "slots": 16,
        "prefixes": list(BUDGETS),
        "labels": 120,
        "label_episodes": 24,
        "verdict": [
            {
                "level": "good",
                "text": "Actions can be read from the latents: 76.1% are right, against 44.0% of the best control.",
            },
            {
                "level": "good",
                "text": "The decoder uses the latent: 25.6 dB, against 19.8 dB with another transition's latent.",
            },
            {"level": "warn", "text": "Slots 13 to 16 use fewer than 5% of their codes; a smaller K would do as well."},
            {"level": "note", "text": "An inverse dynamics model trained on the same 120 labels reaches 70.5%."},
        ],
        "translator": [
            *(actions("FlexLAM", "model", k, a, b) for k, a, b in zip(BUDGETS, losses, accuracies, strict=True)),
            actions("shuffled latents", "control", 16, 1.48, 0.41),
            actions("random-weights encoder", "control", 16, 1.31, 0.44),
            actions("observation only", "control", None, 1.35, 0.43),
            actions("inverse dynamics model", "reference", None, 0.79, 0.705),
        ],
        "linear": [
            {
                "name": "FlexLAM",
                "role": "model",
                "k": 16,
                "nmse": estimate(0.52, 0.034),
                "accuracy": estimate(0.70, 0.03),
            },
            {
                "name": "pixels of both frames",
                "role": "control",
                "k": None,
                "nmse": estimate(0.83, 0.04),
                "accuracy": None,
            },
            {"name": "shuffled latents", "role": "control", "k": 16, "nmse": estimate(1.04, 0.02), "accuracy": None},
        ],
        "reconstruction": [
            *(frames("FlexLAM", "model", k, a, b) for k, a, b in zip(BUDGETS, psnr, ssim, strict=True)),
            frames("copy-frame", "control", None, 18.9, 0.61),
            frames("shuffled latents", "control", 16, 19.8, 0.60),
            frames("mean latent", "control", 16, 20.4, 0.64),
        ],
        "codes": {
            "codebook": 1750,
            "slots": [
                {"slot": s, "usage": 0.42 / s**0.5, "perplexity": 610.2 / s, "dead": 1 - 0.42 / s**0.5}
                for s in range(1, 17)
            ],
            "warnings": ["Slot 16 uses 10% of its codes. Train longer, or use fewer slots."],
        },
        "training": {
            "steps": steps,
            "loss": [0.05 + 0.95 * 2.718 ** (-s / 350) + 0.012 * ((s * 7919) % 13 - 6) / 6 for s in steps],
            "validation": {"steps": steps[29::30], "loss": [0.06 + 0.95 * 2.718 ** (-s / 350) for s in steps[29::30]]},
        },
        "translator_curve": {
            "steps": list(range(50, 1001, 50)),
            "train": [0.5 + 1.1 * 2.718 ** (-s / 200) for s in range(50, 1001, 50)],
            "validation": [0.62 + 1.0 * 2.718 ** (-s / 180) + 0.00008 * s for s in range(50, 1001, 50)],
        },
        "pictures": [
            {
                "file": "pictures/prefix.png",
                "title": "One transition, drawn from more and more of its latent",
                "caption": "Left to right: the first frame, the next frame, and what the decoder draws from k = 0 to 16 slots.",
            }
        ],
        "notes": ["LPIPS is not available: its weights are not on this machine."],
    }


VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The elements of a page, in order, each with its attributes; checks that they close as they open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def report(run: Path, record: Any) -> str:
    """The text of the report on ``record``, with the picture that the made-up evaluation names."""
    (run / "pictures").mkdir(parents=True, exist_ok=True)
    (run / "pictures" / "prefix.png").write_bytes(png(320, 48))
    (run / "evaluation.json").write_text(json.dumps(record))
    return write_report(run).read_text(encoding="utf-8")


def table(page: str, label: str) -> list[list[str]]:
    """The cells of the table in the box with that label, as text, row by row."""
    inside = page.split(f'aria-label="{label}"')[1].split("</table>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", inside, flags=re.S)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.S) for row in rows]
    return [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row] for row in cells]


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = Page(report(tmp_path, evaluation()))
    assert not page.all("script") and not page.all("iframe")
    targets = [a[key] or "" for _, a in page.elements for key in ("src", "href") if key in a]
    assert targets and all(target.startswith(("data:", "#")) for target in targets)
    anchors = {a["id"] for _, a in page.elements if "id" in a}
    assert {target[1:] for target in targets if target.startswith("#")} <= anchors
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")


def test_a_picture_is_embedded_byte_for_byte_and_described(tmp_path: Path) -> None:
    (image,) = Page(report(tmp_path, evaluation())).all("img")
    kind, _, content = (image["src"] or "").partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(content) == png(320, 48)
    assert (image["width"], image["height"]) == ("320", "48")
    assert "more and more of its latent" in (image["alt"] or "")


def test_headings_descend_and_every_chart_has_a_text(tmp_path: Path) -> None:
    page = Page(report(tmp_path, evaluation()))
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    charts = [svg for svg in page.all("svg") if "role" in svg]  # the others are pieces of the legend
    assert len(charts) == 6 and all(a["role"] == "img" and "against" in (a["aria-label"] or "") for a in charts)
    assert len(page.all("title")) == 1 + len(charts)
    assert len({a["id"] for _, a in page.elements if a.get("id")}) == len([a for _, a in page.elements if a.get("id")])


@pytest.mark.parametrize(
    ("levels", "headline"),
    [
        (("good", "note"), "passed every check"),
        (("good", "warn"), "usable, with care"),
        (("warn", "bad", "good"), "can't be trusted yet"),
        ((), "No check was recorded"),
    ],
)
def test_the_most_severe_finding_is_the_summary(tmp_path: Path, levels: tuple[str, ...], headline: str) -> None:
    record = evaluation() | {"verdict": [{"level": level, "text": f"It is {level}."} for level in levels]}
    page = unescape(report(tmp_path, record))
    first = page.split("<section", 2)[1]
    assert headline in first and all(f"It is {level}." in first for level in levels)


def test_the_gap_is_that_of_the_measurements_beside_that_of_the_training(tmp_path: Path) -> None:
    assert "0.15 s (trained on 0.1 to 0.2 s), video at 8.75 frames/s" in report(tmp_path, evaluation())


def test_model_controls_and_references_share_a_table(tmp_path: Path) -> None:
    rows = table(report(tmp_path, evaluation()), "Translator, with controls")
    assert rows[1][:4] == ["FlexLAM model", "1", "0.910 0.867 to 0.953", "63.0% 59.9 to 66.1"]
    assert rows[5][:3] == ["16", "0.620 0.577 to 0.663", "76.1% 73.0 to 79.2"]
    assert [row[0] for row in rows[6:]] == [
        "inverse dynamics model reference",
        "shuffled latents control",
        "random-weights encoder control",
        "observation only control",
    ]
    assert rows[9][1] == "any"


def test_budgets_ascend_whatever_the_order_in_the_record(tmp_path: Path) -> None:
    record = evaluation()
    record["translator"].reverse()
    rows = table(report(tmp_path, record), "Translator, with controls")
    assert [row[1] if number == 1 else row[0] for number, row in enumerate(rows[1:6], 1)] == [str(k) for k in BUDGETS]


@pytest.mark.parametrize(
    ("mean", "half", "shown"),
    [
        (0.000123, 0.0000042, "0.0001230 0.0001188 to 0.0001272"),
        (1234.5, 56.0, "1234 1178 to 1290"),
        (1.5, 0.0, "1.50 1.50 to 1.50"),
    ],
)
def test_digits_follow_the_interval(tmp_path: Path, mean: float, half: float, shown: str) -> None:
    row = {"name": "FlexLAM", "role": "model", "k": 4, "nmse": estimate(mean, half), "accuracy": None}
    rows = table(report(tmp_path, evaluation() | {"linear": [row]}), "Linear probe, with controls")
    assert rows[1][2] == shown


def test_every_string_is_escaped(tmp_path: Path) -> None:
    attack = """"'><script>alert(1)</script><img src=x onerror=alert(1)>"""

    def poisoned(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poisoned(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poisoned(v, key) for v in value]
        return value + attack if isinstance(value, str) and key not in ("role", "level", "file") else value

    page = Page(report(tmp_path, poisoned(evaluation())))
    assert not page.all("script") and len(page.all("img")) == 1
    assert not [a for _, a in page.elements if "onerror" in a]


def test_a_bare_record_makes_a_page_that_says_what_is_not_available(tmp_path: Path) -> None:
    page = report(tmp_path, {"format": 1})
    assert Page(page).all("h1") and page.count("Not available.") == 6
    assert "nan" not in page.lower() and "None" not in page


def test_nan_is_told_and_not_drawn(tmp_path: Path) -> None:
    record = evaluation()
    nan = float("nan")
    record["translator"][2]["loss"] = {"mean": nan, "low": nan, "high": nan}
    record["training"]["loss"][7] = nan
    record["training"]["loss"][8] = None
    page = report(tmp_path, record)
    assert table(page, "Translator, with controls")[3][1] == "not a number"
    drawn = re.findall(r' (?:d|x|y)="([^"]*)"', page)
    assert drawn and not [points for points in drawn if "nan" in points or "inf" in points]


def test_a_diverged_run_still_has_a_report(tmp_path: Path) -> None:
    record = evaluation()
    record["training"]["loss"] = [float("nan")] * len(record["training"]["steps"])
    record["training"]["validation"] = None
    record["translator"] = [row | {"loss": None, "accuracy": None} for row in record["translator"]]
    page = report(tmp_path, record)
    assert page.count('<svg role="img"') == 3


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    record = evaluation()
    place: Any = record
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return record


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([], "not a JSON object"),
        (changed("format", to=2), "format 1"),
        (changed("translator", to={}), "translator: "),
        (changed("translator", 0, "k", to="4"), r"translator\.0\.k: .*got '4'"),
        (changed("translator", 0, "role", to="winner"), r"translator\.0\.role: .*got 'winner'"),
        (changed("translator", 0, "loss", to=0.9), r"translator\.0\.loss: "),
        (changed("translator", 0, "loss", "low", to="0.8"), r"translator\.0\.loss\.low: "),
        (changed("translator", 0, "wins", to=3), r"translator\.0\.wins: "),
        (changed("verdict", 0, "level", to="superb"), r"verdict\.0\.level: "),
        (changed("training", "loss", to=[0.1]), "training: loss has 1 values for 300 steps"),
        (changed("training", "loss", 0, to="high"), r"training\.loss\.0: .*got 'high'"),
        (changed("codes", "slots", 0, "usage", to="many"), r"codes\.slots\.0\.usage: "),
        (changed("pictures", 0, "file", to="../secret.png"), "outside"),
        (changed("pictures", 0, "file", to="evaluation.json"), "not a PNG"),
    ],
)
def test_a_damaged_record_is_one_line_that_names_the_file(tmp_path: Path, record: Any, said: str) -> None:
    with pytest.raises(LaminaError, match=said) as caught:
        report(tmp_path, record)
    assert str(tmp_path / "evaluation.json") in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation.json", "pictures"]


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "verdict": [', b"\xff\xfe\x00", b"\x00" * 64])
def test_a_record_cut_short_leaves_the_old_report(tmp_path: Path, content: bytes) -> None:
    before = report(tmp_path, evaluation())
    (tmp_path / "evaluation.json").write_bytes(content)
    with pytest.raises(LaminaError, match=r"evaluation\.json: cannot be read"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before


def test_no_evaluation_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(LaminaError, match="lamina evaluate"):
        write_report(tmp_path / "run")


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    page = report(tmp_path, changed("pictures", 0, "file", to="pictures/gone.png"))
    assert "pictures/gone.png: not available" in page


def test_points_lie_where_their_values_say() -> None:
    chart = line_chart(
        [Line("a", [1, 4], [0.0, 10.0]), Line("floor", [0], [5.0], level=True)], "t", "k", "y", [1, 2, 4]
    )
    assert chart is not None and [name for name, _ in chart.legend] == ["a", "floor"]
    (x1, y1), (x2, y2) = (
        (float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*c0\)', chart.svg)
    )
    assert x1 < x2 and y1 > y2  # k = 1 on the left; 0 at the bottom, 10 at the top
    levels = [float(y) for y in re.findall(r'd="M [\d.]+ ([\d.]+) L [\d.]+ \1', re.sub(r"\s+", " ", chart.svg))]
    assert pytest.approx((y1 + y2) / 2, abs=0.01) in levels
    left, middle, right = (float(x) for x in re.findall(r'text-anchor: middle; [^"]*" x="([\d.]+)"', chart.svg)[:3])
    assert middle - left == pytest.approx(right - middle) and (x1, x2) == pytest.approx((left, right), abs=0.5)


def test_a_chart_of_nothing_finite_is_none() -> None:
    assert line_chart([Line("a", [1, 2], [float("nan"), float("inf")])], "t", "x", "y") is None


def test_every_line_looks_different_and_the_same_in_every_chart() -> None:
    """Ten methods are compared, and there are eight colours. A line that is missing in a chart does not change the others."""
    lines = [Line(str(n), [1, 2], [n, n + 0.5]) for n in range(10)]
    full = line_chart(lines, "t", "x", "y")
    assert full is not None and len({key for _, key in full.legend}) == 10
    part = line_chart([*lines[:3], Line("3", (), ()), *lines[4:]], "t", "x", "y")
    assert part is not None and part.legend == full.legend[:3] + full.legend[4:]
    drawn = re.findall(r'style="fill: none; ([^"]*)stroke: (var\(--c\d\)); stroke-width: 1.6', full.svg)
    dashes = [re.findall(r"stroke-dasharray: ([\d.,]+)", before) for before, _ in drawn]
    for (_, colour), dash, (_, key) in zip(
        drawn, dashes, full.legend, strict=True
    ):  # the legend shows the lines as they are
        assert f'stroke="{colour}"' in key
        shown = [float(n) for n in re.findall(r'dasharray="([^"]*)"', key)[0].split()] if dash else []
        assert shown == pytest.approx([float(n) for n in dash[0].split(",")] if dash else [], rel=0.01)


def test_the_page_follows_the_light_and_the_dark_scheme(tmp_path: Path) -> None:
    page = report(tmp_path, evaluation())
    charts = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.S))
    assert not re.findall(r"#[0-9a-f]{6}\b", charts) and "var(--c0)" in charts  # no colour of its own
    assert page.count("prefers-color-scheme: dark") == 1 and "<style" not in charts


def test_the_same_record_has_the_same_page(tmp_path: Path) -> None:
    assert report(tmp_path / "a", evaluation()) == report(tmp_path / "b", evaluation())


def test_every_estimate_of_the_record_stands_on_the_page(tmp_path: Path) -> None:
    record, page = evaluation(), report(tmp_path, evaluation())
    parts = {
        "translator": "Translator, with controls",
        "linear": "Linear probe, with controls",
        "reconstruction": "Reconstruction, with controls",
    }
    for part, label in parts.items():
        shown = " ".join(" ".join(row) for row in table(page, label))
        for row in record[part]:
            for value, scale in (
                (row.get("loss"), 1),
                (row.get("accuracy"), 100),
                (row.get("nmse"), 1),
                (row.get("psnr"), 1),
            ):
                if value:
                    assert f" {scale * value['mean']:.1f}"[:4] in f" {shown}", (row, value)


def test_shares_of_more_codes_than_transitions_are_said_to_be_of_those_that_can_occur(tmp_path: Path) -> None:
    record = evaluation()
    told = "transitions can show no more than as many codes, of which these are the shares."
    for transitions, said in ((record["codes"]["codebook"], False), (1200, True)):
        record["data"]["transitions"] = transitions
        assert (f"1,200 {told}" in report(tmp_path, record)) is said


def test_a_record_is_written_as_it_was_read() -> None:
    text = json.dumps(evaluation(), indent=1)
    assert json.loads(Evaluation.from_dict(json.loads(text)).to_json()) == json.loads(text)
    assert list(json.loads(Evaluation.from_dict(json.loads(text)).to_json())["data"]) == list(evaluation()["data"])
    with pytest.raises(LaminaError, match="surprise"):
        Evaluation.from_dict(evaluation() | {"surprise": 1})


def test_errors_of_structure_without_the_offset_are_shown_where_they_were_measured(tmp_path: Path) -> None:
    row: dict[str, Any] = {"name": "latent", "role": "model", "k": None, "composition": estimate(0.60, 0.05)}

    def page(**more: dict[str, float]) -> str:
        rows = {"stride_seconds": 0.2, "seen": 2, "rows": [row | more]}
        (tmp_path / "evaluation.json").write_text(json.dumps(evaluation() | {"structure": rows}))
        return write_report(tmp_path).read_text()

    plain = page()
    assert "composition residual" in plain and "no offset" not in plain and "as read" not in plain
    found = page(
        offset=estimate(0.36, 0.02), composition_centred=estimate(0.24, 0.02), composition_read=estimate(0.11, 0.02)
    )
    for shown in ("no offset", "as read", "36.0%", "0.240", "0.110"):
        assert shown in found, shown
