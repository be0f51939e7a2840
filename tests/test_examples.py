"""Every script in examples/ and all Python on the pages runs as it stands, on small datasets in the place of data/doom and data/arms."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from check_readme import FENCE, pages
from lamina.cli import main
from planted import write_complete

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
#: What the scripts ask for, in a size that a test has time for.
FASTER = [
    (r"translator_steps=\d+", "translator_steps=4, transitions=40, structure=0, linear=60"),
    (r"(\.align\([^()]*labels=[^,()]+)\)", r"\1, steps=4)"),
    (r"image=\((64, 64|48, 48)\)", r'image=(\1), size="debug"'),
    (r"(train_policy\(run, \"data/doom\"), steps=\d+", r'\1, steps=2, batch=2, size="debug", context=6, stride=4'),
    (r"\bsteps=\d+", "steps=4"),
    (r"labels=128|labels=\"5%\"", "labels=60"),
    (r"range\(20\)", "range(10)"),
    (
        r"evaluate\(run, \"data/doom\"\)",
        "evaluate(run, 'data/doom', transitions=48, reconstructions=16, structure=0, scratch_steps=4)",
    ),
]
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))

RUN = """
import lamina, shutil
run = lamina.train("flexlam", "data/doom", out="runs/doom", steps=2, image=(48, 48), size="debug")
lamina.align(run, "data/doom", labels=60, steps=4)
lamina.train_policy(run, "data/doom", steps=2, batch=2, size="debug", context=6, stride=4)
shutil.copytree("runs/doom", "runs/mine")
"""
FRAMES = """
import torch
src, dst = torch.randint(0, 256, (2, 5, 3, 60, 80), dtype=torch.uint8)
frame = src[0].permute(1, 2, 0).numpy()
"""
ARMS = """
from types import SimpleNamespace
import lamina, numpy as np
rng = np.random.default_rng(0)
third, wrist = rng.integers(0, 256, (2, 8, 32, 32, 3), dtype=np.uint8)
proprio, tasks = rng.normal(size=(8, 4)).astype(np.float32), ("open the drawer",) * 8
episodes = [
    SimpleNamespace(frames={"corner2": third, "gripperPOV": wrist}, actions=rng.normal(size=(8, 4)).astype(np.float32),
                    columns={"observation.state": proprio[:, :4]}, task=tasks[0]) for _ in range(6)]
arms = lamina.InMemoryDataset(episodes, fps=10)
run = lamina.train("alam", arms, out="runs/alam", steps=2, image=(32, 32), size="debug", camera="all", slots=2)
lamina.train_policy(run, arms, kind="flow", steps=2, batch=2, size="debug", chunk=4)
"""
PLAYED = """
from pathlib import Path
from lamina.play import export
from lamina.play.session import Player
from lamina.play.stage import Stage
player = Player(Stage.load(Path("runs/doom"), "data/doom", transitions=12))
played = player.session("d0", ["1@4", "2@4"])
Path("session.json").write_bytes(export.saved(player, played))
"""
SUITE = """
shutil.copytree("runs/doom", "runs/suite")
shutil.copytree("data/doom", "data/suite")
"""
#: What a page takes for granted: runs of an earlier page, frames and models of the reader's own.
GIVEN = {
    "README.md": RUN + FRAMES,
    "docs/api.md": FRAMES,
    "docs/policies.md": ARMS,
    "docs/play.md": RUN + PLAYED,
    "docs/methods/adaptive_k.md": RUN + SUITE,
    "docs/methods/alam.md": "def f(src, dst): return (dst.float() - src.float()).mean((2, 3))",
}
#: What holds after the code of a page.
HOLDS = {
    "docs/play.md": "assert len(session['moves']) == 2 and torch.equal(frame, player.roll(played)[-1].frame[None])"
}
PAGES = {
    str(page.relative_to(ROOT)): "\n".join(
        block for language, block in FENCE.findall(page.read_text()) if language == "python"
    )
    for page in pages(ROOT)
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples, data/doom, which holds the grid world, and data/arms, the planted one."""
    place = tmp_path_factory.mktemp("examples")
    assert main(["collect", "grid", "--out", str(place / "data/doom"), "--episodes", "12", "--size", "48", "48"]) == 0
    write_complete(place / "data/arms")
    shutil.copytree(EXAMPLES, place / "examples")
    for script in (place / "examples").rglob("*.py"):
        script.write_text(faster(script.read_text()))
    return place


def faster(code: str) -> str:
    for pattern, small in FASTER:
        code = re.sub(pattern, small, code)
    return code


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_runs(place, script):
    done = run(place, f"examples/{script}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page, code in PAGES.items() if code])
def test_the_python_of_a_page_runs(place, page, tmp_path):
    for name in ("doom", "arms"):  # and not what an example has written
        shutil.copytree(place / "data" / name, tmp_path / "data" / name)
    (tmp_path / "page.py").write_text(f"{GIVEN.get(page, '')}\n{faster(PAGES[page])}\n{HOLDS.get(page, '')}\n")
    done = run(tmp_path, "page.py")
    assert done.returncode == 0, done.stderr


def test_the_method_of_the_example_trains_by_its_path(place):
    small = "--steps 3 --size debug --image 32 32 --batch 4 --workers 0 --device cpu --slots 4"
    arguments = f"train examples/own_method.py --data data/doom --out runs/own --penalty 0.5 {small}".split()
    done = run(place, "-m", "lamina.cli", *arguments)
    assert done.returncode == 0, done.stderr
    assert '"length"' in (place / "runs/own/log.jsonl").read_text()
    joint = [
        "align",
        "runs/own",
        "--data",
        "data/doom",
        "--labels",
        "40",
        "--steps",
        "2",
        "--joint",
        "--method",
        "examples/own_method.py",
        "--device",
        "cpu",
    ]
    done = run(place, "-m", "lamina.cli", *joint)
    assert done.returncode == 0, done.stderr
    assert (place / "runs/own/joint/translator.json").exists()


def test_scripts_are_short():
    """Each shows one thing; what needs more room belongs into the library."""
    for name in SCRIPTS:
        assert len((EXAMPLES / name).read_text().splitlines()) <= 40, name
