"""Muon: momentum whose update is made orthogonal, for weight matrices (Jordan et al. 2024).

torch's own version iterates in bfloat16, which is slow on CPUs without instructions for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class Muon(torch.optim.Optimizer):
    """Optimizer for matrices inside a network; embeddings and vectors want AdamW.

    Args:
        params: matrices, all of them 2-D, or groups of them.
        lr: size of an update, as the spectral norm it adds to a square matrix.
        momentum: decay of the running mean of gradients (Nesterov).
        decay: decoupled weight decay, per unit of `lr`.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "buffer" not in state:
                    state["buffer"] = torch.zeros_like(weight)
                mean = state["buffer"].lerp_(weight.grad, 1 - momentum)
                update = orthogonal(weight.grad.lerp(mean, momentum))
                rows, columns = weight.shape
                weight.mul_(1 - lr * group["decay"])
                weight.add_(update, alpha=-lr * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """A matrix with the same singular vectors and all singular values near 1 (0.7 to 1.2).

    A quintic Newton-Schulz iteration whose coefficients favour speed over accuracy.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
