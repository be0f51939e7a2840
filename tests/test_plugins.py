"""Methods and encoders of one's own: by file, by entry point, by registration; what is refused, and what a run keeps of them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clips import clip_of
from lamina import methods
from lamina.cli import Train, main
from lamina.errors import LaminaError, LaminaWarning
from lamina.methods.base import Method
from lamina.models.bottlenecks import FSQ
from lamina.models.config import LAMConfig
from lamina.models.decoders import PixelDecoder
from lamina.models.encoders import ENCODERS, register_encoder
from lamina.models.encoders.base import Encoder
from lamina.models.encoders.conv import ConvEncoder
from lamina.models.hub import LatentActionModel
from lamina.models.lam import LAM
from lamina.options import TRAINING_OPTIONS
from lamina.rng import Rng
from lamina.training.recipe import recipe, recipe_of
from lamina.training.settings import TrainConfig
from planted import write_planted
from test_methods import check, clip

torch.set_num_threads(1)

MINE = '''"""Fixed-K with a loss on the size of the latent."""

from __future__ import annotations

from dataclasses import dataclass

from lamina.methods.base import LossOutput, MethodConfig, pair_losses
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.config import LAMConfig

OBJECTIVE_FRAMES = 2


@dataclass(frozen=True)
class Config(MethodConfig):
    size_weight: float = 0.5
    """weight of the latent's mean square"""


def build(config):
    return LAMConfig(**config.parts(), bottleneck=FSQ.Config((5, 3)))


def weights(config):
    return {"reconstruction": 1.0, "size": config.size_weight}


def losses(config):
    def terms(lam, view, rng):
        found = pair_losses(lam, view, rng)
        size = found.latents.own[0, 1].pre.square().mean((1, 2))
        return LossOutput({**found.terms, "size": size}, found.latents)

    return terms
'''
TINY = [
    "--image",
    "16",
    "16",
    "--size",
    "debug",
    "--slots",
    "2",
    "--decoder",
    "pixel",
    "--steps",
    "4",
    "--batch",
    "8",
    "--device",
    "cpu",
]
FAST = ["--workers", "0", "--gap", "0.1", "0.1"]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "my_method.py"
    path.write_text(MINE)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_planted(tmp_path_factory.mktemp("planted") / "dataset"))


# ------------------------------------------------------------------------------------------------------------- methods


def test_a_method_in_a_file_is_a_method(mine: Path) -> None:
    method = methods.load(str(mine))
    assert isinstance(method, Method) and methods.name_of(mine) == "my_method"
    check(method, method.Config(size="debug", image=(16, 16), slots=3))
    assert methods.load(mine).Config is method.Config  # the same code is one module
    lam, batch = LAM(method.build(method.Config(size="debug", image=(16, 16)))), clip((16, 16))
    found = recipe(mine, method, method.Config(size="debug", image=(16, 16))).losses(lam, batch, Rng(0))
    pre = lam.encode(lam.view(batch), [(0, 1)]).own[0, 1].pre
    torch.testing.assert_close(found["size"], pre.square().mean((1, 2)))


def test_a_run_of_a_method_in_a_file_keeps_the_file_and_never_executes_it(
    mine: Path, dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["train", str(mine), "--data", dataset, "--out", str(run), "--size-weight", "0.25", *TINY, *FAST]
    assert main(command) == 0
    settings = json.loads((run / "config.json").read_text())
    file = methods.file_of(methods.load(mine))
    assert file is not None
    assert settings["method"] == "my_method" and settings["weights"]["size"] == 0.25
    assert settings["method_file"] == {"path": str(mine), "sha256": file.sha256}
    assert (run / "method.py").read_text() == MINE
    assert LatentActionModel.from_pretrained(run).provenance.method == "my_method"

    (run / "method.py").write_text("raise SystemExit('executed')")
    joint = [
        "align",
        str(run),
        "--data",
        dataset,
        "--labels",
        "20",
        "--joint",
        "--steps",
        "2",
        "--batch",
        "8",
        "--device",
        "cpu",
    ]
    capsys.readouterr()
    assert main(joint) == 2
    assert f"was trained from a file; add --method {mine}" in capsys.readouterr().err
    assert main([*joint, "--method", str(mine)]) == 0
    row = json.loads((run / "joint/training/log.jsonl").read_text().splitlines()[0])
    assert {"action", "reconstruction", "size"} <= row.keys()

    mine.write_text(MINE + "# changed\n")
    with pytest.warns(LaminaWarning, match="is not the code that"):
        recipe_of(run, mine)
    capsys.readouterr()
    assert main([*command, "--resume"]) == 0
    assert "is not the code that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("def weights(config)", "def weight(config)", "missing: weights"),
        ("@dataclass(frozen=True)", "@dataclass", "cannot be loaded|frozen dataclass"),
        ("class Config(MethodConfig)", "class Config", "frozen dataclass derived from"),
        ("@dataclass(frozen=True)\n", "", "frozen dataclass derived from"),
        (
            "def build(config):",
            "def build(config, more):",
            r"build must be a function of \(config\), its arguments are \(config, more\)",
        ),
        ("def losses(config):", "def losses():", r"losses must be a function of \(config\)"),
        ("import dataclass\n", "import dataclas\n", "cannot be loaded .ImportError"),
        ("def build", "def build(", "cannot be loaded .SyntaxError"),
    ],
)
def test_what_is_no_method_is_one_line_before_data_is_opened(
    old: str, new: str, said: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in MINE
    mine.write_text(MINE.replace(old, new))
    with pytest.raises(LaminaError, match=said) as caught:
        methods.load(mine)
    assert "\n" not in str(caught.value)
    assert main(["train", str(mine), "--data", "/nowhere", "--out", "/nowhere/run"]) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("lamina: "))
    assert "/nowhere" not in line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "def terms(lam, view, rng):",
            "def terms(lam, rng):",
            r"my_method.losses\(config\) must be a function of \(lam, view, rng\)",
        ),
        ("    return terms\n", "    return None\n", r"must be a function of \(lam, view, rng\), it is NoneType"),
    ],
)
def test_losses_of_another_signature_are_one_line(old: str, new: str, said: str, mine: Path) -> None:
    mine.write_text(MINE.replace(old, new))
    method = methods.load(mine)
    with pytest.raises(LaminaError, match=said):
        recipe(mine, method, method.Config(size="debug", image=(16, 16)))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.py", f"{tmp_path}/", "../cli"):
        with pytest.raises(LaminaError, match="no method can be read there"):
            methods.load(path)


def distribution(folder: Path, group: str, entry: str) -> None:
    """An installed distribution, as far as importlib.metadata can tell."""
    info = folder / "mine-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")


def test_a_method_of_an_installed_package_is_found_by_name(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distribution(mine.parent, "lamina.methods", "sized = my_method")
    monkeypatch.syspath_prepend(str(mine.parent))
    try:
        assert "sized" in methods.names()
        method = methods.load("sized")
        assert methods.file_of(method) is None and isinstance(method, Method)
        distribution(mine.parent, "lamina.methods", "lapo = my_method")
        with pytest.warns(LaminaWarning, match="'lapo' .* has the name of a built-in one"):
            methods.names()
        assert methods.load("lapo").__name__ == "lamina.methods.lapo"  # type: ignore[attr-defined]
        distribution(mine.parent, "lamina.methods", "broken = no_such_module_of_mine")
        with pytest.raises(LaminaError, match=r"method 'broken' .* cannot be imported"):
            methods.load("broken")
        listed = methods.summaries()
        assert listed["broken"].startswith("cannot be used: method 'broken'") and listed["lapo"].startswith("LAPO: ")
        assert main(["train", "--help"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert any(line.startswith("  broken     cannot be used: ") for line in shown)
        assert any(line.startswith("  villa_x    ") for line in shown)
    finally:
        sys.modules.pop("my_method", None)


def test_a_methods_config_has_no_option_of_the_training(mine: Path) -> None:
    assert {f.name for kind in (TrainConfig, Train) for f in dataclasses.fields(kind)} == TRAINING_OPTIONS
    for name in ("lr", "camera"):
        mine.write_text(MINE.replace("size_weight", name))
        with pytest.raises(LaminaError, match=f"Config has '{name}', which is an option of every training"):
            methods.load(mine)


# ------------------------------------------------------------------------------------------------------------ encoders

TOKENS = '''"""An encoder whose features are tokens, and its registration."""

from dataclasses import dataclass

import torch
from torch import nn

from lamina.models.encoders import register_encoder


class TokenEncoder(nn.Module):
    """Features [n p f] of patches of four pixels; slots are read off their mean."""

    @dataclass(frozen=True)
    class Config:
        width: int = 12

    def __init__(self, config, observation, slots, dim):
        super().__init__()
        self.patch = nn.Conv2d(observation[0], config.width, 4, stride=4)
        self.head = nn.Linear(2 * config.width, slots * dim)
        self.slots = slots

    def embed(self, frames):
        return self.patch(frames).flatten(2).transpose(1, 2)

    def compare(self, first, second):
        pair = torch.cat([first, second], -1).mean(1)
        return self.head(pair).unflatten(1, (self.slots, -1))


register_encoder("tokens_of_mine", TokenEncoder)
'''


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an encoder, which is registered."""
    path = tmp_path_factory.mktemp("encoders") / "token_encoder.py"
    path.write_text(TOKENS)
    sys.path.insert(0, str(path.parent))
    try:
        import token_encoder  # type: ignore[import-not-found]  # noqa: F401
    finally:
        sys.path.remove(str(path.parent))
    return path


def loads(folder: Path, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Load the model in ``folder`` in a process of its own and print the sum of a latent."""
    code = f"""{before}
import torch
from lamina.models.hub import LatentActionModel
model = LatentActionModel.from_pretrained({str(folder)!r})
frames = torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16).remainder(251).to(torch.uint8)
print(model.encode(frames, frames.flip(0)).pre.sum().item())
"""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


def test_a_registered_encoder_trains_is_saved_and_loaded_where_it_is_registered(
    tokens: Path, dataset: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert (
        main(["train", "lapo", "--encoder", "tokens_of_mine", "--data", dataset, "--out", str(run), *TINY, *FAST]) == 0
    )
    config = json.loads((run / "model/config.json").read_text())["model"]
    assert config["encoder"] == {"kind": "tokens_of_mine", "width": 12}
    model = LatentActionModel.from_pretrained(run)
    assert isinstance(model.lam.encoder, Encoder)
    frames = torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16).remainder(251).to(torch.uint8)
    latent = model.encode(frames, frames.flip(0))
    pairs = model.lam.encode(model.lam.view(clip_of(torch.stack([frames, frames.flip(0)], 1))), [(0, 1)]).own[0, 1]
    torch.testing.assert_close(pairs.pre, latent.pre)
    registered = loads(run, f"import sys; sys.path.insert(0, {str(tokens.parent)!r}); import token_encoder")
    assert float(registered.stdout) == pytest.approx(float(latent.pre.sum()), rel=1e-5), registered.stderr
    unknown = loads(run)
    said = "this model's encoder 'tokens_of_mine' is not installed: import the file that registers it"
    assert unknown.returncode != 0 and said in unknown.stderr.splitlines()[-1]


def test_an_encoder_of_an_installed_package_is_found_when_it_is_asked_for(tokens: Path, tmp_path: Path) -> None:
    config = LAMConfig(
        (3, 16, 16), 2, ENCODERS["tokens_of_mine"].Config(width=6), FSQ.Config((5, 3)), PixelDecoder.Config(8, 32, 2, 1)
    )  # type: ignore[call-arg,operator]
    torch.manual_seed(0)
    LatentActionModel(config).save_pretrained(tmp_path / "model")
    site = tmp_path / "site"
    site.mkdir()
    (site / "token_encoder.py").write_text(TOKENS)
    distribution(site, "lamina.encoders", "tokens_of_mine = token_encoder:TokenEncoder")
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    done = loads(tmp_path / "model", PYTHONPATH=path)
    assert done.returncode == 0 and float(done.stdout), done.stderr
    (site / "token_encoder.py").write_text("import no_such_module_of_mine")
    broken = loads(tmp_path / "model", PYTHONPATH=path)
    assert "encoder 'tokens_of_mine' (token_encoder:TokenEncoder) cannot be imported" in broken.stderr.splitlines()[-1]


def test_what_is_no_encoder_is_refused() -> None:
    class Plain:
        def embed(self, frames: Tensor) -> Tensor: ...
        def compare(self, first: Tensor, second: Tensor) -> Tensor: ...

    class Half(nn.Module):
        def embed(self, frames: Tensor) -> Tensor: ...

    class Loose(ConvEncoder):
        @dataclass
        class Config:  # type: ignore[assignment]
            width: int = 3

    for name, kind, said in (
        ("plain", Plain, "'plain': .*Plain is no torch.nn.Module"),
        ("half", Half, "Half has no compare"),
        ("loose", Loose, "Config that is a frozen dataclass"),
        ("conv", type("Other", (ConvEncoder,), {}), "'conv' is lamina.models.encoders.conv.ConvEncoder already"),
    ):
        with pytest.raises(LaminaError, match=said):
            register_encoder(name, kind)  # type: ignore[arg-type]
    with pytest.raises(LaminaError, match="unknown encoder 'cnov': choose auto, transformer, conv"):
        methods.load("lapo").Config(encoder="cnov")
    with pytest.raises(LaminaError, match="is the Config of no registered encoder"):
        LAM(LAMConfig((3, 16, 16), 2, Loose.Config(), FSQ.Config((5, 3)), PixelDecoder.Config(8, 32, 2, 1)))
