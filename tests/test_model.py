"""The latent action model: its parts, its files, and errors for damaged files."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clips import clip_of
from lamina.errors import LaminaError
from lamina.images import to_float, to_uint8
from lamina.losses.flow_matching import sample_time
from lamina.losses.reconstruction import squared_error, total
from lamina.methods.base import MethodConfig, pair_losses
from lamina.models.bottlenecks.base import Identity
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.bottlenecks.vq import VQ
from lamina.models.config import NETWORK_SIZES, LAMConfig
from lamina.models.decoders.advection import Blend, advect, displacements
from lamina.models.encoders import ENCODERS
from lamina.models.hub import LatentActionModel, Provenance
from lamina.models.lam import LAM
from lamina.models.layers import AdaLNBlock, CrossAttentionBlock, TransformerBlock, patchify, unpatchify
from lamina.rng import Rng
from lamina.training.joint import JointBatch
from lamina.training.labelled import LabelledTransitions
from lamina.types import Clip, Latent

torch.set_num_threads(1)
pytestmark = pytest.mark.typed

BOTTLENECKS = {"fsq": FSQ.Config((5, 3)), "vq": VQ.Config(8, 4), "none": Identity.Config(4)}
PARTS = [(e, d) for e in ("conv", "transformer") for d in ("flow", "pixel", "unet")]


def config(
    encoder: str = "conv", decoder: str = "flow", bottleneck: str = "fsq", image: int = 16, slots: int = 3, **more
) -> LAMConfig:
    backbone = MethodConfig(size="debug", image=(image, image), encoder=encoder, decoder=decoder, slots=slots)
    return LAMConfig(**backbone.parts(), bottleneck=BOTTLENECKS[bottleneck], prefix=more.get("prefix", "uniform"))


def lam(*args, **options) -> LAM:
    torch.manual_seed(0)
    model = LAM(config(*args, **options))
    for parameter in model.parameters():  # zero-initialised heads would make every test trivial
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_patches_are_rows_of_pixels_and_come_back(batch, channels, patch, rows, columns):
    images = torch.randn(batch, channels, rows * patch, columns * patch)
    tokens = patchify(images, patch)
    assert tokens.shape == (batch, rows * columns, channels * patch**2)
    corner = images[:, :, (rows - 1) * patch :, :patch].flatten(1)
    assert torch.equal(tokens[:, (rows - 1) * columns], corner)
    assert torch.equal(unpatchify(tokens, patch, rows * patch), images)


@pytest.mark.parametrize("kind", [TransformerBlock, AdaLNBlock])
def test_tokens_that_are_only_read_change_nothing_of_the_others(kind):
    torch.manual_seed(0)
    block, x = kind(16, 2), torch.randn(3, 7, 16)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    more = (torch.randn(3, 16),) if kind is AdaLNBlock else ()
    torch.testing.assert_close(block(x, *more, 4), block(x, *more)[:, 4:])


def test_slots_that_are_the_same_for_every_pair_are_attended_once():
    torch.manual_seed(0)
    block, slots, context = CrossAttentionBlock(16, 2), torch.randn(1, 5, 16), torch.randn(3, 7, 16)
    seen = []
    block.attention.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    torch.testing.assert_close(block(slots, context), block(slots.expand(3, -1, -1), context))
    assert seen == [1, 3]


def test_pixels_survive_float_and_back():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert to_float(every).min() == -1 and to_float(every).max() == 1
    assert torch.equal(to_uint8(to_float(every)), every)
    assert torch.equal(to_uint8(torch.tensor([[[-3.0, 3.0]]])), torch.tensor([[[0, 255]]], dtype=torch.uint8))


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
@pytest.mark.parametrize("bottleneck", sorted(BOTTLENECKS))
def test_many_pairs_in_one_call_are_the_pairs_one_by_one(encoder, bottleneck):
    model = lam(encoder, bottleneck=bottleneck)
    pictures = frames(3, 4, 3, 16, 16)
    pairs = [(0, 1), (1, 3), (3, 0), (2, 2)]
    together = model.encode(model.view(clip_of(pictures)), pairs).own
    assert list(together) == pairs
    for pair, latent in together.items():
        alone = model.encode(model.view(clip_of(pictures[:, list(pair)])), [(0, 1)]).own[0, 1]
        torch.testing.assert_close(latent.pre, alone.pre, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(latent.post, alone.post, rtol=1e-4, atol=1e-5)
        assert latent.pre.shape == (3, 3, model.dim)
        assert (latent.index is None) == (bottleneck == "none")
        assert all(value.shape == (3,) for value in latent.aux.values())


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_each_frame_is_embedded_once_and_unused_ones_never(encoder, monkeypatch):
    model = lam(encoder)
    seen = []
    embed = type(model.encoder).embed
    monkeypatch.setattr(type(model.encoder), "embed", lambda self, x: seen.append(len(x)) or embed(self, x))
    model.encode(model.view(clip_of(frames(2, 5, 3, 16, 16))), [(0, 1), (1, 2), (0, 2), (2, 0)])
    assert seen == [2 * 3]


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_the_latent_depends_on_both_frames_and_their_order(encoder):
    model = lam(encoder, bottleneck="none")
    view = model.view(clip_of(frames(2, 3, 3, 16, 16)))
    z = model.encode(view, [(0, 1), (0, 2), (2, 1), (1, 0)]).own
    for other in ((0, 2), (2, 1), (1, 0)):
        assert not torch.allclose(z[0, 1].post, z[other].post, atol=1e-3)


@pytest.mark.parametrize(("encoder", "decoder"), PARTS)
def test_decoders_score_and_draw_every_sample_on_its_own(encoder, decoder):
    model = lam(encoder, decoder)
    pictures = torch.stack([frames(4, 3, 16, 16, seed=s) for s in (1, 2)], 1)
    src, dst = to_float(pictures).unbind(1)
    z = model.encode(model.view(clip_of(pictures)), [(0, 1)]).own[0, 1].post
    loss = model.decoder.loss(src, z, dst, Rng(0))
    assert loss.shape == (4,) and loss.isfinite().all()
    assert model.decoder.sample(src, z, Rng(0)).shape == src.shape
    dst[1] += 0.5  # only this sample may notice
    changed = model.decoder.loss(src, z, dst, Rng(0)) != loss
    assert changed.tolist() == [False, True, False, False]
    z[2] += 0.5
    changed = model.decoder.loss(src, z, dst, Rng(0)) != loss
    assert changed.tolist() == [False, True, True, False]


@pytest.mark.parametrize("decoder", ["pixel", "unet"])
def test_the_loss_of_a_pixel_decoder_is_the_error_of_its_sample(decoder):
    model = lam(decoder=decoder)
    src, dst = (to_float(frames(4, 3, 16, 16, seed=s)) for s in (1, 2))
    z = torch.randn(4, 3, model.dim)
    expected = (model.decoder.sample(src, z, Rng(0)) - dst).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(model.decoder.loss(src, z, dst, Rng(0)), expected)


def moved(images: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """Pixel (y, x) comes from (y + dy, x + dx), or from the nearest one that there is."""
    height, width = images.shape[-2:]
    rows, columns = (torch.arange(height) + dy).clamp(0, height - 1), (torch.arange(width) + dx).clamp(0, width - 1)
    return images[..., rows, :][..., columns]


def test_advection_gives_back_the_gradients_of_what_it_computes():
    moves = [(0, 0), (0, 2), (-1, 0), (3, 0)]
    images, weights = torch.randn(2, 3, 4, 6, dtype=torch.double), torch.rand(len(moves), 2, 2, 3, dtype=torch.double)
    torch.autograd.gradcheck(
        lambda i, w: Blend.apply(i, w, moves, 2), (images.requires_grad_(), weights.requires_grad_())
    )


def test_advection_takes_each_cell_from_where_its_weights_say():
    src, moves = to_float(frames(2, 3, 16, 24)), displacements(16, 24)
    logits = torch.full((2, len(moves), 4, 6), -1e4)
    for n, (dy, dx) in enumerate(moves):
        one = logits.clone()
        one[:, n] = 0
        torch.testing.assert_close(advect(src, one, moves), moved(src, dy, dx))
    left, down = moves.index((0, -6)), moves.index((4, 0))
    logits[:, left] = 0
    logits[:, left, 1, 2], logits[:, down, 1, 2] = -1e4, 0
    out = advect(src, logits, moves)
    torch.testing.assert_close(out[..., 4:8, 8:12], moved(src, 4, 0)[..., 4:8, 8:12])
    torch.testing.assert_close(out[..., 8:, :], moved(src, 0, -6)[..., 8:, :])


def test_an_untrained_unet_nearly_copies_the_source():
    decoder = LAM(config(decoder="unet")).decoder.eval()
    src = to_float(frames(4, 3, 16, 16))
    still = math.exp(4)
    copies = [moved(src, *move) * (still if move == (0, 0) else 1) for move in decoder.moves]
    expected = sum(copies) / (still + len(copies) - 1)
    torch.testing.assert_close(decoder.sample(src, torch.randn(4, 3, 2), Rng(0)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", ["flow", "pixel"])
def test_an_untrained_decoder_copies_the_source(decoder):
    torch.manual_seed(0)
    model = LAM(config(decoder=decoder)).eval()
    src, dst = (to_float(frames(4, 3, 16, 16, seed=s)) for s in (1, 2))
    z = torch.randn(4, 3, model.dim)
    torch.testing.assert_close(model.decoder.sample(src, z, Rng(0)), src, rtol=0, atol=1e-5)
    error = (src - dst).square().mean(dim=(1, 2, 3))
    if decoder == "flow":  # the velocity's error is the data's, over t
        error = error / sample_time(Rng(0), 4).clamp_min(0.05).square()
    torch.testing.assert_close(model.decoder.loss(src, z, dst, Rng(0)), error, rtol=1e-4, atol=0)


def test_the_reconstruction_loss_is_the_decoders_on_the_kept_prefix():
    model = lam(decoder="pixel")
    view = model.view(clip_of(frames(4, 3, 3, 16, 16)))
    clip, latents = view.frames, model.encode(view, [(0, 1), (1, 2)]).own
    keep = torch.tensor([0, 1, 2, 3])
    got = model.reconstruction(view, latents, keep, Rng(0))
    expected = torch.stack(
        [model.decoder.loss(clip[:, i], model.prefix(latents[i, j].post, keep), clip[:, j], Rng(0)) for i, j in latents]
    ).mean(0)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("decoder", ["flow", "pixel"])
@pytest.mark.parametrize("slots_of_time", [2, 3])
def test_two_shards_in_one_batch_are_two_batches(decoder, slots_of_time):
    model = lam(decoder=decoder)
    pictures = frames(6, slots_of_time, 3, 16, 16)
    clip = clip_of(pictures)

    def loss(clip: Clip, rng: Rng) -> torch.Tensor:
        return pair_losses(model, model.view(clip), rng).terms["reconstruction"]

    together = loss(clip, Rng(1, 7, range(2)))
    alone = [loss(clip[slice(3 * s, 3 * s + 3)], Rng(1, 7, [s])) for s in (0, 1)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_records_of_tensors_are_moved_indexed_and_concatenated_field_by_field():
    clip = dataclasses.replace(clip_of(frames(3, 2, 3, 8, 8)), targets={"q": torch.arange(6.0).view(3, 2, 1)})
    items = LabelledTransitions(
        torch.arange(3.0).view(3, 1, 1), torch.zeros(3, 1), torch.ones(3, 1), torch.arange(3), clip
    )
    last = items[torch.tensor([2, 0])]
    assert last.episode.tolist() == [2, 0] and torch.equal(last.clip.frames, clip.frames[[2, 0]])
    assert last.clip.targets["q"].flatten().tolist() == [4, 5, 0, 1] and last.observation is None
    both = LabelledTransitions.cat([items[:1], last])
    assert both.z.flatten().tolist() == [0, 2, 0] and torch.equal(both.clip.frames, clip.frames[[0, 2, 0]])
    on_meta = items.to("meta")
    assert on_meta.clip.frames.is_meta and on_meta.clip.targets["q"].is_meta and on_meta.z.is_meta
    assert torch.equal(JointBatch(items, clip).to("cpu").video.frames, clip.frames)


def test_the_total_is_the_weighted_mean_and_terms_must_match():
    losses = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([10.0, 20.0])}
    assert total(losses, {"a": 2.0, "b": 0.1}) == pytest.approx(2 * 2 + 1.5)
    for weights in ({"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {}):
        with pytest.raises(ValueError, match="different terms"):
            total(losses, weights)
    torch.testing.assert_close(
        squared_error(torch.zeros(2, 3, 4), torch.full((2, 3, 4), 2.0)), torch.tensor([4.0, 4.0])
    )


# ------------------------------------------------------------------------------------------------ files and people


PROVENANCE = Provenance(
    "flexlam", ("videos/kitchen", "demo:2"), (0.1, 0.3), "0.1.0+abc", 1234, {"translator accuracy": 0.5125}
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    model = LatentActionModel(config(), PROVENANCE)
    model.lam.load_state_dict(lam().state_dict())
    folder = tmp_path_factory.mktemp("model") / "saved"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize(("encoder", "decoder"), PARTS)
@pytest.mark.parametrize("bottleneck", sorted(BOTTLENECKS))
def test_a_saved_model_comes_back_the_same(encoder, decoder, bottleneck, tmp_path):
    torch.manual_seed(0)
    model = LatentActionModel(config(encoder, decoder, bottleneck), PROVENANCE).eval()
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    again = LatentActionModel.from_pretrained(tmp_path)
    assert again.config == model.config and again.provenance == model.provenance and not again.training
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    src, dst = frames(2, 3, 16, 16, seed=1), frames(2, 3, 16, 16, seed=2)
    latent = model.encode(src, dst)
    assert torch.equal(again.encode(src, dst).post, latent.post)
    for k in (None, 0, 2):
        assert torch.equal(again.decode(src, latent, k), model.decode(src, latent, k))


def test_a_run_folder_is_a_model_too(saved, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"method": "flexlam", "format": 1}))
    (tmp_path / "model").symlink_to(saved)
    assert LatentActionModel.from_pretrained(str(tmp_path)).provenance == PROVENANCE


def test_a_saved_model_is_safetensors_json_and_a_card(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert load_file(saved / "model.safetensors").keys() == lam().state_dict().keys()
    values = json.loads((saved / "config.json").read_text())
    assert values["model"]["encoder"]["kind"] == "conv" and values["model"]["slots"] == 3


def test_the_model_card_states_data_gap_code_version_and_metrics(saved):
    card = (saved / "README.md").read_text()
    assert "videos/kitchen, demo:2" in card
    assert "0.1 to 0.3 seconds" in card
    assert "0.1.0+abc" in card
    assert "| translator accuracy | 0.5125 |" in card
    assert card.startswith("---\n") and "library_name: lamina" in card


def test_loading_never_unpickles(saved, monkeypatch):
    def explode(*args, **options):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, explode)
    monkeypatch.setattr(torch, "load", explode)
    LatentActionModel.from_pretrained(saved)


def refuses(folder: Path, *words: str) -> None:
    with pytest.raises(LaminaError) as caught:
        LatentActionModel.from_pretrained(folder)
    text = str(caught.value)
    assert "\n" not in text, text
    assert all(word in text for word in words), text


def test_weights_cut_short_or_overwritten_are_refused(copy):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:100], whole[:7], b"", b"\xff" * 300):
        file.write_bytes(damaged)
        refuses(copy, "model.safetensors", "damaged or cut short")


@given(st.binary(max_size=200))
@settings(max_examples=40, deadline=None)
def test_any_bytes_for_weights_are_refused(tmp_path_factory, saved, junk):
    folder = tmp_path_factory.mktemp("junk")
    (folder / "config.json").write_bytes((saved / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(junk)
    refuses(folder, "model.safetensors")


def test_weights_of_another_shape_or_name_are_refused(copy):
    file = copy / "model.safetensors"
    state = load_file(file)
    name = "prefix.null"
    save_file({**state, name: torch.zeros(7)}, file)
    refuses(copy, "model.safetensors", "do not fit", name)
    save_file({k: v for k, v in state.items() if k != name}, file)
    refuses(copy, "model.safetensors", "do not fit", name)
    save_file({**state, "more": torch.zeros(7)}, file)
    refuses(copy, "model.safetensors", "do not fit", "more")


def test_missing_files_are_named(copy):
    (copy / "model.safetensors").unlink()
    refuses(copy, "model.safetensors", "no such file")
    (copy / "config.json").unlink()
    refuses(copy, "config.json", "no such file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(format=2), ["format 2", "reads format 1"]),
        (lambda v: v.pop("format"), ["format None"]),
        (lambda v: v["model"]["encoder"].update(kind="quantum"), ["config.json", "quantum"]),
        (lambda v: v["model"]["decoder"].update(temperature=3), ["config.json", "temperature"]),
        (lambda v: v["model"].update(extra=1), ["config.json", "extra"]),
        (lambda v: v["model"].pop("slots"), ["config.json", "slots"]),
        (lambda v: v["model"].update(slots=0), ["config.json", "slot"]),
        (lambda v: v["model"].update(prefix="middle"), ["config.json", "middle"]),
        (lambda v: v["model"].update(image=[3, 17, 16]), ["config.json", "17x16"]),
        (lambda v: v["model"].pop("bottleneck"), ["config.json", "bottleneck"]),
        (lambda v: v.pop("provenance"), ["config.json", "provenance"]),
        (lambda v: v["provenance"].update(author="x"), ["config.json", "author"]),
    ],
)
def test_a_config_of_another_version_is_refused(copy, change, words):
    path = copy / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    refuses(copy, *words)


def leaves(values, path=()):
    """The paths of all values of nested dicts and lists."""
    yield from [path] if path else []
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


CONFIG = {"format": 1, "model": config("transformer", "unet", "vq").to_dict(), "provenance": vars(PROVENANCE)}


@given(st.sampled_from(list(leaves(CONFIG))), st.sampled_from([None, "x", -1, 0, [], {}, 1.5, [1, "a"]]))
@settings(max_examples=100, deadline=None)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_any_value_of_a_config_is_a_model_or_one_clear_line(tmp_path_factory, path, value):
    values = json.loads(json.dumps(CONFIG))
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(values))
    refuses(folder, str(folder))  # for want of weights, if nothing else


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\ufffd", '{"format": 1}', '{"format": 1, "model": 3}'])
def test_a_config_that_is_no_config_is_refused(copy, text):
    (copy / "config.json").write_text(text)
    refuses(copy, "config.json")


def test_config_bytes_that_are_not_text_are_refused(copy):
    (copy / "config.json").write_bytes(b"\xff\xfe\x00{")
    refuses(copy, "config.json")


@pytest.mark.parametrize("where", ["not/a/folder/at/all", "/nowhere", "runs/nothing"])
def test_a_place_without_a_model_is_named(where, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuses(Path(where), where)


def test_the_folder_of_a_run_that_has_not_finished_says_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "method": "flexlam", "train": {}}))
    refuses(tmp_path, "config.json", "has the training finished")


@pytest.mark.typed(False)
@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(2, 3, 16, 16),
        torch.zeros(2, 1, 16, 16, dtype=torch.uint8),
        torch.zeros(3, 16, 16, dtype=torch.uint8),
    ],
)
def test_frames_of_another_kind_are_refused(saved, bad):
    model = LatentActionModel.from_pretrained(saved)
    good = frames(2, 3, 16, 16)
    for arguments in ((bad, good), (good, bad)):
        with pytest.raises(LaminaError, match="uint8 frames of shape"):
            model.encode(*arguments)
    with pytest.raises(LaminaError, match="uint8 frames of shape"):
        model.decode(bad, torch.zeros(2, 3, model.lam.dim))


@pytest.mark.parametrize("k", [-1, 4, 100])
def test_more_slots_than_there_are_is_refused(saved, k):
    model = LatentActionModel.from_pretrained(saved)
    src = frames(2, 3, 16, 16)
    with pytest.raises(LaminaError, match="0 to 3"):
        model.decode(src, model.encode(src, src), k)


def test_decode_reads_only_the_first_k_slots(saved):
    model = LatentActionModel.from_pretrained(saved)
    src, dst = frames(2, 3, 16, 16, seed=1), frames(2, 3, 16, 16, seed=2)
    latent = model.encode(src, dst)
    other = latent.post.clone()
    other[:, 2:] += 1
    assert torch.equal(model.decode(src, latent, 2), model.decode(src, other, 2))
    assert not torch.equal(model.decode(src, latent, 3), model.decode(src, other, 3))
    assert torch.equal(model.decode(src, latent), model.decode(src, latent.post, 3))
    assert not torch.equal(model.decode(src, latent, seed=0), model.decode(src, latent, seed=1))


def test_rows_of_a_latent_keep_their_parts_together():
    model = lam(bottleneck="vq")
    latent = model.encode(model.view(clip_of(frames(5, 2, 3, 16, 16))), [(0, 1)]).own[0, 1]
    row = latent[2:3]
    assert isinstance(row, Latent) and len(row) == 1 and len(latent) == 5
    assert torch.equal(row.post, latent.post[2:3]) and torch.equal(row.index, latent.index[2:3])
    assert torch.equal(row.aux["commitment"], latent.aux["commitment"][2:3])


@given(st.sampled_from(PARTS), st.sampled_from(sorted(BOTTLENECKS)), st.sampled_from(["full", "uniform", "short"]))
@settings(max_examples=30, deadline=None)
def test_a_config_survives_json(parts, bottleneck, prefix):
    before = config(*parts, bottleneck, prefix=prefix)
    assert LAMConfig.from_dict(json.loads(json.dumps(before.to_dict()))) == before


@pytest.mark.parametrize(
    "wrong",
    [{"layers": -1}, {"layers": 0}, {"heads": -1}, {"patch": -8}, {"frames": 1}, {"image": (0, 8)}, {"slots": 0}],
)
def test_a_count_below_the_least_is_one_clear_line(wrong):
    with pytest.raises(LaminaError, match=f"--{next(iter(wrong))} must be at least"):
        MethodConfig(**wrong)


def test_sizes_grow_and_can_be_overridden():
    count = []
    for size in NETWORK_SIZES:
        backbone = MethodConfig(size=size, image=(64, 64), encoder="transformer")
        with torch.device("meta"):
            model = LAM(LAMConfig(**backbone.parts(), bottleneck=FSQ.Config()))
        count.append(sum(p.numel() for p in model.parameters()))
    assert count == sorted(count) and count[0] < 0.1 * count[1]
    options = dataclasses.replace(MethodConfig(size="debug", encoder="transformer"), width=64, patch=4)
    parts = dataclasses.replace(options, decoder="flow").parts()
    assert parts["encoder"].width == 64 and parts["encoder"].patch == 4 and parts["decoder"].width == 64


@pytest.mark.typed(False)
def test_an_unknown_size_is_refused():
    with pytest.raises(LaminaError, match="unknown size"):
        MethodConfig(size="huge").parts()
