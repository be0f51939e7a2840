"""`lamina play` without a browser: what keys stand for, what a session rolls on to, what is saved, and what the server lets through."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from data_files import write_video
from lamina import methods
from lamina.cli import main
from lamina.data.memory import InMemoryDataset
from lamina.data.sampling import open_source
from lamina.data.video import decode_picture
from lamina.errors import LaminaError, LaminaWarning
from lamina.evaluation.doctor import examine
from lamina.images import resize
from lamina.models.heads import Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel, Provenance
from lamina.play import export
from lamina.play.health import copying, examined, health
from lamina.play.pictures import LARGEST_UPLOAD, data_uri, from_data_uri, png, read_upload
from lamina.play.server import HOST, LARGEST_REQUEST, about, listen, server_of
from lamina.play.session import MOVES, Move, Player
from lamina.play.stage import Stage, cluster_label, describe
from lamina.types import ActionSpec, Latent

torch.set_num_threads(1)
pytestmark = pytest.mark.typed
SIDE, SLOTS, COUNT = 32, 4, 40
TOKEN = "of-a-test"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with five actions, and a run that is hardly trained, but aligned."""
    home = tmp_path_factory.mktemp("play")
    data, run = str(home / "data"), str(home / "run")
    assert main(["collect", "grid", "--out", data, "--episodes", "12", "--size", str(SIDE), str(SIDE)]) == 0
    small = [
        "--image",
        str(SIDE),
        str(SIDE),
        "--size",
        "debug",
        "--slots",
        str(SLOTS),
        "--decoder",
        "unet",
        "--steps",
        "30",
    ]
    assert (
        main(
            [
                "train",
                "flexlam",
                "--data",
                data,
                "--out",
                run,
                *small,
                "--batch",
                "8",
                "--device",
                "cpu",
                "--workers",
                "0",
            ]
        )
        == 0
    )
    assert main(["align", run, "--data", data, "--labels", "40", "--steps", "20", "--device", "cpu"]) == 0
    return home


@pytest.fixture(scope="module")
def stage(home: Path) -> Stage:
    return Stage.load(home / "run", str(home / "data"), transitions=COUNT, device="cpu")


@pytest.fixture
def player(stage: Stage) -> Player:
    return Player(stage)


@pytest.fixture(scope="module")
def structured(home: Path) -> Stage:
    """A model whose latent action is continuous (ALAM), with random weights."""
    torch.manual_seed(0)
    method = methods.load("alam")
    config = method.Config(size="debug", image=(SIDE, SIDE), decoder="unet", slots=SLOTS)
    LatentActionModel(method.build(config), Provenance("alam", gap_seconds=(0.2, 0.2))).save_pretrained(home / "alam")
    return Stage.load(home / "alam", str(home / "data"), transitions=COUNT, device="cpu")


# ---------------------------------------------------------------------------------------------------------- the stage


def test_transitions_have_the_latents_that_the_model_gives_them(stage):
    frames = stage.clip.frames
    assert frames.shape[1] == 3 and stage.split == "test" and len(stage.latents) == 2 * len(frames)
    for t in (0, 1):  # the transitions, then those that follow them
        found = stage.model.encode(frames[:, t], frames[:, t + 1])
        rows = stage.latents[t * len(frames) : (t + 1) * len(frames)]
        assert torch.equal(rows.index, found.index) and torch.allclose(rows.pre, found.pre, atol=1e-5)


def test_transitions_are_frames_of_the_data(stage, home):
    source = open_source(str(home / "data"))
    for n in (0, len(stage.clip) - 1):
        episode, row = source.episodes[int(stage.clip.episode[n])], int(stage.clip.index[n, 0])
        assert ("test", 0, episode.length) in episode.splits and stage.tasks[n] == episode.task
        shown = source.frames(episode, source.cameras[0], row, row + 1, (SIDE, SIDE))[0]
        assert np.array_equal(stage.clip.frames[n, 0].permute(1, 2, 0).numpy(), shown)
        action = source.column(episode, "action")[row]
        assert stage.action_text(n) == describe(source.action_spec("action"), action)


def test_every_transition_belongs_to_one_key_and_keys_are_ordered_by_size(stage):
    members = [cluster.members for cluster in stage.clusters]
    assert np.array_equal(np.sort(np.concatenate(members)), np.arange(len(stage.clip)))
    assert [len(m) for m in members] == sorted(map(len, members), reverse=True) and 1 < len(members) <= 9
    flat = stage.flat()
    for cluster in stage.clusters:
        assert set(cluster.examples) <= set(cluster.members.tolist()) and len(set(cluster.examples)) == len(
            cluster.examples
        )
        far = np.linalg.norm(flat[cluster.members] - flat[cluster.members].mean(0), axis=1)
        here = np.linalg.norm(flat[cluster.medoid] - flat[cluster.members].mean(0))
        assert here <= far.min() + 1e-4


def test_a_key_is_called_after_what_its_transitions_have_in_common():
    moves = ActionSpec((3,), 0, ("stay", "left", "right"))
    own, every = np.array([[1], [1], [2], [1]], np.float32), np.zeros((4, 1), np.float32)
    assert cluster_label(moves, own, every) == "left 75%"
    arm = ActionSpec((), 3, ("x", "y", "z"))
    every = np.array([[-1, -1, -1], [1, 1, 1]], np.float32)
    assert cluster_label(arm, np.array([[0, 2, -1]], np.float32), every) == "y +2.0σ, z \N{MINUS SIGN}1.0σ"
    assert (
        describe(ActionSpec((4,), 1, ("gear", "speed")), np.array([2, 0.5], np.float32)) == "gear = 2, speed\xa0+0.50"
    )


def test_the_map_is_the_plane_of_largest_variance_and_is_coloured_by_what_the_data_says(stage):
    places, flat = stage.map(), stage.flat()
    assert places.min() == -1 and places.max() == 1
    _, _, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    for i in (0, 1):
        assert abs(np.corrcoef((flat - flat.mean(0)) @ axes[i], places[:, i])[0, 1]) > 0.999
    colours = {colour["name"]: colour for colour in stage.colours()}
    assert colours["action"]["values"] == stage.clip.action[:, 0, 0].int().tolist()
    assert np.allclose(colours["norm of the latent"]["values"], np.linalg.norm(flat, axis=1), rtol=1e-5)
    for n, cluster in enumerate(stage.clusters):
        assert {colours["key"]["values"][m] for m in cluster.members} == {n}
    with pytest.raises(LaminaError, match="choose pca or umap"):
        stage.map("tsne")


# -------------------------------------------------------------------------------------------------------- sessions


def rolled(player: Player, start: str, *moves: str) -> list[Any]:
    return player.roll(player.session(start, list(moves)))


def test_a_session_is_the_decoder_on_its_own_pictures(player):
    stage = player.stage
    steps = rolled(player, "d3", "5@4", "7@2", "5@1")
    frame = stage.clip.frames[3:4, 0]
    assert torch.equal(steps[0].frame, frame[0])
    for number, (row, k) in enumerate(((5, 4), (7, 2), (5, 1))):
        frame = stage.model.decode(frame, stage.latents.post[row : row + 1], k=k, seed=number)
        assert torch.equal(steps[number + 1].frame, frame[0])
    assert not torch.equal(steps[1].frame, steps[0].frame)
    assert not torch.equal(rolled(player, "d3", "5@1")[1].frame, steps[1].frame)  # another k is another picture


def test_frames_that_are_no_longer_kept_are_the_same_again(stage):
    moves = [f"{n % 9}@4" for n in range(12)]
    whole = rolled(Player(stage), "d0", *moves)
    small = Player(stage)
    small._most = 1
    for n in range(len(moves) + 1):
        again = rolled(small, "d0", *moves[:n])
        assert torch.equal(again[-1].frame, whole[n].frame)
    assert len(small._steps) == 1


def test_sums_are_taken_where_the_latent_action_is_read(stage, structured):
    terms = ((1.0, 2), (-0.5, 9))
    quantised, continuous = stage.latent(terms), structured.latent(terms)
    assert torch.allclose(quantised.post, stage.latents.post[2:3] - 0.5 * stage.latents.post[9:10])
    pre = structured.latents.pre[2:3] - 0.5 * structured.latents.pre[9:10]
    assert torch.allclose(continuous.pre, pre) and torch.equal(continuous.post, structured.model.lam.quantise(pre).post)
    assert not torch.allclose(continuous.post, structured.latents.post[2:3] - 0.5 * structured.latents.post[9:10])


def test_structured_prefixes_add_up_before_the_quantiser_as_they_are_trained(stage):
    """Their latent action is the code, but what composes is Q(x + x'): the sum of two codes is mostly no code."""
    model = LatentActionModel(
        stage.model.config, replace(stage.model.provenance, method="structured_prefix"), stage.model.lam
    )
    prefixes = replace(stage, model=model)
    found = prefixes.latent(((1.0, 2), (1.0, 9)))
    pre = stage.latents.pre[2:3] + stage.latents.pre[9:10]
    assert torch.equal(found.post, model.lam.quantise(pre).post) and found.index is not None
    assert torch.equal(prefixes.latent(((-1.0, 2),)).post, model.lam.quantise(-stage.latents.pre[2:3]).post)
    assert [about(Player(one))["sums"] for one in (stage, prefixes)] == ["after", "before"]


def test_a_sum_is_cut_to_k_slots_afterwards(player):
    stage = player.stage
    found = rolled(player, "d1", "1x2~1x9@2")[1].frame
    z = stage.latents.post[2:3] + stage.latents.post[9:10]
    z[:, 2:] = stage.model.lam.prefix.null.detach()
    assert torch.equal(found, stage.model.decode(stage.clip.frames[1:2, 0], z)[0])


def test_a_model_without_prefixes_has_one_k(structured, stage):
    assert structured.prefixes == (SLOTS,) and stage.prefixes == (1, 2, 4)
    with pytest.raises(LaminaError, match="k can be 4 to 4"):
        Player(structured).session("d0", ["1@2"])


@torch.no_grad()
def test_actions_are_read_by_the_translator_each_after_the_one_before(player):
    stage, translator = player.stage, player.stage.translator
    steps = rolled(player, "d3", "5@4", "7@2")
    previous = stage.clip.previous_action[3:4, 0]
    for (row, k), step in zip(((5, 4), (7, 2)), steps[1:], strict=True):
        z = stage.model.lam.prefix(stage.latents.post[row : row + 1], k)
        chances = translator(z, previous).softmax(-1)[0]
        best = chances.topk(3)
        assert [shown["name"] for shown in step.reading.shown] == [stage.spec.names[n] for n in best.indices]
        assert np.allclose([shown["probability"] for shown in step.reading.shown], best.values)
        previous = best.indices[:1, None].float()
        assert torch.equal(step.reading.action, previous[0])
    assert steps[0].reading is None


@pytest.mark.parametrize(
    ("start", "moves", "says"),
    [
        ("d40", [], "no start frame 'd40'; there are d0 to d39"),
        ("../x", [], "no start frame"),
        ("u0123456789abcdef", [], "upload it again"),
        ("d0", ["80@4"], "transitions are 0 to 79"),
        ("d0", ["5"], "one is 17@4"),
        ("d0", ["5@0"], "k can be 1 to 4"),
        ("d0", ["5@5"], "k can be 1 to 4"),
        ("d0", ["9x5@4"], "factors -8 to 8"),
        ("d0", ["nan@4"], "no move 'nan@4'"),
        ("d0", ["~".join(["1x5"] * 9) + "@4"], "no move"),
        ("d0", ["5@4"] * (MOVES + 1), "at most 1000 moves"),
    ],
)
def test_words_that_say_nothing_are_named(player, start, moves, says):
    with pytest.raises(LaminaError, match=re.escape(says)) as refused:
        player.session(start, moves)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


@pytest.mark.typed(False)
def test_a_reading_of_a_chunk_shows_the_probabilities_of_its_first_action():
    """The translator is certain of (move 0, fire 1), then of (move 2, fire 0)."""
    spec = ActionSpec((3, 2), names=("move", "fire"))
    translator = Translator(4, spec, TranslatorConfig("latent", "debug"), steps=2).eval()
    certain = 20 * translator.action.embed(torch.from_numpy(spec.pack(np.array([[[0, 1], [2, 0]]], np.float32))))
    translator.forward = lambda z, previous, observation: certain  # type: ignore[method-assign]
    lam = SimpleNamespace(action=lambda latent, side: latent.pre, prefix=lambda z, k: z)
    model, note = SimpleNamespace(lam=lam, device="cpu"), SimpleNamespace(side="quantised")
    latent = Latent(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
    stage: Any = SimpleNamespace(translator=translator, note=note, model=model)
    reading = Stage.read(stage, latent, 1, torch.zeros(2), torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert reading is not None and reading.action.tolist() == [2, 0]
    assert [shown["name"] for shown in reading.shown] == ["move = 0", "fire = 1"]
    assert [shown["probability"] for shown in reading.shown] == pytest.approx([1, 1], abs=1e-3)


@pytest.mark.parametrize("camera", ["observation.images.paired", "all"])
def test_the_pictures_of_a_camera_that_the_translator_was_not_aligned_on_are_not_read(home, camera):
    with pytest.warns(LaminaWarning, match="aligned on camera 'observation.images.grid'"):
        stage = Stage.load(home / "run", str(home / "data"), camera=camera, transitions=COUNT, device="cpu")
    assert rolled(Player(stage), "d0", "1@4")[1].reading is None
    assert f"leave out --camera {camera}" in stage.unread and stage.unread == about(Player(stage))["unread"]
    assert stage.unread in health(stage)["missing"]
    assert stage.action_text(0)  # what the data says was done is shown all the same
    named = Stage.load(
        home / "run", str(home / "data"), camera="observation.images.grid", transitions=COUNT, device="cpu"
    )
    assert named.unread == "" and rolled(Player(named), "d0", "1@4")[1].reading is not None


def test_no_action_is_read_where_the_data_have_others(home):
    """The translator knows the grid's one action of five classes; a previous action of two numbers is none of them."""
    rng = np.random.default_rng(0)
    items = [
        SimpleNamespace(
            frames={"observation.images.grid": rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)},
            actions=rng.normal(size=(20, 2)).astype(np.float32),
        )
        for _ in range(10)
    ]
    with pytest.warns(LaminaWarning, match="aligned to other actions than memory has"):
        stage = Stage.load(home / "run", InMemoryDataset(items, fps=10), transitions=8, device="cpu")
    assert rolled(Player(stage), "d0", "1@4")[1].reading is None and "other actions" in health(stage)["missing"][-1]
    assert stage.action_text(0)  # what the data says was done


def test_the_doctor_looks_through_the_first_of_all_cameras(home):
    with pytest.warns(LaminaWarning, match="aligned on camera"):
        stage = Stage.load(home / "run", str(home / "data"), camera="all", transitions=COUNT, device="cpu")
    found = examined(stage)
    assert found["title"] == "What lamina doctor found on camera observation.images.grid" and len(found["findings"]) > 5


def test_moves_are_written_as_they_are_read(player):
    words = ["5@4", "1x5~-0.25x7@2", "-1x5@4", "0x5@1"]
    session = player.session("d0", words)
    assert [str(move) for move in session.moves] == words
    assert session.moves[1] == Move(((1.0, 5), (-0.25, 7)), 2)


# --------------------------------------------------------------------------------------------------------- pictures


def photo(kind: str, size: tuple[int, int] = (50, 40)) -> tuple[bytes, np.ndarray]:
    """A picture file, and the pixels in it."""
    height, width = size
    shade = np.stack(np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height)), -1)
    pixels = np.concatenate([shade, 255 - shade[..., :1]], -1).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **({} if kind == "PNG" else {"quality": 95}))
    return content.getvalue(), pixels


def test_pictures_arrive_as_they_are(stage):
    frame = stage.clip.frames[0, 0]
    assert np.array_equal(decode_picture(png(frame), None), frame.permute(1, 2, 0).numpy())
    assert from_data_uri(data_uri(frame)) == png(frame)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_upload_is_read_and_resized_as_frames_are(kind):
    content, pixels = photo(kind)
    expected = resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], (SIDE, SIDE))[0]
    found = read_upload(content, (SIDE, SIDE))
    difference = (found.float() - expected.float()).abs()
    assert difference.max() == 0 if kind == "PNG" else difference.mean() < 6


def huge(width: int, height: int) -> bytes:
    """A PNG of few bytes that states many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )


REFUSED = {
    "text": (b"hello", "is no PNG, JPEG or WebP picture"),
    "nothing": (b"", "is no PNG, JPEG or WebP picture"),
    "a gif": (b"GIF89a" + bytes(40), "is no PNG, JPEG or WebP picture"),
    "a page": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "is no PNG, JPEG or WebP picture"),
    "half a header": (b"\x89PNG\r\n\x1a\n\0\0", "is no PNG, JPEG or WebP picture"),
    "half a jpeg": (b"\xff\xd8\xff", "is no PNG, JPEG or WebP picture"),
    "half a picture": (photo("PNG")[0][:60], "is damaged"),
    "a huge picture": (huge(60_000, 60_000), "60000 x 60000 pixels"),
    "no pixel": (huge(0, 4), "0 x 4 pixels"),
    "a large file": (bytes(LARGEST_UPLOAD + 1), "more than 8 MB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_upload_that_is_no_picture_is_refused_in_one_line(name):
    content, says = REFUSED[name]
    with pytest.raises(LaminaError, match=says) as refused:
        read_upload(content, (SIDE, SIDE))
    assert "\n" not in str(refused.value)


# ----------------------------------------------------------------------------------------------------------- saving


def test_a_saved_session_holds_what_repeats_it(player, home):
    """By the public API alone, from the file and the run."""
    session = player.session("d3", ["5@4", "1x5~1x7@2"])
    saved = json.loads(export.saved(player, session))
    model = LatentActionModel.from_pretrained(home / "run")
    frame = torch.from_numpy(decode_picture(from_data_uri(saved["start"]["frame"]), None)).permute(2, 0, 1)[None]
    for move, step in zip(saved["moves"], player.roll(session)[1:], strict=True):
        frame = model.decode(frame, torch.tensor(move["latent"])[None], k=move["k"], seed=move["seed"])
        assert torch.equal(frame[0], step.frame)
        assert move["reading"][0]["name"] == step.reading.shown[0]["name"]
    assert saved["moves"][0]["index"] == player.stage.latents.index[5].tolist()
    assert export.opened(player, export.saved(player, session)) == session


def test_a_session_from_an_upload_is_repeated_on_another_server(stage):
    one, two = Player(stage), Player(stage)
    session = one.session(one.upload(photo("JPEG")[0]), ["5@4"])
    again = export.opened(two, export.saved(one, session))
    for mine, theirs in zip(one.roll(session), two.roll(again), strict=True):
        assert torch.equal(mine.frame, theirs.frame)


def test_a_session_of_another_run_or_seed_is_refused(stage, home):
    other = Stage.load(home / "run", str(home / "data"), transitions=COUNT, seed=1, device="cpu")
    player = Player(stage)
    saved = export.saved(player, player.session("d0", []))
    with pytest.raises(LaminaError, match="another run, data or seed"):
        export.opened(Player(other), saved)
    same = Stage.load(home / "run", str(home / "data"), transitions=COUNT, device="cpu")
    assert export.opened(Player(same), saved) == player.session("d0", [])
    for broken in (b"", b"[]", b'{"format": 1}', saved.replace(b'"moves": [', b'"moves": [3, ')):
        with pytest.raises(LaminaError, match="no saved session"):
            export.opened(player, broken)


def test_a_film_shows_every_frame(player):
    session = player.session("d3", ["5@4", "7@4", "5@1"])
    with av.open(io.BytesIO(export.film(player, session))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == round(1 / player.stage.model.provenance.label_gap, 2)
    steps = player.roll(session)
    assert len(frames) == len(steps) and frames[0].shape == (256, 256, 3)
    for shown, step in zip(frames, steps, strict=True):
        small = shown.reshape(SIDE, 8, SIDE, 8, 3).mean((1, 3))
        assert np.abs(small - step.frame.permute(1, 2, 0).numpy()).mean() < 6


def test_a_recording_holds_frames_latents_and_readings(player):
    pytest.importorskip("rerun", reason="the rerun library is not installed")
    content = export.recording(player, player.session("d3", ["5@4", "7@4"]))
    assert content[:4] == b"RRF2" and all(name in content for name in (b"/frame", b"/latent", b"/action/"))


# ------------------------------------------------------------------------------------------------------------ health


def test_health_reports_what_is_measured_and_what_is_not(stage, structured, home):
    found = health(stage)
    assert [part["title"] for part in found["parts"]] == ["Measured now, on 40 transitions of the test split"]
    assert len(found["codes"]) == SLOTS and found["missing"][0].startswith("Not evaluated")
    facts = dict(found["facts"])
    assert facts["Method"] == "flexlam" and facts["Training steps"] == "30" and facts["Frames"] == "32 x 32 pixels"
    assert any(text.startswith("No translator") for text in health(structured)["missing"])


def test_the_doctors_findings_are_those_of_the_command(stage, home):
    told = examine(stage.run, home / "data")
    found = examined(stage)["findings"]
    assert [item["level"] for item in found] == [*(f.level for f in told.findings), *("note" for _ in told.notes)]
    for item, finding in zip(found, told.findings, strict=False):
        assert item["text"].startswith(finding.text) and item["text"].endswith(finding.advice)


def test_the_decoder_is_compared_with_copying(stage, monkeypatch):
    src, dst = (stage.clip.frames[:, t] for t in (0, 1))
    predicted = stage.model.decode(src, stage.model.encode(src, dst))
    model, copied = ((shown.float() - dst.float()).square().mean() for shown in (predicted, src))
    gain = 10 * torch.log10(copied / model).item()
    found = copying(stage)
    assert float(re.search(r"are ([\d.]+) dB", found.text)[1]) == pytest.approx(abs(gain), abs=0.2)  # type: ignore[index]
    assert (found.level == "good") == ("closer" in found.text) == (gain > 0)
    monkeypatch.setattr(stage.model.lam.decoder, "sample", lambda src, z, rng: src)
    assert copying(stage).level == "bad" and "copies" in copying(stage).text


def test_a_verdict_of_the_evaluation_is_shown_and_a_damaged_one_is_named(stage, home, tmp_path):
    record = {"format": 1, "data": {"path": "held"}, "verdict": [{"level": "warn", "text": "Take <b>care</b>."}]}
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    found = health(replace(stage, run=tmp_path))
    assert found["parts"][1] == {"title": "What lamina evaluate found (held)", "findings": record["verdict"]}
    (tmp_path / "evaluation.json").write_text("{")
    assert "damaged record" in health(replace(stage, run=tmp_path))["missing"][0]


# ------------------------------------------------------------------------------------------------------------ server


@dataclass(frozen=True)
class Served:
    port: int

    def ask(
        self, path: str, body: bytes | None = None, token: str = TOKEN, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        try:
            connection.request("GET" if body is None else "POST", f"/{token}/{path}", body, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, path: str, content: Any = None) -> Any:
        status, _, body = self.ask(path, None if content is None else json.dumps(content).encode())
        assert status == 200, body
        return json.loads(body)


@pytest.fixture(scope="module")
def served(stage: Stage) -> Iterator[Served]:
    socket_ = listen(0)
    server = server_of(Player(stage), TOKEN)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket_]}, daemon=True)
    thread.start()
    yield Served(socket_.getsockname()[1])
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
    socket_.close()


def test_the_page_gets_the_frames_of_the_player(served, stage):
    about = served.json("about")
    assert [key["medoid"] for key in about["keys"]] == [cluster.medoid for cluster in stage.clusters]
    assert len(about["transitions"]) == len(stage.clip) and about["prefixes"] == [1, 2, 4]
    sessions = [{"start": "d3", "moves": ["5@4", "7@2"]}, {"start": "d1", "moves": []}]
    steps = rolled(Player(stage), "d3", "5@4", "7@2")
    found = served.json("roll", {"sessions": sessions, "every": True})["steps"]
    assert [step["frame"] for step in found[0]] == [data_uri(step.frame) for step in steps]
    assert found[0][2]["reading"] == list(steps[2].reading.shown)
    last = served.json("roll", {"sessions": sessions})["steps"]
    assert last == [found[0][2:], found[1]]
    status, headers, picture = served.ask("frame/3/1.png")
    assert (status, headers["content-type"]) == (200, "image/png") and picture == png(stage.clip.frames[3, 1])
    assert served.json("map/pca")["places"] == stage.map().tolist()
    assert served.json("health")["facts"][0] == ["Method", "flexlam"]


def test_uploads_and_saved_sessions_go_there_and_back(served, stage):
    content, _ = photo("PNG")
    status, _, body = served.ask("upload", content, **{"Content-Type": "image/png"})
    start = json.loads(body)["start"]
    assert status == 200 and start.startswith("u")
    frame = served.json("roll", {"sessions": [{"start": start, "moves": []}]})["steps"][0][0]["frame"]
    assert frame == data_uri(read_upload(content, (SIDE, SIDE)))
    session = {"start": start, "moves": ["5@4"]}
    status, headers, saved = served.ask("save/json", json.dumps(session).encode())
    assert status == 200 and headers["content-disposition"] == 'attachment; filename="session.json"'
    again = json.loads(served.ask("open", saved)[2])
    assert again["moves"] == ["5@4"]
    assert served.ask("save/mp4", json.dumps(session).encode())[2][4:8] == b"ftyp"


def test_only_the_whole_address_is_answered(served):
    for answer in (
        served.ask("about", token="guess"),
        served.ask("", token=""),
        served.ask("about", Host="elsewhere.example:80"),  # a name that somebody made lead here
        served.ask("roll", b"{}", Origin="http://elsewhere.example"),
    ):
        assert answer[0] == 404 and b"run" not in answer[2]
    assert served.ask("nothing")[0] == 404
    assert served.ask("frame/99/0.png")[0] == 404 and served.ask("frame/0/3.png")[0] == 404
    assert served.ask("../../etc/passwd")[0] == 404
    assert served.ask("about", b"{}")[0] == 405


def test_the_page_is_whole_and_asks_nothing_of_others(served):
    for name, kind in (("", "text/html"), ("play.css", "text/css"), ("play.js", "text/javascript")):
        status, headers, body = served.ask(name)
        assert status == 200 and headers["content-type"].startswith(kind)
        assert (
            "default-src 'none'" in headers["content-security-policy"] and headers["referrer-policy"] == "no-referrer"
        )
        assert not re.findall(rb"https?://|//[a-z]+\.|innerHTML|eval\(|\sstyle=|\son[a-z]+=", body)
    assert set(resources.files("lamina.play").joinpath("page").iterdir()) >= {
        resources.files("lamina.play").joinpath("page", name) for name in ("index.html", "play.css", "play.js")
    }


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "says"),
    [
        ("upload", b"hello", "text/plain", 415, "is no picture"),
        ("upload", b"hello", "image/png", 400, "is no PNG, JPEG or WebP picture"),
        ("upload", bytes(LARGEST_UPLOAD + 1), "image/png", 413, "more than 8 MB"),
        ("roll", b"{", "application/json", 400, "no JSON"),
        ("roll", b"[]", "application/json", 400, "no JSON object"),
        ("roll", b'{"sessions": []}', "application/json", 400, "1 to 16 sessions"),
        ("roll", b'{"sessions": [3]}', "application/json", 400, "a start and a list of moves"),
        ("roll", b'{"sessions": [{"start": "d0", "moves": ["<b>"]}]}', "application/json", 400, "no move '<b>'"),
        ("roll", bytes(LARGEST_REQUEST + 1), "application/json", 413, "too large"),
        ("open", b"{}", "application/json", 400, "no saved session"),
    ],
)
def test_bad_requests_are_refused_in_one_line(served, path, body, kind, status, says):
    found, _, answer = served.ask(path, body, **{"Content-Type": kind})
    text = json.loads(answer)["error"]
    assert found == status and says in text and "\n" not in text
    assert served.ask("about")[0] == 200  # and the server goes on


# ------------------------------------------------------------------------------------------------------ command line


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `lamina play` says and ends with."""
    assert main(["play", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and "internal error" not in lines[0]
    return lines[0]


def test_a_port_in_use_is_named(home, capsys):
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"port {port} of 127.0.0.1 is in use" in refusal(capsys, str(home / "run"), "--port", port)


def test_runs_and_data_that_cannot_be_played_are_named(home, tmp_path, capsys):
    run, data = str(home / "run"), str(home / "data")
    assert "no camera 'wrist'" in refusal(capsys, run, "--data", data, "--camera", "wrist", "--port", "0")
    assert "no such file or folder" in refusal(capsys, run, "--data", str(tmp_path / "gone"), "--port", "0")
    assert "a model folder?" in refusal(capsys, str(tmp_path), "--port", "0")
    assert "--port must be at most" in refusal(capsys, run, "--port", "70000")
    write_video(tmp_path / "short" / "a.mp4", frames=1)
    assert "2 frames at least" in refusal(capsys, run, "--data", str(tmp_path / "short"), "--port", "0")


def test_a_run_without_a_decoder_of_pictures_is_named(home, tmp_path, capsys):
    method = methods.load("flexlam")
    config = method.build(method.Config(size="debug", image=(SIDE, SIDE), decoder="pixel", slots=SLOTS))
    LatentActionModel(replace(config, space="features")).save_pretrained(tmp_path / "run")
    assert "predicts features, not pixels" in refusal(
        capsys, str(tmp_path / "run"), "--data", str(home / "data"), "--port", "0"
    )


def test_data_of_another_size_is_resized_and_data_without_actions_is_played(home, tmp_path):
    for n in range(10):
        write_video(tmp_path / f"{n}.mp4", frames=20, size=(48, 96), offset=20 * n)
    stage = Stage.load(home / "run", str(tmp_path), transitions=12, device="cpu")
    assert stage.clip.frames.shape[-2:] == (SIDE, SIDE) and stage.spec is None and stage.clusters[0].label == ""
    assert rolled(Player(stage), "d0", "1@4")[1].reading is not None  # the translator reads these latents too
    assert [colour["name"] for colour in stage.colours()] == ["key", "norm of the latent"]


def test_it_ends_with_ctrl_c_and_leaves_nothing(home, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path / "scratch"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "scratch").mkdir()
    before = sorted((home / "run").rglob("*"))
    command = [sys.executable, "-m", "lamina.cli", "play", str(home / "run"), "--transitions", "20", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        port, token = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]{20,})/", lines[1]).groups()  # type: ignore[union-attr]
        served = Served(int(port))
        moves = json.dumps({"start": "d0", "moves": ["1@4"] * 200}).encode()
        assert served.ask("save/mp4", moves, token)[0] == 200
        idle = http.client.HTTPConnection(HOST, int(port))
        idle.connect()  # a window that is still open
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        assert process.wait(120) == 0 and said == "ended\n"
        idle.close()
    assert sorted((home / "run").rglob("*")) == before and not list((tmp_path / "scratch").iterdir())
    listen(int(port)).close()  # and the port is free
