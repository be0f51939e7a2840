"""FlexLAM for real video: published weights give the numbers of their own libraries, and the method trains from them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from lamina import methods
from lamina.cli import main
from lamina.data.sampling import DataConfig
from lamina.data.stream import ClipStream
from lamina.errors import LaminaError
from lamina.images import to_float
from lamina.losses.flow_matching import integrate, sample_time, shifted
from lamina.methods import flexlam_real
from lamina.models import layers
from lamina.models.decoders import autoencoder, sd3
from lamina.models.encoders import videomae
from lamina.models.hub import LatentActionModel
from lamina.models.lam import LAM
from lamina.models.published import Pretrained
from lamina.rng import Rng
from lamina.training.settings import TrainConfig
from parallel import SETTINGS, train
from planted import write_planted
from real_parts import HEADS, LAYERS, PATCH, WIDTH, v2_state
from real_parts import autoencoder as save_autoencoder
from real_parts import sd3 as save_sd3
from real_parts import videomae as save_videomae
from real_parts import videomae_v2 as save_videomae_v2

torch.set_num_threads(1)
pytestmark = pytest.mark.typed


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder of published weights: encoder, encoder-v2, pipeline/transformer, pipeline/vae."""
    folder = tmp_path_factory.mktemp("parts")
    save_videomae(folder / "encoder")
    save_videomae_v2(folder / "encoder-v2")
    save_sd3(folder / "pipeline/transformer")
    save_autoencoder(folder / "pipeline/vae")
    return folder


def config(parts: Path, **changes) -> flexlam_real.Config:
    named = {"encoder_init": "encoder", "decoder_init": "pipeline", "vae": "pipeline"}
    given = {option: str(parts / name) for option, name in named.items()}
    return flexlam_real.Config(**{"size": "tiny", "image": (8, 12), "slots": 5, "flow_steps": 3, **given, **changes})


def lam_of(options: flexlam_real.Config) -> LAM:
    torch.manual_seed(1)
    lam = LAM(flexlam_real.build(options))
    flexlam_real.initialise(options, lam)
    return lam.eval()


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ------------------------------------------------------------------------------------------------------------ encoder


def reference_v2(state: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """VideoMAE-v2's layers and last norm (Wang et al. 2023), by the names of its own weights."""
    state = {name.removeprefix("model."): value for name, value in state.items()}
    n, d = tokens.shape[1:]
    for number in range(LAYERS):
        own = {k.removeprefix(f"blocks.{number}."): v for k, v in state.items() if k.startswith(f"blocks.{number}.")}
        x = F.layer_norm(tokens, (d,), own["norm1.weight"], own["norm1.bias"], 1e-6)
        bias = torch.cat([own["attn.q_bias"], torch.zeros(d), own["attn.v_bias"]])
        q, k, v = F.linear(x, own["attn.qkv.weight"], bias).view(-1, n, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / math.sqrt(d // HEADS)).softmax(-1)
        mixed = (attention @ v).transpose(1, 2).reshape(-1, n, d)
        tokens = tokens + F.linear(mixed, own["attn.proj.weight"], own["attn.proj.bias"])
        x = F.layer_norm(tokens, (d,), own["norm2.weight"], own["norm2.bias"], 1e-6)
        x = F.gelu(F.linear(x, own["mlp.fc1.weight"], own["mlp.fc1.bias"]))
        tokens = tokens + F.linear(x, own["mlp.fc2.weight"], own["mlp.fc2.bias"])
    return F.layer_norm(tokens, (d,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)


def test_weights_of_videomae_v2_compute_what_they_do_under_their_own_names(parts):
    lam = lam_of(config(parts, encoder_init=str(parts / "encoder-v2")))
    encoder, state = lam.encoder, load_file(parts / "encoder-v2/model.safetensors")
    first, second = frames(2, 2, 3, 8, 12)
    # The pair as a video of two frames, normalised as ImageNet, through the convolution of the tubelets.
    mean, deviation = (torch.tensor(v).view(3, 1, 1, 1) for v in (videomae.MEAN, videomae.DEVIATION))
    video = (torch.stack([first, second], dim=2) / 2 + 0.5 - mean) / deviation
    patches = F.conv3d(video, state["model.patch_embed.proj.weight"], state["model.patch_embed.proj.bias"], (2, 4, 4))
    tokens = torch.cat([patches.flatten(2).transpose(1, 2) + encoder.position, encoder.slots.expand(2, -1, -1)], dim=1)
    expected = encoder.head(reference_v2(state, tokens)[:, -5:])
    found = encoder.compare(encoder.embed(first), encoder.embed(second))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_large_version_has_the_names_and_shapes_of_transformers():
    """What OpenGVLab publishes as VideoMAEv2-Large, and with a prefix of its pretraining."""
    shapes = v2_state(1024, 24, 16)
    assert len(shapes) == 4 + 24 * 13
    for rename in (lambda n: n, lambda n: n.replace("model.", "module.encoder."), lambda n: n.removeprefix("model.")):
        given = {rename(name): torch.empty(shape, device="meta") for name, shape in shapes.items()}
        given |= {rename("model.head.weight"): torch.empty(710, 1024, device="meta")}
        found = videomae.converted(given)
        with torch.device("meta"):
            own = videomae.VideoMAEEncoder(videomae.VideoMAEEncoder.Config(), (3, 224, 304), 80, 5)
        expected = {name: value.shape for name, value in own.model.state_dict().items()}
        assert {name: value.shape for name, value in found.items()} == expected
    assert own.position.shape == (14 * 19, 1024)


def test_weights_of_transformers_fill_the_encoder_and_positions_are_theirs(parts):
    from transformers import VideoMAEModel

    theirs = VideoMAEModel.from_pretrained(parts / "encoder").eval()
    encoder = lam_of(config(parts, image=(8, 8))).encoder
    video = frames(3, 16, 3, 8, 8)
    first, second = video[:, 0], video[:, 1]
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (videomae.MEAN, videomae.DEVIATION))
    embedded = theirs.embeddings((video / 2 + 0.5 - mean) / deviation, None)[:, :4]  # of the first tubelet
    bias = encoder.model.embeddings.patch_embeddings.projection.bias
    own = encoder.embed(first)[..., :WIDTH] + encoder.embed(second)[..., WIDTH:] + bias + encoder.position
    torch.testing.assert_close(own, embedded, rtol=1e-4, atol=1e-5)
    for name, value in theirs.encoder.state_dict().items():
        assert torch.equal(encoder.model.encoder.state_dict()[name], value), name


def test_positions_are_interpolated_over_the_picture():
    own = videomae.positions((4, 4), (4, 4), 8)
    assert torch.equal(own[5, :2], torch.tensor([math.sin(5), math.cos(5)], dtype=torch.float32))
    wide = videomae.positions((4, 4), (4, 8), 8).view(4, 8, 8)
    expected = F.interpolate(own.T.view(1, 8, 4, 4), (4, 8), mode="bicubic")[0].permute(1, 2, 0)
    assert torch.equal(wide, expected)


# ------------------------------------------------------------------------------------------------------------ decoder


@pytest.mark.parametrize("image", [(8, 12), (12, 20)])
def test_step_0_is_the_published_model_whatever_the_frame_before_is(parts, tmp_path, image):
    theirs = save_sd3(tmp_path / "again")  # the same seed as that of the fixture
    decoder = lam_of(config(parts, image=image, encoder_init=None, patch=4)).decoder
    assert decoder.shape == (4, image[0] // 2, image[1] // 2)
    x_t, z, t = frames(3, *decoder.shape), frames(3, 5, 5, seed=1), torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        expected = theirs(
            hidden_states=x_t, timestep=1000 * t, encoder_hidden_states=decoder.latent(z) + decoder.position,
            pooled_projections=decoder.pooled(z),
        ).sample  # fmt: skip
        for seed in (2, 3):
            found = decoder(x_t, t, 5 * frames(3, *decoder.shape, seed=seed), z)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01
    weight = decoder.transformer.pos_embed.proj.weight
    assert weight.shape[1] == 8 and not weight[:, 4:].any()
    # ... and it learns to look at the frame before: the new channels have a gradient.
    decoder.loss(frames(3, 3, *image), z, frames(3, 3, *image, seed=4), Rng(0)).mean().backward()
    assert weight.grad is not None and weight.grad[:, 4:].abs().sum() > 0


def test_the_autoencoder_is_the_published_one(parts, tmp_path):
    theirs = save_autoencoder(tmp_path / "again")
    lam = lam_of(config(parts))
    own, pictures = lam.decoder.autoencoder, frames(3, 3, 8, 12)
    with torch.no_grad():
        latents = (theirs.encode(pictures).latent_dist.mean - 0.1) * 1.7
        torch.testing.assert_close(own(pictures), latents)
        torch.testing.assert_close(own.decode(latents), theirs.decode(latents / 1.7 + 0.1).sample)
    assert not any(value.requires_grad for value in own.parameters())


def test_a_loss_is_the_velocitys_error_and_its_prediction_a_picture(parts):
    decoder = lam_of(config(parts)).decoder
    src, dst, z = frames(4, 3, 8, 12), frames(4, 3, 8, 12, seed=1), frames(4, 5, 5, seed=2)
    loss, picture = decoder.predict_and_loss(src, z, dst, Rng(7))
    assert torch.equal(loss, decoder.loss(src, z, dst, Rng(7))) and picture.shape == dst.shape
    before, after = decoder.autoencoder(src), decoder.autoencoder(dst)
    rng = Rng(7)
    t = sample_time(rng, 4, 3.0)
    noise = rng.normal(4, *decoder.shape)
    at = t.view(-1, 1, 1, 1)
    v = decoder((1 - at) * after + at * noise, t, before, z)
    torch.testing.assert_close(loss, (v - (noise - after)).square().mean((1, 2, 3)))
    clean = (1 - at) * after + at * noise - at * v
    torch.testing.assert_close(picture, decoder.autoencoder.decode(clean))


def test_euler_steps_are_those_of_diffusers_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7))
    noise = frames(2, 4, 4, 4)
    x, seen = noise, []
    for t in scheduler.timesteps:
        x = scheduler.step(torch.sin(x) * t / 1000, t, x).prev_sample

    def field(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(t[0]))
        return torch.sin(x_t) * t.view(-1, 1, 1, 1)

    torch.testing.assert_close(integrate(field, noise, 7, shift=3.0), x)
    assert seen == pytest.approx((scheduler.timesteps / 1000).tolist(), rel=1e-5)
    assert shifted(0.3, 1.0) == pytest.approx(0.3) and shifted(0.5, 3.0) == 0.75


# -------------------------------------------------------------------------------------------------- cached latents


def test_cached_latents_are_those_that_are_computed(parts, tmp_path, monkeypatch):
    plain, kept = lam_of(config(parts)), lam_of(config(parts, vae_cache=str(tmp_path / "cache")))
    pictures = (torch.randint(0, 256, (5, 3, 8, 12), generator=torch.Generator().manual_seed(0)).float() / 127.5) - 1
    pictures = torch.cat([pictures, pictures[:2]])
    expected = plain.decoder.autoencoder(pictures)
    with torch.autocast("cpu", torch.bfloat16):  # a run in bf16 leaves the same ones to a run in fp32
        assert torch.equal(plain.decoder.autoencoder(pictures), expected)
    computed = []
    encode = autoencoder.Autoencoder.encode
    monkeypatch.setattr(
        autoencoder.Autoencoder, "encode", lambda self, some: computed.append(len(some)) or encode(self, some)
    )
    for count in (5, 5):  # the second time everything is there
        torch.testing.assert_close(kept.decoder.autoencoder(pictures), expected)
        assert sum(computed) == count
    # Another autoencoder's latents are not in it.
    save_autoencoder(tmp_path / "other", seed=1)
    other = lam_of(config(parts, vae=str(tmp_path / "other"), vae_cache=str(tmp_path / "cache"))).decoder.autoencoder
    assert not torch.allclose(other(pictures), expected) and sum(computed) == 10
    # Nor is a damaged one believed.
    for part in kept.decoder.autoencoder.cache.folder.iterdir():
        part.write_bytes(part.read_bytes()[:-40] + bytes(40))
    torch.testing.assert_close(kept.decoder.autoencoder(pictures), expected)
    assert sum(computed) == 11


def test_a_cache_that_cannot_be_kept_is_one_line(parts, tmp_path):
    (tmp_path / "file").write_text("")
    kept = lam_of(config(parts, vae_cache=str(tmp_path / "file"))).decoder.autoencoder
    with pytest.raises(LaminaError, match=r"cannot be kept there .*choose another --vae-cache"):
        kept(torch.zeros(1, 3, 8, 12))


# ------------------------------------------------------------------------------------------------------ bad input


def test_weights_of_another_architecture_are_refused(parts, tmp_path):
    pipeline = parts / "pipeline"
    cases = [
        ({"encoder_init": str(pipeline / "vae")}, "--encoder-init .*vae: a model of type None, not a VideoMAE"),
        ({"vae": str(parts / "encoder")}, "--vae .*encoder: a videomae, not an AutoencoderKL"),
        ({"decoder_init": str(parts / "encoder")}, "--decoder-init .*: a videomae, not an SD3Transformer2DModel"),
        ({"encoder_init": str(tmp_path / "nowhere")}, "--encoder-init .*nowhere: no such folder with a config.json"),
        ({"image": (10, 12)}, "image 10x12 is not a multiple of the transformer's patch 4"),
        ({"image": (8, 12), "decoder": "pixel"}, "--decoder-init is for --decoder sd3, not for pixel"),
    ]
    save_autoencoder(tmp_path / "eight", channels=8)
    cases.append(({"vae": str(tmp_path / "eight")}, "reads latents of 4 channels, and the autoencoder has 8"))
    save_autoencoder(tmp_path / "strided", down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                     block_out_channels=(8, 8, 8, 8))  # fmt: skip
    cases.append(
        ({"vae": str(tmp_path / "strided")}, r"8x12 is not a multiple of 16, which the decoder's autoencoder \(8\)")
    )
    # Their weights fit, and would compute something else.
    save_autoencoder(tmp_path / "relu-vae", act_fn="relu")
    save_videomae(tmp_path / "relu-encoder", hidden_act="relu")
    cases.append(({"vae": str(tmp_path / "relu-vae")}, "relu-vae: an AutoencoderKL with the activation relu"))
    cases.append(
        ({"encoder_init": str(tmp_path / "relu-encoder")}, "relu-encoder: a VideoMAE with the activation relu")
    )
    for change, message in cases:
        with pytest.raises(LaminaError, match=message) as error:
            lam_of(config(parts, **change))
        assert "\n" not in str(error.value)


def test_weights_that_do_not_fit_their_config_are_refused(parts, tmp_path):
    for part, load in (
        ("encoder", "--encoder-init"),
        ("pipeline/transformer", "--decoder-init"),
        ("pipeline/vae", "--vae"),
    ):
        folder = tmp_path / Path(part).name
        folder.mkdir()
        values = json.loads((parts / part / "config.json").read_text())
        key = {"encoder": "num_hidden_layers", "transformer": "num_layers", "vae": "layers_per_block"}[folder.name]
        (folder / "config.json").write_text(json.dumps(values | {key: 1 + values[key]}))
        name = next((parts / part).glob("*.safetensors")).name
        (folder / name).write_bytes((parts / part / name).read_bytes())
        option = load.removeprefix("--").replace("-", "_")
        with pytest.raises(LaminaError, match=f"{load} .*: weights of another architecture: '.*' is missing"):
            lam_of(config(parts, **{option: str(folder)}))
        (folder / name).unlink()
        with pytest.raises(LaminaError, match=f"{load} .*: no weights there in safetensors files"):
            lam_of(config(parts, **{option: str(folder)}))


def test_an_autoencoder_is_asked_for(tmp_path, capsys):
    data = write_planted(tmp_path / "data")
    command = ["train", "flexlam_real", "--data", str(data), "--out", str(tmp_path / "run"), "--image", "16", "16"]
    assert main([*command, "--size", "tiny", "--device", "cpu"]) == 2
    assert "give one by --vae" in capsys.readouterr().err
    assert not (tmp_path / "run/config.json").exists()


# ------------------------------------------------------------------------------------------------------- training


def test_recomputed_activations_give_the_same_gradients(parts):
    options = config(parts)
    plain, again = lam_of(options).train(), lam_of(options).train()
    units = layers.repeated(again)
    assert [type(u).__name__ for u in units] == ["VideoMAELayer"] * 2 + ["JointTransformerBlock"] * 2
    calls = []
    for unit in units:
        unit.register_forward_pre_hook(lambda *_: calls.append(1))
        inner = unit.forward
        unit.forward = lambda *a, inner=inner, **k: (calls.append(2), inner(*a, **k))[1]
        layers.recompute(unit)
    a, b = frames(3, 3, 8, 12), frames(3, 3, 8, 12, seed=1)
    gradients = []
    for lam in (plain, again):
        z = lam.pair(*lam.embed(torch.cat([a, b])).halves()).post
        lam.decoder.loss(a, z, b, Rng(0)).mean().backward()
        gradients.append({n: p.grad for n, p in lam.named_parameters() if p.grad is not None})
    assert calls.count(2) == 2 * calls.count(1) == 8  # every unit twice
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)


def test_the_small_autoencoder_is_one_that_the_method_takes(tmp_path):
    data = write_planted(tmp_path / "data", episodes=6, length=12)
    small = runpy.run_path(str(Path(__file__).parents[1] / "bench" / "small_autoencoder.py"))["train"]
    small([str(data)], str(tmp_path / "vae"), image=(16, 16), steps=3)
    source = Pretrained("--vae", str(tmp_path / "vae"))
    made = autoencoder.Autoencoder(autoencoder.read_config(source))
    autoencoder.load(made, source)
    stream = ClipStream(DataConfig((str(data),), (16, 16), gap=(0.1, 1.0), workers=0), 16, seed=1)
    latents = made(to_float(next(iter(stream)).frames).flatten(0, 1))
    assert latents.shape[1:] == (16, 4, 4)
    assert abs(float(latents.mean())) < 0.2 and 0.8 < float(latents.std()) < 1.2  # the units that the flow works in


def test_it_trains_from_published_parts_and_its_model_stands_alone(parts, tmp_path, capsys):
    data = write_planted(tmp_path / "data", episodes=10, length=16)
    folder = tmp_path / "run"
    options = [
        "--size",
        "tiny",
        "--image",
        "8",
        "8",
        "--slots",
        "5",
        "--vae-cache",
        str(tmp_path / "cache"),
        "--augment",
        "0",
    ]
    pretrained = [
        "--encoder-init",
        str(parts / "encoder"),
        "--decoder-init",
        str(parts / "pipeline"),
        "--vae",
        str(parts / "pipeline"),
    ]
    training = ["--steps", "4", "--batch", "4", "--accumulate", "2", "--precision", "bf16", "--recompute", "--ema-offload",
                "--device", "cpu", "--workers", "0", "--gap", "0.1", "0.1"]  # fmt: skip
    command = ["train", "flexlam_real", "--data", f"{data}:2", "--data", f"{data}:1", "--out", str(folder)]
    assert main([*command, *options, *pretrained, *training]) == 0, capsys.readouterr().err
    for name in ("encoder", "pipeline"):
        (parts / name).rename(parts / f"{name}-away")  # the run needs them no more
    try:
        model = LatentActionModel.from_pretrained(folder)
    finally:
        for name in ("encoder", "pipeline"):
            (parts / f"{name}-away").rename(parts / name)
    theirs = save_autoencoder(tmp_path / "again").state_dict()
    own = model.lam.decoder.autoencoder.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in theirs.items())
    src, dst = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8)
    latent = model.encode(src, dst)
    assert latent.index.shape == (3, 5)
    pictures = [model.decode(src, latent, k) for k in (0, 5)]
    assert pictures[0].shape == src.shape
    assert torch.equal(pictures[1], model.decode(src, latent, 5))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_planted(tmp_path_factory.mktemp("data") / "set")


@pytest.mark.typed(False)
def test_two_processes_under_fsdp2_are_one(dataset, tmp_path):
    script = Path(__file__).parent / "real_parts.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), str(dataset), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    train(tmp_path / "one", dataset, "flexlam_real", accumulate=2)
    rows, expected = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    )
    assert len(rows) == len(expected) == SETTINGS.steps
    for row, other in zip(rows, expected, strict=True):
        for name in ("loss", "gradient_norm", "lr"):
            assert row[name] == pytest.approx(other[name], rel=1e-4)
    two, one = (load_file(tmp_path / name / "model/model.safetensors") for name in ("two", "one"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def test_the_papers_size_is_laid_out(monkeypatch):
    """Parameters of VideoMAE-v2 Large (304 million) and Stable Diffusion 3.5 medium (2.24 thousand million without its text encoders)."""
    options = flexlam_real.Config()
    built = flexlam_real.build(options)
    assert built.image == (3, 224, 304) and built.slots == 80
    with torch.device("meta"):
        lam = LAM(built)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in lam.named_children()}
    vae = sum(p.numel() for p in lam.decoder.autoencoder.parameters())
    assert count["encoder"] == pytest.approx(304e6, rel=0.01)
    assert count["decoder"] - vae == pytest.approx(2.24e9, rel=0.02) and vae == pytest.approx(83.8e6, rel=0.01)
    transformer = lam.decoder.transformer
    assert transformer.pos_embed.proj.weight.shape == (1536, 32, 2, 2) and transformer.proj_out.weight.shape[0] == 64
    assert methods.load("flexlam_real") is flexlam_real and dataclasses.asdict(TrainConfig())["recompute"] is False
    assert len(layers.repeated(lam)) == 48
    assert sd3.TIMES == 1000 and autoencoder.Autoencoder.Config().stride == 8 and PATCH == 4
    assert str(Pretrained("--vae", "x")) == "--vae x"


def test_the_table_of_the_page_has_the_figures_of_its_record():
    folder = Path(__file__).parents[1] / "docs" / "methods"
    figures = json.loads((folder / "flexlam_real_prefix.json").read_text())
    names = {
        **{f"k = {k}": f"k = {k}" for k in (0, 5, 20, 80)},
        "shuffled latents": "k = 80, another transition's latent", "mean latent": "k = 80, the mean latent",
        "copy-frame": "copy-frame", "autoencoder alone": "the autoencoder alone, from o_t+1 itself",
    }  # fmt: skip
    page = (folder / "flexlam_real.md").read_text()
    for name, shown in names.items():
        scores = [figures[data][name] for data in ("clips", "doom", "robot")]
        cells = " | ".join(f"{score['psnr']:.2f} / {score['ssim']:.3f}" for score in scores)
        assert f"| {shown} | {cells} |\n" in page
    trip = {
        name: f"{row['psnr']:.1f}"
        for name, row in json.loads((folder / "flexlam_real_transfer.json").read_text())["mean"].items()
    }
    assert f"({trip['round trip']} dB) is no better" in page and f"({trip['round trip, shuffled']} dB; direct" in page
    assert f"decoding {trip['direct']}, copy-frame {trip['copy-frame']};" in page
