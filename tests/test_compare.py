"""The comparison: one table of trained methods and given models, its words, what is done once, and mistakes in one line."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lamina
from lamina import methods
from lamina.cli import main
from lamina.comparison import run as comparison
from lamina.comparison.plan import (
    CompareConfig,
    Plan,
    check_data,
    make_plan,
    parse_budget,
    run_folder,
    stage_folder,
    steps_of,
)
from lamina.comparison.table import CompareRow, apart, ranked, words
from lamina.comparison.worker import load_plan, save_plan, train
from lamina.errors import LaminaError
from lamina.evaluation.record import Evaluation
from lamina.evaluation.settings import EvaluateConfig
from lamina.files import checkpoint_hash
from lamina.inference.subject import Subject
from lamina.models.hub import LatentActionModel, Provenance
from lamina.types import Clip
from planted import write_planted

torch.set_num_threads(1)
OPTIONS = (
    "--budget 12steps --size debug --image 16 16 --gap 0.1 0.1 --batch 8 --labels 40 --align-steps 12 --transitions 24 "
    "--reconstructions 16 --linear 40 --structure 8 --scratch-steps 4 --translator-steps 12 --device cpu --parallel 2"
)
FLAGS = OPTIONS.split()
DIVERGES = '''"""A method whose loss is not finite from the start."""

from dataclasses import dataclass

from lamina.methods import flexlam
from lamina.methods.base import LossOutput
from lamina.methods.flexlam import build, weights


@dataclass(frozen=True)
class Config(flexlam.Config):
    pass


def losses(config):
    own = flexlam.losses(config)

    def terms(lam, view, rng):
        found = own(lam, view, rng)
        return LossOutput({name: value * float("nan") for name, value in found.terms.items()}, found.latents)

    return terms
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_planted(home / "data", episodes=12, length=16)
    (home / "diverges.py").write_text(DIVERGES)
    return home


@pytest.fixture(scope="module")
def compared(home: Path) -> Path:
    """FlexLAM with two seeds, and a method that diverges, by the command line."""
    argv = ["compare", "--data", str(home / "data"), "--out", str(home / "out"), "--seeds", "2", *FLAGS]
    assert main([*argv, "--methods", "flexlam", str(home / "diverges.py")]) == 0
    return home / "out"


def row(name: str, *loss: float, **more) -> CompareRow:
    return CompareRow(name, more.pop("role", "model"), {"loss": loss, **more.pop("values", {})}, **more)


def test_figures_are_those_of_evaluate(compared):
    record = json.loads((compared / "comparison.json").read_text())
    rows = {r["name"]: r for r in record["rows"]}
    for seed in range(2):
        own = json.loads((compared / "runs" / f"flexlam-{seed}" / "evaluation.json").read_text())
        translator = [r for r in own["translator"] if r["role"] == "model"]
        assert rows["flexlam"]["values"]["loss"][seed] == max(translator, key=lambda r: r["k"])["loss"]["mean"]
        assert (
            rows["flexlam"]["over_k"]["loss"]["1"][seed] == next(r for r in translator if r["k"] == 1)["loss"]["mean"]
        )
        shuffled = next(r for r in own["translator"] if r["name"] == "shuffled latents")
        assert (
            rows["flexlam"]["values"]["gain"][seed]
            == shuffled["loss"]["mean"] - rows["flexlam"]["values"]["loss"][seed]
        )
        pixels = next(r for r in own["translator"] if r["name"] == "plain pixels of the pair")
        assert rows["plain pixels of the pair"]["values"]["loss"][seed] == pixels["loss"]["mean"]
    both = rows["flexlam"]["values"]["loss"]
    assert both[0] != both[1] and rows["flexlam"]["figures"]["loss"]["mean"] == pytest.approx(np.mean(both))
    assert {"psnr", "ssim", "linear", "addition", "perplexity", "latency", "cost"} <= rows["flexlam"]["values"].keys()
    for name in ("inverse dynamics model", "copy-frame", "random-weights encoder"):
        assert math.isfinite(rows[name]["figures"]["loss"]["mean"])


def test_a_method_that_diverges_has_a_row_and_the_others_go_on(compared):
    record = json.loads((compared / "comparison.json").read_text())
    failed = next(r for r in record["rows"] if r["name"] == "diverges")
    assert failed["state"] == "diverged" and "the loss is nan" in failed["reason"] and not failed["values"]
    assert next(r for r in record["rows"] if r["name"] == "flexlam")["state"] == "ok"
    page = (compared / "comparison.html").read_text()
    assert "diverges: diverged (seed 1" in page and "None" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    assert page.count("data:image/png") == 1 and "https://" not in page.replace("https://www.w3.org", "")


def test_called_again_nothing_is_trained_and_a_run_can_be_a_row(home, compared):
    """Given as a row, a run has the figures that it has as a method: both are evaluated with the same labels."""
    before = {p: p.stat().st_mtime_ns for p in compared.rglob("model.safetensors")}
    argv = ["compare", "--data", str(home / "data"), "--out", str(compared), "--seeds", "2", *FLAGS]
    run = compared / "runs" / "flexlam-0"
    assert main([*argv, "--methods", "flexlam", str(home / "diverges.py"), "--with", str(run)]) == 0
    assert {p: p.stat().st_mtime_ns for p in compared.rglob("model.safetensors")} == before
    rows = {r["name"]: r["values"] for r in json.loads((compared / "comparison.json").read_text())["rows"]}
    for metric in ("loss", "accuracy", "linear", "psnr", "addition"):
        assert rows[str(run)][metric][0] == pytest.approx(rows["flexlam"][metric][0], rel=1e-6), metric


def loss_record(subject: Subject, loss: float) -> Evaluation:
    """An evaluation with a translator's loss, and an error of composition on either side of the quantiser."""

    def estimate(value: float) -> dict[str, float]:
        return {"mean": value, "low": value, "high": value}

    def structure(place: str, value: float) -> dict[str, Any]:
        both = {"raw": estimate(value), "relative": estimate(value)}
        return {
            "place": place,
            "role": "model",
            "name": place,
            "horizons": [{"t": 5, "addition": both, "reversal": both}],
        }

    row = {"name": subject.name, "role": "model", "k": 1, "loss": estimate(loss)}
    sides = [structure("pre", 0.02), structure("post", 0.8)]
    return Evaluation.from_dict(
        {"format": 1, "method": subject.name, "translator": [row], "structure": {"records": sides}}
    )


def test_a_given_row_is_of_its_own_weights_and_its_own_side_of_the_quantiser(home, tmp_path, monkeypatch):
    calls: list[str] = []

    def evaluated(subject: Subject, data: str, config: EvaluateConfig, folder: Path) -> None:
        calls.append(subject.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(loss_record(subject, losses[subject.checkpoint]).to_json())

    def trained(name: str, seed: int) -> str:
        torch.manual_seed(seed)
        alam = methods.load("alam")
        config = alam.build(alam.Config(size="debug", image=(16, 16), decoder="unet", slots=2))
        model = LatentActionModel(config, Provenance("alam", gap_seconds=(0.1, 0.1)))
        model.save_pretrained(tmp_path / name / "model")
        losses[checkpoint_hash(tmp_path / name / "model")] = float(seed)
        return str(tmp_path / name)

    losses: dict[str | None, float] = {None: 7.0}
    monkeypatch.setattr(comparison.evaluation, "evaluate", evaluated)
    config = CompareConfig(seeds=1, image=(16, 16))
    plan = Plan(str(home / "data"), config, EvaluateConfig(labels="40"), {})

    def rows(*given: Any) -> list[tuple[float, float]]:
        found = comparison.subject_rows(tmp_path / "out", plan, comparison.load_subjects(given, config))
        return [(row.values["loss"][0], row.values["addition"][0]) for row in found]

    names = trained("ac-lam", 1), trained("ac_lam", 2)
    assert rows(*names) == [(1.0, 0.02), (2.0, 0.02)]  # ALAM's latent action is before the quantiser
    assert rows(*names) == [(1.0, 0.02), (2.0, 0.02)] and len(calls) == 2
    trained("ac-lam", 3)
    assert rows(*names) == [(3.0, 0.02), (2.0, 0.02)] and len(calls) == 3
    theirs = Subject("theirs", lambda a, b: a, image=(16, 16))
    assert (
        rows(theirs) == rows(theirs) == [(7.0, 0.8)] and len(calls) == 5
    )  # nothing says whether its weights have changed


def test_two_rows_cannot_have_one_name():
    theirs = Subject("flexlam", lambda a, b: a, image=(16, 16))
    config = CompareConfig(methods=("flexlam",), image=(16, 16))
    with pytest.raises(LaminaError, match="--with flexlam: a method of this comparison has that name"):
        comparison.load_subjects([theirs], config)
    with pytest.raises(LaminaError, match="--with flexlam"):
        comparison.load_subjects([theirs], replace(config, methods=()))
    assert list(comparison.load_subjects([theirs], replace(config, methods=("lapo",)))) == ["flexlam"]


@pytest.mark.parametrize(("gap", "compared"), [((0.05, 0.25), True), ((0.1, 0.2), True), ((0.5, 1.0), False)])
def test_nobody_is_compared_with_a_model_of_another_gap(gap, compared, tmp_path, monkeypatch):
    """Its figures are of other transitions: it is named, and has its row and no picture beside the others'."""
    theirs = Subject("theirs", lambda a, b: a, lambda a, z: a, image=(16, 16), gap_seconds=gap)
    rows = {"flexlam": row("flexlam", 1.0, 1.1), "theirs": row("theirs", 0.2, 0.3)}
    config = CompareConfig(methods=("flexlam",), seeds=2, image=(16, 16))
    plan = Plan("data", config, EvaluateConfig(labels="40"), {"flexlam": "flexlam"}, {"flexlam": 10})
    for name, answer in {
        "continued": plan, "run_jobs": None, "method_row": rows["flexlam"], "subject_rows": [rows["theirs"]], "records_of": [],
        "write_page": None,
    }.items():  # fmt: skip
        monkeypatch.setattr(comparison, name, lambda *_, answer=answer: answer)
    drawn = []
    monkeypatch.setattr(comparison, "grid", lambda path, names, pictures: drawn.append(names))
    monkeypatch.setattr(
        comparison, "sample_split", lambda *_: Clip(*[torch.zeros(8, 2, 3, 16, 16, dtype=torch.uint8)] * 4)
    )
    monkeypatch.setattr(comparison, "subject_of", lambda model: Subject("flexlam", lambda a, b: a, lambda a, z: a))
    torch.manual_seed(0)
    build = methods.load("flexlam")
    own = LatentActionModel(build.build(build.Config(size="debug", image=(16, 16), decoder="unet", slots=2)))
    own.save_pretrained(run_folder(tmp_path, "flexlam", 0) / "model")
    found = comparison.run_comparison("data", tmp_path, config, plan.evaluate, [theirs])
    assert {r.name for r in found.rows} == {"flexlam", "theirs"}
    best = next(text for _, text in found.words if text.startswith("To read actions"))
    assert ("theirs (translator loss 0.25)" in best) == compared and (
        "flexlam (translator loss 1.05)" in best
    ) != compared
    told = [text for level, text in found.words if "pairs 0.75 s apart" in text and level == "warn"]
    assert bool(told) != compared and (["theirs" in names for names in drawn] == [compared])


def test_a_method_in_two_stages_trains_the_second_from_the_first(home, tmp_path):
    """Each stage gets half of the steps, and what the first has learnt for good stands in the second."""
    config = CompareConfig(("univla",), 1, "20steps", "debug", (16, 16), gap=(0.1, 0.1), batch=8, parallel=1)
    save_plan(
        tmp_path, make_plan(str(home / "data"), config, EvaluateConfig(action="action", labels="40", device="cpu"))
    )
    train(load_plan(tmp_path), tmp_path, "univla", 0)
    first, second = (stage_folder(tmp_path, "univla", 0, stage) for stage in (1, 2))
    assert second == run_folder(tmp_path, "univla", 0)
    for run, stage in ((first, 1), (second, 2)):
        settings = json.loads((run / "config.json").read_text())
        assert settings["options"]["stage"] == stage and settings["train"]["steps"] == 10
    codes = [LatentActionModel.from_pretrained(str(run)).lam.bottleneck.state_dict() for run in (first, second)]
    assert torch.equal(codes[0]["parts.1.codebook"], codes[1]["parts.1.codebook"])
    assert not torch.equal(codes[0]["parts.0.codebook"], codes[1]["parts.0.codebook"])
    spent = [json.loads((run / "cost.json").read_text())["seconds"] for run in (first, second)]
    assert json.loads((second / "facts.json").read_text())["cpu_seconds"] == pytest.approx(sum(spent))


def test_a_killed_comparison_ends_its_trainings_and_goes_on(home, compared, tmp_path):
    out = tmp_path / "killed"
    argv = ["compare", "--data", str(home / "data"), "--out", str(out), "--seeds", "1", *FLAGS, "--methods", "flexlam"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lamina.cli", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (out / "runs" / "flexlam-0" / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = out / "runs" / "flexlam-0" / ".model.lock"
    deadline = time.monotonic() + 30
    while lock.exists() and _alive(lock) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not (lock.exists() and _alive(lock))
    resumed = lamina.compare(  # Python goes on with what the command line began
        home / "data", out=out, methods=["flexlam"], seeds=1, budget="12steps", labels=40, size="debug",
        image=(16, 16), gap=(0.1, 0.1), batch=8, align_steps=12, transitions=24, reconstructions=16, linear=40, structure=8,
        scratch_steps=4, translator_steps=12, device="cpu", parallel=2,
    )  # fmt: skip
    straight = next(r for r in json.loads((compared / "comparison.json").read_text())["rows"] if r["name"] == "flexlam")
    # Not to the last bit: trainings that run beside others have fewer threads.
    assert resumed["flexlam"].values["loss"][0] == pytest.approx(straight["values"]["loss"][0], rel=1e-6)


def _alive(lock: Path) -> bool:
    try:
        os.kill(int(lock.read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


# ------------------------------------------------------------------------------------------------------------ words


def test_a_difference_is_beyond_doubt_where_its_interval_over_seeds_excludes_zero():
    # differences -1, -1.2, -0.8: mean -1, half width 2.484 * 0.2
    assert apart("loss", row("a", 10, 20, 30), row("b", 11, 21.2, 30.8)) is True
    assert apart("loss", row("b", 11, 21.2, 30.8), row("a", 10, 20, 30)) is False
    assert apart("loss", row("a", 1, 5), row("b", 2, 4)) is False
    assert apart("loss", row("a", 1), row("b", 2)) is None


def test_the_words_say_who_is_best_who_is_not_beyond_doubt_and_who_collapsed():
    good = row("good", 0.5, 0.52, 0.48)
    near = row("near", 0.55, 0.45, 0.56)
    bad = row("bad", 0.9, 0.91, 0.92)
    void = row("void", 1.1, 1.1, 1.2, void="collapsed: every transition has the same latent")
    gone = CompareRow("gone", "model", state="explosion", reason="seed 0: explosion")
    idm = row("inverse dynamics model", 0.3, 0.31, 0.3, role="reference")
    assert [r.name for r in ranked([gone, bad, good])] == ["good", "bad", "gone"]
    found = words(ranked([good, near, bad, void, gone]), [idm])
    text = {level: " ".join(t for found_level, t in found if found_level == level) for level in ("bad", "warn", "good")}
    assert "gone: explosion" in text["bad"] and "void: collapsed" in text["bad"]
    assert (
        "good (translator loss 0.5) has the best mean, but not beyond doubt against near (0.52): these seeds"
        in text["warn"]
    )
    assert "The reference 'inverse dynamics model' reads actions better than good" in text["bad"]
    alone = words([good, bad], [])
    assert (
        "good",
        "To read actions off latents with few labels: good (translator loss 0.5), better than every other method beyond doubt.",
    ) in alone
    assert any("one seed decides nothing" in t for _, t in words([row("a", 1.0), row("b", 2.0)], []))


def test_the_best_is_nobody_where_latents_of_other_transitions_read_actions_as_well():
    rows = [row("a", 0.25, 0.26, 0.24), row("b", 0.35, 0.36, 0.34)]
    as_good = row("shuffled latents", 0.26, 0.25, 0.26, role="control")
    worse = row("shuffled latents", 0.35, 0.36, 0.34, role="control")
    use = "To read actions off latents with few labels: "
    said = {c: [t for _, t in words(rows, [control]) if t.startswith(use)] for c, control in ((0, as_good), (1, worse))}
    assert said[0][0].startswith(use + "no method. The best mean, 0.25 (a), is not") and len(said[0]) == 1
    assert said[1] == [use + "a (translator loss 0.25), better than every other method beyond doubt."]


@pytest.mark.parametrize(
    ("returns", "acts"), [((8.0, 9.0, 8.5), True), ((8.0, -9.0, 2.0), False), ((-3.0, -2.0, -2.5), False)]
)
def test_a_policy_acts_only_if_it_is_above_random_actions(returns: tuple[float, ...], acts: bool):
    played = [
        CompareRow(name, "model", {"loss": (1.0,) * 3, "return": v})
        for name, v in (("a", returns), ("b", (-20.0,) * 3))
    ]
    (found,) = [(level, text) for level, text in words(played, []) if text.startswith("To act in the world")]
    assert found[0] == ("good" if acts else "warn") and ("better than random actions" in found[1]) != acts


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_budgets():
    assert (
        parse_budget("5000steps") == (5000, None)
        and parse_budget("20m") == (None, 1200)
        and parse_budget("1.5h") == (None, 5400)
    )
    for text, said in (("5", "give steps"), ("9steps", "too small"), ("1.5steps", "too small"), ("ten", "give steps")):
        with pytest.raises(LaminaError, match=said):
            parse_budget(text)


def test_cpu_time_becomes_steps_and_too_little_is_one_line(home):
    config = CompareConfig(size="debug", image=(16, 16), gap=(0.1, 0.1), batch=8, budget="60s")
    plan = Plan(str(home / "data"), config, EvaluateConfig(device="cpu"), {"flexlam": "flexlam"})
    assert 100 < steps_of(plan, "flexlam") < 100_000
    short = Plan(
        str(home / "data"), CompareConfig(size="debug", image=(16, 16), budget="0.001s"), plan.evaluate, plan.given
    )
    with pytest.raises(LaminaError, match="too few to train; give at least") as caught:
        steps_of(short, "flexlam")
    assert "\n" not in str(caught.value)


def test_mistakes_are_one_line_and_leave_nothing(home, compared, tmp_path, capsys):
    from lamina.data.lerobot.writer import LeRobotWriter

    picture = {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]}
    frames = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
    with LeRobotWriter(tmp_path / "silent", 10, {"observation.images.camera": picture}) as writer:
        for _ in range(5):
            writer.add_episode({}, {"observation.images.camera": frames})
    write_planted(tmp_path / "one", episodes=1, length=40)
    out, data = tmp_path / "new", str(home / "data")
    run = str(run_folder(compared, "flexlam", 0))
    base = ["compare", "--out", str(out), *FLAGS]
    other_size = [f if f != "16" else "24" for f in FLAGS]
    for argv, said in (
        ([*base, "--data", str(tmp_path / "silent")], "has no actions ('action'), by which methods are compared"),
        ([*base, "--data", data, "--world", "grid", "--camera", "side"], "leave out --camera side, or --world"),
        ([*base, "--data", str(tmp_path / "one")], "has 1 episode"),
        ([*base, "--data", data, "--budget", "3steps"], "--budget 3steps: too small"),
        ([*base, "--data", data, "--methods", "flexlm"], "did you mean flexlam?"),
        (["compare", "--out", str(out), "--data", data, *other_size, "--methods", "flexlam", "--with", run],
         "reads pictures of 16x16, this comparison is at 24x24; set --image 16 16"),
        (["compare", "--out", str(compared), "--data", data, *FLAGS, "--lr", "0.5"], "was started with other settings (lr)"),
        (["compare", "--out", str(home), "--data", data, *FLAGS], "not empty and not a comparison"),
    ):  # fmt: skip
        assert main(argv) == 2, argv
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in error, error
        assert not out.exists()


def test_data_needs_enough_labels(home):
    with pytest.raises(LaminaError, match="--labels 4"):
        check_data(
            str(home / "data"),
            CompareConfig(image=(16, 16), gap=(0.1, 0.1)),
            EvaluateConfig(action="action", labels="4"),
        )


# ------------------------------------------------------------------------------------------------------------ the docs

REST = {"linear": ".2f", "psnr": ".1f", "used": ".1f", "addition": ".2f"}
#: The columns of the page's tables, by the record that they show.
SHOWN = {
    "demo": {"loss": ".2f", "accuracy": ".0%", **REST, "return": ".1f", "cost": ".2f"},
    "doom": {"loss": ".2f", "accuracy": ".0%", "gain": "z.2f", **REST, "cost": ".1f"},
    "metaworld": {"loss": ".3f", "nmse": ".2f", "gain": "z.2f", **REST, "cost": ".1f"},
}


@pytest.mark.parametrize(("name", "rows"), [("demo", 10), ("doom", 16), ("metaworld", 16)])
def test_the_tables_of_the_docs_have_the_figures_of_their_records(name, rows):
    docs, columns = Path(__file__).parents[1] / "docs", SHOWN[name]
    page, record = (docs / "compare.md").read_text(), json.loads((docs / "compare" / f"{name}.json").read_text())
    lines = {" ".join(line.split()) for line in page.splitlines()}
    shown = 0
    for found in record["rows"]:
        values = {name: [v for v in found["values"].get(name, ()) if v is not None] for name in columns}
        if not values["loss"]:
            continue
        cells = [format(sum(v) / len(v), columns[name]) if v else "" for name, v in values.items()]
        line = f"| {' | '.join([found['name'], *cells])} |"
        assert " ".join(line.split()) in lines, line
        shown += 1
    assert shown == rows
    html = (docs / "compare" / f"{name}.html").read_text()
    assert all(word["text"] in html.replace("&#39;", "'") for word in record["words"])
