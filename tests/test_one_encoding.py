"""All uses of a latent agree, for every method: `lamina label`, the model's API, alignment, probes, the token model's data and the
policy.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lamina import methods
from lamina.data.lerobot.tables import to_numpy
from lamina.data.sampling import DataConfig, open_source
from lamina.data.stream import sample_split
from lamina.device import autocast
from lamina.images import resize, resize_frames
from lamina.inference.encode import encode_clip, frame_pairs
from lamina.inference.label import LabelOptions, label
from lamina.inference.subject import subject_of
from lamina.models.heads import Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel
from lamina.policies.token_model import TokenConfig, TokenModel
from lamina.policies.token_policy import TokenPolicy
from lamina.policies.token_training import fingerprint
from lamina.policies.windows import encode_windows, open_steps
from lamina.training.labelled import actions_of, probe_data
from lamina.training.pretraining import pretrain
from lamina.training.recipe import filled_in, recipe
from lamina.training.settings import TrainConfig
from planted import SIZE, write_planted
from test_methods import every_method

torch.set_num_threads(1)
pytestmark = pytest.mark.typed


@pytest.fixture(scope="module")
def dataset(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted episodes, larger than the models' pictures, with or without a task."""
    task = "move the square" if getattr(request, "param", "words") == "words" else ""
    return write_planted(tmp_path_factory.mktemp("planted") / "dataset", episodes=5, length=20, task=task)


def settings(name: str) -> list[dict[str, Any]]:
    """What a method is tried with: its defaults, and features where it has the choice; both stages where it has two."""
    fields = {f.name for f in dataclasses.fields(methods.load(name).Config)}
    found: list[dict[str, Any]] = [{}]
    found += [{"space": space} for space in ("features", "ema")] if name == "lapo" else []  # the others read them alike
    return found + ([{"stage": 2}] if "stage" in fields else [])


#: Only UniVLA reads the words of the task, so only it is tried without.
CASES = [
    pytest.param(words, name, options, id=" ".join([words, name, *map(str, options.values())]))
    for name in methods.names()
    for options in settings(name)
    for words in ("words", *(["no words"] if name == "univla" else []))
]


def trained(name: str, options: dict[str, Any], dataset: Path, run: Path, precision: str = "fp32") -> LatentActionModel:
    """A model of three training steps: whitening and codebooks are no longer what they were at the start."""
    module = methods.load(name)
    config = module.Config(size="debug", image=(SIZE // 2, SIZE // 2), patch=4, slots=4, **options)
    data = DataConfig((str(dataset),), config.image, config.frames, gap=(0.1, 0.2), shuffle=16, workers=0)
    config, data = filled_in(config, data)
    init = None
    if options.get("stage") == 2:
        trained(name, {"stage": 1}, dataset, run.with_name("first"))
        init = run.with_name("first")
    training = TrainConfig(steps=3, batch=8, lr=1e-4, device="cpu", precision=precision)  # type: ignore[arg-type]
    pretrain(run, recipe(name, module, config), data, training, init)
    return LatentActionModel.from_pretrained(run)


def columns(folder: Path) -> dict[str, np.ndarray]:
    """Every column that label wrote, [rows, d]."""
    table = pq.read_table(next((folder / "data").rglob("*.parquet")))
    return {name: to_numpy(table.column(name)) for name in table.column_names}


def encoded(model: LatentActionModel, path: Path, precision: str) -> tuple[Any, np.ndarray]:
    """The latent of every row of a dataset and its partner, by the model's own API from frames as they are stored, and the frames."""
    source = open_source(path)
    firsts, seconds = [], []
    for episode in source.episodes:
        frames = source.frames(episode, source.cameras[0], 0, episode.length)
        partner, _ = frame_pairs(episode.times, model.provenance.label_gap)
        firsts.append(frames)
        seconds.append(frames[partner])
    src, dst = (torch.from_numpy(np.concatenate(part)).permute(0, 3, 1, 2) for part in (firsts, seconds))
    with autocast("cpu", precision):
        return model.encode(src, dst), np.concatenate(firsts)


def agree(
    ours: np.ndarray | torch.Tensor, theirs: np.ndarray | torch.Tensor, precision: str, least: float = 1.0
) -> None:
    """The share of rows that are the same (bfloat16: other batches round otherwise, and a code near an edge may be its neighbour)."""
    a, b = (torch.tensor(np.asarray(x)).flatten(1).double() for x in (ours, theirs))
    assert a.shape == b.shape
    tolerance = {"fp32": 1e-4, "bf16": 0.1}[precision] * max(1.0, float(b.abs().max()))
    share = float(((a - b).abs() <= tolerance).all(1).double().mean())
    assert share >= (least if precision == "bf16" else 1.0), share


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("dataset", "name", "options"), CASES, indirect=["dataset"])
def test_label_encode_align_probes_and_policy_say_the_same(
    name: str, options: dict[str, Any], precision: str, dataset: Path, tmp_path: Path
) -> None:
    model = trained(name, options, dataset, tmp_path / "run", precision)
    lam, slots = model.lam, model.config.action_length
    latent, frames = encoded(model, dataset, precision)
    assert len(latent.pre.flatten(1).unique(dim=0)) > 30  # or agreement says nothing
    folder = label(
        tmp_path / "run", str(dataset), tmp_path / "out", "cpu", LabelOptions(continuous=True, precision=precision)
    ).path
    assert folder is not None
    told = columns(folder)
    where = model.config.latent_action
    agree(told["latent_action"], latent.post[:, where], precision, 0.9)
    agree(told["latent_action.continuous"], latent.pre[:, where], precision, 0.9)
    agree(told[model.column], lam.action(latent), precision, 0.9)  # the column that the model card names
    if latent.index is not None:
        agree(told["latent_action.index"], latent.index[:, where], precision, 0.9)
    # Alignment and probes, on transitions of the data layer.
    clip = sample_split(probe_data(model, str(dataset)), "train", 24, require_action=True)
    with autocast("cpu", precision):
        alone = model.encode(clip.frames[:, 0], clip.frames[:, 1])
        agree(encode_clip(lam, clip), lam.action(alone), precision, 0.9)
        agree(
            subject_of(model).actions(clip.frames[:, 0], clip.frames[:, 1]),
            lam.action(alone).flatten(1),
            precision,
            0.9,
        )
    if latent.index is None:
        return
    # The token model's data, and what a policy makes of the frames that it is shown.
    encode_windows(model, open_source(str(dataset)), tmp_path / "tokens", fingerprint(lam), precision=precision)
    steps = open_steps(tmp_path / "tokens", "train")
    first, last = (int(x) for x in steps.bounds[:2])
    shown = torch.from_numpy(steps.frames[first:last].copy()).permute(0, 3, 1, 2)
    with autocast("cpu", precision):
        agree(steps.actions[first : last - 1], model.encode(shown[:-1], shown[1:]).index[:, where], precision, 0.9)
    tokens = TokenModel(
        TokenConfig(size="debug", grid=2), model.config.image, slots, lam.bottleneck.codebook_size
    ).eval()  # type: ignore[arg-type]
    spec = actions_of(probe_data(model, str(dataset))).spec
    head = Translator(slots * lam.dim, spec, TranslatorConfig(size="debug"))
    policy = TokenPolicy(model, tokens, head, precision=precision)
    realised: list[torch.Tensor] = []
    embed = tokens.embed
    tokens.embed = lambda codes: realised.append(codes.clone()) or embed(codes)  # type: ignore[method-assign,func-returns-value]
    episode = open_source(dataset).episodes[0]
    gap = int(frame_pairs(episode.times, model.provenance.label_gap)[0][0])
    for frame in frames[: episode.length : gap]:  # at the size that a camera gives
        policy.act(frame)
    rows = slice(0, episode.length, gap)
    there, valid = (
        torch.from_numpy(told[f"latent_action.{what}"][rows][: len(realised)]) for what in ("index", "valid")
    )
    valid = valid.flatten().bool()
    assert valid.float().mean() > 0.9
    agree(torch.cat(realised)[valid], there[valid], precision, 0.9)


@every_method
def test_a_token_model_knows_whether_its_codes_are_still_the_same(name: str, dataset: Path, tmp_path: Path) -> None:
    lam = trained(name, {}, dataset, tmp_path / "run").lam
    before = fingerprint(lam)
    assert fingerprint(LatentActionModel.from_pretrained(tmp_path / "run").lam) == before
    for part in ("space", "encoder", "whiten", "bottleneck"):
        for key, value in getattr(lam, part).state_dict().items():
            kept = value.clone()
            value.copy_(~value if value.dtype == torch.bool else value + 1)
            assert fingerprint(lam) != before, f"{part}.{key}"
            value.copy_(kept)
    decoder = next(lam.decoder.parameters())
    decoder.data += 1.0
    assert fingerprint(lam) == before


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (32, 32), (7, 5)])
def test_a_picture_is_resized_alike_wherever_it_comes_from(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 20, 3), dtype=np.uint8)
    small = resize_frames(frames, size)
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
    assert np.array_equal(resize(pictures, size).permute(0, 2, 3, 1).numpy(), small)
    assert np.array_equal(np.concatenate([resize_frames(f[None], size) for f in frames]), small)  # alone or together
    contiguous = resize(pictures.contiguous(), size)
    assert np.array_equal(contiguous.permute(0, 2, 3, 1).numpy(), small)  # however the numbers lie in memory
    flat = np.full((1, 9, 9, 3), 77, np.uint8)
    assert (resize_frames(flat, size) == 77).all()


def test_half_the_size_by_hand() -> None:
    """Antialiased bilinear at half the size: a triangle over four pixels, (1 3 3 1) / 8, cut at the border."""
    row = np.array([0, 0, 80, 160, 80, 0, 0, 0], np.uint8)
    frames = np.repeat(np.tile(row, (8, 1))[None, :, :, None], 3, axis=3)
    expected = np.array([(0 * 3 + 0 * 3 + 80) / 7, (0 + 80 * 3 + 160 * 3 + 80) / 8, (160 + 80 * 3) / 8, 0])
    np.testing.assert_allclose(resize_frames(frames, (4, 4))[0, 1, :, 0], expected, atol=1)
