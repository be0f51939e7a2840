"""The pages of the methods quote the records of results/: every number of a table that names a record is looked up in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lamina_research.reproduce import CLAIMS

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
def numbers(claim: str) -> tuple[float, ...]:
    """Every number of a record: of its metrics and of its texts."""

    def inside(value: Any) -> Iterator[float]:
        if isinstance(value, dict):
            for part in value.values():
                yield from inside(part)
        elif isinstance(value, list):
            for part in value:
                yield from inside(part)
        elif isinstance(value, str):
            yield from (float(n) for n in re.findall(r"[-+]?\d+(?:\.\d+)?", value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield float(value)

    return tuple(inside(record(claim)))


def is_quoted(text: str, claim: str) -> bool:
    """Whether a record has the number, in as many digits as the text shows."""
    digits = len(text.partition(".")[2])
    return any(abs(abs(float(text)) - abs(n)) <= 0.5001 * 10**-digits for n in numbers(claim))


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
