"""Every script in examples/ runs as it stands, on a small dataset in the place of data/doom."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.cli import main

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
#: What the scripts ask for, in a size that a test has time for.
FASTER = [
    (r"translator_steps=\d+", "translator_steps=4, transitions=40, structure=0, linear=60"),
    (r"\bsteps=\d+", "steps=4"),
    (r"labels=128|labels=\"5%\"", "labels=60"),
    (r"range\(20\)", "range(10)"),
]
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/doom, which holds the grid world, and the examples."""
    place = tmp_path_factory.mktemp("examples")
    assert main(["collect", "grid", "--out", str(place / "data/doom"), "--episodes", "12", "--size", "48", "48"]) == 0
    shutil.copytree(EXAMPLES, place / "examples")
    for script in (place / "examples").rglob("*.py"):
        text = script.read_text()
        for pattern, faster in FASTER:
            text = re.sub(pattern, faster, text)
        script.write_text(text)
    return place


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_runs(place, script):
    done = run(place, f"examples/{script}")
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
