#!/bin/sh
# Proves, against lerobot's own reader and writer, that Lamina reads and writes LeRobotDataset v3.0.
# lerobot needs other versions than Lamina, so it gets an environment of its own: .venv-lerobot.
set -eu
cd "$(dirname "$0")/.."

if ! command -v ffmpeg >/dev/null; then
    echo "lerobot decodes video with the system's ffmpeg, which is not installed; on Debian: apt-get install ffmpeg" >&2
    exit 2
fi

venv=.venv-lerobot
if [ ! -f "$venv/installed" ]; then
    "${PYTHON:-python3}" -m venv --clear "$venv"
    "$venv/bin/pip" install -q torch==2.13.0
    # Their own pins disagree with each other and with torch 2.13; these versions run together.
    "$venv/bin/pip" install -q --no-deps lerobot==0.4.4 torchvision==0.28.0 torchcodec==0.13.0
    "$venv/bin/pip" install -q datasets==4.8.5 huggingface-hub==0.35.3 av==15.1.0 draccus==0.10.0 diffusers==0.35.2 \
        numpy==2.2.6 pandas pyarrow jsonlines imageio einops deepdiff opencv-python-headless==4.12.0.88 gymnasium \
        safetensors termcolor accelerate toml packaging jaxtyping "pydantic>=2.7"
    touch "$venv/installed"
fi
HF_HUB_OFFLINE=1 PYTHONPATH=src "$venv/bin/python" tests/lerobot_roundtrip.py
