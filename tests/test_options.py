"""Options: every number has limits, and a command runs or fails with a one-line error."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina import cli, methods
from lamina.cli import main
from lamina.comparison.plan import CompareConfig
from lamina.data.sampling import DataConfig
from lamina.errors import LaminaError
from lamina.evaluation.doctor import DoctorConfig
from lamina.evaluation.settings import EvaluateConfig
from lamina.models.heads import TranslatorConfig
from lamina.options import LIMITS, check_options
from lamina.policies.flow.config import FlowConfig
from lamina.policies.token_model import TokenConfig
from lamina.training.adaptive import AdaptiveConfig
from lamina.training.alignment import AlignConfig
from lamina.training.pretraining import check_memory
from lamina.training.settings import TrainConfig
from lamina_research import cli as research_cli
from lamina_research.linear.analysis import LinearSetting

CONFIGS: dict[str, Any] = {
    "TrainConfig": TrainConfig(), "AlignConfig": AlignConfig(), "TranslatorConfig": TranslatorConfig(), "TokenConfig": TokenConfig(),
    "AdaptiveConfig": AdaptiveConfig(), "FlowConfig": FlowConfig(), "DoctorConfig": DoctorConfig(), "CompareConfig": CompareConfig(),
    "EvaluateConfig": EvaluateConfig(), "LinearSetting": LinearSetting(), "DataConfig": DataConfig(data=("x",)),
    **{name: methods.load(name).Config() for name in methods.names()},
}  # fmt: skip
COMMANDS = [
    cli.Collect,
    cli.Train,
    cli.Align,
    cli.Label,
    cli.Evaluate,
    cli.Play,
    cli.Policy,
    cli.Rollout,
    research_cli.Reproduce,
    research_cli.Exogenous,
]


def numeric(kind: type) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if "int" in str(f.type) or "float" in str(f.type)]


def test_every_number_that_can_be_given_has_limits():
    named = {name for kind in (*COMMANDS, *map(type, CONFIGS.values())) for name in numeric(kind)}
    assert named == LIMITS.keys()


def number_options() -> list[tuple[str, str]]:
    return [(config, name) for config, value in CONFIGS.items() for name in numeric(type(value))]


@given(st.sampled_from(number_options()), st.data())
def test_a_config_takes_what_is_within_the_limits_and_nothing_else(option, data):
    config, name = CONFIGS[option[0]], option[1]
    least, most = LIMITS[name]
    value = data.draw(
        st.sampled_from([math.nan, math.inf, -math.inf, least - 1, math.nextafter(least, -math.inf), most * 1.001 + 1])
    )
    given_tuple = isinstance(getattr(config, name), tuple) and name != "target_classes"
    shaped = (value,) * max(1, len(getattr(config, name))) if given_tuple or name == "target_classes" else value
    with pytest.raises(LaminaError, match=name.replace("_", "-")) as caught:
        dataclasses.replace(config, **{name: shaped})
    assert "\n" not in str(caught.value)


def test_every_default_is_within_the_limits():
    for config in CONFIGS.values():
        check_options(config)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("train flexlam --data x --out y --seed -1", "--seed must be at least 0, got -1"),
        (f"train flexlam --data x --out y --seed {2**64}", f"--seed must be at most 2.14748e+09, got {2**64}"),
        ("train flexlam --data x --out y --ema 2", "--ema must be at most 1, got 2.0"),
        ("train flexlam --data x --out y --ema nan", "--ema must be a finite number, got nan"),
        ("train flexlam --data x --out y --clip -1", "--clip must be at least 1e-12, got -1.0"),
        ("train flexlam --data x --out y --warmup -5", "--warmup must be at least 0, got -5"),
        ("train flexlam --data x --out y --shards 0", "--shards must be at least 1, got 0"),
        ("train flexlam --data x --out y --shards -8", "--shards must be at least 1, got -8"),
        ("train flexlam --data x --out y --slots 100000000", "--slots must be at most 1024, got 100000000"),
        ("policy x --data y --stride 1000000", "--stride must be at most 100000, got 1000000"),
        ("evaluate x --data y --transitions 1", "--transitions must be at least 2, got 1"),
        ("collect grid --out y --noise nan", "--noise must be a finite number, got nan"),
        ("rollout random --world grid --temperature inf", "--temperature must be a finite number, got inf"),
        ("reproduce exo/cca --seeds -3", "--seeds must be at least 0, got -3"),
    ],
)
def test_the_command_line_names_the_option(arguments, told, capsys):
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err == f"lamina: {told}\n"


@pytest.mark.parametrize(
    "arguments", ["label x y --out z --precision fp16", "train flexlam --data x --out y --device tpu"]
)
def test_a_word_that_is_no_choice_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert arguments.split()[-1] in capsys.readouterr().err


def test_a_model_that_no_memory_holds_is_refused_before_any_of_it_is_made():
    method = methods.load("flexlam")
    options = method.Config(size="base", width=65536, encoder="transformer", decoder="flow", image=(64, 64), heads=64)
    with pytest.raises(
        LaminaError, match=r"takes [\d,]+ GiB for its weights alone, this machine has \d+; choose a smaller --size"
    ):
        check_memory(method.build(options), TrainConfig(device="cpu"))
    check_memory(method.build(method.Config(size="debug")), TrainConfig(device="cpu"))
