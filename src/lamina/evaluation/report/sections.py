"""The sections of a report, each from its part of the record; each raises Malformed where that is not as it should be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lamina.evaluation.report.chart import Html, bar, tag
from lamina.evaluation.report.parts import MISSING, curve, missing, over_k, picture, scroll, section, table
from lamina.evaluation.report.record import Malformed, Metric, get, is_number, numbers, objects, read_rows

LEVELS = {"good": "passed", "warn": "take care", "bad": "failed", "note": "note"}
HEADLINES = {
    "bad": "These latent actions can't be trusted yet",
    "warn": "These latent actions are usable, with care",
    "good": "These latent actions passed every check",
    "note": "No check was recorded",
}
GLOSSARY = {
    "copy-frame": "Predicts that nothing changes: the first frame again.",
    "observation": "Sees the first frame, and nothing of what happened next.",
    "shuffled": "Reads the latent of another, random transition: what is left when the latent means nothing.",
    "random": "Reads the latents of an encoder that was never trained; one pass over unlabelled data has filled its codebook.",
    "mean latent": "Reads one and the same average latent for every transition.",
    "inverse dynamics": "Is trained on the same labels, from both frames directly, without a latent. It shows what the "
    "labels alone can give.",
    "pixel": "Reads the pixels of the two frames, without any model.",
    "majority": "Always answers with the most common action.",
    "previous action": "Sees only the action before this one.",
}
LOSS = Metric("loss", "loss", "lower is better")
ACCURACY = Metric("accuracy", "accuracy", "higher is better", percent=True)
NMSE = Metric("nmse", "NMSE", "lower is better")
PSNR = Metric("psnr", "PSNR, dB", "higher is better")
SSIM = Metric("ssim", "SSIM", "higher is better")
SHARE = Metric("share", "Share of the latent's variance", "lower is better", percent=True)
LPIPS = Metric("lpips", "LPIPS", "lower is better")


def verdict(record: dict[str, Any]) -> Html:
    """The findings, under a headline that the worst of them writes."""
    lines = objects(record, "verdict")
    for line in lines:
        if line.get("level") not in LEVELS or not isinstance(line.get("text"), str):
            raise Malformed(f"verdict holds a line without a text or a level ({', '.join(LEVELS)})")
    levels = {line["level"] for line in lines}
    worst = next((level for level in ("bad", "warn", "good") if level in levels), "note")
    items = [
        tag("li", tag("span", LEVELS[line["level"]], class_=f"chip {line['level']}"), tag("span", line["text"]))
        for line in lines
    ]
    return tag(
        "section",
        tag("h2", HEADLINES[worst]),
        tag("ul", *items) if items else missing(),
        class_=f"verdict {worst}",
        id="verdict",
        aria_label="Verdict",
    )


def how_to_read(record: dict[str, Any]) -> Html:
    """What a latent action, held-out data and a control are."""
    slots = record.get("slots")
    size = f", in {slots} slots" if isinstance(slots, int) else ""
    return section(
        "reading",
        "How to read this",
        tag(
            "p",
            f"A latent action is what the model writes down about the change from one frame to the next{size}, having "
            "seen video only. Keeping the first k slots and blanking the rest gives a shorter code; k is its budget.",
        ),
        tag(
            "p",
            "Everything here is measured on held-out data, which no part of the model was trained on. The range under "
            "a number is its 95% interval (bootstrap over the test data): how far it could move with other test episodes.",
        ),
        tag(
            "p",
            tag("strong", "Compare with the controls. "),
            "A control is a score that a latent without any information also gets, by the same measurement. The model has "
            "shown something only where its interval is clear of the controls. A reference is another way to solve the "
            "same problem, for scale.",
        ),
    )


def facts(record: dict[str, Any]) -> Html:
    """Data, gap and labels, as a list."""
    data = get(record, "data", dict)
    gap = numbers(record, "gap_seconds", "")
    trained_on = get(data, "trained_on", list, "data.")

    def text(value: Any, pattern: str = "{}") -> str | None:
        return None if value is None else pattern.format(f"{value:g}" if isinstance(value, float) else value)

    def both(first: str | None, second: str | None) -> str:
        return ", ".join(part for part in (first, second) if part) or MISSING

    held_out = both(text(data.get("episodes"), "{} episodes"), text(data.get("transitions"), "{} transitions"))
    told = {
        "Method": text(record.get("method")),
        "Trained on": ", ".join(map(str, trained_on)) or None,
        "Tested on": text(data.get("path")),
        "Held-out part": both(text(data.get("split"), "{} split"), held_out),
        "Time between frames": both(
            f"{gap[0]:g} to {gap[-1]:g} s" if gap else None, text(data.get("fps"), "video at {} frames/s")
        ),
        "Latent slots": text(record.get("slots")),
        "Action labels used": both(text(record.get("labels")), text(record.get("label_episodes"), "from {} episodes")),
    }
    return tag("dl", *[part for name, value in told.items() for part in _fact(name, value)])


def _fact(name: str, value: str | None) -> tuple[Html, Html]:
    return tag("dt", name), tag("dd", MISSING if value is None else value)


def actions(record: dict[str, Any]) -> Html:
    """Translators and their controls."""
    metrics = (LOSS, ACCURACY, NMSE)
    rows = read_rows(record, "translator", metrics)
    return section(
        "actions",
        "Can actions be read from the latents?",
        tag(
            "p",
            "A translator, a small network, learns from a few labelled transitions to turn a latent into the action that "
            "was taken. Its loss is the cross-entropy of discrete actions and the squared error of continuous ones.",
        ),
        over_k(rows, metrics),
        table(rows, metrics, "Translator, with controls") if rows else missing(),
        budget(get(record, "budget", dict)),
    )


def budget(trained: dict[str, Any]) -> Html | None:
    """How the translator, and with it every control, was trained; nothing for a record that does not say."""
    names = ("steps", "scratch_steps", "batch", "lr", "validate_every")
    if not trained:
        return None
    if not all(is_number(trained.get(name)) for name in names):
        raise Malformed(f"budget lacks one of {', '.join(names)}")
    reads = str(trained.get("condition", "")).replace("+", ", ")
    return tag(
        "p",
        f"Every control had the translator's training: {trained['steps']} steps of {trained['batch']} labels, learning rate "
        f"{trained['lr']:g}, the best of the checkpoints that were tried every {trained['validate_every']} steps, the same inputs "
        f"({reads}). Observation-only and the inverse dynamics model train an encoder of their own from those labels alone, in "
        f"{trained['scratch_steps']} steps.",
    )


def linear(record: dict[str, Any]) -> Html:
    """The linear probe and its controls."""
    metrics = (NMSE, ACCURACY)
    rows = read_rows(record, "linear", metrics)
    return section(
        "linear",
        "How much can a linear probe read?",
        tag(
            "p",
            "A linear map from the latent to the action: what it finds lies in the latent openly, not hidden behind a "
            "network's work. NMSE is the squared error divided by the variance of the actions: 1 is no better than "
            "always guessing the average, 0 is perfect.",
        ),
        table(rows, metrics, "Linear probe, with controls") if rows else missing(),
    )


def reconstruction(record: dict[str, Any], run: Path) -> Html:
    """Predicted frames: pictures, PSNR, SSIM, LPIPS."""
    metrics = (PSNR, SSIM, LPIPS)
    rows = read_rows(record, "reconstruction", metrics)
    pictures = [picture(raw, run) for raw in objects(record, "pictures")]
    return section(
        "reconstruction",
        "Does the latent say what happens next?",
        tag(
            "p",
            "From the first frame and the latent, the decoder draws the next frame. PSNR and SSIM measure how close it "
            "comes, pixel by pixel and in structure; LPIPS, how different it looks to a vision network. Copy-frame is the "
            "one to beat: it draws the first frame again.",
        ),
        *pictures,
        over_k(rows, metrics),
        table(rows, metrics, "Reconstruction, with controls") if rows else missing(),
    )


def exogenous(record: dict[str, Any]) -> Html | None:
    """Where the data has paired views; nothing elsewhere."""
    metrics = (PSNR, SHARE)
    rows = read_rows(record, "exogenous", metrics)
    if not rows:
        return None
    with_metric = [(m, [row for row in rows if row.values[m.key]]) for m in metrics]
    tables = [table(rows, (m,), f"Exogenous state, {m.name}") for m, rows in with_metric if rows]
    return section(
        "exogenous",
        "Does the latent hold what the agent did not do?",
        tag(
            "p",
            "Paired views show the same states under two exogenous states: other colours, another background, another camera. The swap "
            "takes the latent from the frame and the paired next frame. A latent of the agent's doing alone predicts the same "
            "next frame as before; one that copies the future predicts the paired one.",
        ),
        *tables,
    )


def codes(record: dict[str, Any]) -> Html:
    """How the codebook is used, slot by slot."""
    found = get(record, "codes", dict)
    size = found.get("codebook")
    slots = objects(found, "slots", "codes.")
    body = []
    for slot in slots:
        usage, perplexity, dead = (_share(slot, key) for key in ("usage", "perplexity", "dead"))
        body.append(
            tag(
                "tr",
                tag("th", str(slot.get("slot", MISSING)), scope="row"),
                tag("td", MISSING if usage is None else f"{100 * usage:.0f}%"),
                tag("td", bar(usage) if usage is not None and math.isfinite(usage) else ""),
                tag("td", MISSING if perplexity is None else f"{perplexity:.1f}"),
                tag("td", MISSING if dead is None else f"{100 * dead:.0f}%"),
            )
        )
    heads = ("Slot", "Codes used", "of all", "Perplexity", "Dead codes")
    by_slot = tag(
        "table",
        tag("thead", tag("tr", *[tag("th", head, scope="col") for head in heads])),
        tag("tbody", *body),
    )
    warnings = [tag("li", str(warning)) for warning in get(found, "warnings", list, "codes.")]
    of = f" of {size:,}" if isinstance(size, int) else ""
    return section(
        "codes",
        "Are the codes in use?",
        tag(
            "p",
            f"Each slot holds one code{of}. Perplexity is the number of codes that would be in use if all were equally "
            "common; 1 means that the slot always says the same, and so says nothing. Dead codes are never used.",
        ),
        tag("ul", *warnings, class_="warnings") if warnings else None,
        scroll(by_slot, "Codes per slot") if body else missing(),
    )


def _share(slot: dict[str, Any], key: str) -> float | None:
    value = slot.get(key)
    if value is not None and not is_number(value):
        raise Malformed(f"codes.slots: {key} is not a number")
    return value


def training(record: dict[str, Any]) -> Html:
    """The curves of the model and of its translator."""
    fitted, translator = get(record, "training", dict), get(record, "translator_curve", dict)
    validation = get(fitted, "validation", dict, "training.")
    steps = numbers(translator, "steps", "translator_curve.")
    charts = [
        curve(
            "Latent action model",
            {
                "training": (numbers(fitted, "steps", "training."), numbers(fitted, "loss", "training.")),
                "held-out episodes": (
                    numbers(validation, "steps", "training.validation."),
                    numbers(validation, "loss", "training.validation."),
                ),
            },
        ),
        curve(
            "Translator",
            {
                name: (steps, values)
                for name, key in (("training", "train"), ("validation", "validation"))
                if (values := numbers(translator, key, "translator_curve."))
            },
        ),
    ]
    drawn = [chart for chart in charts if chart]
    return section(
        "training",
        "How did training go?",
        tag(
            "p",
            "A validation loss that rises while the training loss falls means that the translator learns its few labels by "
            "heart; the checkpoint with the lowest validation loss is the one that was measured.",
        ),
        tag("div", *drawn, class_="charts") if drawn else missing(),
    )


def words(record: dict[str, Any]) -> Html | None:
    """What each control and reference that occurs here is."""
    named = {
        row["name"]: next((text for key, text in GLOSSARY.items() if key in str(row["name"]).lower()), None)
        for part in ("translator", "linear", "reconstruction")
        for row in objects(record, part)
        if row.get("role") != "model"
    }
    parts = [part for name, text in named.items() if text for part in (tag("dt", name), tag("dd", text))]
    return section("words", "Controls and references", tag("dl", *parts, class_="glossary")) if parts else None


def notes(record: dict[str, Any]) -> Html | None:
    """What the evaluation had to say besides; nothing elsewhere."""
    items = [tag("li", str(note)) for note in get(record, "notes", list)]
    return section("notes", "Notes", tag("ul", *items)) if items else None
