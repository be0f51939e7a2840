"""Outputs: exclusive to one process while a command runs, and written atomically."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import lamina.data.lerobot.labels as data_labels
from data_files import change_table
from lamina import cli, files
from lamina.cli import main
from lamina.data.sampling import open_source
from lamina.errors import LaminaError
from lamina.evaluation.evaluate import training_curve
from lamina.evaluation.pictures import grid
from lamina.evaluation.report.page import write_report
from lamina.files import Scratch, locked, to_json
from lamina.models.hub import LatentActionModel
from lamina.progress import progress_bar
from lamina.training.log import read_log
from processes import die, dies_in, in_child

torch.set_num_threads(1)
SMALL = ["--image", "32", "32", "--size", "debug", "--slots", "4", "--decoder", "unet", "--steps", "6", "--batch", "8",
         "--checkpoint-every", "2", "--device", "cpu", "--workers", "0"]  # fmt: skip
POLICY = ["--size", "debug", "--context", "6", "--stride", "4", "--steps", "2", "--batch", "2", "--device", "cpu"]
HOLD = """
import sys
from pathlib import Path
from lamina.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and a trained, aligned run."""
    home = tmp_path_factory.mktemp("home")
    assert main(["collect", "grid", "--out", str(home / "data"), "--episodes", "12", "--size", "32", "32"]) == 0
    assert main(["train", "flexlam", "--data", str(home / "data"), "--out", str(home / "run"), *SMALL]) == 0
    assert main(["align", str(home / "run"), "--data", str(home / "data"), "--labels", "40", "--steps", "4"]) == 0
    return home


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


class Holder:
    """Another process that has a lock until it is let go or killed."""

    def __init__(self, path: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def end(self, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def hold() -> Iterator[type[Holder]]:
    made: list[Holder] = []

    def start(path: Path) -> Holder:
        made.append(Holder(path))
        return made[-1]

    yield start  # type: ignore[misc]
    for holder in made:
        if holder.process.poll() is None:
            holder.end(kill=True)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------------------------------------------------------- locks


def test_a_second_process_is_told_who_has_the_output(hold, tmp_path):
    out = tmp_path / "new/out"
    holder = hold(out)
    with pytest.raises(LaminaError, match=rf"out: in use by process {holder.process.pid}; wait"), locked(out):
        pytest.fail("two processes have it")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(LaminaError, match="in use by process"), locked(tmp_path / "link/out"):
        pytest.fail("by another name")
    with locked(tmp_path / "new/other"):
        pass
    holder.end()
    with locked(out):
        assert [p.name for p in out.parent.iterdir()] == [".out.lock"]
    assert not (tmp_path / "new").exists()  # nothing was written, and nothing stays


def test_a_killed_process_lets_go(hold, tmp_path):
    holder = hold(tmp_path / "out")
    holder.end(kill=True)
    with locked(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_outlives_its_owner_does_not_keep_the_lock(tmp_path):
    """As decoding workers may, for a moment, when the process that forked them is killed."""

    def work():
        with locked(tmp_path / "out"):
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "3"])
            if os.fork() == 0:
                import time

                time.sleep(3)
                os._exit(0)
            die()

    assert in_child(work) == 9
    with locked(tmp_path / "out"):
        pass


def commands(home: Path, run: Path, out: Path) -> dict[str, tuple[list[str], Path]]:
    """Each command that writes, and the output that it must have for itself."""
    data = str(home / "data")
    return {
        "collect": (["collect", "grid", "--out", str(out), "--episodes", "3"], out),
        "label": (["label", str(run), data, "--out", str(out)], out),
        "train": (["train", "flexlam", "--data", data, "--out", str(out), *SMALL], out / "model"),
        "resume": (["train", "flexlam", "--data", data, "--out", str(run), *SMALL, "--resume"], run / "model"),
        "align": (["align", str(run), "--data", data, "--labels", "20", "--steps", "4"], run / "translator"),
        "joint": (["align", str(run), "--data", data, "--labels", "20", "--steps", "4", "--joint"], run / "joint"),
        "policy": (["policy", str(run), "--data", data, *POLICY], run / "policy"),
        "evaluate": (["evaluate", str(run), "--data", data], run / "evaluation.json"),
        "rollout": (["rollout", "random", "--world", "grid", "--episodes", "1", "--out", str(out)], out),
        "reproduce": (["reproduce", "exo/cca", "--scale", "smoke", "--out", str(out)], out),
    }


@pytest.mark.parametrize("name", list(commands(Path(), Path(), Path())))
def test_two_commands_never_share_an_output(name, home, run, tmp_path, hold, capsys):
    arguments, output = commands(home, run, tmp_path / "out")[name]
    if name == "align":
        shutil.rmtree(run / "translator")
    holder = hold(output)
    before = listing(tmp_path)
    assert main(arguments) == 2
    assert f"{output}: in use by process {holder.process.pid}; wait for it to end\n" in capsys.readouterr().err
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["train", "label", "collect"])
def test_of_two_at_once_one_does_the_work_and_the_other_is_refused(name, home, run, tmp_path):
    arguments, _ = commands(home, run, tmp_path / "out")[name]
    start = "import sys, torch; torch.set_num_threads(1); from lamina.cli import main; sys.exit(main(sys.argv[1:]))"
    both = [subprocess.Popen([sys.executable, "-c", start, *arguments], stderr=subprocess.PIPE) for _ in range(2)]
    told = [process.communicate()[1].decode() for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], told
    refused = told[0 if both[0].returncode else 1]
    assert any(text in refused for text in ("in use by", "exists already", "there is a run here already")), refused
    shutil.move(tmp_path / "out", tmp_path / "first")
    assert main(arguments) == 0
    kept = ("*.safetensors", "*.parquet", "*.mp4")
    for pattern in kept:
        files_ = {p.relative_to(tmp_path / "out"): p.read_bytes() for p in (tmp_path / "out").rglob(pattern)}
        assert files_ == {
            p.relative_to(tmp_path / "first"): p.read_bytes() for p in (tmp_path / "first").rglob(pattern)
        }


# ---------------------------------------------------------------------------------------------------------------- kills


def test_killed_while_it_writes_its_settings_a_run_can_be_started_again(home, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "flexlam", "--data", str(home / "data"), "--out", str(out), *SMALL]

    def work():
        dies_in(files, "sync", 0)
        main(arguments)

    assert in_child(work) == 9
    assert (out / ".config.json.partial").exists()
    assert not (out / "config.json").exists()
    assert main(arguments) == 0
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (home / "run" / weights).read_bytes()
    assert not list(out.glob(".*"))


def test_killed_after_its_last_rename_label_leaves_nothing_that_stays(home, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["label", str(home / "run"), str(home / "data"), "--out", str(out)]

    def work():
        original = data_labels.os.replace

        def replace(a, b):
            original(a, b)
            if Path(b) == out:
                die()

        data_labels.os.replace = replace
        main(arguments)

    assert in_child(work) == 9
    assert len(open_source(out).episodes) == 12  # whole
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_temporary_folders_of_killed_processes_go_with_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def work():
        left = Scratch()
        (Path(left.name) / "weights").write_bytes(b"1" * 100)
        die()

    assert in_child(work) == 9
    (left,) = tmp_path.iterdir()
    with Scratch() as first:
        assert not left.exists()
        with Scratch():  # that of a living process stays
            assert Path(first).exists()
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- evaluation


EVALUATE = ["--transitions", "48", "--reconstructions", "16", "--structure", "0", "--scratch-steps", "4"]


def test_on_a_full_disk_an_evaluation_leaves_pictures_and_record_of_the_last_one(home, run):
    """A limit on the size of a file stands for the full disk: the record is longer than any picture of a model so small."""
    evaluate = ["evaluate", str(run), "--data", str(home / "data"), *EVALUATE]
    assert main(evaluate) == 0
    before = listing(run)
    record = run / "evaluation.json"
    pictures = [p.stat().st_size for p in (run / "pictures").iterdir()]

    for limit in (min(pictures) - 1, record.stat().st_size // 2):

        def work(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            os._exit(main([*evaluate[:-2], "--scratch-steps", "6"]))

        assert in_child(work) == -2
        assert listing(run) == before


def test_a_picture_of_another_evaluation_is_not_shown(home, run):
    assert main(["evaluate", str(run), "--data", str(home / "data"), *EVALUATE]) == 0
    page = (run / "report.html").read_text()
    assert "of another evaluation" not in page
    shutil.copy(run / "pictures/prefix.png", run / "pictures/transfer.png")
    page = write_report(run).read_text()
    assert "pictures/transfer.png: not available (the file is of another evaluation)" in page
    assert page.count("of another evaluation") == 1  # the other one is shown


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40)])
def test_a_grid_shows_each_picture_in_its_row_and_column(tmp_path, height, width):
    """Every cell has a colour of its own, which halves change at the middle of the cell: each is found where it belongs, whole."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    pictures = torch.from_numpy(colours).permute(1, 0, 2)[..., None, None].expand(4, 3, 3, height, width).clone()
    pictures[..., width // 2 :] //= 2
    grid(tmp_path / "p.png", ["one", "two", "three", "four"], list(pictures), names=["a", "b", "c"])
    page = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    columns, rows = (runs_of((page != 255).any(2).any(axis)) for axis in (0, 1))
    columns, rows = columns[-4:], rows[-3:]  # before them: the names, and the titles
    for row, (top, bottom) in enumerate(rows):
        for column, (left, right) in enumerate(columns):
            cell = page[top + 2 : bottom - 2, left + 2 : right - 2]
            half = cell.shape[1] // 2
            assert (cell[:, : half - 4] == colours[row, column]).all() and (
                cell[:, half + 4 :] == colours[row, column] // 2
            ).all()
            assert (bottom - top) / (right - left) == pytest.approx(height / width, rel=0.05)


def runs_of(filled: np.ndarray) -> list[tuple[int, int]]:
    """First place and end of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled, [False]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def test_nan_is_null_in_every_record(home, run):
    """Infinity and NaN are no JSON; browsers and other languages refuse a file that holds them."""
    row = {"loss": float("nan"), "rows": [{"mean": np.float64("inf"), "low": -1.5}, (1, True, None, "NaN")]}
    assert json.loads(to_json(row)) == {"loss": None, "rows": [{"mean": None, "low": -1.5}, [1, True, None, "NaN"]]}
    evaluate = ["evaluate", str(run), "--data", str(home / "data"), *EVALUATE]
    original = cli.__dict__  # the stage itself is asked for a figure that is none
    assert original
    from lamina.evaluation import evaluate as stage

    before = stage._translation_row

    def broken(score, clip):
        return before(score, clip) | {"loss": {"mean": float("nan"), "low": float("nan"), "high": float("inf")}}

    stage._translation_row = broken
    try:
        assert main(evaluate) == 0
    finally:
        stage._translation_row = before

    def refuse(name):
        raise AssertionError(f"{name} in the record")

    record = json.loads((run / "evaluation.json").read_text(), parse_constant=refuse)
    assert record["translator"][0]["loss"] == {"mean": None, "low": None, "high": None}
    assert "not available" in (run / "report.html").read_text()


# -------------------------------------------------------------------------------------------------------- resumed elsewhere


def test_a_run_goes_on_where_its_data_lies_now(home, tmp_path):
    data = Path(shutil.copytree(home / "data", tmp_path / "here"))
    train = ["train", "flexlam", "--out", str(tmp_path / "run"), *SMALL]

    def work():
        dies_in(LatentActionModel, "save_pretrained", 0)
        main([*train, "--data", f"{data}:1"])

    assert in_child(work) == 9
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    data.rename(tmp_path / "there")
    assert main([*train, "--data", f"{tmp_path / 'there'}:1", "--resume", "--workers", "1"]) == 0
    weights = "model/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (home / "run" / weights).read_bytes()


def test_a_run_does_not_go_on_with_other_data_of_the_same_size(home, run, tmp_path, capsys):
    """Only the content tells them apart."""
    lengths = [e.length for e in open_source(home / "data").episodes]
    other = tmp_path / "other"
    shutil.copytree(home / "data", other)
    for path in (other / "data").rglob("*.parquet"):
        change_table(path, action=[0] * pq.read_metadata(path).num_rows)
    assert [e.length for e in open_source(other).episodes] == lengths
    shutil.rmtree(run / "checkpoints/step-00000006")
    assert main(["train", "flexlam", "--data", str(other), "--out", str(run), *SMALL, "--resume"]) == 2
    assert "--init" in capsys.readouterr().err


def test_settings_that_are_none_are_told_in_one_line(home, run, capsys):
    train = ["train", "flexlam", "--data", str(home / "data"), "--out", str(run), *SMALL, "--resume"]
    for text in ("[]", "null", "{}", '{"data": 3, "train": {}}', '{"data": {"data": [1]}, "train": []}', "[" * 100_000):
        (run / "config.json").write_text(text)
        assert main(train) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert "config.json" in told or "other settings" in told, told
        assert "internal error" not in told


# ------------------------------------------------------------------------------------------------------------ last words


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("fps"), "internal error: KeyError: 'fps'; please report it (--debug shows the traceback)"),
        (RuntimeError("two\nlines\x1b[31m"), r"internal error: RuntimeError: two lines\x1b[31m; please report it"),
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
            "not enough memory",
        ),
        (RecursionError("deep"), "internal error: RecursionError: deep"),
    ],
)
def test_an_unexpected_exception_is_one_line(error, told, monkeypatch, capsys):
    def fail(argv, parse_only=False):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "collect", fail)
    assert main(["collect"]) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"lamina: {told}")
    assert text.count("\n") == 1
    with pytest.raises(type(error)):
        main(["collect", "--debug"])


def test_a_log_with_other_lines_in_it_is_read_without_them(home, run, tmp_path):
    log = run / "log.jsonl"
    whole = read_log(log)
    assert [row["step"] for row in whole] == [6]  # the last step; --log-every is 10
    junk = (
        b'{"step": 3, "los\n[1]\nnull\n{"step": "6", "loss": 1}\n{"step": true, "loss": 1}\n\xff\xfe\n'
        + b"[" * 10**5
        + b"\n"
    )
    log.write_bytes(junk + log.read_bytes() + b'{"step": 7')
    assert read_log(log) == whole
    assert training_curve(log)["steps"] == [6]
    assert read_log(tmp_path / "none.jsonl") == []
    shutil.rmtree(run / "checkpoints/step-00000006")
    assert main(["train", "flexlam", "--data", str(home / "data"), "--out", str(run), *SMALL, "--resume"]) == 0
    assert [row["step"] for row in map(json.loads, log.read_text().splitlines())] == [6]


@pytest.mark.parametrize(("terminal", "seconds"), [(True, 0.5), (False, 30.0)])
def test_a_progress_bar_in_a_file_does_not_fill_it(terminal, seconds, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(10_000, "train", "sample") as bar:
        assert bar.mininterval == seconds
        for _ in range(10_000):
            bar.update()
    states = stream.getvalue().count("\r")
    assert "10000/10000" in stream.getvalue() and (terminal or states <= 3)
