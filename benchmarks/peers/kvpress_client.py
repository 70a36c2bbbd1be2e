"""Ask kvpress, in its own environment, what it would score and keep on given tensors."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Self

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


def angles(theta: float, dim: int, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, sin (T, D) of the default rotary embedding with base `theta`."""
    inverse = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
    phase = positions[:, None].float() * inverse
    phase = torch.cat((phase, phase), -1)
    return phase.cos(), phase.sin()


class Kvpress:
    """kvpress at work on given inputs; `with Kvpress(inputs, jobs) as kvpress: ...`.

    The process lives on between calls, so that its times can be taken in turns with ours: two
    packages timed minutes apart on a busy machine are listed, not compared.

    Attributes:
        tensors: `NAME/score` and `NAME/kept` (B, K, T) of every job (see kvpress_worker.py).
    """

    def __init__(self, inputs: Inputs, jobs: list[dict[str, Any]], threads: int = 1) -> None:
        python = python_of("kvpress")
        if not python.exists():
            raise SystemExit("no kvpress here: `python benchmarks/peers/make_env.py kvpress` first")
        with tempfile.TemporaryDirectory() as folder:
            source, target = f"{folder}/in.safetensors", f"{folder}/out.safetensors"
            given = {n: getattr(inputs, n).contiguous() for n in ("q_pre", "k", "v")}
            save_file(given, source, {"theta": str(inputs.theta), "jobs": json.dumps(jobs)})
            self._process = subprocess.Popen(
                [str(python), str(WORKER), source, target, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            if self._read() != "ready":
                raise SystemExit("the kvpress worker failed; its error is above")
            with safe_open(target, "pt") as file:
                self.tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118

    def seconds(self, job: str) -> float:
        """Let kvpress compress once more and say how much processor time it took."""
        assert self._process.stdin is not None
        print(job, file=self._process.stdin, flush=True)
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
