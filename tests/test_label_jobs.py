"""Labelling by several jobs and by a Ray cluster: the dataset is the one that a single job writes, byte for byte, whatever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lamina
import lamina.data.lerobot.staging as data_staging
from data_files import write_dataset, write_video
from lamina import methods
from lamina.cli import main
from lamina.data.lerobot.shards import Shard
from lamina.data.memory import InMemoryDataset
from lamina.data.sampling import open_source
from lamina.errors import LaminaError
from lamina.files import locked
from lamina.inference.label import label, label_shard, merge
from lamina.inference.ray_engine import Cluster
from lamina.models.hub import LatentActionModel, Provenance
from processes import dies_in, in_child

pytestmark = pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")
torch.set_num_threads(1)


def save_model(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    flexlam = methods.load("flexlam")
    config = flexlam.build(flexlam.Config(size="debug", image=(32, 32), slots=3))
    LatentActionModel(config, Provenance("flexlam")).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    save_model(home / "run", 0)
    save_model(home / "other", 1)
    write_dataset(home / "set", [20, 12, 15, 8, 30, 9])
    for n in range(5):
        write_video(home / f"videos/{n}.mp4", frames=14 + 5 * n, offset=100 * n)
    for name in ("set", "videos"):
        label(home / "run", str(home / name), home / f"labelled-{name}")
    return home


def listing(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def arguments(home: Path, name: str, out: Path, *more: str) -> list[str]:
    return ["label", str(home / "run"), str(home / name), "--out", str(out), "--device", "cpu", *more]


# ---------------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("name", ["set", "videos"])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_shards_of_any_number_make_the_dataset_of_one_job(home, tmp_path, name, count):
    out = tmp_path / "out"
    source = open_source(home / name)
    shards = [Shard(n + 1, count) for n in range(count)]
    assert sorted(e.number for s in shards for e in s.episodes(source)) == list(range(len(source.episodes)))
    for shard in reversed(shards):
        assert main(arguments(home, name, out, "--shard", str(shard))) == 0
    assert not out.exists()
    assert main(arguments(home, name, out, "--merge")) == 0
    assert listing(out) == listing(home / f"labelled-{name}")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # the parts are gone


def test_shards_have_about_equally_many_frames(home):
    source = open_source(home / "set")
    frames = [sum(e.length for e in Shard(n, 2).episodes(source)) for n in (1, 2)]
    assert frames == [47, 47]


@pytest.mark.parametrize("write", range(5))
def test_a_killed_shard_goes_on_and_a_finished_one_is_left_alone(home, tmp_path, write):
    out = tmp_path / "out"

    def work():
        dies_in(data_staging, "write_table", write)
        label_shard(home / "run", str(home / "set"), out, Shard(1, 1))

    assert in_child(work) == signal.SIGKILL
    assert not (tmp_path / "out.shards/00001-of-00001").exists()
    made = sorted(tmp_path.glob("out.shards/.*.partial/*.parquet"))
    assert len(made) == write
    stamps = [p.stat().st_mtime_ns for p in made]
    with pytest.raises(
        LaminaError, match=r"shard 1/1 missing \(1 begun, not finished\); run lamina label with --shard 1/1"
    ):
        merge(home / "run", str(home / "set"), out)
    part = label_shard(home / "run", str(home / "set"), out, Shard(1, 1)).path
    assert part is not None
    assert [(part / p.name).stat().st_mtime_ns for p in made] == stamps  # these were not labelled again
    before = listing(part)
    assert label_shard(home / "run", str(home / "set"), out, Shard(1, 1)).path == part and listing(part) == before
    merge(home / "run", str(home / "set"), out)
    assert listing(out) == listing(home / "labelled-set")


@pytest.mark.parametrize("name", ["set", "videos"])
def test_the_python_api_labels_shards_and_merges_them(home, tmp_path, name):
    out = tmp_path / "out"
    whole = lamina.label(home / "run", home / name, device="cpu")
    seen = []
    for n in range(1, 9):  # more shards than episodes: some are empty
        part = lamina.label(home / "run", home / name, out=out, shard=f"{n}/8", device="cpu")
        assert part.path is not None and part.path.parent == tmp_path / "out.shards" and part.index is not None
        rows = [whole.rows(number) for number in dict.fromkeys(part.episode.tolist())]
        seen += dict.fromkeys(part.episode.tolist())
        for ours, theirs in ((part.latents, whole.latents), (part.index, whole.index), (part.valid, whole.valid)):
            assert theirs is not None
            np.testing.assert_array_equal(ours, np.concatenate([theirs[:0], *(theirs[r] for r in rows)]))
        np.testing.assert_array_equal(part.frame, np.concatenate([whole.frame[:0], *(whole.frame[r] for r in rows)]))
    assert sorted(seen) == list(range(len(open_source(home / name).episodes)))
    merged = lamina.label(home / "run", home / name, out=out, merge=True)
    assert merged.path == out and len(merged) == len(whole)
    assert listing(out) == listing(home / f"labelled-{name}")


def test_options_of_the_python_api_that_do_not_go_together_are_one_line(home, tmp_path):
    for options, words in (
        ({"shard": "1/2", "merge": True}, "give one of them"),
        ({"engine": "ray", "merge": True}, "leave out --shard and --merge"),
        ({"address": "a:1"}, "add --engine ray"),
        ({"engine": "spark"}, "choose local or ray"),
    ):
        with pytest.raises(LaminaError, match=words):
            lamina.label(home / "run", home / "set", out=tmp_path / "out", **options)
    for options in ({"shard": "1/2"}, {"merge": True}, {"engine": "ray"}):
        with pytest.raises(LaminaError, match="are written to a dataset: give --out"):
            lamina.label(home / "run", home / "set", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_merge_refuses_what_does_not_belong_together(home, tmp_path, capsys):
    out = tmp_path / "out"
    shards = tmp_path / "out.shards"

    def refused(*more: str, run: str = "run", name: str = "set") -> str:
        before = listing(tmp_path)
        assert main(["label", str(home / run), str(home / name), "--out", str(out), *more]) == 2
        assert listing(tmp_path) == before and not out.exists()
        text = capsys.readouterr().err.strip().splitlines()[-1]
        assert text.startswith("lamina: ")
        return text

    assert "holds no shard; run: lamina label RUN DATA" in refused("--merge")
    for n in (1, 3):
        assert main(arguments(home, "set", out, "--shard", f"{n}/4")) == 0
    assert "shard 2/4, 4/4 missing; run lamina label with --shard 2/4 before --merge" in refused("--merge")
    for n in (2, 4):
        assert main(arguments(home, "set", out, "--shard", f"{n}/4")) == 0
    assert "was labelled by another model; delete this folder" in refused("--merge", run="other")
    assert "was labelled by another model" in refused("--shard", "2/4", run="other")
    assert "was labelled from other data" in refused("--merge", name="videos")
    assert "with other options (provenance.precision)" in refused("--merge", "--precision", "bf16")
    assert "with other options (provenance.k, features.latent_action.k" in refused("--merge", "--k", "1")
    shutil.copytree(shards / "00001-of-00004", shards / "00001-of-00005")
    assert "holds shards of 4 and of 5; delete those of one of them" in refused("--merge")
    shutil.rmtree(shards / "00001-of-00005")
    lost = next((shards / "00002-of-00004").glob("*.parquet"))
    content = lost.read_bytes()
    lost.unlink()
    assert "00002-of-00004: lacks episode" in refused("--merge")
    lost.write_bytes(content)
    shutil.rmtree(shards / "00003-of-00004")
    shutil.copytree(shards / "00002-of-00004", shards / "00003-of-00004")
    assert "00003-of-00004: is not what its name says" in refused("--merge")


@pytest.mark.parametrize(("name", "option"), [
    ("set", {"k": 1}), ("set", {"shots": "classical"}), ("set", {"continuous": True}), ("videos", {"k": 1}),
])  # fmt: skip
def test_parts_that_were_made_with_more_options_are_refused_without_them(home, tmp_path, name, option):
    out = tmp_path / "out"
    lamina.label(home / "run", home / name, out=out, shard="1/1", device="cpu", **option)
    before = listing(tmp_path)
    for call in ({"merge": True}, {"shard": "1/1"}):
        with pytest.raises(LaminaError, match="was labelled with other options"):
            lamina.label(home / "run", home / name, out=out, device="cpu", **call)
    assert listing(tmp_path) == before
    merged = lamina.label(home / "run", home / name, out=out, merge=True, **option)
    alone = lamina.label(home / "run", home / name, out=tmp_path / "alone", device="cpu", **option)
    np.testing.assert_array_equal(merged.latents, alone.latents)


def test_workers_of_a_cluster_use_the_gpus_that_they_hold():
    assert [Cluster(gpus=g).device("auto") for g in (0, 0.25)] == ["cpu", "cuda"]
    assert Cluster(gpus=1).device("cpu") == Cluster().device("cpu") == "cpu"
    with pytest.raises(LaminaError, match="give each worker of --engine ray a share of a GPU"):
        Cluster().device("cuda")


def test_two_jobs_on_one_shard_and_wrong_shards_are_one_line(home, tmp_path, capsys):
    out = tmp_path / "out"
    with locked(tmp_path / "out.shards/00001-of-00002"):
        assert main(arguments(home, "set", out, "--shard", "1/2")) == 2
        assert "00001-of-00002: in use by process" in capsys.readouterr().err
        assert main(arguments(home, "set", out, "--shard", "2/2")) == 0  # another one is free
    capsys.readouterr()
    for text in ("3/2", "0/2", "1", "a/b", "1/2/3", "1/9999999"):
        assert main(arguments(home, "set", out, "--shard", text)) == 2
        assert capsys.readouterr().err.startswith("lamina: --shard ")
    assert main(arguments(home, "set", out, "--shard", "1/2", "--merge")) == 2
    assert main(arguments(home, "set", home / "labelled-set", "--shard", "1/2")) == 2
    assert "exists already" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------------- Ray


class Slow(InMemoryDataset):
    """Takes time for an episode that is read to be encoded, and notes who reads it."""

    notes: Path
    seconds = 0.5

    def frames(self, episode, camera, start, stop, size=None):
        if size is not None:  # the fingerprint of the data and the copy of its frames are read as they are
            with self.notes.open("a") as file:
                file.write(f"{os.getpid()} {episode.number}\n")
            time.sleep(self.seconds)
        return super().frames(episode, camera, start, stop, size)


def test_a_killed_worker_changes_nothing(home, tmp_path):
    """A real cluster on this machine: of its two workers one is killed with -9 while it labels an episode."""
    ray = pytest.importorskip("ray", reason="needs ray[data]")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    rng = np.random.default_rng(0)
    episodes = [SimpleNamespace(frames=rng.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)) for _ in range(10)]
    slow = Slow(episodes)
    slow.notes = tmp_path / "notes"
    killed: list[tuple[int, int]] = []

    def read() -> list[tuple[int, int]]:
        lines = slow.notes.read_text().splitlines() if slow.notes.exists() else []
        return [(int(pid), int(number)) for pid, number in map(str.split, lines)]

    def kill() -> None:
        while len({pid for pid, _ in read()}) < 2:  # both are at work
            time.sleep(0.02)
        victim = read()[-1]
        os.kill(victim[0], signal.SIGKILL)
        killed.append(victim)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    lamina.label(home / "run", slow, out=tmp_path / "out", device="cpu", engine="ray", workers=2)
    killer.join()
    ((pid, number),) = killed
    readers = [who for who, which in read() if which == number]
    assert pid in readers and set(readers) - {pid}  # another worker did it again
    assert {which for _, which in read()} == set(range(10))
    slow.notes, slow.seconds = tmp_path / "local", 0.0
    label(home / "run", slow, tmp_path / "alone", device="cpu")
    assert listing(tmp_path / "out") == listing(tmp_path / "alone")


def test_bad_addresses_are_one_line_in_bounded_time(home, tmp_path, capsys):
    pytest.importorskip("ray", reason="needs ray[data]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    for address, told in (("nowhere", "must be HOST:PORT"), (f"127.0.0.1:{port}", "no Ray cluster answers there")):
        assert main(arguments(home, "set", tmp_path / "out", "--engine", "ray", "--address", address)) == 2
        assert f"lamina: --address {address}: {told}" in capsys.readouterr().err
    assert time.monotonic() - began < 60 and list(tmp_path.iterdir()) == []
    assert main(arguments(home, "set", tmp_path / "out", "--address", "a:1")) == 2
    assert main(arguments(home, "set", tmp_path / "out", "--engine", "ray", "--shard", "1/2")) == 2


def test_an_output_that_exists_is_noticed_before_a_cluster_is_started(home, tmp_path, capsys, monkeypatch):
    def started(*args: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(lamina.inference.label, "RayEngine", started)
    (tmp_path / "out").mkdir()
    assert main(arguments(home, "set", tmp_path / "out", "--engine", "ray")) == 2
    assert "out: exists already; choose another path or delete it" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="a cluster was started"):
        lamina.label(home / "run", home / "set", out=tmp_path / "new", engine="ray")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing is left where none could be started


def test_without_ray_there_is_one_line(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(arguments(home, "set", tmp_path / "out", "--engine", "ray")) == 2
    assert "pip install 'ray[data]'" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
