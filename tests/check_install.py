"""Installs Lamina in empty environments, as README.md says and as a wheel: `python tests/check_install.py`.

Each way runs in a fresh copy of the tracked files, with only the system's PATH and an empty virtual environment.

- readme: every ```bash block of README's section "Install" is one way. In the same shell, `lamina` must then exist, have this version, and
  train on a video.
- wheel: the wheel holds the library's files and no others. Installed without extras, every public name and every module can be imported,
  except those of extras, and the command line describes itself. README's way into an environment of one's own then goes on in the same
  environment, so that torch is installed once for both.

On failure the script prints the shell's output and exits with status 1.
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

#: torch by itself is README's first line for an environment of one's own.
INSTALL_WHEEL = """
{torch}
pip wheel --quiet --no-deps --wheel-dir dist .
pip install dist/lamina-*.whl
"""
CHECK_WHEEL = """
python - <<'CHECK'
import importlib, pathlib, pkgutil, zipfile

[wheel] = pathlib.Path("dist").glob("*.whl")
packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
source = {str(path.relative_to("src")) for path in pathlib.Path("src").rglob("*") if path.is_file()}
assert packed == source, f"only in the wheel: {packed - source}, not in it: {source - packed}"

import lamina
assert "site-packages" in lamina.__file__, lamina.__file__
for name in lamina.__all__:
    getattr(lamina, name)
#: What an extra installs, by the modules that cannot be imported without it.
EXTRAS = {
    "lamina.envs.": {"vizdoom", "gymnasium", "mujoco", "dm_control", "metaworld"},
    "lamina.play.server": {"uvicorn", "starlette"},
}
names = [module.name for module in pkgutil.walk_packages(lamina.__path__, "lamina.")]
without = []
for name in names:
    try:
        importlib.import_module(name)
    except (ModuleNotFoundError, lamina.LaminaError) as error:
        missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        extra = next((extra for prefix, extra in EXTRAS.items() if name.startswith(prefix)), set())
        assert missing.name.split(".")[0] in extra, f"{name} needs {missing.name}"
        without.append(name)
assert without and len(names) > 100, (without, len(names))
print(f"imported {len(names) - len(without)} modules; an extra is missing for {', '.join(without)}")
CHECK
lamina --version
lamina --help
lamina train flexlam --help
"""


def ways(readme: str) -> list[str]:
    """The ```bash blocks of the section "Install"."""
    section = re.search(r"^## Install$(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```bash\n(.*?)^```", section.group(1), re.MULTILINE | re.DOTALL) if section else []
    if not blocks:
        raise SystemExit('README.md has no section "Install" with a ```bash block')
    return blocks


def follow(script: str, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Run a bash script in a fresh copy of the project, with an empty environment."""
    copy = scratch / "lamina"
    for name in subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    venv.create(scratch / "empty", with_pip=True)
    # pip need not compile what is never imported. The variable is the option's value, and `--no-compile` sets it to 0.
    kept = {"PIP_NO_COMPILE": "0"} | {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "CONDA", "LAMINA"))
    }
    path = os.pathsep.join([str(scratch / "empty" / "bin"), "/usr/local/bin", "/usr/bin", "/bin"])
    return subprocess.run(
        ["bash", "-c", f"set -eo pipefail\n{script}"],
        cwd=copy,
        env={**kept, "PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def main() -> int:
    readme = ways((ROOT / "README.md").read_text(encoding="utf-8"))
    scripts = {f"README.md, Install: {way.strip().splitlines()[0]} ...": way + FIRST_COMMAND for way in readme}
    torch = re.search(r"^pip install \"torch==.*$", "\n".join(readme), re.MULTILINE)
    if torch is None:
        raise SystemExit("README.md, Install: no line installs torch by itself")
    own = next(name for name, script in scripts.items() if torch.group() in script)
    wheel = INSTALL_WHEEL.format(torch=torch.group()) + CHECK_WHEEL
    scripts[f"the wheel, without extras, and then {own}"] = f"{wheel}\n{scripts.pop(own)}"
    for name, script in scripts.items():
        with tempfile.TemporaryDirectory() as scratch:
            done = follow(script, Path(scratch))
        if done.returncode:
            print(f"{name} does not work\n\n{script}\n{done.stdout}")
            return 1
        print(f"{name} works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
