"""The queue of claims, with claims that train tiny models: the same records as one process, kills, failures, the order, and the page."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import toy_claims

from lamina.cli import main
from lamina.errors import LaminaError
from lamina.files import locked
from lamina_research import reproduce as claims
from lamina_research import scheduler, worker
from lamina_research.agenda import Row, Run, agenda, agenda_text, in_words, ordered
from lamina_research.cache import Busy, build_seconds, cached, is_busy
from lamina_research.experiment import Event, Experiment, title_of
from lamina_research.notes import Note, note_path, read_note
from lamina_research.queue_page import QueuePage
from lamina_research.reproduce import CLAIMS, prepare, reproduce
from lamina_research.scheduler import reproduce_all, reproduce_in_parallel
from lamina_research.study import ModelSpec
from processes import in_child

CODE = ["lamina_research.seeds"]


class Forked:
    """A worker that is forked, to save the time of an import."""

    inputs: ClassVar[list[int]] = []  # of the workers of this process

    def __init__(self, threads: int, log: Path):
        (orders, give), (take, answers) = os.pipe(), os.pipe()
        self.pid = os.fork()
        self.returncode: int | None = None
        if self.pid == 0:
            errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for inherited in (*self.inputs, give, take):
                os.close(inherited)
            for end, number in ((orders, 0), (answers, 1), (errors, 2)):
                os.dup2(end, number)
                os.close(end)
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
            sys.argv = ["worker", str(threads)]
            try:
                worker.main()
            finally:
                os._exit(1)
        os.close(orders)
        os.close(answers)
        self.inputs.append(give)
        self.stdin, self.stdout = os.fdopen(give, "wb"), os.fdopen(take, "rb")

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        while self.poll() is None:
            time.sleep(0.01)
        self.inputs.remove(self.stdin.fileno())


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The toy claims alone, forked workers, and a folder of its own."""
    known = dict(CLAIMS)
    CLAIMS.clear()
    CLAIMS.update(toy_claims.CLAIMS)
    monkeypatch.setattr(scheduler, "start", Forked)
    monkeypatch.setattr(scheduler, "POLL", 0.05)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOY", "{}")
    yield
    CLAIMS.clear()
    CLAIMS.update(known)


def taken(workdir: str) -> list[tuple[str, ...]]:
    """The steps that were trained: process, model, seed and step of each."""
    return [tuple(line.split()) for line in Path(workdir, "steps").read_text().splitlines()]


def repeated(workdir: str) -> dict[tuple[str, ...], int]:
    """The steps of a model that were trained more than once."""
    return {step: n for step, n in Counter(step[1:] for step in taken(workdir)).items() if n > 1}


def content(record: Path) -> str:
    """A record without its times."""
    return re.sub(r'"(wall_seconds|created)": .*', "", record.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of toy/pair by one process, with its figure."""
    folder = tmp_path_factory.mktemp("alone")
    known = dict(CLAIMS)
    CLAIMS.update(toy_claims.CLAIMS)
    try:
        return reproduce("toy/pair", "cpu", folder / "record.json", workdir=folder, progress=lambda line: None)
    finally:
        CLAIMS.clear()
        CLAIMS.update(known)


# Parts


def test_a_run_that_another_process_builds_is_busy_for_who_does_not_wait(tmp_path: Path) -> None:
    def build(path: Path) -> None:
        (path / "model").touch()

    run = cached(tmp_path, {"seed": 0}, CODE, build)
    run.rename(tmp_path / "moved")
    assert not is_busy(run)

    def hold() -> None:
        with locked(run):
            (tmp_path / "held").touch()
            time.sleep(60)

    def meanwhile(pid: int) -> None:
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        assert is_busy(run)
        with pytest.raises(Busy) as caught:
            cached(tmp_path, {"seed": 0}, CODE, build, wait=False)
        assert caught.value.runs == (run,) and not run.exists()
        os.kill(pid, signal.SIGKILL)

    assert in_child(hold, meanwhile) == signal.SIGKILL
    assert not is_busy(run) and cached(tmp_path, {"seed": 0}, CODE, build, wait=False) == run
    assert not is_busy(run)


def test_each_goes_on_with_other_items_and_comes_back(tmp_path: Path) -> None:
    experiment, asked = Experiment("cpu", (0,), tmp_path), []

    def late(item: str) -> str:
        asked.append(item)
        if item == "b" and len(asked) < 4:
            raise Busy(tmp_path / "b")
        return item.upper()

    assert experiment.each(late, "abc") == ["A", "B", "C"] and asked == ["a", "b", "c", "b"]

    def never(item: str) -> str:
        if item != "c":
            raise Busy(tmp_path / item)
        return item

    with pytest.raises(Busy) as caught:
        experiment.each(never, "abc")
    assert caught.value.runs == (tmp_path / "a", tmp_path / "b")
    assert experiment.each(never, []) == []


def test_a_run_counts_its_own_time_alone(tmp_path: Path) -> None:
    def inner(path: Path) -> None:
        time.sleep(0.6)

    def outer(path: Path) -> None:
        time.sleep(0.2)
        cached(tmp_path, {"inner": 1}, CODE, inner)
        cached(tmp_path, {"inner": 1}, CODE, inner)

    run = cached(tmp_path, {"outer": 1}, CODE, outer)
    (needed,) = (p for p in tmp_path.iterdir() if p.is_dir() and p != run)
    assert build_seconds(needed) >= 0.6 and 0.2 <= build_seconds(run) < 0.6


def test_runs_have_names_for_people() -> None:
    from lamina.methods import fixed_k

    model = {"method": "alam", "options": {"slots": 4}, "train": {"seed": 9}, "seed": 1, "data": {"seed": 7}}
    assert title_of(model) == "alam, seed 1"
    assert title_of({"structure of": model, "windows": 3}) == "structure of alam, seed 1"
    assert title_of({"collected": {"world": "doom-suite", "seed": 7}}) == "collected doom-suite, seed 7"
    assert title_of({"grid": "vanilla", "sigma": 0.5, "seed": 2, "n": 3}) == "grid vanilla, sigma 0.5, seed 2"
    assert title_of({}) == "run"
    assert ModelSpec(fixed_k, 2, {"slots": 4}).title == "fixed_k slots=4, seed 2"


# Several processes


def test_the_record_is_that_of_one_process_and_nothing_is_trained_twice(alone: Path) -> None:
    said: list[str] = []
    record = reproduce_in_parallel("toy/pair", "cpu", Path("record.json"), workdir=Path("w"), progress=said.append, jobs=2)  # fmt: skip
    assert content(record) == content(alone)
    assert record.with_suffix(".svg").read_bytes() == alone.with_suffix(".svg").read_bytes()
    assert len(taken("w")) == 6 * toy_claims.STEPS and not repeated("w")
    assert len({process for process, *_ in taken("w")}) == 2
    assert said[0] == "progress: w/toy-pair-cpu.html" and said[-1] == "toy/pair: held (3 seeds), record.json"
    assert sorted(said[1:-1]) == [f"toy/pair: {m}, seed {s}" for m in ("narrow", "wide") for s in range(3)]
    # The times: in all they are those of the runs, and a note tells the next run.
    note = read_note(Path("w"), "toy-pair-cpu")
    assert note is not None and len(note.runs) == 9 and set(note.runs) == {p.name for p in Path("w/cache").iterdir()}
    assert json.loads(record.read_text())["wall_seconds"] == pytest.approx(sum(note.runs.values()) + note.own, abs=0.2)


def test_two_processes_share_the_models_of_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY", '{"sleep": 0.1}')
    reproduce_in_parallel("toy/pair", "cpu", Path("r.json"), (0,), Path("w"), lambda line: None, jobs=2)
    by_model = {model: {step[0] for step in taken("w") if step[1] == model} for model in ("wide", "narrow")}
    assert all(len(processes) == 1 for processes in by_model.values()) and by_model["wide"] != by_model["narrow"]


def test_a_claim_whose_seeds_are_one_computation_is_not_split() -> None:
    reproduce_in_parallel("toy/together", "cpu", Path("r.json"), workdir=Path("w"), progress=lambda line: None, jobs=2)
    assert [step[1:] for step in taken("w")] == [("together", "3", "1")]


def test_a_killed_process_is_replaced_and_its_model_goes_on(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY", '{"kill": ["wide", 1, 4, 1]}')
    said: list[str] = []
    record = reproduce_in_parallel("toy/pair", "cpu", Path("r.json"), workdir=Path("w"), progress=said.append, jobs=2)
    assert "toy/pair: a process ended (signal 9) at wide, seed 1; it is tried again" in said
    assert content(record) == content(alone)
    assert len(taken("w")) == 6 * toy_claims.STEPS and not repeated("w")
    assert len({step[0] for step in taken("w") if step[1:3] == ("wide", "1")}) == 2  # it went on in another


def test_a_model_that_kills_its_process_again_fails_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY", '{"kill": ["wide", 0, 2, 9]}')
    with pytest.raises(LaminaError, match=r"toy/pair: wide, seed 0: its process ended \(signal 9\), 2 times in all"):
        reproduce_in_parallel("toy/pair", "cpu", Path("r.json"), (0, 1), Path("w"), lambda line: None, jobs=2)
    assert not Path("r.json").exists()


def test_a_killed_queue_goes_on_where_it_stopped(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY", '{"sleep": 0.05}')
    steps = Path("w/steps")

    def work() -> None:
        reproduce_in_parallel("toy/pair", "cpu", Path("r.json"), workdir=Path("w"), jobs=2)

    def kill(pid: int) -> None:
        until = time.monotonic() + 60
        while not (steps.exists() and len(taken("w")) > 15) and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    assert in_child(work, kill) == signal.SIGKILL
    finished = {path.parent for path in Path("w/cache").glob("*/score.json") if not path.parent.suffix}
    there = {path: (path / "score.json").stat().st_mtime_ns for path in finished}
    partial = list(Path("w/cache").glob("*.partial"))
    assert there and partial and not Path("r.json").exists()
    time.sleep(0.5)
    before = len(taken("w"))  # its workers have ended with it
    time.sleep(0.3)
    assert len(taken("w")) == before < 6 * toy_claims.STEPS
    record = reproduce_in_parallel("toy/pair", "cpu", Path("r.json"), workdir=Path("w"), progress=lambda line: None, jobs=2)  # fmt: skip
    assert content(record) == content(alone)
    assert {path: (path / "score.json").stat().st_mtime_ns for path in there} == there
    assert len(repeated("w")) <= 2  # a step between its note and its checkpoint, in each of two processes
    assert not list(Path("w/cache").glob("*.partial"))


def test_an_exception_is_one_line_and_the_others_end_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY", '{"fail": ["wide", 1], "sleep": 0.05}')

    def run() -> Path:
        return reproduce_in_parallel("toy/pair", "cpu", Path("r.json"), workdir=Path("w"), progress=lambda line: None, jobs=2)  # fmt: skip

    with pytest.raises(LaminaError) as caught:
        run()
    (log,) = re.findall(r"w/logs/toy-pair-cpu-\d\.log", str(caught.value))
    assert str(caught.value) == f"toy/pair: wide, seed 1: ZeroDivisionError: no numbers are left ({log} has more)"
    assert "Traceback" in Path(log).read_text() and not Path("r.json").exists()
    assert {step[1:3] for step in taken("w")} == {("wide", "0"), ("narrow", "0")}  # seed 0 ended, seed 2 was not begun
    monkeypatch.setenv("TOY", "{}")
    run()
    assert len(taken("w")) == 6 * toy_claims.STEPS and not repeated("w")


def test_the_record_is_the_same_with_a_folder_of_values(alone: Path) -> None:
    record = reproduce_in_parallel(
        "toy/pair", "cpu", Path("r.json"), workdir=Path("w"), progress=lambda line: None, values=Path("v"), jobs=2
    )
    assert content(record) == content(alone) and len(list(Path("v").iterdir())) == 3
    elsewhere = reproduce("toy/pair", "cpu", Path("e.json"), None, Path("other"), lambda line: None, Path("v"))
    assert list(json.loads(elsewhere.read_text())["values_of"].values()) == [3]


def test_what_another_command_builds_is_waited_for(alone: Path) -> None:
    run = next(p for p in (alone.parent / "cache").iterdir() if "narrow" in (p / "cache.json").read_text())
    said: list[str] = []

    def hold() -> None:
        with locked(Path("w/cache") / run.name):
            Path("held").touch()
            time.sleep(60)

    def meanwhile(pid: int) -> None:
        while not Path("held").exists():
            time.sleep(0.01)

        def progress(line: str) -> None:
            said.append(line)
            if "waiting for another process" in line:
                os.kill(pid, signal.SIGKILL)

        record = reproduce_in_parallel("toy/pair", "cpu", Path("r.json"), workdir=Path("w"), progress=progress, jobs=2)
        assert content(record) == content(alone)

    assert in_child(hold, meanwhile) == signal.SIGKILL
    waited = f"toy/pair: w/cache/{run.name}: waiting for another process that builds it"
    assert said.count(waited) == 1 and not repeated("w")


# All claims


def test_all_runs_what_is_missing_and_one_failure_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOY", '{"fail": ["none", 0]}')
    command = ["reproduce", "--all", "--workdir", "w", "--jobs", "2"]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert err == "lamina: 1 of 3 claims failed: toy/shared\n"
    table = out.splitlines()[-4:]
    assert table[0] == "toy/pair      held (3 seeds), results/toy/pair-cpu.json"
    assert table[1].startswith("toy/shared    none, seed 0: ZeroDivisionError: no numbers are left (w/logs/queue-")
    assert table[2:] == ["toy/together  held (3 seeds), results/toy/together-cpu.json", "2 of 3 claims have their records."]  # fmt: skip
    page = Path("w/queue.html").read_text()
    assert "2 done, 0 running, 0 waiting, 1 failed" in page and "none, seed 0: ZeroDivisionError" in page
    models = {path: path.stat().st_mtime_ns for path in Path("w/cache").rglob("score.json")}

    monkeypatch.setenv("TOY", "{}")
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["toy/shared", "no", "record", "unknown"]
    assert main(command) == 0
    assert "toy/shared: held (3 seeds), results/toy/shared-cpu.json" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in models} == models and not repeated("w")
    assert {step[1] for step in taken("w")} == {"wide", "narrow", "none", "together"}
    assert main(command) == 0 and "Nothing to do" in capsys.readouterr().out


def test_a_claim_that_another_command_runs_does_not_stop_the_others() -> None:
    def hold() -> None:
        with locked(Path("results/toy/together-cpu.json")):
            Path("held").touch()
            time.sleep(60)

    def meanwhile(pid: int) -> None:
        while not Path("held").exists():
            time.sleep(0.01)
        rows = reproduce_all("cpu", ["toy/t*", "toy/shared"], (0,), Path("w"), lambda line: None, jobs=1)
        states = {row.job.claim.id: (row.state, row.why) for row in rows}
        assert states["toy/shared"] == ("done", "")
        assert states["toy/together"][0] == "failed" and "in use by process" in states["toy/together"][1]
        with locked(Path("w/queue.html")), pytest.raises(LaminaError, match=r"queue\.html: in use by"):
            reproduce_all("cpu", ["toy/pair"], (0,), Path("w"), lambda line: None)
        os.kill(pid, signal.SIGKILL)

    assert in_child(hold, meanwhile) == signal.SIGKILL


def record_of(claim_id: str, **fields: object) -> None:
    path = Path("results") / f"{claim_id}-cpu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"claim": claim_id, "scale": "cpu", "seeds": [0, 1, 2], "metrics": {}, "holds": True, **fields}
    path.write_text(json.dumps(record))


def test_what_has_to_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    def missing(seeds: tuple[int, ...] | None = None) -> dict[str, str]:
        return {row.job.claim.id: row.why_run for row in agenda("cpu", seeds=seeds)}

    assert missing() == dict.fromkeys(("toy/pair", "toy/shared", "toy/together"), "no record")
    record_of("toy/pair")
    record_of("toy/shared", outdated="made with a wrong number")
    record_of("toy/together", seeds=[0])
    assert missing() == {"toy/shared": "outdated record", "toy/together": "record without seed 1, 2"}
    assert missing((0,)) == {"toy/shared": "outdated record"}
    Path("results/toy/pair-cpu.json").write_text("{")
    assert missing()["toy/pair"] == "damaged record"
    assert [row.job.claim.id for row in agenda("cpu", ["toy/s*", "toy/pair"])] == ["toy/pair", "toy/shared"]
    assert [row.job.claim.id for row in agenda("smoke", ["toy"])] == ["toy/pair", "toy/shared", "toy/together", "toy/small"]  # fmt: skip


def note(claim_id: str, runs: dict[str, float], own: float = 0.0) -> None:
    path = note_path(Path("w"), f"{claim_id.replace('/', '-')}-cpu")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"runs": runs, "own": own}))


def test_the_cheapest_is_first_and_what_shares_its_models_next() -> None:
    cheap, dear, other, unknown = (replace(CLAIMS["toy/pair"], id=f"toy/{n}") for n in ("cheap", "dear", "other", "no"))
    CLAIMS.clear()
    CLAIMS.update({c.id: c for c in (unknown, dear, other, cheap)})
    note("toy/dear", {"a": 3600.0, "b": 600.0}, own=60.0)  # alone the dearest, but it shares a
    note("toy/other", {"c": 3700.0})
    note("toy/cheap", {"a": 3600.0})
    rows = agenda("cpu", workdir=Path("w"))
    assert [row.job.claim.id for row in rows] == ["toy/cheap", "toy/dear", "toy/other", "toy/no"]
    text = agenda_text(rows, 2, Path("w")).splitlines()
    assert [" ".join(line.split()) for line in text] == [
        "toy/cheap no record 60 minutes, by an earlier run",
        "toy/dear no record 11 minutes, by an earlier run",
        "toy/other no record 62 minutes, by an earlier run",
        "toy/no no record unknown",
        "4 claims: about 66 minutes with 2 processes, not counting 1 claim of unknown length.",
    ]
    assert [row.job.claim.id for row in ordered(rows, {"c"})][:2] == ["toy/other", "toy/cheap"]  # its model is there
    Path("w/cache/a").mkdir(parents=True)
    assert "toy/cheap  no record  1 seconds" in agenda_text(rows, 2, Path("w"))
    record_of("toy/no", outdated="x", wall_seconds=7200.0)
    assert "outdated record  2.0 hours, by its record" in agenda_text(agenda("cpu", workdir=Path("w")), 2, Path("w"))
    assert in_words(0.0, 2, 1) == "unknown (2 claims of unknown length)"


def test_a_damaged_note_is_no_note() -> None:
    note("toy/pair", {"a": 1.0})
    path = note_path(Path("w"), "toy-pair-cpu")
    assert read_note(Path("w"), "toy-pair-cpu") == Note({"a": 1.0}, 0.0)
    for text in ("{", '{"runs": 3, "own": 1}', '{"runs": {"a": "x"}, "own": 1}', "[]"):
        path.write_text(text)
        assert read_note(Path("w"), "toy-pair-cpu") is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--all", "--claims", "toy/piar"], "no claim matches 'toy/piar'; did you mean toy/pair"),
        (["--all", "--claims", "toy/planned"], "no claim that matches 'toy/planned' can be run at the scale cpu"),
        (["--all", "--claims", "toy/small", "--scale", "cpu"], "can be run at the scale cpu"),
        (["--all", "--scale", "cpus"], "did you mean cpu"),
        (["--all", "--out", "r.json"], "--out is for one claim"),
        (["toy/pair", "--all"], "leave it out, or use --claims"),
        (["--all", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["toy/pair", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["toy/pair", "--claims", "toy"], "--claims belongs to --all"),
        (["toy/pair", "--dry-run"], "--dry-run belongs to --all"),
        (["--all", "--workdir", "file/w"], "file/w/queue.html: cannot be written"),
        (["toy/pair", "--jobs", "2", "--workdir", "file/w"], "file/w: cannot be written"),
        (["toy/pair", "--jobs", "2", "--out", "file/r.json"], "file/r.json: cannot be written"),
        ([], "name a claim, or ask for --all or --list"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert main(["reproduce", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("lamina: ") and err.count("\n") == 1
    assert [path.name for path in Path.cwd().iterdir()] == ["file"]


def test_fewer_than_one_process_is_an_error() -> None:
    with pytest.raises(LaminaError, match="0 processes"):
        reproduce_in_parallel("toy/pair", "cpu", Path("r.json"), workdir=Path("w"), jobs=0)


# The page


def log_of(name: str, steps: int, settings: dict[str, object] | None = None) -> None:
    folder = Path("w/cache") / name
    folder.mkdir(parents=True)
    rows = [{"step": n, "loss": 2.0 / n} for n in range(1, steps + 1)]
    for row in rows[9::10]:
        row["validation/reconstruction"] = row["loss"] / 2
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if settings:
        (folder / "config.json").write_text(json.dumps(settings))


def test_the_page_tells_how_far_everything_is() -> None:
    log_of("done", 20)
    log_of("now.partial", 30, {"train": {"steps": 120}})
    log_of("other.partial/stage1", 25)
    waiting = Row(prepare("toy/together", "cpu"), "no record", Note({"x": 7200.0}, 0.0))
    running = Row(prepare("toy/pair", "cpu"), "outdated record", Note({"done": 60.0, "n": 60.0, "o": 7200.0}), state="running")  # fmt: skip
    failed = Row(prepare("toy/shared", "cpu"), "no record", state="failed", why="<b>wide</b>, seed 1: it broke")
    running.began = time.monotonic() - 100
    running.runs = {
        "done": Run(Event("built", "done", "wide, seed 0", 60.0)),
        "now": Run(Event("begun", "now", "narrow, seed 0")),
        "other": Run(Event("begun", "other", "wide, seed 1", steps=50)),
    }
    shown = QueuePage(Path("w/queue.html"), [running, waiting, failed], 2, Path("w"), "Claims at scale cpu")
    page = shown.write().read_text()
    text = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S).split())
    assert "0 done, 1 running, 1 waiting, 1 failed. Running for 1 seconds; time left about 2.0 hours with 2 processes" in text  # fmt: skip
    assert "narrow, seed 0 toy/pair 30 of 120 0.06667" in text and "width: 25.0%" in page
    assert "wide, seed 1 toy/pair 25 of 50 0.08" in text and "width: 50.0%" in page
    assert "toy/pair running 2.0 hours 1 of 3 2 minutes outdated record" in text
    assert "toy/together waiting 2.0 hours 0 of 1 no record" in text
    assert "toy/shared : &lt;b&gt;wide&lt;/b&gt;, seed 1: it broke" in text and "<b>wide" not in page
    assert page.count('<svg role="img"') == 1 and "toy/pair: validation reconstruction" in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page
    assert '<meta http-equiv="refresh"' in page
    drawn = shown._charts["toy/pair"]
    with (Path("w/cache/now.partial/log.jsonl")).open("a") as file:
        file.write('{"step": 31, "loss": 0.05}\n{"step": 3')  # the last line is being written
    again = shown.render()
    assert "31 of 120" in again and shown._charts["toy/pair"] is drawn  # no new validation, so it is not drawn again
    assert re.search(r"<td>\d+ (seconds|minutes|hours)</td>\s*<td>31 of 120", again.replace(",", ""))
    ended = shown.render(ended=True)
    assert "refresh" not in ended and "In training now" not in ended and "The queue ended after" in ended


def test_claims_of_the_papers_say_which_cannot_be_split() -> None:
    papers = {claim.id: claim for paper in claims.PAPERS for claim in paper.CLAIMS}
    together = {claim_id for claim_id, claim in papers.items() if claim.together}
    assert together == {"exo/leakage", "exo/sensitivity", "exo/remedies", "exo/cca", "exo/bound", "lamina/leaderboard"}
