"""Rotary position embedding: apply, undo, move, and average it (RoFormer, 2104.09864).

Angles come as the host gives them: `cos` and `sin` of width R, where R <= D leaves the last D - R
dimensions alone (partial rotary). Two layouts exist. Half-split pairs dimension i with i + R/2;
interleaved pairs 2i with 2i + 1, and then cos and sin must repeat each angle twice in a row. Some
variants (YaRN) scale cos and sin by an attention factor, so cos² + sin² need not be 1.
"""

from __future__ import annotations

import torch


def rotate_half(x: torch.Tensor, *, interleaved: bool = False) -> torch.Tensor:
    """Every pair (a, b) of the last dimension turned by a right angle, to (-b, a)."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def interleave_angles(angles: torch.Tensor) -> torch.Tensor:
    """cos or sin from the half-split layout to the interleaved one: (..., R) → (..., R)."""
    return angles[..., : angles.shape[-1] // 2].repeat_interleave(2, -1)


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False
) -> torch.Tensor:
    """Rotate x (..., T, D) by angles (..., T, R) that broadcast against it.

    Computed in float32 at least; the result has x's shape and dtype.
    """
    width = cos.shape[-1]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = _halves(wide[..., :width], interleaved)
    (cos_first, cos_second), (sin_first, sin_second) = (_halves(t, interleaved) for t in (cos, sin))
    turned = (
        torch.addcmul(first * cos_first, second, sin_first, value=-1),
        torch.addcmul(second * cos_second, first, sin_second),
    )
    whole = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    if width < x.shape[-1]:
        rest = wide[..., width:].expand(*whole.shape[:-1], -1)
        whole = torch.cat((whole, rest), -1)
    return whole.to(x.dtype)


def unapply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False
) -> torch.Tensor:
    """Inverse of `apply_rope`, attention factor included."""
    squared = cos * cos + sin * sin
    return apply_rope(x, cos / squared, -sin / squared, interleaved=interleaved)


def rerotate(
    x: torch.Tensor, delta_cos: torch.Tensor, delta_sin: torch.Tensor, *, interleaved: bool = False
) -> torch.Tensor:
    """Move rotated x (..., T, D) by the angles of a position difference (..., T, R).

    The attention factor is already in x, so the one in the angles is divided out. Against moving
    backwards by n, pass cos and -sin of n.
    """
    factor = torch.sqrt(delta_cos * delta_cos + delta_sin * delta_sin)
    return apply_rope(x, delta_cos / factor, delta_sin / factor, interleaved=interleaved)


def mean_rotation(
    cos: torch.Tensor, sin: torch.Tensor, dim: int, *, interleaved: bool = False
) -> torch.Tensor:
    """The mean of the rotation matrices of several positions.

    Args:
        cos, sin: (..., F, R) angles of F positions.
        dim: head width D >= R.

    Returns:
        (..., D, D) float32 matrix M with `M @ x` the mean of x rotated to each position.
    """
    width = cos.shape[-1]
    eye = torch.eye(width, device=cos.device)
    # Column j of P is the j-th unit vector turned: rotate_half works on rows, hence the transpose.
    turn = rotate_half(eye, interleaved=interleaved).T
    mean_cos, mean_sin = cos.float().mean(-2), sin.float().mean(-2)
    matrix = torch.eye(dim, device=cos.device).repeat(*cos.shape[:-2], 1, 1)
    matrix[..., :width, :width] = mean_cos[..., None] * eye + mean_sin[..., None] * turn
    return matrix


def _halves(x: torch.Tensor, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of the first and the second members of all pairs of the last dimension."""
    if interleaved:
        return x[..., ::2], x[..., 1::2]
    middle = x.shape[-1] // 2
    return x[..., :middle], x[..., middle:]
