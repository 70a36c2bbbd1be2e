"""Make the virtual environment of a peer package, so that benchmarks can run it beside us.

    python benchmarks/peers/make_env.py kvpress
    python benchmarks/peers/make_env.py quantized-cache
    python benchmarks/peers/make_env.py gptcache
    python benchmarks/peers/make_env.py cache-dit
    python benchmarks/peers/make_env.py flower            # federated training, see docs/answers.md

Peers pin other versions of transformers than we do, hence one environment each, in `.venvs/NAME`.
torch is the CPU build, the same as ours, so that times compare; the script refuses an environment
in which something pulled in CUDA.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PEERS = {
    "kvpress": ["kvpress==0.5.5", "transformers==5.2.0", "torch==2.13.0"],
    "quantized-cache": [
        "optimum-quanto==0.2.7",
        "hqq==0.2.8.post1",
        "transformers==5.19.0",
        "torch==2.13.0",
    ],
    "gptcache": ["gptcache==0.1.44", "faiss-cpu==1.15.1", "sqlalchemy==2.0.58", "numpy==2.4.6"],
    "cache-dit": [
        "cache-dit==1.5.3",
        "diffusers==0.42.1",
        "transformers==5.19.0",
        "torch==2.13.0",
        "rich",
        "click",
        "jinja2",
    ],
    "flower": ["flwr[simulation]==1.41.0", "numpy==2.4.6", "safetensors==0.8.0"],
}
CHECKS = {
    "kvpress": "import kvpress; kvpress.SnapKVPress",
    "gptcache": "from gptcache.manager import CacheBase, VectorBase; import faiss, sqlalchemy",
    "cache-dit": "import cache_dit; cache_dit.DBCacheConfig, cache_dit.steps_mask",
    "flower": "from flwr.simulation import run_simulation; import ray, safetensors",
    "quantized-cache": """
import torch
from transformers.cache_utils import HQQQuantizedLayer, QuantoQuantizedLayer
for kind in (QuantoQuantizedLayer, HQQQuantizedLayer):
    layer = kind(nbits=4, residual_length=8)
    k = torch.randn(1, 2, 64, 64)
    layer.update(k, k, {})
    out, _ = layer.update(k[:, :, :1], k[:, :, :1], {})
    assert out.shape[2] == 65 and (out[:, :, :64] - k).abs().mean() < 0.2, kind.__name__
""",
}
NO_CUDA = """
import importlib.util
if importlib.util.find_spec("torch"):
    import torch
    assert torch.version.cuda is None, "a CUDA build of torch was installed"
"""


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, whether or not it exists."""
    return ROOT / ".venvs" / peer / "bin" / "python"


def make(peer: str) -> None:
    """Create `.venvs/PEER`, install the pinned packages, and check that they work."""
    python = python_of(peer)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS[peer]], check=True)
    for check in (NO_CUDA, CHECKS[peer]):
        subprocess.run([str(python), "-c", check], check=True)
    print(f"{peer}: ready at {python}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", nargs="+", choices=sorted(PEERS), help="which to make")
    for peer in parser.parse_args().peer:
        make(peer)


if __name__ == "__main__":
    main()
