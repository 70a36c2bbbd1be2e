"""Ask kvpress, in its own environment, what it would score and keep on given tensors."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from make_env import python_of
from safetensors import safe_open
from safetensors.torch import save_file

WORKER = Path(__file__).with_name("kvpress_worker.py")


class Inputs(NamedTuple):
    """Tensors of one attention layer: queries before RoPE (B, H, T, D), rotated keys, values."""

    q_pre: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    theta: float


class Answers(NamedTuple):
    """`NAME/score` and `NAME/kept` (B, K, T) of every job, and the seconds each compress took."""

    tensors: dict[str, torch.Tensor]
    seconds: dict[str, float]


def angles(theta: float, dim: int, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, sin (T, D) of the default rotary embedding with base `theta`."""
    inverse = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
    phase = positions[:, None].float() * inverse
    phase = torch.cat((phase, phase), -1)
    return phase.cos(), phase.sin()


def ask_kvpress(inputs: Inputs, jobs: list[dict[str, Any]]) -> Answers:
    """Run the jobs (see kvpress_worker.py) on the inputs."""
    python = python_of("kvpress")
    if not python.exists():
        raise SystemExit("no kvpress here: run `python benchmarks/peers/make_env.py kvpress` first")
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/in.safetensors", f"{folder}/out.safetensors"
        tensors = {n: getattr(inputs, n).contiguous() for n in ("q_pre", "k", "v")}
        save_file(tensors, source, {"theta": str(inputs.theta), "jobs": json.dumps(jobs)})
        subprocess.run([str(python), str(WORKER), source, target], check=True)
        with safe_open(target, "pt") as file:
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return Answers(found, json.loads(file.metadata()["seconds"]))
