"""Logistic regression small enough to be refitted while a cache serves: numpy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Fit(NamedTuple):
    """Coefficients (F+1,), intercept first, and their covariance (F+1, F+1)."""

    coefficients: np.ndarray
    covariance: np.ndarray


def sigmoid(x: np.ndarray | float) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x)))


def fit(features: np.ndarray, correct: np.ndarray, ridge: float = 1e-2, steps: int = 50) -> Fit:
    """Maximum likelihood by Newton's method with a small ridge on the slopes.

    Args:
        features: (N, F).
        correct: (N,) of 0 and 1.
        ridge: keeps separable data finite; the intercept is free.

    Returns the coefficients and the inverse of the Hessian at them (Laplace's approximation).
    """
    x = np.column_stack([np.ones(len(features)), features]).astype(np.float64)
    target = np.asarray(correct, np.float64)
    penalty = np.diag([1e-6, *[ridge] * (x.shape[1] - 1)])

    def loss(at: np.ndarray) -> float:
        scores = x @ at
        return float(np.logaddexp(0, scores).sum() - target @ scores + at @ penalty @ at / 2)

    w = np.zeros(x.shape[1])
    value = loss(w)
    for _ in range(steps):
        p = sigmoid(x @ w)
        gradient = x.T @ (p - target) + penalty @ w
        step = np.linalg.solve(_hessian(x, p, penalty), gradient)
        # Newton overshoots on nearly separable data: shorten the step until it helps.
        size = 1.0
        while (new := loss(w - size * step)) > value and size > 1e-6:
            size /= 2
        w, gain, value = w - size * step, value - new, new
        if gain < 1e-10:
            break
    return Fit(w, np.linalg.inv(_hessian(x, sigmoid(x @ w), penalty)))


def _hessian(x: np.ndarray, p: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    return (x.T * (p * (1 - p))) @ x + penalty
