"""Claims: the catalogue, the arithmetic over seeds, the cache, and the records."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import lamina_research.seeds
from lamina.errors import LaminaError
from lamina_research import reproduce as claims
from lamina_research.cache import cached, code_digest, code_version
from lamina_research.experiment import Claim, Experiment, Outcome
from lamina_research.figures import LinePlot, save
from lamina_research.record import make_record, read_record
from lamina_research.reproduce import CLAIMS, list_claims, reproduce
from lamina_research.seeds import column, interval, over_seeds, paired_difference

# The catalogue


def test_every_claim_is_in_the_catalogue_once() -> None:
    assert len(CLAIMS) == sum(len(paper.CLAIMS) for paper in claims.PAPERS) > 0
    papers = [{claim.id.split("/")[0] for claim in paper.CLAIMS} for paper in claims.PAPERS]
    assert all(len(names) == 1 for names in papers) and len(set().union(*papers)) == len(papers)


def test_every_claim_says_what_it_claims_and_what_decides_it() -> None:
    for claim in CLAIMS.values():
        assert claim.statement.endswith(".") and claim.decides.endswith(".") and claim.paper
        assert set(claim.scales) <= {"smoke", "cpu", "gpu", "paper"}
        assert {"smoke", "cpu"} <= set(claim.scales)


def test_the_list_names_every_claim_with_its_state(tmp_path: Path) -> None:
    text = list_claims([tmp_path])
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ") and "/" in line.split()[0]}
    assert all(CLAIMS[claim_id].state in lines[claim_id] for claim_id in CLAIMS)
    assert all(len(line) <= 120 for line in text.splitlines())


# Arithmetic, against numbers worked out by hand


def test_interval_of_three_seeds_by_hand() -> None:
    # mean 2, deviation 1, t(2 degrees, 97.5%) = 4.30265; half width = 4.30265 / sqrt(3) = 2.48414
    over = interval([1.0, 2.0, 3.0])
    assert over.mean == 2.0
    assert over.low == pytest.approx(2 - 2.48414, abs=1e-5) and over.high == pytest.approx(2 + 2.48414, abs=1e-5)


def test_interval_of_two_seeds_by_hand() -> None:
    # deviation sqrt(2) / 2, t(1 degree, 97.5%) = 12.7062; half width = 12.7062 * 0.5
    over = interval([0.0, 1.0])
    assert over.low == pytest.approx(0.5 - 6.3531, abs=1e-4) and over.high == pytest.approx(0.5 + 6.3531, abs=1e-4)


def test_one_seed_has_no_interval_and_a_diverged_one_no_mean() -> None:
    single = interval([0.7])
    assert single.mean == 0.7 and math.isnan(single.low) and math.isnan(single.high)
    diverged = interval([0.7, math.nan, 0.8])
    assert all(math.isnan(value) for value in (diverged.mean, diverged.low, diverged.high))
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_scores_of_seeds_become_metrics_in_the_order_of_seeds() -> None:
    scores = [{"a": {"x": 1.0}}, {"b": {"x": 2.0}}, {"a": {"x": 3.0, "y": 4.0}}]
    metrics = over_seeds(scores)
    assert metrics == {"a": {"x": [1.0, 3.0], "y": [4.0]}, "b": {"x": [2.0]}}
    assert column(metrics, "y") == {"a": [4.0]}


def test_pairing_removes_what_the_seeds_share() -> None:
    ours, theirs = [10.0, 20.0, 30.0], [11.0, 21.2, 30.8]  # differences -1, -1.2, -0.8: deviation 0.2
    over = paired_difference(ours, theirs)
    assert over.mean == pytest.approx(-1.0) and over.high == pytest.approx(-1 + 2.48414 * 0.2, abs=1e-5)
    apart = interval(ours)
    assert apart.low < interval(theirs).mean < ours[2]
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0, 2.0], [1.0])


# The cache


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of its own: method -> core.loss -> core.base, and a file that nothing imports."""
    root = tmp_path / "pack"
    (root / "core").mkdir(parents=True)
    (root / "__init__.py").write_text("from pack.other import unrelated\nVERSION = 1\n")
    (root / "core" / "__init__.py").write_text("")
    (root / "core" / "base.py").write_text("from pack import VERSION\nWIDTH = 4\n")
    (root / "core" / "loss.py").write_text("from . import base\n\ndef loss(x):\n    return x * base.WIDTH\n")
    (root / "method.py").write_text("def build():\n    from pack.core.loss import loss\n    return loss\n")
    (root / "other.py").write_text("unrelated = 1\n")
    return root


@pytest.mark.parametrize("changed", ["method.py", "core/loss.py", "core/base.py", "core/__init__.py"])
def test_code_that_is_imported_directly_or_not_counts(package: Path, changed: str) -> None:
    before = code_digest(["pack.method"], [package])
    with (package / changed).open("a") as file:
        file.write("\nADDED = 1\n")
    assert code_digest(["pack.method"], [package]) != before


def test_comments_docstrings_layout_and_foreign_code_do_not_count(package: Path) -> None:
    before = code_digest(["pack.method"], [package])
    loss = '"""Losses."""\n\nfrom . import base  # why\n\n\ndef loss(x):\n    """Twice two."""\n    return (x * base.WIDTH)\n'
    (package / "core" / "loss.py").write_text(loss)
    (package / "other.py").write_text("unrelated = 2\n")
    assert code_digest(["pack.method"], [package]) == before


def test_the_order_of_modules_does_not_count_and_their_names_must_be_right(package: Path) -> None:
    modules = ["pack.method", "pack.other", "pack.core"]
    assert code_digest(modules, [package]) == code_digest(modules[::-1], [package])
    with pytest.raises(ValueError, match=r"pack\.typo"):
        code_digest(["pack.typo"], [package])


def test_a_module_imports_itself_in_a_circle(package: Path) -> None:
    (package / "core" / "base.py").write_text("import pack.method\nWIDTH = 4\n")
    assert code_digest(["pack.method"], [package]) == code_digest(["pack.core.loss"], [package])


def test_the_digest_reads_the_real_package() -> None:
    assert code_digest(["lamina_research.seeds"]) != code_digest(["lamina_research.cache"])
    assert code_digest(["lamina_research.cache"]) == code_digest(
        ["lamina_research.cache", "lamina.files", "lamina.errors"]
    )


@dataclass(frozen=True)
class Config:
    width: int = 4


class Builder:
    """Writes one file, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> None:
        self.calls += 1
        (path / "model").write_text(str(self.calls))


def test_a_run_is_built_once_per_config_and_code(package: Path, tmp_path: Path) -> None:
    build, folder = Builder(), tmp_path / "cache"

    def run(config: Config, seed: int = 0) -> Path:
        return cached(folder, {"config": config, "seed": seed}, ["pack.method"], build, packages=[package])

    first = run(Config())
    assert run(Config()) == first and build.calls == 1 and (first / "model").read_text() == "1"
    assert len({first, run(replace(Config(), width=8)), run(Config(), seed=1)}) == 3 and build.calls == 3
    (package / "core" / "base.py").write_text("WIDTH = 5\n")
    assert run(Config()) != first and build.calls == 4
    (package / "core" / "base.py").write_text("from pack import VERSION\nWIDTH = 4\n")
    assert run(Config()) == first and build.calls == 4
    assert not list(folder.glob("*.partial"))


def test_the_order_of_a_key_does_not_count(tmp_path: Path) -> None:
    build = Builder()
    modules = [lamina_research.seeds.__name__]
    a = cached(tmp_path, {"a": 1, "b": (2, 3)}, modules, build)
    assert cached(tmp_path, {"b": [2, 3], "a": 1}, modules, build) == a and build.calls == 1
    with pytest.raises(TypeError, match="cache key"):
        cached(tmp_path, {"a": object()}, modules, build)


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def train(path: Path) -> None:
        log = path / "log"
        done = int(log.read_text()) if log.exists() else 0
        for step in range(done, 4):
            log.write_text(str(step + 1))
            if step == 1 and done == 0:
                raise KeyboardInterrupt
        (path / "resumed_from").write_text(str(done))

    experiment = Experiment("smoke", (0,), tmp_path, lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        experiment.cached({"seed": 0}, (lamina_research.seeds,), train)
    (partial,) = (tmp_path / "cache").glob("*.partial")
    run = experiment.cached({"seed": 0}, (lamina_research.seeds,), train)
    assert (run / "log").read_text() == "4" and (run / "resumed_from").read_text() == "2"
    assert not partial.exists()


def _build_slowly(folder: Path) -> None:
    def build(path: Path) -> None:
        with (folder / "builds").open("a") as file:
            file.write("x")
        time.sleep(0.5)
        (path / "model").write_text("whole")

    run = cached(folder, {"seed": 0}, ["lamina_research.seeds"], build)
    assert (run / "model").read_text() == "whole"


def test_two_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_build_slowly, args=(tmp_path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "builds").read_text() == "x"


def test_a_work_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaminaError, match="file/cache"):
        cached(tmp_path / "file" / "cache", {}, ["lamina_research.seeds"], Builder())


# Reproducing


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A claim whose experiment takes no time, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(experiment: Experiment) -> Outcome:
        for seed in experiment.seeds:
            experiment.cached({"seed": seed}, (lamina_research.seeds,), Builder())
        losses = {
            "FlexLAM@1": {"loss": [1.0 + 0.1 * seed for seed in experiment.seeds]},
            "FlexLAM@4": {"loss": [0.5 + 0.1 * seed for seed in experiment.seeds]},
        }
        series = {"FlexLAM": [losses[name]["loss"] for name in losses]}
        levels = {"copy-frame": [2.0]}
        plot = LinePlot("t", "loss", [1, 4], series, levels, log_x=True)
        return Outcome(losses, holds=True, explanation="The loss falls from 1.0 to 0.5.", plots=(plot,))

    claim_id = "flexlam/prefix-scaling"
    monkeypatch.setitem(CLAIMS, claim_id, replace(CLAIMS[claim_id], run=run, scales=("smoke", "cpu")))
    monkeypatch.setattr(claims.flexlam, "CLAIMS", tuple(c for i, c in CLAIMS.items() if i.startswith("flexlam/")))
    return claim_id


def test_a_claim_leaves_its_record_and_figure(claim: str, tmp_path: Path) -> None:
    path = reproduce(claim, "cpu", progress=lambda line: None)
    record = json.loads(path.read_text())
    assert path == Path("results/flexlam/prefix-scaling-cpu.json")
    assert record["seeds"] == [0, 1, 2] and record["holds"] is True and record["statement"] == CLAIMS[claim].statement
    loss = record["metrics"]["FlexLAM@4"]["loss"]
    assert loss["values"] == [0.5, 0.6, 0.7] and loss["mean"] == pytest.approx(0.6)
    assert loss["high"] == pytest.approx(0.6 + 0.248414, abs=1e-5)
    assert Path("results/figures/flexlam-prefix-scaling-cpu.svg").read_text().lstrip().startswith("<?xml")
    assert "held (cpu, 3 seeds)" in list_claims([Path("results")])


def test_smoke_decides_nothing_and_neither_do_too_few_seeds(claim: str, tmp_path: Path) -> None:
    smoke = json.loads(reproduce(claim, "smoke", tmp_path / "s.json", progress=lambda line: None).read_text())
    few = json.loads(reproduce(claim, "cpu", tmp_path / "c.json", [3, 4], progress=lambda line: None).read_text())
    assert smoke["holds"] is None and smoke["metrics"]["FlexLAM@1"]["loss"]["low"] is None
    assert few["holds"] is None and few["seeds"] == [3, 4] and "Fewer than 3 seeds" in few["explanation"]
    assert (tmp_path / "s.svg").exists() and not Path("results").exists()


def test_a_second_run_takes_its_models_from_the_cache(claim: str) -> None:
    said: list[str] = []
    reproduce(claim, "smoke", progress=said.append)
    assert not said
    reproduce(claim, "cpu", progress=said.append)
    assert len(said) == 1 and "from the cache" in said[0]  # seed 0; seeds 1 and 2 are new


def test_time_of_cached_runs_counts(tmp_path: Path) -> None:
    modules = (lamina_research.seeds,)
    first = Experiment("cpu", (0,), tmp_path, lambda line: None)
    run = first.cached({}, modules, Builder())
    note = json.loads((run / "cache.json").read_text())
    (run / "cache.json").write_text(json.dumps(note | {"seconds": 120.0}))
    again = Experiment("cpu", (0,), tmp_path, lambda line: None)
    again.cached({}, modules, Builder())
    again.cached({}, modules, Builder())
    assert again.reused_seconds == 120.0
    first.cached({}, modules, Builder())
    assert first.reused_seconds == 0.0  # built in this experiment, whose time is measured anyway


def test_a_diverged_seed_is_null_in_a_record_that_every_reader_takes(
    claim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = Outcome({"LAPO": {"loss": [1.0, math.nan, math.inf]}}, holds=False, explanation="Two seeds diverged.")
    monkeypatch.setitem(CLAIMS, claim, replace(CLAIMS[claim], run=lambda experiment: outcome))
    text = reproduce(claim, "cpu").read_text()
    assert json.loads(text)["metrics"]["LAPO"]["loss"]["values"] == [1.0, None, None] and "NaN" not in text
    assert "did not hold (cpu, 3 seeds)" in list_claims([Path("results")])


def test_an_experiment_that_forgets_a_seed_fails_loudly(claim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome({"LAPO": {"loss": [1.0]}}, holds=True, explanation="")
    monkeypatch.setitem(CLAIMS, claim, replace(CLAIMS[claim], run=lambda experiment: outcome))
    with pytest.raises(ValueError, match="1 values, 3 seeds"):
        reproduce(claim, "cpu")
    assert not list(Path("results").rglob("*.json"))


@pytest.mark.parametrize(
    ("claim_id", "scale", "said"),
    [
        ("flexlam/prefix-scalling", "cpu", "flexlam/prefix-scaling"),
        ("prefix-scaling", "cpu", "flexlam/prefix-scaling"),
        ("policy", "cpu", "alam/policy or ac_lam/policy"),
        ("", "cpu", "--list"),
        ("flexlam/prefix-scaling", "CPU", "smoke, cpu, gpu, paper"),
        ("flexlam/prefix-scaling", "smok", "did you mean smoke"),
        ("flexlam/prefix-scaling", "gpu", "runs at smoke, cpu"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(claim: str, claim_id: str, scale: str, said: str) -> None:
    with pytest.raises(LaminaError, match=said) as caught:
        reproduce(claim_id, scale)
    assert "\n" not in str(caught.value)


def test_a_claim_without_an_experiment_is_said_to_be_planned(claim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLAIMS, claim, replace(CLAIMS[claim], run=None))
    with pytest.raises(LaminaError, match=f"{claim} is planned"):
        reproduce(claim, "smoke")


@pytest.mark.parametrize("seeds", [[], [0, 0]])
def test_seeds_are_required_and_unique(claim: str, seeds: list[int]) -> None:
    with pytest.raises(LaminaError, match="seeds"):
        reproduce(claim, "cpu", seeds=seeds)


def test_a_place_that_cannot_be_written_is_told_before_anything_is_trained(claim: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, message in (
        (tmp_path / "file" / "x.json", "cannot be written"),
        (tmp_path, "is a folder; choose another --out"),
    ):
        with pytest.raises(LaminaError, match=message):
            reproduce(claim, "cpu", out)
    assert not Path("runs").exists()


def test_the_first_folder_with_a_record_counts_and_a_damaged_record_is_named(claim: str, tmp_path: Path) -> None:
    path = reproduce(claim, "cpu", tmp_path / "near" / "flexlam" / "prefix-scaling-cpu.json")
    record = read_record(path)
    far = tmp_path / "far" / "flexlam" / "prefix-scaling-cpu.json"
    far.parent.mkdir(parents=True)
    far.write_text(json.dumps(record | {"holds": False}))
    folders = [tmp_path / "near", tmp_path / "far"]
    assert "did not hold" not in list_claims(folders) and "did not hold" in list_claims(folders[::-1])
    far.write_text(far.read_text()[:40])
    assert str(far) in list_claims([tmp_path / "far"])


def test_a_figure_is_the_same_file_every_time(tmp_path: Path) -> None:
    plot = LinePlot(
        title="t", xlabel="k", ylabel="loss", x=[0, 4], series={"<FlexLAM>": [[0.9, 1.1], [0.5]]}, log_x=True
    )
    assert save([plot], tmp_path / "a.svg").read_bytes() == save([plot], tmp_path / "b.svg").read_bytes()


def test_a_measured_value_outlives_models_and_code_and_the_record_says_so(tmp_path):
    claim = Claim("a/b", "s", "p", "d", lambda e: Outcome({}, True, ""))

    def measured(work: str, code: str, value: float) -> Experiment:
        experiment = Experiment("cpu", (0, 1, 2), tmp_path / work, lambda line: None, tmp_path / "values")
        assert experiment.cached_value({"seed": 1}, (code,), lambda: value) == 1.5
        return experiment

    first = measured("one", "lamina.types", 1.5)
    assert "values_of" not in make_record(claim, first, Outcome({}, True, ""), 1.0)
    again = measured("another machine", "lamina.images", 2.5)  # other models, other code: not measured again
    assert make_record(claim, again, Outcome({}, True, ""), 1.0)["values_of"] == {code_version(): 1}
    other = Experiment("cpu", (0,), tmp_path / "one", lambda line: None, tmp_path / "values")
    assert other.cached_value({"seed": 2}, ("lamina.types",), lambda: 3.5) == 3.5
    asked: list[int] = []
    for work, key, times in (("one", 2, 1), ("one", 3, 2), ("two", 2, 2)):  # in the cache, nowhere, kept
        again = Experiment("cpu", (0,), tmp_path / work, lambda line: None, tmp_path / "values")
        again.cached_value({"seed": key}, ("lamina.types",), lambda: 3.5, needs=lambda key=key: asked.append(key))
        assert len(asked) == times
    kept = next(path for path in (tmp_path / "values").iterdir() if json.loads(path.read_text())["key"] == {"seed": 2})
    kept.write_text(
        kept.read_text().replace("3.5", "4.5")
    )  # measured again, elsewhere: an older cache must not undo it
    assert other.cached_value({"seed": 2}, ("lamina.types",), lambda: 3.5) == 3.5
    assert json.loads(kept.read_text())["value"] == 4.5
