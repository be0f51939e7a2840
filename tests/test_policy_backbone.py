"""Vision-language backbones of the flow policy: they see what the transformers library shows them, and train and save what they should."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny_backbones
from lamina.data.memory import InMemoryDataset
from lamina.errors import LaminaError
from lamina.policies.flow.backbone import VisionLanguageEncoder
from lamina.policies.flow.config import FlowConfig, FlowShapes
from lamina.policies.flow.context import Context
from lamina.policies.flow.model import FlowBatch, FlowModel
from lamina.policies.flow.policy import FlowPolicy
from lamina.policies.flow.training import load_flow_policy, train_flow_policy
from lamina.rng import Rng
from lamina.weights import load_module, save_weights

pytest.importorskip("transformers")
SMOL = all(importlib.util.find_spec(name) for name in ("torchvision", "num2words"))
KINDS = [
    "paligemma",
    "idefics3",
    pytest.param("smolvlm", marks=pytest.mark.skipif(not SMOL, reason="needs torchvision")),
]
LORA = pytest.param("lora", marks=pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft"))
TUNES = ["frozen", LORA, "whole"]

TASKS = ("open the drawer", "push the button and then slowly close the drawer")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(kind, seed) -> the folder of such a model."""
    known: dict[tuple[str, int], Path] = {}

    def folder(kind: str, seed: int = 0) -> Path:
        if (kind, seed) not in known:
            known[kind, seed] = getattr(tiny_backbones, kind)(tmp_path_factory.mktemp(kind), seed)
        return known[kind, seed]

    return folder


def config_of(folder: Path, **options: Any) -> FlowConfig:
    return FlowConfig(**{"size": "debug", "backbone": str(folder), "context": 2, "chunk": 2, "lora_rank": 2, **options})


def shapes_of(**values: Any) -> FlowShapes:
    given: dict[str, Any] = {
        "image": (3, tiny_backbones.IMAGE, tiny_backbones.IMAGE), "cameras": ("front", "wrist"), "discrete": (), "continuous": 3,
        "names": ("x", "y", "z"), "proprio": 4, "latent": 5, "gap": 1, "stride": 1, "fps": 10.0, "tasks": TASKS,
        "columns": ("action", "state"), "fingerprint": "",
    }  # fmt: skip
    return FlowShapes(**{**given, **values})


def context_of(words: tuple[str, ...] = TASKS, seed: int = 0) -> Context:
    """Two cameras, two frames of history."""
    draws, size = torch.Generator().manual_seed(seed), (tiny_backbones.IMAGE, tiny_backbones.IMAGE)
    frames = torch.randint(0, 256, (len(words), 2, 2, 3, *size), dtype=torch.uint8, generator=draws)
    return Context(frames, torch.randn(len(words), 2, 4, generator=draws), words)


def model_of(folder: Path, **options: Any) -> FlowModel:
    torch.manual_seed(0)
    model = FlowModel(config_of(folder, **options), shapes_of()).eval()
    for value in model.network.parameters():
        if not value.any():  # gates that are zero at the start: nothing of the context would reach the actions
            torch.nn.init.normal_(value, std=0.3)
    model.low.fill_(-100)
    model.high.fill_(100)
    return model


def actions_of(model: FlowModel, context: Context) -> Tensor:
    """A sample, from the same noise for equal rows of a batch of any length."""
    noise = torch.randn(8, 26, generator=torch.Generator().manual_seed(7))[: len(context)]
    return model.sample(context, noise[:, :20].unflatten(1, (2, 2, 5)), noise[:, 20:].unflatten(1, (2, 3)))[1]


def losses_of(model: FlowModel, context: Context) -> Tensor:
    b = len(context)
    yes = torch.ones(b, 2, dtype=torch.bool)
    batch = FlowBatch(context, torch.ones(b, 2, 3), yes, torch.ones(b, 2, 2, 5), yes)
    return sum(term.mean() for term in model.losses(batch, Rng(0)).values())  # type: ignore[return-value]


def reference(folder: Path, pictures: Any, words: str) -> Tensor:
    """The last hidden states of one prompt, as the transformers library alone computes them. [n d]."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
    arrays = [np.ascontiguousarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    if processor.chat_template:
        content = [*({"type": "image"} for _ in arrays), {"type": "text", "text": words}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        whole = {"do_image_splitting": False, "size": {"longest_edge": tiny_backbones.IMAGE}}
        inputs = processor(text=text, images=[arrays], return_tensors="pt", **whole)
    else:
        inputs = processor(text="<image>" * len(arrays) + words, images=[arrays], return_tensors="pt")
        inputs.pop("labels")
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states[-1][0]


@pytest.mark.parametrize("kind", KINDS)
def test_sees_what_the_library_shows(saved: Callable[..., Path], kind: str) -> None:
    """Frames of every camera and of the history, oldest first, and the task: the hidden states are the model's own."""
    folder, context = saved(kind), context_of()
    encoder = VisionLanguageEncoder(config_of(folder), shapes_of())
    states, valid = encoder.read(context)
    for row, words in enumerate(context.words):
        wanted = reference(folder, context.frames[row].flatten(0, 1), words)
        assert int(valid[row].sum()) == len(wanted)
        torch.testing.assert_close(states[row][valid[row]], wanted, atol=1e-4, rtol=1e-4)
    assert valid[1].all() and not valid[0].all()  # the second task is longer
    tokens, seen = encoder(context)
    assert tokens.shape == (2, states.shape[1] + 1, encoder.width) and seen[:, -1].all()
    normal = torch.nn.functional.layer_norm(states, (encoder.width,))
    torch.testing.assert_close(tokens[:, :-1], normal)
    torch.testing.assert_close(
        tokens[:, -1],
        encoder.norm(encoder.proprio(context.proprio.flatten(1))),  # type: ignore[union-attr, misc]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_task_matter(saved: Callable[..., Path], kind: str) -> None:
    folder, context = saved(kind), context_of()
    encoder = VisionLanguageEncoder(config_of(folder), shapes_of())
    states, _ = encoder.read(context)
    swapped, _ = encoder.read(Context(context.frames.flip(1), context.proprio, context.words))
    assert (states - swapped).abs().max() > 0.1
    wanted = reference(folder, context.frames[1].flip(0).flatten(0, 1), TASKS[1])
    torch.testing.assert_close(swapped[1], wanted, atol=1e-4, rtol=1e-4)
    other, _ = encoder.read(Context(context.frames, context.proprio, TASKS[::-1]))
    assert (states - other).abs().max() > 0.1
    blind = VisionLanguageEncoder(config_of(folder, task=False), shapes_of())
    assert torch.equal(blind.read(context)[0], blind.read(Context(context.frames, context.proprio, TASKS[::-1]))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_filler_changes_nothing(saved: Callable[..., Path], kind: str) -> None:
    """Neither the neighbours in a batch nor the length that prompts are filled up to reach the actions."""
    model, context = model_of(saved(kind)), context_of()
    actions = actions_of(model, context)
    assert (actions_of(model, context_of(seed=1)) - actions).abs().max() > 0.1
    model.encoder.length += 9
    assert model.encoder(context)[0].shape[1] == model.encoder.length + 1
    torch.testing.assert_close(actions_of(model, context), actions, atol=1e-4, rtol=1e-4)
    model.encoder.length = 0
    alone = actions_of(model, Context(context.frames[:1], context.proprio[:1], context.words[:1]))  # type: ignore[index]
    torch.testing.assert_close(alone, actions[:1], atol=1e-4, rtol=1e-4)


def test_frames_are_resized_to_the_model(saved: Callable[..., Path]) -> None:
    from lamina.images import resize

    encoder = VisionLanguageEncoder(config_of(saved("paligemma"), context=1), shapes_of(cameras=("front",)))
    frames = torch.randint(0, 256, (1, 1, 1, 3, 48, 64), dtype=torch.uint8)
    own = resize(frames[0, 0], (tiny_backbones.IMAGE, tiny_backbones.IMAGE))
    assert torch.equal(
        encoder.read(Context(frames, None, ("push",)))[0], encoder.read(Context(own[None, None], None, ("push",)))[0]
    )


@pytest.mark.parametrize("tune", TUNES)
def test_trains_what_it_should(saved: Callable[..., Path], tune: str) -> None:
    model, context = model_of(saved("paligemma"), tune=tune).train(), context_of()
    untuned = model_of(saved("paligemma"))
    rest = {
        name: v for name, v in model.state_dict().items() if not name.startswith(("encoder.model.", "encoder.finger"))
    }
    untuned.load_state_dict(rest, strict=False)  # adapters begin at zero
    torch.testing.assert_close(actions_of(model.eval(), context), actions_of(untuned, context))
    model.train()
    assert model.encoder.model.training is (tune == "whole")
    before = {name: value.clone() for name, value in model.encoder.model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # a gradient reaches an adapter's first matrix once its second is not zero
        optimizer.zero_grad()
        losses_of(model, context).backward()
        optimizer.step()
    moved = {name for name, value in model.encoder.model.named_parameters() if not torch.equal(value, before[name])}
    with_gradient = {name for name, value in model.encoder.model.named_parameters() if value.grad is not None}
    adapters = {name for name in before if ".lora_" in name}
    match tune:
        case "frozen":
            assert not moved and not with_gradient
        case "lora":
            linear = sum(name.endswith("base_layer.weight") for name in before)
            assert moved == with_gradient == adapters and len(adapters) == 2 * linear
        case "whole":
            assert with_gradient == set(before) and len(moved) > 0.9 * len(before)
    assert any((name.startswith("network") and p.grad is not None) for name, p in model.named_parameters())
    assert model.encoder.proprio.weight.grad is not None


@pytest.mark.parametrize("tune", TUNES)
def test_round_trip(saved: Callable[..., Path], tmp_path: Path, tune: str) -> None:
    """A checkpoint has what is trained and no more, gives the same actions, and is refused over another model."""
    folder = tmp_path / "backbone"
    shutil.copytree(saved("paligemma"), folder)
    model = model_of(folder, tune=tune)
    with torch.no_grad():  # as if it had been trained
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.05 * torch.randn_like(value))
    weights = tmp_path / "model.safetensors"
    save_weights(weights, model.state_dict(), {})
    of_backbone = {name for name in model.state_dict() if name.startswith("encoder.model.")}
    if tune == "whole":
        assert len(of_backbone) == len(model.encoder.model.state_dict())
    else:
        assert all(".lora_" in name for name in of_backbone) and bool(of_backbone) == (tune == "lora")

    def make() -> FlowModel:
        return FlowModel(config_of(folder, tune=tune), shapes_of())

    again = load_module(make, tmp_path / "config.json", weights, {}).eval()
    assert torch.equal(actions_of(again, context_of()), actions_of(model, context_of()))
    if tune == "whole":  # all weights are in the checkpoint
        return
    shutil.rmtree(folder)
    shutil.copytree(saved("paligemma", 1), folder)
    with pytest.raises(LaminaError, match="is not the model that this policy was trained with") as told:
        load_module(make, tmp_path / "config.json", weights, {})
    assert str(folder) in str(told.value) and "\n" not in str(told.value)


def test_other_settings_are_another_model(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Equal weights, but another config or other prompts."""
    folder = tmp_path / "backbone"
    shutil.copytree(saved("idefics3"), folder)
    first = VisionLanguageEncoder(config_of(folder), shapes_of())
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("{{ message['role'] }} : ", ""))
    second = VisionLanguageEncoder(config_of(folder), shapes_of())
    (folder / "chat_template.jinja").write_text(template)
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["rms_norm_eps"] = 1e-3
    (folder / "config.json").write_text(json.dumps(settings))
    third = VisionLanguageEncoder(config_of(folder), shapes_of())
    for other in (second, third):
        with pytest.raises(LaminaError, match="is not the model"):
            other.load_state_dict(first.state_dict())


@pytest.mark.parametrize("tune", TUNES)
def test_checkpoints_of_training(saved: Callable[..., Path], tune: str) -> None:
    """The training loop saves and resumes through torch.distributed.checkpoint, and averages a copy."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    from lamina.training.average import WeightAverage

    def state() -> tuple[FlowModel, torch.optim.Optimizer]:
        model = model_of(saved("paligemma"), tune=tune).train()
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    model, optimizer = state()
    average = WeightAverage(model, 0.5)
    for _ in range(2):
        losses_of(model, context_of()).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = copy.deepcopy(get_state_dict(model, optimizer, options=options))
    assert set(weights) == set(model.state_dict()) == set(average.module.state_dict())
    again, other = state()
    set_state_dict(again, other, model_state_dict=weights, optim_state_dict=moments, options=options)
    for each, its in ((model, optimizer), (again, other)):
        losses_of(each, context_of()).backward()
        its.step()
    assert torch.equal(actions_of(again.eval(), context_of()), actions_of(model.eval(), context_of()))
    assert not torch.equal(actions_of(average.module.eval(), context_of()), actions_of(model, context_of()))


def test_plans_without_weights(saved: Callable[..., Path]) -> None:
    """On the meta device, the same tensors."""
    folder = saved("idefics3")
    for tune in ("frozen", "whole"):
        with torch.device("meta"):
            plan = FlowModel(config_of(folder, tune=tune), shapes_of())
        real = model_of(folder, tune=tune)
        assert all(value.is_meta for value in plan.encoder.model.parameters())
        assert {n: (v.shape, v.dtype) for n, v in plan.state_dict().items()} == {
            n: (v.shape, v.dtype) for n, v in real.state_dict().items()
        }


@pytest.mark.parametrize("tune", ["frozen", LORA])
def test_stored_weights_keep_their_type(saved: Callable[..., Path], tmp_path: Path, tune: str) -> None:
    """A bfloat16 model stays one; what is trained is float32, and so are the tokens."""
    from transformers import AutoModelForImageTextToText

    shutil.copytree(saved("idefics3"), tmp_path / "half")
    AutoModelForImageTextToText.from_pretrained(saved("idefics3")).bfloat16().save_pretrained(tmp_path / "half")
    model, whole = model_of(tmp_path / "half", tune=tune), model_of(saved("idefics3"))
    types = {value.dtype for value in model.encoder.model.parameters() if not value.requires_grad}
    assert types == {torch.bfloat16}
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    states, valid = model.encoder.read(context_of())
    assert states.dtype == torch.float32
    wanted = whole.encoder.read(context_of())[0]
    assert 0 < (states - wanted)[valid].abs().mean() < 0.05 * wanted.abs().mean()
    losses_of(model, context_of()).backward()
    with torch.device("meta"):
        plan = FlowModel(model.config, model.shapes)
    assert {n: v.dtype for n, v in plan.state_dict().items()} == {n: v.dtype for n, v in model.state_dict().items()}


@pytest.mark.parametrize("tune", ["frozen", LORA])
def test_trained_resumed_and_at_work(saved: Callable[..., Path], tmp_path: Path, tune: str) -> None:
    """Through the training loop: a run that was cut ends with the same weights, and its policy acts on pictures and words."""
    from test_policy_flow import FPS, episodes, observations, training, write_run

    data = [InMemoryDataset(episodes(12), fps=FPS)]
    config = config_of(saved("idefics3"), tune=tune, chunk=4, replan=2, flow_steps=2)
    whole, cut = write_run(tmp_path / "whole"), write_run(tmp_path / "cut")
    for run in (whole, cut):
        train_flow_policy(run, data, config, training())
    (cut / "policy" / "config.json").unlink()
    for file in (cut / "policy" / "checkpoints").glob("*4*"):
        shutil.rmtree(file)
    train_flow_policy(cut, data, config, training(resume=True))
    a, b = (load_flow_policy(run / "policy").state_dict() for run in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)
    policies = [FlowPolicy.from_run(run) for run in (whole, cut)]
    item = episodes(1)[0]
    actions = [policy.act(observations(item, 0)) for policy in policies]
    assert actions[0].shape == (2, 2) and np.array_equal(actions[0], actions[1])


def broken(folder: Path, how: str) -> str:
    """``--backbone`` for a copy of a model that is damaged."""
    match how:
        case "missing":
            return str(folder / "not_here")
        case "no config":
            (folder / "config.json").unlink()
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "words alone":
            (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 32}))
        case "any size":
            (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
        case "no processor":
            (folder / "processor_config.json").unlink()
        case "lost tensor":
            from safetensors.torch import load_file, save_file

            tensors = load_file(folder / "model.safetensors")
            del tensors[next(name for name in sorted(tensors) if "q_proj" in name)]
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        case "pickle":
            (folder / "model.safetensors").unlink()
            torch.save({}, folder / "pytorch_model.bin")
        case "other size":
            path = folder / "processor_config.json"
            settings = json.loads(path.read_text())
            settings["image_processor"]["size"] = {"height": 14, "width": 14}
            path.write_text(json.dumps(settings))
    return str(folder)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "no such folder"),
        ("no config", "cannot be opened"),
        ("no weights", "cannot be opened"),
        ("words alone", "a llama model does not read pictures and words"),
        ("any size", "a qwen2_vl model has no fixed size of pictures"),
        ("no processor", "cannot be opened"),
        ("lost tensor", "its weights are not those of its config: '.*q_proj"),
        ("pickle", "cannot be opened"),
        ("other size", "its processor does more than normalise one picture of 28x28"),
    ],
)
def test_bad_models_are_one_line(saved: Callable[..., Path], tmp_path: Path, how: str, told: str) -> None:
    shutil.copytree(saved("paligemma"), tmp_path / "copy")
    name = broken(tmp_path / "copy", how)
    with pytest.raises(LaminaError, match=told) as error:
        VisionLanguageEncoder(config_of(Path(name)), shapes_of())
    assert name in str(error.value) and "\n" not in str(error.value)


def test_missing_libraries_are_one_line(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved("paligemma")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(LaminaError, match=r"--tune lora needs the peft library: pip install lamina\[vla\]"):
            VisionLanguageEncoder(config_of(folder, tune="lora"), shapes_of())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers.utils", None)
        with pytest.raises(LaminaError, match=r"needs the transformers library: pip install lamina\[vla\]"):
            VisionLanguageEncoder(config_of(folder), shapes_of())


def test_bad_options_are_one_line(saved: Callable[..., Path]) -> None:
    with pytest.raises(LaminaError, match="--lora-rank must be at least 1"):
        FlowConfig(lora_rank=0)
    with pytest.raises(LaminaError, match="reads RGB frames, these have 4 channels"):
        VisionLanguageEncoder(config_of(saved("paligemma")), shapes_of(image=(4, 28, 28)))
