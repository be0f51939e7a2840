"""Round trips of latent actions between two clips: what is computed, what is written, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lamina.cli import main
from lamina.data.lerobot.writer import VideoEncoding, write_video
from lamina.errors import LaminaError
from lamina.evaluation.probes.reconstruction import psnr
from lamina.evaluation.transfer import FILES, read_chain, round_trip, transfer
from lamina.methods import flexlam, lapo, univla
from lamina.models.hub import LatentActionModel, Provenance
from lamina.models.lam import LAM

torch.set_num_threads(1)
pytestmark = pytest.mark.typed
EXACT = VideoEncoding(crf=0, pix_fmt="yuv444p")


def clip(path: Path, colour: int, frames: int = 12, fps: float = 10) -> Path:
    """A square that moves right by a pixel a frame, on a ground of one brightness."""
    pictures = np.full((frames, 16, 16, 3), colour, np.uint8)
    for n in range(frames):
        pictures[n, 4:8, n % 12 : n % 12 + 4] = 230
    write_video(path, list(pictures), fps, EXACT)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return clip(folder / "dark.mp4", 20), clip(folder / "bright.mp4", 120, frames=5)


def model_of(module=flexlam, **options) -> LatentActionModel:
    torch.manual_seed(0)
    config = module.build(module.Config(size="debug", image=(16, 16), slots=4, decoder="unet", **options))
    lam = LAM(config)
    for parameter in lam.decoder.parameters():  # a decoder whose picture depends on its latent
        torch.nn.init.normal_(parameter, std=0.2)
    return LatentActionModel(config, Provenance("flexlam", gap_seconds=(0.2, 0.2)), lam).eval()


class Shift:
    """A model whose latent is the mean brightness of the change, and whose decoder adds it: a perfect round trip between any scenes."""

    def __init__(self, forget: bool = False):
        self.forget = forget

    def encode(self, src, dst):
        change = (dst.float() - src.float()).mean((1, 2, 3))
        return Coded(change.view(-1, 1, 1), change.round().long().view(-1, 1))

    def decode(self, src, latent, k=None):
        z = latent.post if isinstance(latent, Coded) else latent
        return (src.float() + (0 if self.forget else z.view(-1, 1, 1, 1))).round().clamp(0, 255).to(torch.uint8)


class Coded:
    def __init__(self, post, index):
        self.post, self.index = post, index


@pytest.mark.typed(False)
def test_a_round_trip_brings_the_change_back_and_only_where_there_is_one():
    src = torch.full((3, 3, 4, 4), 50, dtype=torch.uint8)
    dst = src + torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1)
    target = torch.full((3, 3, 4, 4), 100, dtype=torch.uint8)
    model = Shift()
    latent = model.encode(src, dst)
    found = round_trip(model, src, latent.post, latent.index, target, 1)
    assert torch.equal(found.moved, target + dst - src) and torch.equal(found.recovered, dst)
    assert found.agreement.tolist() == [1, 1, 1]
    order = torch.tensor([2, 0, 1])
    wrong = round_trip(model, src, latent.post[order], latent.index[order], target, 1)
    assert torch.equal(wrong.recovered, dst[order]) and psnr(wrong.recovered, dst).max() < 30
    lost = round_trip(Shift(forget=True), src, latent.post, latent.index, target, 1)
    assert torch.equal(lost.recovered, src) and lost.agreement.tolist() == [0, 0, 0]


def test_frames_of_a_clip_lie_a_gap_apart(clips):
    chain = read_chain(str(clips[0]), 0.2, (16, 16), 4, least=2)
    assert chain.index.tolist() == [0, 2, 4, 6]
    for number, frame in zip(chain.index, chain.frames, strict=True):
        assert (frame[0, 4:8, number : number + 4] > 200).all() and frame[0, 12].float().mean() < 40


def test_the_record_is_what_the_model_does(clips, tmp_path):
    model = model_of()
    record = transfer(model, str(clips[0]), str(clips[1]), tmp_path / "out", k=3, device="cpu")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert json.loads((tmp_path / "out/transfer.json").read_text()) == record
    own, other = (read_chain(str(c), 0.2, (16, 16), 17, least=1) for c in clips)
    assert len(own.frames) == 6 and len(other.frames) == 3  # of 12 and 5 frames at 10 a second
    n, src, dst = 5, own.frames[:-1], own.frames[1:]
    target = other.frames[[0, 1, 2, 0, 1]]
    latent = model.encode(src, dst)
    moved = model.decode(target, latent, 3)
    recovered = model.decode(src, model.encode(target, moved), 3)
    expected = {
        "direct": model.decode(src, latent, 3), "round trip": recovered, "copy-frame": src,
    }  # fmt: skip
    shuffled = latent.post.roll(n // 2, 0)
    expected["round trip, shuffled"] = model.decode(src, model.encode(target, model.decode(target, shuffled, 3)), 3)
    assert record["transitions"].keys() == expected.keys() and record["k"] == 3
    for name, picture in expected.items():
        assert record["transitions"][name]["psnr"] == pytest.approx(psnr(picture, dst).tolist()), name
        assert record["mean"][name]["psnr"] == pytest.approx(psnr(picture, dst).mean().item())
    scores = [record["mean"][name]["psnr"] for name in expected]
    assert len({round(score, 3) for score in scores}) == 4  # no control is another's copy
    with av.open(str(tmp_path / "out/transfer.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == n + 1 and frames[0].shape[1] == 5 * 192
    head = frames[0].shape[0] - 192
    first = frames[2][head:, :192].reshape(16, 12, 16, 12, 3).mean((1, 3))
    assert np.abs(first - own.frames[2].permute(1, 2, 0).numpy()).mean() < 12  # the source, enlarged
    transfer(model, str(clips[0]), str(clips[1]), tmp_path / "out", transitions=2, device="cpu")  # again, in its place
    assert json.loads((tmp_path / "out/transfer.json").read_text())["source"]["frames"] == [0, 2, 4]


def test_a_model_without_a_codebook_has_no_codes_to_compare(clips, tmp_path):
    model = model_of(lapo, quantiser="none", code_dim=8)
    record = transfer(model, str(clips[0]), str(clips[1]), tmp_path / "out", device="cpu")
    assert math.isnan(record["same_codes"]["round trip"])
    assert json.loads((tmp_path / "out/transfer.json").read_text())["same_codes"]["round trip"] is None


def test_what_cannot_be_transferred_is_one_line(clips, tmp_path):
    model, (source, target) = model_of(), map(str, clips)
    with pytest.raises(LaminaError, match=r"bright\.mp4: has 1 frames that lie 3 s apart, and 3 are needed"):
        transfer(model, target, source, tmp_path / "out", gap=3.0, device="cpu")
    with pytest.raises(LaminaError, match="--k must be 0 to 4, this model's slots, got 9"):
        transfer(model, source, target, tmp_path / "out", k=9, device="cpu")
    features = model_of(lapo, space="features", code_dim=8)
    with pytest.raises(LaminaError, match="predicts features, not pixels"):
        transfer(features, source, target, tmp_path / "out", device="cpu")
    instructed = model_of(univla, space="pixels")
    assert instructed.config.task == 2  # slots that its decoder reads an instruction from, and no code
    with pytest.raises(LaminaError, match="decodes with an instruction, which a clip does not have"):
        transfer(instructed, source, target, tmp_path / "out", device="cpu")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("all of it")
    with pytest.raises(LaminaError, match=r"full: holds other files; choose another --out"):
        transfer(model, source, target, tmp_path / "full", device="cpu")
    assert not (tmp_path / "out").exists() and (tmp_path / "full/thesis.tex").exists()


def test_the_command(clips, tmp_path, capsys):
    model_of().save_pretrained(tmp_path / "run/model")
    command = [
        "transfer",
        str(tmp_path / "run"),
        "--source",
        str(clips[0]),
        "--target",
        str(clips[1]),
        "--device",
        "cpu",
    ]
    assert main([*command, "--transitions", "3"]) == 0
    text = capsys.readouterr().out
    assert "round trip, shuffled" in text and str(tmp_path / "run/transfer/transfer.mp4") in text
    assert main([*command[:3], str(tmp_path / "nothing.mp4"), "--target", str(clips[1])]) == 2
    assert "nothing.mp4: no such file" in capsys.readouterr().err
