"""From the record of an evaluation to one HTML page that a person can read without knowing this project.

The page holds its pictures and its style and asks for nothing else, so it can be mailed or archived as it is.
"""

from __future__ import annotations

from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from lamina.errors import LaminaError
from lamina.evaluation.report import sections, structure
from lamina.evaluation.report.chart import Html, join, tag
from lamina.evaluation.report.parts import MISSING, section
from lamina.evaluation.report.record import Malformed
from lamina.files import read_json, write_text


def _day(created: object) -> str:
    """2026-01-15T12:34:56+00:00 as "15 January 2026, 12:34"; anything else as it is."""
    try:
        return f"{datetime.fromisoformat(str(created)):%d %B %Y, %H:%M}".lstrip("0")
    except ValueError:
        return MISSING if created is None else str(created)


def _page(record: dict[str, Any], run: Path) -> str:
    """The whole page. Raises Malformed where the record is not as it should be."""
    method = record.get("method")
    title = f"Report on {method if isinstance(method, str) else 'a latent action model'}"
    version, checkpoint = record.get("lamina"), record.get("checkpoint")
    contents = (
        ("actions", "Actions", sections.actions(record)),
        ("reconstruction", "Next frame", sections.reconstruction(record, run)),
        ("structure", "Structure", structure.structure(record, run)),
        ("leakage", "Environment", structure.leakage(record)),
        ("linear", "Linear probe", sections.linear(record)),
        ("exogenous", "Exogenous state", sections.exogenous(record)),
        ("codes", "Codes", sections.codes(record)),
        ("training", "Training", sections.training(record)),
        ("words", "Controls", sections.words(record)),
        ("notes", "Notes", sections.notes(record)),
    )
    links = [tag("a", name, href=f"#{anchor}") for anchor, name, content in contents if content]
    main = tag(
        "main",
        tag(
            "header",
            tag("h1", title),
            tag("p", f"Run {record.get('run', MISSING)}, evaluated {_day(record.get('created'))}"),
        ),
        sections.verdict(record),
        tag("nav", *links, aria_label="Sections"),
        tag(
            "div",
            sections.how_to_read(record),
            section("facts", "What was measured", sections.facts(record)),
            class_="pair",
        ),
        *(content for _, _, content in contents),
    )
    footer = tag("footer", f"Lamina {version or MISSING}. Checkpoint ", tag("code", str(checkpoint or MISSING)), ".")
    style = resources.files("lamina.evaluation.report").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        ),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        Html(f"<style>\n{style}</style>"),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", join(main, footer)), lang="en") + "\n"


def write_report(run: Path) -> Path:
    """Writes RUN/report.html from RUN/evaluation.json and returns its path.

    What the record lacks is shown as "not available". Raises LaminaError, naming the file, when there is no record,
    when it is not one, or when the page can't be written.
    """
    source = run / "evaluation.json"
    again = f"run `lamina evaluate {run}` again"
    if not source.exists():
        raise LaminaError(f"{source}: no evaluation is there; run `lamina evaluate {run} --data DATASET`")
    record = read_json(source, again)
    if record.get("format") != 1:
        raise LaminaError(f"{source}: not an evaluation record of format 1, which this version reads; {again}")
    try:
        page = _page(record, run)
    except Malformed as error:
        raise LaminaError(f"{source}: damaged record: {error}; {again}") from error
    return write_text(run / "report.html", page)
