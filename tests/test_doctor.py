"""The doctor: each model that is wrong on purpose has its own diagnosis, and a right one has a clean bill."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

import lamina
from lamina.cli import main
from lamina.evaluation.doctor import Diagnosis, DoctorConfig, examine, judge_codes
from lamina.evaluation.probes.content import share_told
from lamina.images import to_float
from lamina.inference.subject import Subject
from lamina.intervals import Estimate
from lamina.types import Clip
from planted import SIZE, write_planted

torch.set_num_threads(1)
SIDE, LENGTH, SQUARE = 48, 24, 6
SMALL = DoctorConfig(transitions=160, decoded=64, device="cpu")
CLOCK, MARK = slice(0, 2), slice(2, 4)  # rows of the picture


def recording(rng: np.random.Generator) -> SimpleNamespace:
    """An episode [24 48 48 3]: a bright square walks towards a goal column, mostly. The scene is the colour of the background, the marker
    in rows 2 and 3 stands in the goal's column, and the bar in rows 0 and 1 grows by a pixel a frame."""
    background, goal = rng.integers(20, 90, 3), int(rng.integers(0, SIDE - SQUARE))
    row, column = 16, (goal + SIDE // 2) % (SIDE - SQUARE)  # it has some way to go
    frames = np.empty((LENGTH, SIDE, SIDE, 3), np.uint8)
    for t in range(LENGTH):
        frames[t] = background
        frames[t, CLOCK, : t + 1, 0] = 200
        frames[t, MARK, goal : goal + SQUARE, 1] = 220
        frames[t, row : row + SQUARE, column : column + SQUARE] = 255
        sideways = int(np.sign(goal - column)) if rng.random() < 0.7 else int(rng.integers(-1, 2))
        down = int(rng.integers(-1, 2)) if rng.random() < 0.3 else 0
        column = int(np.clip(column + 2 * sideways, 0, SIDE - SQUARE))
        row = int(np.clip(row + 2 * down, 6, SIDE - SQUARE))
    return SimpleNamespace(frames=frames)


@pytest.fixture(scope="module")
def data() -> lamina.InMemoryDataset:
    rng = np.random.default_rng(0)
    return lamina.InMemoryDataset([recording(rng) for _ in range(160)], fps=10)


def place(frames: Tensor) -> Tensor:
    """[n 2]: row and column of the square's upper left corner."""
    white = (frames.amin(1) == 255).float()
    rows, columns = white.amax(2), white.amax(1)
    return torch.stack([rows.argmax(1), columns.argmax(1)], 1).float()


def moved(src: Tensor, dst: Tensor) -> Tensor:
    """[n 2]: how the square moved, in steps of two pixels; no latent says more than one step."""
    return ((place(dst) - place(src)) / 2).clamp(-1, 1)


def draw(src: Tensor, z: Tensor) -> Tensor:
    """The first frame with its square moved by the latent."""
    pictures = src.clone()
    for picture, (row, column), (down, sideways) in zip(pictures, place(src).int(), 2 * z[:, :2], strict=True):
        background = picture[:, 5, -1].clone()
        picture[:, row : row + SQUARE, column : column + SQUARE] = background[:, None, None]
        r, c = int(row + down.round()), int(column + sideways.round())
        picture[:, max(0, r) : r + SQUARE, max(0, c) : c + SQUARE] = 255
    return to_float(pictures)


def code(z: Tensor) -> Tensor:
    """[n 2]: the step of each axis as one of three codes."""
    return z[:, :2].round().clamp(-1, 1).long() + 1


def marker(frames: Tensor) -> Tensor:
    """[n 1]: the column of the marker, which is where the square is going."""
    return (frames[:, 1, 3] == 220).float().argmax(1)[:, None]


def clock(frames: Tensor) -> Tensor:
    """[n 1]: how long the bar is."""
    return (frames[:, 0, 0] == 200).float().sum(1)[:, None]


RIGHT = Subject(
    "right", moved, draw, image=(SIDE, SIDE), slots=2, index=lambda a, b: code(moved(a, b)), codebook_size=3,
)  # fmt: skip


def beside(extra: Callable[[Tensor], Tensor], scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """An encoder that says the change and, much louder, a property of the second frame."""
    return lambda src, dst: torch.cat([moved(src, dst), scale * extra(dst)], 1)


def shuffled(src: Tensor, dst: Tensor) -> Tensor:
    """The latent of the transition after the next in the batch."""
    return moved(src, dst).roll(2, 0)


def misplaced(src: Tensor, dst: Tensor) -> Tensor:
    """A fixed wrong latent for each pair: the decoder reads it, and it means nothing."""
    number = (place(src) * torch.tensor([7.0, 5.0]) + place(dst) * torch.tensor([3.0, 11.0])).long()
    return (number % 3 - 1).float()


#: Wrong models: what is changed of the right one, and the findings that fail.
WRONG: dict[str, tuple[dict, set[str]]] = {
    "constant": (
        {"encode": lambda a, b: torch.ones(len(a), 2), "index": lambda a, b: torch.ones(len(a), 2, dtype=torch.long)},
        {"constant latent", "dead codes", "ignored latent"},
    ),
    "dead codes": ({"index": lambda a, b: torch.ones(len(a), 2, dtype=torch.long)}, {"dead codes"}),
    "ignored": ({"decode": lambda a, z: draw(a, torch.ones(len(a), 2))}, {"ignored latent"}),
    "copying": ({"decode": lambda a, z: to_float(a)}, {"ignored latent", "copied frame"}),
    "shuffled": ({"encode": shuffled}, {"latents of other transitions", "ignored latent"}),
    "misplaced": ({"encode": misplaced}, {"ignored latent"}),
    "whole frame": (
        {
            "encode": lambda a, b: to_float(b).flatten(1),
            "decode": lambda a, z: z.view(len(z), 3, SIDE, SIDE),
            "slots": 1,
        },
        {"unrelated pairs"},
    ),
    "goal": ({"encode": beside(marker, 0.2), "slots": 1}, {"goal", "state in the latent"}),
    "scene": ({"encode": beside(lambda x: x[:, :, 5, -1].float(), 0.1), "slots": 1}, {"scene", "state in the latent"}),
    "time step": ({"encode": beside(clock, 0.3), "slots": 1}, {"time step", "state in the latent"}),
}


def failed(diagnosis: Diagnosis) -> set[str]:
    return {finding.name for finding in diagnosis.findings if finding.level == "bad"}


def test_a_right_model_has_a_clean_bill(data):
    diagnosis = examine(RIGHT, data, SMALL)
    assert diagnosis.healthy, str(diagnosis)
    names = [finding.name for finding in diagnosis.findings]
    assert set(names) == {
        "constant latent", "latents of other transitions", "dead codes", "ignored latent", "copied frame", "unrelated pairs",
        "state in the latent", "scene", "goal", "time step",
    } and len(set(names)) == len(names)  # fmt: skip
    assert not diagnosis.notes and not any(finding.advice for finding in diagnosis.findings)
    assert diagnosis["copied frame"].value.low > 1  # dB
    assert abs(diagnosis["state in the latent"].value.mean) < 0.02


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_model_is_diagnosed(kind, data):
    changes, expected = WRONG[kind]
    diagnosis = examine(replace(RIGHT, name=kind, **changes), data, SMALL)
    found = failed(diagnosis)
    optional = (
        {"unrelated pairs", "copied frame"} if kind in ("constant", "ignored", "shuffled", "misplaced") else set()
    )
    optional |= {"state in the latent", "scene", "goal", "time step"} if kind == "whole frame" else set()
    optional |= {"state in the latent"} if kind == "misplaced" else set()  # its noise depends on the first frame
    assert expected <= found <= expected | optional, str(diagnosis)
    assert not diagnosis.healthy and diagnosis.findings[0].level == "bad"
    for finding in diagnosis.findings:
        assert bool(finding.advice) == (finding.level != "good")


@pytest.mark.parametrize(("kind", "says"), [("misplaced", "the prediction follows"), ("ignored", "latent is ignored")])
@pytest.mark.parametrize("predicts", ["pixels", "features"])
def test_a_latent_that_is_read_and_wrong_is_told_from_one_that_is_ignored(kind, says, predicts, data):
    """Also where features are predicted, which are no pictures: here one mean for each block of 4 pixels."""
    changes = {**WRONG[kind][0], "predicts": predicts}
    draws = changes.get("decode", draw)
    if predicts == "features":
        changes |= {
            "decode": lambda a, z: avg_pool2d(draws(a, z), 4),
            "target": lambda frames: avg_pool2d(to_float(frames), 4),
        }
    finding = examine(replace(RIGHT, name=kind, **changes), data, SMALL)["ignored latent"]
    assert finding.level == "bad" and says in finding.text


@pytest.mark.parametrize(("codes", "of"), [(4375, "the codes that so few transitions can show"), (100, "its codes")])
def test_a_share_of_codes_is_of_those_that_can_occur(codes: int, of: str):
    """128 transitions say 32 codes: a quarter of what they can say where there are more codes than transitions, not of all codes."""
    n = 128
    clip = Clip(
        torch.zeros(n, 2, 3, 4, 4, dtype=torch.uint8), torch.zeros(n, 2), torch.zeros(n, 2, dtype=torch.long), torch.arange(n) // 16
    )  # fmt: skip
    clip.frames[:, 0, 0, 0, 0] = torch.arange(n) % 32
    subject = Subject("codes", moved, index=lambda a, b: a[:, 0, 0, :1].long(), codebook_size=codes)
    found = judge_codes(subject, clip, clip)
    assert found.value.mean == pytest.approx(1 - 32 / min(codes, n))
    assert found.text.startswith(f"a slot uses {32 / min(codes, n):.0%} of {of}; 0 of 1 slots")


def test_what_cannot_be_told_without_a_decoder_or_episodes_is_noted(data):
    diagnosis = examine(Subject("bare", moved, image=(SIDE, SIDE)), data, SMALL)
    assert {"ignored latent", "dead codes"}.isdisjoint(finding.name for finding in diagnosis.findings)
    assert "no codebook" in diagnosis.notes[0] and "no decoder" in diagnosis.notes[1]
    one = lamina.InMemoryDataset([SimpleNamespace(frames=recording(np.random.default_rng(1)).frames)] * 4, fps=10)
    few = examine(RIGHT, one, SMALL)
    assert any("too few episodes" in note and "scene, goal" in note for note in few.notes)
    assert any("fewer than 5 test episodes" in note for note in few.notes)


def test_the_share_told_is_that_of_the_variance():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, generator=generator)
    y = x + torch.randn(4000, 1, generator=generator)  # half of its variance is told by x
    episode = torch.arange(2000) // 20
    given = (x[:2000], x[2000:])

    def told(train_y: torch.Tensor, test_y: torch.Tensor) -> Estimate:
        return share_told(given[0], train_y, episode, given[1], test_y, episode)

    half = told(y[:2000], y[2000:])
    assert half.mean == pytest.approx(0.5, abs=0.05) and half.low < half.mean < half.high
    assert told(x[:2000] ** 2, x[2000:] ** 2).mean > 0.95  # no linear map tells it
    assert abs(told(y[:2000].flip(0), y[2000:]).mean) < 0.02
    assert np.isnan(told(torch.ones(2000, 1), torch.ones(2000, 1)).mean)


def test_what_is_the_same_all_through_an_episode_is_not_learnt_by_heart():
    """Noise that names the episode tells the training episodes' property, and nothing of another episode's."""
    generator = torch.Generator().manual_seed(0)
    name, property_ = torch.randn(40, 6, generator=generator), torch.randn(40, 1, generator=generator)
    episode = torch.arange(40).repeat_interleave(10)
    x, y = name[episode], property_[episode]
    told = share_told(x[:300], y[:300], episode[:300], x[300:], y[300:], episode[300:])
    assert told.mean < 0.1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_planted(home / "data", episodes=30, length=16)
    options = {"size": "debug", "slots": 2, "decoder": "unet", "batch": 16, "workers": 0, "device": "cpu"}
    lamina.train("flexlam", home / "data", out=home / "run", steps=20, image=(SIZE, SIZE), gap=(0.1, 0.1), **options)
    return home


def test_the_command_prints_findings_and_writes_json(run, capsys):
    out = run / "doctor.json"
    assert main(["doctor", str(run / "run"), "--data", str(run / "data"), "--json", str(out), "--device", "cpu"]) == 0
    printed, record = capsys.readouterr().out, json.loads(out.read_text())
    assert record["format"] == 1 and record["subject"] == str(run / "run")
    for finding in record["findings"]:
        assert f"{finding['name']}: {finding['text']}" in printed
        assert {"mean", "low", "high"} == set(finding["value"]) == set(finding["control"])
    # twenty steps are no training: the decoder knows nothing of the latent yet
    assert "ignored latent" in {f["name"] for f in record["findings"] if f["level"] == "bad"}
    again = lamina.doctor(run / "run", run / "data", device="cpu")
    assert [f.value for f in again.findings] == [
        f.value for f in examine(run / "run", run / "data", DoctorConfig(device="cpu")).findings
    ]


def test_mistakes_are_one_line(run, tmp_path, capsys):
    for argv, said in (
        (["doctor", str(tmp_path), "--data", str(run / "data")], f"is {tmp_path} a model folder?"),
        (["doctor", str(run / "run"), "--data", str(tmp_path / "none")], "no such file or folder"),
        (["doctor", "--data", str(run / "data")], "give a run folder, or --subject module:function"),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
