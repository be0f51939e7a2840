"""Checks README.md and the pages of docs and bench: `python tests/check_readme.py`; status 1 and one line per error.

- The command line accepts every `lamina ...` command in a ```bash block, and every `make ...` target exists.
- A dataset, run or file that a command reads is in the project, is made by an earlier command of the page or of README.md, or is the
  reader's own (OWN).
- Relative links and images exist, and so do the headings of links within a page.
- README.md's file tree (the ``` block that shows src/lamina) names only existing files, and names every module.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from lamina.errors import LaminaError

Parse = Callable[[Sequence[str]], object]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+\s+(.*?)\s*#*$", re.MULTILINE)
FOLDERS = ("data", "runs", "videos", "examples")  # where commands on the pages read and write
OWN = {"videos"}  # what the reader brings along


def commands(block: str) -> list[list[str]]:
    """The simple commands of a bash block: continued lines joined, comments dropped, cut at ; && || | and &."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in words:
            if set(word) <= set(";&|()"):
                found.append(command)
                command = []
            else:
                command.append(word)
        found.append(command)
    named = (command[next((i for i, w in enumerate(command) if "=" not in w), 0) :] for command in found)
    return [command for command in named if command]


def lamina_arguments(command: Sequence[str]) -> list[str] | None:
    """What follows `lamina`, also as a path, in `python -m lamina` or under torchrun; None for another command."""
    if Path(command[0]).name == "lamina":
        return list(command[1:])
    for i, word in enumerate(command[:-1]):
        if word == "-m" and command[i + 1] in ("lamina", "lamina.cli"):
            return list(command[i + 2 :])
    return None


def check_commands(text: str, makefile: str, parse: Parse) -> list[str]:
    targets = set(re.findall(r"^([\w.-]+)\s*:(?!=)", makefile, re.MULTILINE))
    wrong = []
    for language, block in FENCE.findall(text):
        if language not in ("bash", "sh", "shell", "console"):
            continue
        for command in commands(block):
            arguments = lamina_arguments(command)
            if arguments is not None:
                said = io.StringIO()
                try:
                    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                        parse(arguments)
                except LaminaError as error:
                    wrong.append(f"{shlex.join(command)}: {error}")
                except SystemExit as stop:
                    if stop.code:
                        wrong.append(f"{shlex.join(command)}: not accepted: {' '.join(said.getvalue().split())[:300]}")
            elif command[0] == "make":
                asked = [word for word in command[1:] if not word.startswith("-") and "=" not in word]
                wrong += [
                    f"{shlex.join(command)}: no target {name} in Makefile" for name in asked if name not in targets
                ]
    return wrong


def check_files(text: str, root: Path, made: set[str]) -> list[str]:
    """What commands of a page read and nothing made; ``made``: what earlier commands did, to which this page's are added."""
    wrong = []
    for language, block in FENCE.findall(text):
        for command in commands(block) if language == "bash" else []:
            arguments = lamina_arguments(command) or []
            written = {after.rstrip("/") for word, after in pairwise(arguments) if word == "--out"}
            for word in arguments:
                name = word.partition(":")[0].rstrip("/")
                if name.split("/")[0] in FOLDERS and name not in {*made, *written, *OWN} and not (root / name).exists():
                    wrong.append(f"{shlex.join(command)}: nothing has made {name}")
            made |= written
    return wrong


def check_links(text: str, root: Path) -> list[str]:
    prose = FENCE.sub("", text)
    headings = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(prose)}
    wrong = []
    for target in (a or b for a, b in LINK.findall(prose)):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        if path and not (root / path).exists():
            wrong.append(f"link {target}: nothing is there")
        elif not path and anchor not in headings:
            wrong.append(f"link {target}: no such heading")
    return wrong


def tree_paths(block: str) -> list[str]:
    """The paths that a tree names. A line's first word is a path, at the depth that its indentation says; further
    words of the line that end in .py are in the same folder (in the folder that the line names, if it names one).
    """
    paths: list[str] = []
    open_folders: list[tuple[int, str]] = []  # indentation, path with / at its end
    for line in block.splitlines():
        plain = re.sub(r"[│├└─|`]", " ", line)
        words = plain.split()
        if not words:
            continue
        indent = len(plain) - len(plain.lstrip())
        while open_folders and open_folders[-1][0] >= indent:
            open_folders.pop()
        parent = open_folders[-1][1] if open_folders else ""
        paths.append(parent + words[0])
        if words[0].endswith("/"):
            parent += words[0]
            open_folders.append((indent, parent))
        paths += [parent + word for word in re.findall(r"(?<![\w./])\w+\.py\b", " ".join(words[1:]))]
    return paths


def check_tree(text: str, root: Path) -> list[str]:
    package = root / "src" / "lamina"
    trees = [block for language, block in FENCE.findall(text) if language in ("", "text") and "src/lamina" in block]
    if len(trees) != 1:
        return [f"{len(trees)} ``` blocks show the tree of src/lamina; one should"]
    paths = tree_paths(trees[0])
    wrong = [f"tree: {path} does not exist" for path in paths if not (root / path).exists()]
    shown = {(root / path).resolve() for path in paths}
    modules = sorted(p for p in package.rglob("*.py") if p.name != "__init__.py")
    modules += sorted(p.parent for p in package.rglob("__init__.py"))
    wrong += [f"tree: {p.relative_to(root)} is missing" for p in modules if p.resolve() not in shown]
    return wrong


def pages(root: Path) -> list[Path]:
    """README.md, and the pages of docs and bench."""
    return [root / "README.md", *sorted(root.glob("docs/**/*.md")), *sorted(root.glob("bench/*.md"))]


def check(root: Path, parse: Parse) -> list[str]:
    """Every lie of the pages under ROOT, one line each."""
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    readme = root / "README.md"
    wrong = []
    of_readme: set[str] = set()
    check_files(readme.read_text(encoding="utf-8"), root, of_readme)
    for page in pages(root):
        text = page.read_text(encoding="utf-8")
        lies = check_commands(text, makefile, parse) + check_links(text, page.parent)
        lies += check_files(text, root, set() if page == readme else set(of_readme))
        lies += check_tree(text, root) if page == readme else []
        wrong += [f"{page.relative_to(root)}: {lie}" for lie in lies]
    return wrong


if __name__ == "__main__":
    from lamina.cli import parse

    wrong = check(Path(__file__).resolve().parent.parent, parse)
    print("\n".join(wrong) or "every command, link and path of README.md, docs and bench is right")
    sys.exit(bool(wrong))
