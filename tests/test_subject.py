"""Models of other libraries through every probe: what a subject allows, what the report leaves out, and the wrappers of the examples."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lamina.cli import main
from lamina.errors import LaminaError
from lamina.evaluation.evaluate import evaluate
from lamina.evaluation.record import Evaluation
from lamina.evaluation.settings import EvaluateConfig
from lamina.images import to_float
from lamina.inference.encode import in_batches
from lamina.inference.subject import Subject, load_subject, pixel_change
from lamina.models.bottlenecks.prefix import RetainedPrefix
from planted import SIZE, write_planted

torch.set_num_threads(1)
TESTS = Path(__file__).parent
SMALL = EvaluateConfig(
    transitions=24, reconstructions=16, linear=40, structure=8, translator_steps=60, scratch_steps=4, device="cpu"
)
SMALL_OPTIONS = [
    "--transitions", "24", "--reconstructions", "16", "--linear", "40", "--structure", "8",
    "--translator-steps", "6", "--scratch-steps", "4", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_planted(tmp_path_factory.mktemp("planted") / "dataset", episodes=10, length=16))


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples, and stand-ins of the packages that they wrap, can be imported."""
    for folder in (TESTS / "stand_ins", TESTS.parent / "examples" / "subjects"):
        monkeypatch.syspath_prepend(str(folder))
    for name in ("lam", "laq_model", "villa_x", "lapa"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("VILLA_X", "checkpoint")
    monkeypatch.setenv("LAPA", "checkpoint.pt")


def differences(src: Tensor, dst: Tensor) -> Tensor:
    """[n 4 12]: the change of the pixels on a grid of 4 x 4, as four slots."""
    change = torch.nn.functional.avg_pool2d(to_float(dst) - to_float(src), SIZE // 4)
    return change.view(len(src), 4, 12)


def add(src: Tensor, z: Tensor) -> Tensor:
    return to_float(src) + torch.nn.functional.interpolate(z.view(-1, 3, 4, 4), (SIZE, SIZE))


def bare(**abilities: Any) -> Subject:
    return Subject("theirs", differences, image=(SIZE, SIZE), **abilities)


def page_text(folder: Path) -> str:
    page = (folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S))


def test_batches_are_of_the_size_asked_for_and_in_order() -> None:
    sizes = []

    def double(x: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(x))
        return 2 * x + y

    assert torch.equal(in_batches(double, torch.arange(7), torch.ones(7), size=3), 2 * torch.arange(7) + 1)
    assert sizes == [3, 3, 1]


def test_an_encoder_alone_is_evaluated_and_the_rest_is_named(data: str, tmp_path: Path) -> None:
    evaluated = evaluate(bare(), data, SMALL, tmp_path)
    assert (tmp_path / "evaluation.json").read_text() == evaluated.to_json() + "\n"
    record = json.loads(evaluated.to_json())
    assert Evaluation.from_dict(record) == evaluated
    assert record["method"] == "theirs" and record["checkpoint"] is None and record["run"] == str(tmp_path)
    assert record["reconstruction"] == [] and record["pictures"] == [] and record["translator"] == []
    assert [r["role"] for r in record["structure"]["records"]] == ["model", "reference"]
    assert record["structure"]["rows"][0]["composition"]["mean"] < 1e-3  # sums of differences
    rows = {row["name"]: row for row in record["linear"]}
    assert "random-weights encoder" not in rows and rows["theirs"]["k"] == 1
    assert rows["theirs"]["nmse"]["mean"] < rows["shuffled latents"]["nmse"]["mean"]
    said = " ".join(record["notes"])
    for lack in ("has no decoder", "has no codebook", "has no random-weights control", "--labels 120", "tiny encoder"):
        assert lack in said
    assert "no random-weights control to compare with" in " ".join(line["text"] for line in record["verdict"])


def test_with_labels_a_translator_and_its_controls_are_trained_alike(data: str, tmp_path: Path) -> None:
    evaluated = evaluate(bare(), data, dataclasses.replace(SMALL, labels="40"), tmp_path)
    record = json.loads(evaluated.to_json())
    names = [row["name"] for row in record["translator"]]
    assert names == [
        "theirs", "shuffled latents", "copy-frame", "observation-only", "inverse dynamics model", "plain pixels of the pair"
    ]  # fmt: skip
    assert (record["labels"], record["budget"]["steps"], record["budget"]["scratch_steps"]) == (40, 60, 4)
    loss = {row["name"]: row["loss"]["mean"] for row in record["translator"]}
    assert loss["theirs"] < loss["shuffled latents"]
    assert len(record["translator_curve"]["steps"]) > 5
    assert not (tmp_path / "translator").exists()
    with pytest.raises(LaminaError, match="--labels 2"):
        evaluate(bare(), data, dataclasses.replace(SMALL, labels="2"), tmp_path)


def test_every_ability_opens_its_probes(data: str, tmp_path: Path) -> None:
    subject = bare(
        decode=add, slots=4, prefix=RetainedPrefix(4, 12, "full"), codebook_size=5,
        index=lambda a, b: differences(a, b).mean(-1).sign().long() + 1, control=lambda clip, seed: pixel_change("random"),
    )  # fmt: skip
    evaluated = evaluate(subject, data, SMALL, tmp_path)
    record = json.loads(evaluated.to_json())
    assert record["prefixes"] == [1, 2, 4] and record["slots"] == 4
    psnr = [row["psnr"]["mean"] for row in record["reconstruction"] if row["role"] == "model"]
    assert psnr == sorted(psnr) and psnr[0] < psnr[-1]
    assert [slot["slot"] for slot in record["codes"]["slots"]] == [1, 2, 3, 4] and record["codes"]["codebook"] == 5
    assert [r["role"] for r in record["structure"]["records"]] == ["model", "control", "reference"]
    assert {p["file"] for p in record["pictures"]} == {"pictures/prefix.png", "pictures/transfer.png"}
    assert all((tmp_path / picture["file"]).exists() for picture in record["pictures"] + record["structure_pictures"])
    assert not [note for note in record["notes"] if "decoder" in note or "codebook" in note]


def test_nothing_is_written_without_a_folder(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = evaluate(bare(), data, dataclasses.replace(SMALL, structure=0))
    assert record.linear and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        (Subject("theirs", lambda a, b: torch.zeros(len(a))), r"encode returned \(4,\) for 4 pairs"),
        (Subject("theirs", lambda a, b: torch.zeros(1, 8)), r"encode returned \(1, 8\) for 4 pairs"),
        (Subject("theirs", lambda a, b: torch.zeros(len(a), 8), slots=3), "3 equal slots"),
        (Subject("theirs", differences, lambda a, z: torch.zeros(len(a), 3, 8, 8)), r"decode returned \(4, 3, 8, 8\)"),
    ],
)
def test_what_does_not_fit_is_named(subject: Subject, said: str) -> None:
    frames = torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8)
    with pytest.raises(LaminaError, match=said):
        subject.draw(frames, subject.latents(frames, frames))


def test_arrays_and_inference_tensors_are_latents_that_can_be_trained_on() -> None:
    frames = torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8)
    array = Subject("array", lambda a, b: np.ones((len(a), 2, 3), np.float64)).latents(frames, frames)
    assert array.dtype == torch.float32 and array.shape == (4, 6)
    z = Subject("theirs", torch.inference_mode()(differences)).slotted(frames, frames)
    torch.nn.Linear(z.shape[2], 1)(z).sum().backward()  # raises on an inference tensor


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("villa_x", "module:function"),
        ("no_such_module:subject", "no_such_module"),
        ("villa_x:missing", "missing"),
        ("json:JSONDecoder", "JSONDecoder, not a lamina Subject"),
        ("json:loads", "TypeError"),
    ],
)
def test_a_subject_that_cannot_be_made_is_one_line(name: str, said: str, modules: None) -> None:
    with pytest.raises(LaminaError, match=said) as caught:
        load_subject(name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_takes_a_run_or_a_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ([], ["run", "--subject", "a:b", "--out", "out"], ["--subject", "a:b"]):
        assert main(["evaluate", *options, "--data", "data"]) == 2
        assert "give a run folder, or --subject module:function with --out" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- the wrappers of the examples


def flat(value: int, count: int = 3) -> Tensor:
    return torch.full((count, 3, 16, 16), value, dtype=torch.uint8)


def test_villa_x_reads_the_earlier_frame_first_and_pixels_of_bytes(modules: None) -> None:
    subject = load_subject("villa_x:subject")
    assert (subject.slots, subject.codebook_size, subject.image) == (4, 32, (16, 16))
    z = subject.latents(flat(0), flat(255))
    assert z.shape == (3, 48)
    # (1 - 0) / std of each channel, rounded to the stand-in's steps of 1/64
    assert z[0].view(3, 16).mean(1).tolist() == pytest.approx([1 / 0.229, 1 / 0.224, 1 / 0.225], abs=1 / 64)
    assert (subject.latents(flat(255), flat(0)) < 0).all()
    assert subject.index is not None and subject.index(flat(0), flat(255)).shape == (3, 4)


@pytest.mark.parametrize("count", [1, 3])
def test_villa_x_decodes_to_the_range_of_the_target(modules: None, count: int) -> None:
    subject = load_subject("villa_x:subject")
    assert subject.decode is not None
    src, dst = flat(40, count), flat(220, count)
    z = subject.latents(src, dst)
    predicted = subject.decode(src, z)
    assert predicted.shape == (count, 3, 16, 16) and torch.allclose(predicted, to_float(dst), atol=0.03)
    assert subject.error(src, z, dst).max() < 1e-3 < 0.1 < subject.error(src, -z, dst).min()


def test_lapa_reads_the_earlier_frame_first_and_pixels_in_the_unit_range(modules: None) -> None:
    subject = load_subject("lapa:subject")
    assert (subject.slots, subject.codebook_size, subject.image) == (4, 8, (256, 256)) and subject.index is not None
    dark, bright = (torch.full((2, 3, 256, 256), value, dtype=torch.uint8) for value in (0, 255))
    assert (
        subject.index(dark, bright).tolist() == [[7] * 4] * 2 and subject.index(bright, dark).tolist() == [[0] * 4] * 2
    )
    z = subject.slotted(dark, bright)
    assert z.shape == (2, 4, 32) and len(z.flatten(0, 1).unique(dim=0)) == 1
    assert not torch.equal(z, subject.slotted(bright, dark))


@pytest.mark.parametrize("name", ["villa_x", "lapa"])
def test_the_wrappers_have_a_report(name: str, data: str, tmp_path: Path, modules: None) -> None:
    options = ["--subject", f"{name}:subject", "--out", str(tmp_path), "--labels", "30", *SMALL_OPTIONS]
    assert main(["evaluate", "--data", data, *options]) == 0
    record, text = json.loads((tmp_path / "evaluation.json").read_text()), page_text(tmp_path)
    title = {"villa_x": "villa-X", "lapa": "LAPA"}[name]
    assert f"Report on {title}" in text and f"{title} has no random-weights control" in text
    assert (f"{title} has no decoder" in text) == (name == "lapa") == (not record["reconstruction"])
    for heading in ("Can actions be read", "linear probe", "Do the latents add up?", "Are the codes in use?"):
        assert heading in text
    assert "None" not in text and record["codes"]["slots"]
