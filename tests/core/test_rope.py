"""Rotary embedding: rotations compose, undo, move, and average as matrices do."""

import pytest
import torch

from recollect.core.rope import (
    apply_rope,
    interleave_angles,
    mean_rotation,
    rerotate,
    rotate_half,
    unapply_rope,
)

LAYOUTS = pytest.mark.parametrize("interleaved", [False, True])
WIDTHS = pytest.mark.parametrize("rotary", [4, 8])  # of D = 8


def angles(positions, rotary, interleaved, factor=1.0):
    inverse = 100.0 ** (-torch.arange(0, rotary, 2) / rotary)
    phase = positions[:, None].double() * inverse
    cos, sin = (torch.cat((f(phase), f(phase)), -1) * factor for f in (torch.cos, torch.sin))
    return (interleave_angles(cos), interleave_angles(sin)) if interleaved else (cos, sin)


@pytest.fixture
def x():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=draw)


def test_rotate_half_layouts():
    pairs = torch.arange(4.0)
    assert rotate_half(pairs).tolist() == [-2, -3, 0, 1]
    assert rotate_half(pairs, interleaved=True).tolist() == [-1, 0, -3, 2]


def test_half_split_rotation_is_a_complex_product(x):
    cos, sin = angles(torch.arange(5), 8, interleaved=False)
    turned = apply_rope(x, cos, sin)
    as_complex = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(cos[:, :4], sin[:, :4])
    torch.testing.assert_close(turned, torch.cat((as_complex.real, as_complex.imag), -1))


def test_interleaved_rotation_is_a_complex_product(x):
    cos, sin = angles(torch.arange(5), 8, interleaved=True)
    turned = apply_rope(x, cos, sin, interleaved=True)
    as_complex = torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous())
    as_complex = as_complex * torch.complex(cos[:, ::2], sin[:, ::2])
    torch.testing.assert_close(turned, torch.view_as_real(as_complex).flatten(-2))


@LAYOUTS
@WIDTHS
@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_unapply_is_the_inverse_attention_factor_included(x, interleaved, rotary, factor):
    cos, sin = angles(torch.arange(5) * 7, rotary, interleaved, factor)
    turned = apply_rope(x, cos, sin, interleaved=interleaved)
    torch.testing.assert_close(unapply_rope(turned, cos, sin, interleaved=interleaved), x)


@LAYOUTS
@WIDTHS
@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_rerotation_moves_to_another_position(x, interleaved, rotary, factor):
    old, new = torch.tensor([0, 3, 4, 9, 20]), torch.tensor([0, 1, 2, 3, 4])
    before = apply_rope(x, *angles(old, rotary, interleaved, factor), interleaved=interleaved)
    after = apply_rope(x, *angles(new, rotary, interleaved, factor), interleaved=interleaved)
    delta = angles(new - old, rotary, interleaved, factor)
    torch.testing.assert_close(rerotate(before, *delta, interleaved=interleaved), after)


def test_dimensions_beyond_the_rotary_width_are_left_alone(x):
    turned = apply_rope(x, *angles(torch.arange(5), 4, interleaved=False))
    assert turned[..., 4:].equal(x[..., 4:])
    assert not turned[..., 1:, :4].isclose(x[..., 1:, :4]).all()


def test_dtype_is_kept_and_computed_in_float32():
    x = torch.randn(1, 2, 3, 8).bfloat16()
    cos, sin = (t.float() for t in angles(torch.arange(3), 8, interleaved=False))
    turned = apply_rope(x, cos, sin)
    assert turned.dtype == torch.bfloat16
    assert turned.equal(apply_rope(x.float(), cos, sin).bfloat16())


@LAYOUTS
@WIDTHS
def test_mean_rotation_is_the_mean_of_the_rotated(x, interleaved, rotary):
    vectors = x[:, 0, 0].float()  # (2, 8)
    cos, sin = angles(torch.arange(100, 140), rotary, interleaved)
    rotated = apply_rope(vectors[:, None].expand(2, 40, 8), cos, sin, interleaved=interleaved)
    matrix = mean_rotation(cos, sin, 8, interleaved=interleaved)
    torch.testing.assert_close(vectors @ matrix.T, rotated.mean(1), rtol=1e-4, atol=1e-5)


def test_mean_rotation_of_several_rows():
    rows = [angles(torch.arange(start, start + 4), 8, interleaved=False) for start in (3, 50)]
    cos, sin = (torch.stack(parts) for parts in zip(*rows, strict=True))
    both = mean_rotation(cos, sin, 8)
    assert both.shape == (2, 8, 8)
    assert both[1].equal(mean_rotation(*rows[1], 8))


def test_attention_logits_depend_on_distance_only(x):
    q, k = x[0, 0, 0], x[0, 0, 1]

    def logit(query_position, key_position):
        cos, sin = angles(torch.tensor([query_position, key_position]), 8, interleaved=False)
        turned = apply_rope(torch.stack((q, k)), cos, sin)
        return turned[0] @ turned[1]

    torch.testing.assert_close(logit(9, 4), logit(105, 100))


def test_gradients_pass_through_a_rotation(x):
    x.requires_grad_()
    cos, sin = angles(torch.arange(5), 4, interleaved=False)
    apply_rope(x, cos, sin).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())  # a rotation keeps the norm
