"""Distances of clips are those of their frames, and of what changes between them."""

from __future__ import annotations

import pytest
import torch

from recollect.evaluate import clips, pictures


def test_a_clip_is_judged_frame_by_frame():
    one = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    other = one.clone()
    other[0, :, 0] += 0.1
    other[0, :, 1:] += 0.2
    other[1] += 0.1
    each = [float(pictures.psnr(one[:1, :, f], other[:1, :, f])) for f in range(4)]
    found = clips.psnr(one, other)
    assert float(found[0]) == pytest.approx(sum(each) / 4, abs=1e-4)
    assert float(found[1]) == pytest.approx(26.02, abs=0.01)


def test_a_constant_error_does_not_flicker():
    one = torch.zeros(1, 3, 4, 16, 16)
    assert float(clips.flicker(one, one + 0.3)) == float("inf")
    jumping = one.clone()
    jumping[:, :, ::2] += 0.2
    assert float(clips.flicker(one, jumping)) == pytest.approx(26.02, abs=0.01)
