"""The contract of every file in methods/; `test_contract.py` has that of the stages that use it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch

import lamina
from lamina import methods
from lamina.data.augment import augmented
from lamina.data.sampling import DataConfig
from lamina.errors import LaminaError
from lamina.losses.reconstruction import total
from lamina.methods.base import neighbours
from lamina.models.config import LAMConfig
from lamina.models.features import EMAFeatures
from lamina.models.lam import LAM
from lamina.rng import Rng
from lamina.training import pretraining as pretrain
from lamina.training import recipe as training_recipe
from lamina.training.recipe import filled_in, recipe
from lamina.training.settings import TrainConfig
from lamina.types import TASK_WIDTH, Clip
from planted import write_planted

torch.set_num_threads(1)
pytestmark = pytest.mark.typed

SOURCE = Path(lamina.__file__).parent
PARTS = [(e, d) for e in ("conv", "transformer") for d in ("flow", "pixel", "unet")]
every_method = pytest.mark.parametrize("name", methods.names())


def clip(image: tuple[int, int], batch: int = 4, frames: int = 2, seed: int = 0) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (batch, frames, 3, *image), dtype=torch.uint8, generator=generator)
    place = torch.arange(frames).expand(batch, -1)
    proprio = torch.randn(batch, frames, 4, generator=generator)
    words = torch.randn(batch, TASK_WIDTH, generator=generator)
    return Clip(pictures, place.float(), place, torch.zeros(batch, dtype=torch.long), proprio=proprio, task=words)


def check(module, config) -> None:
    """The contract of a method, for one setting of its options."""
    built = module.build(config)
    assert isinstance(built, LAMConfig) and built.image == (3, *config.image) and built.slots == config.slots
    torch.manual_seed(0)
    lam = LAM(built).train()
    for parameter in lam.parameters():  # a layer that starts at zero stops the gradient of the first step
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    trained = {n: p for n, p in lam.named_parameters() if p.requires_grad}
    weights = module.weights(config)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    reached: set[str] = set()
    for step in range(3):  # several draws: one of the prefixes may hold all slots, or none
        batch = clip(config.image, frames=config.frames, seed=step)
        output = module.losses(config)(lam, lam.view(batch), Rng(0, step))
        assert output.latents.own.keys() >= set(neighbours(config.frames)) and not output.latents.paired
        losses = output.terms
        assert losses.keys() == weights.keys()
        assert all(v.shape == (len(batch),) and v.isfinite().all() for v in losses.values())
        loss = total(losses, weights)
        assert loss > 0
        loss.backward()
        assert all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None)
        reached |= {n for n, p in trained.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
        optimizer.zero_grad()
    assert reached == trained.keys(), f"no gradient reaches {sorted(trained.keys() - reached)}"


@every_method
@pytest.mark.parametrize("image", [(16, 16), (32, 48), (64, 64)])
def test_a_method_trains_at_every_size(name, image):
    module = methods.load(name)
    check(module, module.Config(size="debug", image=image))


@every_method
@pytest.mark.parametrize(("encoder", "decoder"), PARTS)
def test_a_method_meets_every_encoder_and_decoder(name, encoder, decoder):
    module = methods.load(name)
    check(module, module.Config(size="debug", image=(16, 16), encoder=encoder, decoder=decoder, slots=3))


@pytest.mark.parametrize("options", [{"quantiser": "none"}, {"space": "ema"}, {"space": "features"}])
def test_lapo_without_a_quantiser_or_pixels(options):
    module = methods.load("lapo")
    check(module, module.Config(size="debug", image=(16, 16), slots=1, code_dim=8, **options))


def test_ema_targets_have_no_gradient_and_follow_the_encoder():
    module = methods.load("lapo")
    torch.manual_seed(0)
    lam = LAM(module.build(module.Config(size="debug", image=(16, 16), space="ema"))).train()
    frames = torch.randn(4, 3, 16, 16)
    weight, average = lam.space.online[0].weight, lam.space.average[0].weight
    with torch.no_grad():
        weight += 1.0
    before = average.clone()
    target = lam.space.target(frames)
    assert not target.requires_grad and lam.space(frames).requires_grad
    assert torch.equal(average, before)  # asking moves nothing
    lam.space.after_step()
    torch.testing.assert_close(average, before + 0.01 * (weight - before))


def test_the_average_moves_once_a_step_of_training_whatever_is_added_to_a_step(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(EMAFeatures, "after_step", lambda space: calls.append(space))
    module = methods.load("lapo")
    config = module.Config(size="debug", image=(16, 16), space="ema", cross_exogenous=1.0)
    plan = recipe("lapo", module, config)
    data = DataConfig((str(write_planted(tmp_path / "data")),), (16, 16), workers=0)

    def with_a_view(lam, clip, rng):
        return plan.losses(lam, dataclasses.replace(clip, paired=clip.frames), rng)

    training = TrainConfig(steps=3, batch=4, device="cpu", checkpoint_every=3)
    pretrain.pretrain(tmp_path / "run", dataclasses.replace(plan, losses=with_a_view), data, training)
    assert len(calls) == 3


@every_method
def test_a_method_reads_longer_clips(name):
    module = methods.load(name)
    check(module, module.Config(size="debug", image=(16, 16), frames=4, slots=3))


@every_method
def test_a_methods_file_says_what_it_is(name):
    module = methods.load(name)
    text = inspect.getdoc(module)
    command = re.search(rf"^    lamina train {name}( .*)?$", text, re.MULTILINE)
    assert command, "the docstring gives no command"
    assert re.search(r"arXiv|http|§", text), "the docstring names no source"
    assert "eviation" in text, "the docstring lists no deviations"
    options = {f.name.replace("_", "-") for f in dataclasses.fields(module.Config)}
    named = set(re.findall(r"--([a-z-]+)", command.group(0))) - {"data", "out", "gap"}
    assert named <= options, f"the command has options that the Config lacks: {named - options}"
    assert dataclasses.is_dataclass(module.Config) and module.Config.__dataclass_params__.frozen
    module.Config()  # every option has a default


def test_an_unknown_method_is_refused_with_a_suggestion():
    with pytest.raises(LaminaError, match="unknown method 'flexlm': did you mean flexlam"):
        methods.load("flexlm")
    with pytest.raises(LaminaError, match=", ".join(methods.names())):
        methods.load("zzz")
    for name in ("__init__", "../cli", "flexlam.losses", ""):
        with pytest.raises(LaminaError):
            methods.load(name)


def test_every_file_in_methods_is_a_method():
    assert methods.names() == sorted(
        p.stem for p in (SOURCE / "methods").glob("*.py") if p.stem not in ("__init__", "base", "auxiliary")
    )


# ------------------------------------------------------------------------------------------------------- augmentation


def test_a_sample_is_seen_through_one_window_in_all_of_its_frames_and_its_paired_view():
    own = clip((16, 24), batch=64, frames=3)
    still = dataclasses.replace(
        own, frames=own.frames[:, :1].expand(-1, 3, -1, -1, -1), paired=own.frames[:, :1].expand(-1, 3, -1, -1, -1)
    )
    seen = augmented(still, 0.5, Rng(0), mirror=True)
    assert seen.frames.dtype == torch.uint8 and seen.frames.shape == own.frames.shape
    assert torch.equal(seen.frames[:, 0], seen.frames[:, 2]) and torch.equal(seen.frames, seen.paired)
    assert not torch.equal(seen.frames[:, 0], own.frames[:, 0])
    none = augmented(own, 0.0, Rng(0), mirror=False)
    assert torch.equal(none.frames, own.frames)  # a window of the whole picture
    turned = augmented(own, 0.0, Rng(0), mirror=True).frames
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(turned, own.frames, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(turned, own.frames, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 16 < sum(mirrored) < 48
    assert torch.equal(augmented(own, 0.5, Rng(0), True).frames, augmented(own, 0.5, Rng(0), True).frames)


def test_a_ramp_through_a_window_is_a_flatter_ramp():
    """A window of half the width shows half of the ramp, wherever it lies."""
    ramp = (torch.arange(32) * 8).to(torch.uint8).expand(50, 2, 3, 32, 32)
    own = dataclasses.replace(clip((32, 32), batch=50), frames=ramp.clone())
    inside = augmented(own, 0.5, Rng(3), mirror=False).frames[:, 0, 0, 16, 2:-2].float()
    slope = inside.diff(dim=1).mean(1)
    assert slope.min() >= 3.9 and slope.max() <= 8.1 and slope.std() > 0.5


def test_little_data_is_augmented_and_much_is_not(tmp_path):
    module = methods.load("flexlam")
    data = DataConfig((str(write_planted(tmp_path / "data")),), (16, 16), gap=(0.1, 0.1), workers=0)
    options = module.Config(size="debug", image=(16, 16))
    seldom, often = TrainConfig(steps=20, batch=8), TrainConfig(steps=2000, batch=8)
    assert filled_in(options, data, seldom)[0].augment == 0
    assert filled_in(options, data, often)[0].augment == 0.5
    assert filled_in(dataclasses.replace(options, augment=0.0), data, often)[0].augment == 0
    with pytest.raises(LaminaError, match=r"--augment must be at most 0\.99"):
        module.Config(augment=1.0)


@pytest.mark.parametrize(("changes", "mirrored"), [({}, True), ({"robust_target": 0.1, "target_width": 2}, False)])
def test_mirror_images_are_for_methods_that_read_nothing_but_frames(changes, mirrored, monkeypatch):
    module = methods.load("flexlam")
    told = []
    monkeypatch.setattr(training_recipe, "augmented", lambda clip, strength, rng, mirror: told.append(mirror) or clip)
    plan = recipe("flexlam", module, module.Config(size="debug", image=(16, 16), augment=0.5, **changes))
    batch = dataclasses.replace(clip((16, 16)), action=torch.randn(4, 2, 2))
    plan.losses(LAM(plan.lam), batch, Rng(0))
    assert told == [mirrored]
