"""check_readme.py finds every kind of error, and accepts a correct README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from check_readme import check, commands, lamina_arguments, tree_paths
from lamina.errors import LaminaError

README = """# Title

[guide](docs/guide.md#part) ![picture](docs/a.png "A picture") <img src="docs/a.png"> [site](https://example.org)
[below](#the-tree-of-it)

```bash
make demo FRAMES=3000      # a comment; make nothing
CUDA_VISIBLE_DEVICES=0 lamina train flexlam --data videos/ --data 'my videos' \\
    --out runs/run && .venv/bin/lamina --help
lamina train flexlam --init runs/run --data data/own:2 --data videos/ --out runs/more
torchrun --nproc-per-node 2 -m lamina.cli train flexlam | tee log
pip install lamina
```

## The tree of it

```
src/lamina/
├── shapes.py        axes, and what align.py needs
├── data/            clips.py · video.py (folders of mp4)
│                    lerobot.py
└── align.py
tests/   docs/
Makefile
```
"""


def parse(arguments: Sequence[str]) -> None:
    """A command line that knows `train flexlam`."""
    if list(arguments[:1]) == ["--help"]:
        raise SystemExit(0)
    if list(arguments[:1]) != ["train"]:
        raise SystemExit(2)
    if arguments[1] != "flexlam":
        raise LaminaError(f"unknown method {arguments[1]}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("__init__", "shapes", "align", "data/__init__", "data/clips", "data/video", "data/lerobot"):
        path = tmp_path / "src" / "lamina" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "docs").mkdir()
    (tmp_path / "data" / "own").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "docs" / "guide.md").touch()
    (tmp_path / "docs" / "a.png").touch()
    (tmp_path / "Makefile").write_text("VENV := .venv\ndemo: install\n\ttrue\n")
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def test_a_true_readme_passes(root: Path) -> None:
    assert check(root, parse) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("make demo", "make dmo", "no target dmo"),
        ("lamina train flexlam --data videos/ --data", "lamina fly --data", "not accepted"),
        ("--init runs/run", "--init runs/ruin", "nothing has made runs/ruin"),
        ("--init runs/run", "--init runs/more/model", "nothing has made runs/more/model"),
        ("data/own", "data/owm", "nothing has made data/owm"),
        ("-m lamina.cli train flexlam", "-m lamina.cli train flexlamm", "unknown method flexlamm"),
        ("docs/guide.md", "docs/gide.md", "docs/gide.md"),
        ('src="docs/a.png"', 'src="docs/b.png"', "docs/b.png"),
        ("(#the-tree-of-it)", "(#the-house)", "#the-house"),
        ("shapes.py ", "shape.py ", "src/lamina/shape.py does not exist"),
        ("shapes.py ", "shape.py ", "src/lamina/shapes.py is missing"),
        (" · video.py", "", "src/lamina/data/video.py is missing"),
        ("│                    lerobot.py\n", "", "src/lamina/data/lerobot.py is missing"),
        ("Makefile", "makefile.mk", "makefile.mk does not exist"),
        ("src/lamina/\n", "lamina/\n", "0 ``` blocks"),
    ],
)
def test_an_error_is_found(root: Path, old: str, new: str, said: str) -> None:
    assert README.count(old) == 1
    (root / "README.md").write_text(README.replace(old, new))
    assert [line for line in check(root, parse) if said in line]


def test_other_pages_are_checked_too(root: Path) -> None:
    page = "[picture](a.png) [gone](docs/a.png)\n\n```bash\nlamina fly\nlamina train flexlam --data runs/run\n```\n"
    (root / "docs" / "guide.md").write_text(page)
    lies = check(root, parse)
    assert len(lies) == 2 and all(lie.startswith("docs/guide.md: ") for lie in lies)
    assert "lamina fly" in lies[0] and "docs/a.png" in lies[1]


def test_commands_are_cut_as_a_shell_would() -> None:
    assert commands("A=1 make x; lamina --list | head -n 'a b'  # not this\n\n# nor this\n") == [
        ["make", "x"],
        ["lamina", "--list"],
        ["head", "-n", "a b"],
    ]
    assert lamina_arguments(["python", "-m", "lamina", "train"]) == ["train"]
    assert lamina_arguments(["pip", "install", "lamina"]) is None


def test_tree_paths_follow_indentation() -> None:
    assert tree_paths("a/\n  b.py  text\n  c/     d.py e.py\n  f.py\ng.md\n") == [
        "a/",
        "a/b.py",
        "a/c/",
        "a/c/d.py",
        "a/c/e.py",
        "a/f.py",
        "g.md",
    ]
