"""Runs the section "Install" of README.md in empty environments: `python tests/check_install.py`.

Every ```bash block of the section is one way to install. It runs in a fresh copy of the tracked files, with only the system's PATH and an
empty virtual environment. In the same shell, `lamina` must then exist, have this version, and train on a video. On failure the script
prints the shell's output and exits with status 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What a new user does next: a model of their own video. Few steps; that it learns is for other tests.
FIRST_COMMAND = """
python - <<'MAKE'
import av, numpy as np, pathlib
pathlib.Path("videos").mkdir()
with av.open("videos/mine.mp4", "w") as out:
    stream = out.add_stream("libx264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
    for n in range(90):
        picture = np.full((64, 96, 3), 90, np.uint8)
        picture[20:40, n : n + 6] = 255
        for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
            out.mux(packet)
    for packet in stream.encode():
        out.mux(packet)
MAKE
lamina --version
lamina train flexlam --data videos/ --out runs/mine --steps 3 --size debug --image 16 16
test -f runs/mine/model/model.safetensors
"""


def ways(readme: str) -> list[str]:
    """The ```bash blocks of the section "Install"."""
    section = re.search(r"^## Install$(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```bash\n(.*?)^```", section.group(1), re.MULTILINE | re.DOTALL) if section else []
    if not blocks:
        raise SystemExit('README.md has no section "Install" with a ```bash block')
    return blocks


def follow(way: str, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Run one way in a fresh copy of the project."""
    copy = scratch / "lamina"
    for name in subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    venv.create(scratch / "empty", with_pip=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "CONDA", "LAMINA"))}
    path = os.pathsep.join([str(scratch / "empty" / "bin"), "/usr/local/bin", "/usr/bin", "/bin"])
    script = f"set -eo pipefail\n{way}\n{FIRST_COMMAND}"
    return subprocess.run(
        ["bash", "-c", script], cwd=copy, env={**kept, "PATH": path}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )  # fmt: skip


def main() -> int:
    for way in ways((ROOT / "README.md").read_text(encoding="utf-8")):
        with tempfile.TemporaryDirectory() as scratch:
            done = follow(way, Path(scratch))
        if done.returncode:
            print(f"README.md, Install: this way does not work\n\n{way}\n{done.stdout}")
            return 1
        print(f"README.md, Install: {way.strip().splitlines()[0]} ... works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
