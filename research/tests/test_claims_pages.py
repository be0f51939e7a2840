"""The pages of the methods quote the records of results/: every number of a table that names a record is looked up in it, and rows and
sentences that were once wrong are made from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lamina_research.claims import alam
from lamina_research.claims.structure_study import FORMS, SETUPS, ac_lam_model, other_methods
from lamina_research.reproduce import CLAIMS
from lamina_research.seeds import below, paired_difference

ROOT = Path(__file__).parents[2]
OWN = ("adaptive_k", "structured_prefix", "robust_prefix")
PAGES = (*(f"methods/{page}" for page in ("flexlam", "ac_lam", "alam", *OWN)), "spaces")
#: The other claims are on the page of their paper's method.
OURS = {f"lamina/{page.replace('_', '-')}": f"methods/{page}" for page in OWN} | {
    "lamina/leaderboard": "compare", "lamina/feature-control": "spaces",
}  # fmt: skip
LINK = re.compile(r"results/((?:flexlam|ac_lam|alam|lamina)/[a-z-]+)-cpu\.json")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d+(?![\w.]*\d)")


@cache
def record(claim: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{claim}-cpu.json").read_text())


@cache
def numbers(claim: str) -> tuple[tuple[float, ...], frozenset[str]]:
    """Every number of a record: of its metrics, and of its texts as they are printed there."""

    def inside(value: Any) -> Iterator[float | str]:
        if isinstance(value, dict):
            for part in value.values():
                yield from inside(part)
        elif isinstance(value, list):
            for part in value:
                yield from inside(part)
        elif isinstance(value, str):
            yield from re.findall(r"\d+(?:\.\d+)?", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield float(value)

    found = tuple(inside(record(claim)))
    return tuple(n for n in found if isinstance(n, float)), frozenset(n for n in found if isinstance(n, str))


def is_quoted(text: str, claim: str) -> bool:
    """Whether a record has the number, in as many digits as the text shows. What a sentence of the record has rounded is not rounded
    again: 7.149 is 7.15 there, and 7.1 here."""
    measured, printed = numbers(claim)
    digits = len(text.partition(".")[2])
    near = (abs(abs(float(text)) - abs(n)) <= 0.500001 * 10**-digits for n in measured)
    return text.lstrip("+-") in printed or any(near)


def rows(page: str) -> Iterator[tuple[str, set[str]]]:
    """Every row of a table that names records, with the records that it is about: those that it names, or else the row above."""
    named: set[str] = set()
    for line in (ROOT / "docs" / f"{page}.md").read_text().splitlines():
        if not line.startswith("|"):
            named = set()
        elif found := set(LINK.findall(line)):
            named = found
        if line.startswith("|") and named:
            yield line, named


@pytest.mark.parametrize("page", PAGES)
def test_every_number_of_a_table_is_in_the_record_that_it_names(page: str) -> None:
    checked, wrong = 0, []
    for line, claims in rows(page):
        for text in NUMBER.findall(line):
            checked += 1
            if not any(is_quoted(text, claim) for claim in claims):
                wrong.append((text, sorted(claims), line[:80]))
    assert wrong == [] and checked > 10


def test_a_number_that_is_not_in_the_record_is_found() -> None:
    mean = record("ac_lam/structure")["metrics"]["AC-LAM"]["composition"]["mean"]
    assert is_quoted(f"{mean:.2f}", "ac_lam/structure") and not is_quoted(f"{mean + 7777:.4f}", "ac_lam/structure")


@pytest.mark.parametrize("claim", [c for c in CLAIMS if (ROOT / "results" / f"{c}-cpu.json").exists()])
def test_a_page_gives_the_verdict_of_the_record(claim: str) -> None:
    """In one of the rows that are about it; where parts of a claim have verdicts of their own, it holds if all of them do."""
    page = OURS.get(claim, f"methods/{claim.partition('/')[0]}")
    if page == "methods/exo":
        pytest.skip("docs/exogenous.md has tests of its own")
    own = [line for line, claims in rows(page) if claim in claims]
    said = {cell.strip(" *") for line in own for cell in line.split("|")}
    no = bool(said & {"does not hold", "no"})
    assert no or said & {"holds", "yes"}, f"docs/{page}.md has no verdict of {claim}"
    assert no != record(claim)["holds"]


def values(claim: str, method: str, metric: str) -> list[float]:
    return record(claim)["metrics"][method][metric]["values"]


def mean(claim: str, method: str, metric: str) -> float:
    return record(claim)["metrics"][method][metric]["mean"]


TABLE_1 = ("composition", "identity", "inverse", "displacement")


def table_rows(claim: str, titles: dict[str, str]) -> list[str]:
    """Rows of Table 1 or 5, from the title in the page to the method of the record."""
    return [
        f"| {title} | {' | '.join(f'{mean(claim, method, metric):.2f}' for metric in TABLE_1)} |"
        for title, method in titles.items()
    ]


def structure_rows() -> list[str]:
    return table_rows(
        "ac_lam/structure",
        {
            "**AC-LAM**": "AC-LAM", "LAPA": "LAPA", "UniVLA": "UniVLA", "villa-X": "villa-X", "LAPO": "LAPO", "Fixed-K": "Fixed-K",
            "FlexLAM": "FlexLAM", "ALAM, continuous latents": "ALAM, before VQ",
            "AC-LAM without the composition loss": "AC-LAM, no composition",
            "AC-LAM without the proprioceptive forward model": "AC-LAM, no state",
            "reference: pixel difference": "change of the pixels",
            "size debug: AC-LAM": "AC-LAM, debug", "size debug: villa-X": "villa-X, debug",
        },
    )  # fmt: skip


def design_rows() -> list[str]:
    titles = {
        "decoder, sum after the quantiser (AC-LAM)": "AC-LAM", "decoder, sum before the quantiser": "pre-VQ", "IDM": "IDM",
        "IDM, sg on z_ik": "IDM, sg on z_ik",
    }  # fmt: skip
    return [f"{row} stable |" for row in table_rows("ac_lam/design", titles)]


def ahead_rows() -> list[str]:
    """What AC-LAM's latents are significantly better in, against each rival."""
    claims = {
        "norm along an episode, mean r": ("ac_lam/norm-trajectory", "r per episode", 2),
        "transfer: agreement of composed and direct prediction, dB": ("ac_lam/motion-transfer", "agreement", 1),
        "... margin over another triplet's latent, dB": ("ac_lam/motion-transfer", "margin", 1),
    }

    def row(title: str, claim: str, metric: str, digits: int) -> str:
        own = record(claim)["metrics"]
        rivals = [name for name in ("LAPA", "UniVLA", "villa-X") if name in own]
        cells = [
            f"{mean(claim, name, metric):.{digits}f}" if name in own else ""
            for name in ("AC-LAM", "LAPA", "UniVLA", "villa-X")
        ]
        won = [name for name in rivals if below(values(claim, name, metric), values(claim, "AC-LAM", metric))]
        return f"| {' | '.join([title, *cells, ', '.join(won)])} |".replace("|  |", "| |")

    return [row(title, *of) for title, of in claims.items()]


def leakage_sentences() -> list[str]:
    claim, names = "ac_lam/leakage", ("AC-LAM", "LAPA", "villa-X", "UniVLA")
    seen, unseen = (
        [mean(claim, n, metric) for n in (*names, "pixels of the first frame")]
        for metric in ("accuracy", "accuracy, unseen episodes")
    )
    apart = [
        max(max(v) - min(v) for v in (values(claim, n, metric) for n in names))
        for metric in ("accuracy", "accuracy, unseen episodes")
    ]
    first = ", ".join(f"{name} {x:.2f}" for name, x in zip(names, seen, strict=False))
    *others, last = (f"{x:.2f}" for x in unseen)
    return [
        f"{first}, an 8x8 thumbnail of the first frame {seen[-1]:.2f}; on held-out episodes {', '.join(others)} and {last}.",
        f"Seeds differ by up to {apart[0]:.1f}, on held-out episodes by up to {apart[1]:.1f},",
    ]


def size_sentences() -> list[str]:
    """What changes from size debug to tiny."""
    change = {
        name: {
            m: paired_difference(*(values("ac_lam/structure", n, m) for n in (name, f"{name}, debug"))) for m in TABLE_1
        }
        for name in ("AC-LAM", "villa-X")
    }
    assert all(c.low < 0 < c.high for c in change["AC-LAM"].values())
    moved = {m: abs(c.mean) for m, c in change["villa-X"].items() if not c.low < 0 < c.high}
    assert list(moved) == ["identity", "displacement"]
    half = [(c.high - c.low) / 2 for c in change["AC-LAM"].values()]
    most = max(abs(c.mean) for c in change["AC-LAM"].values())
    return [
        f"(its changes are at most {most:.2f}, the half-widths of their intervals {min(half):.2f} to {max(half):.2f})",
        f"villa-X gains {moved['identity']:.2f} in identity and {moved['displacement']:.2f} in the correlation, significantly",
    ]


COUNTS = {3: "three", 5: "five", 6: "six", 10: "ten"}


def model_counts() -> list[str]:
    """The models that each claim of AC-LAM trains beside the contenders, a seed."""
    assert ac_lam_model(0).options["whiten"] != "first"  # with which design trains its default too
    sizes = len(SETUPS["cpu"].smaller) * 2
    assert sizes == 2
    return [
        f"for each seed `structure` adds {COUNTS[len(other_methods(0))]} models and two of a smaller size, "
        f"`design` {COUNTS[len(FORMS)]} variants."
    ]


def alam_counts() -> list[str]:
    """The models that ALAM's claims train over three seeds."""
    pair, more = 3 * len(alam.pair(0)), 3 * (len(alam.models(0)) - len(alam.pair(0)))
    smaller = len(SETUPS["cpu"].smaller) * pair
    return [
        f"The three claims share their {COUNTS[pair]} models; `algebra` and `horizon` add {COUNTS[more]} "
        f"(ALAM with latents as differences), `algebra` {COUNTS[smaller]} of a smaller size."
    ]


def transfer_row() -> list[str]:
    ours, plain = (mean("alam/transfer", n, "margin") for n in ("ALAM", "without the losses"))
    return [f"| ... margin over another triplet's latent | | {ours:.1f} dB | {plain:.1f} dB | yes |"]


def robust_sentence() -> list[str]:
    plain, crossed, ours = (
        mean("lamina/robust-prefix", n, "nmse, k = 4") for n in ("FlexLAM", "cross-exogenous", "robust prefix")
    )
    return [
        f"lower, by {plain - ours:.2f} where cross-exogenous reconstruction of all slots gains {plain - crossed:.2f}"
    ]


def prefix_sentence() -> list[str]:
    words = {9: "ninth", 14: "fourteenth", 19: "nineteenth", 64: "sixty-fourth"}

    def times(metric: str, k: int) -> str:
        flexlam, ours = (
            mean("lamina/structured-prefix", n, f"{metric} at k = {k}") for n in ("FlexLAM", "structured prefix")
        )
        return words[round(flexlam / ours)]

    ends = [f"a {times(metric, 1)} to a {times(metric, 8)}" for metric in ("composition", "reversal")]
    return [f"errors of composition are {ends[0]} of FlexLAM's, those of reversal {ends[1]}"]


def control_sentence() -> list[str]:
    names = ("shuffled latents", "copy-frame", "random-weights encoder")
    found = [mean("flexlam/matched-budget", name, "loss") for name in names]
    return [f"the controls are far above ({min(found):.1f} to {max(found):.1f})"]


def feature_sentences() -> list[str]:
    """How the plain features compare where only the background is new."""
    claim, place = "lamina/feature-control", "cheetah, unseen tasks"
    ours, plain = (values(claim, name, place) for name in ("LAM on features", "plain features of the pair"))
    assert below(plain, ours)
    return [f"the plain features stay better, beyond doubt too (by {paired_difference(ours, plain).mean:.3f})."]


@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("methods/ac_lam", structure_rows), ("methods/ac_lam", design_rows), ("methods/ac_lam", ahead_rows),
        ("methods/ac_lam", leakage_sentences), ("methods/ac_lam", size_sentences), ("methods/ac_lam", model_counts),
        ("methods/alam", transfer_row), ("methods/alam", alam_counts),
        ("methods/robust_prefix", robust_sentence), ("methods/structured_prefix", prefix_sentence), ("methods/flexlam", control_sentence),
        ("spaces", feature_sentences),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)  # fmt: skip
def test_rows_and_sentences_are_those_of_the_record(page: str, made: Callable[[], list[str]]) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert [line for line in made() if line not in text] == []
