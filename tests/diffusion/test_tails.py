"""Chunk by chunk gives what the whole video gives, and keeps no more than the tails."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLLTXVideo, AutoencoderKLWan
from torch.nn import functional as F

from recollect.diffusion.tails import Memory, Tails
from recollect.errors import HostError, RecipeError


class Causal(torch.nn.Module):
    """A causal convolution as autoencoders write it: padding in front of an ordinary one."""

    def __init__(self, inner: int, outer: int, stride: int = 1, copy: bool = False, k: int = 3):
        super().__init__()
        self.conv = torch.nn.Conv3d(inner, outer, (k, 3, 3), (stride, 1, 1), (0, 1, 1))
        self.back, self.copy = k - 1, copy

    def forward(self, x):
        if self.copy:
            x = torch.cat([x[:, :, :1]] * self.back + [x], 2)
        else:
            x = F.pad(x, (0, 0, 0, 0, self.back, 0))
        return self.conv(x)


class Neighbours(torch.nn.Module):
    """Temporal attention to this frame and the one before."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv = torch.nn.Linear(width, 3 * width)

    def forward(self, x):
        q, k, v = self.qkv(x.movedim(1, -1)).chunk(3, -1)
        before = [torch.cat([t[:, :1], t[:, :-1]], 1) for t in (k, v)]
        scores = torch.stack([(q * k).sum(-1), (q * before[0]).sum(-1)])
        own, other = scores.softmax(0)[..., None]
        return x + (own * v + other * before[1]).movedim(-1, 1)


class Encoder(torch.nn.Module):
    """Four frames become one, as in CDT: two causal convolutions of stride 2."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Causal(3, 6, copy=True), Causal(6, 6, stride=2)
        self.attention, self.third = Neighbours(6), Causal(6, 4, stride=2, copy=True)

    def forward(self, x):
        return self.third(self.attention(self.second(torch.tanh(self.first(x))).tanh()).tanh())


class Decoder(torch.nn.Module):
    """Denoises four frames for each latent one."""

    def __init__(self):
        super().__init__()
        self.condition, self.first = Causal(4, 5), Causal(8, 6, k=2)
        self.attention, self.last = Neighbours(6), Causal(6, 3, copy=True)

    def forward(self, noisy, latent):
        told = self.condition(latent).repeat_interleave(4, 2)
        return self.last(self.attention(self.first(torch.cat([noisy, told], 1)).tanh()))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def video(frames: int, batch: int = 1, channels: int = 3, size: int = 6) -> torch.Tensor:
    return torch.randn(batch, channels, frames, size, size)


@pytest.mark.parametrize("frames", [9, 12, 14])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 20])
def test_any_chunking_encodes_like_the_whole(frames, chunk):
    encoder, given = Encoder(), video(frames)
    tails = Tails(encoder, {"attention": Memory()})
    whole = encoder(given)
    chunked = tails.whole(given, chunk)
    assert chunked.shape == whole.shape
    assert torch.allclose(chunked, whole, atol=1e-5)


def sample(decoder, latent, noise, steps: int = 3):
    """Some Euler steps of the conditioned diffusion decoder; `decoder` is told the step."""
    for step in range(steps):
        noise = noise - decoder(noise, latent, step) / steps
    return noise


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_diffusion_decoder_keeps_tails_for_every_sampling_step(chunk):
    decoder, latent, noise = Decoder(), video(6, channels=4), video(24)
    whole = sample(lambda x, z, _: decoder(x, z), latent, noise)
    tails = Tails(decoder, {"attention": Memory(1, 2)})
    parts = zip(latent.split(chunk, 2), noise.split(4 * chunk, 2), strict=True)
    chunked = [sample(lambda x, z, step: tails(x, z, step=step), z, x) for z, x in parts]
    assert torch.allclose(torch.cat(chunked, 2), whole, atol=1e-5)


def test_tails_of_one_step_would_be_wrong_for_all():
    decoder, latent, noise = Decoder(), video(4, channels=4), video(16)
    whole = sample(lambda x, z, _: decoder(x, z), latent, noise)
    tails = Tails(decoder, {"attention": Memory()})
    parts = zip(latent.split(1, 2), noise.split(4, 2), strict=True)
    mixed = [sample(lambda x, z, _: tails(x, z), z, x) for z, x in parts]
    assert not torch.allclose(torch.cat(mixed, 2), whole, atol=1e-2)


def test_memory_does_not_grow_with_the_video():
    encoder, given = Encoder(), video(40, batch=2)
    tails = Tails(encoder, {"attention": Memory()})
    sizes = []
    for frames in given.split(4, 2):
        tails(frames)
        sizes.append(tails.nbytes)
    assert len(set(sizes)) == 1
    frame = 2 * 6 * 6 * 4
    assert sizes[0] == frame * (2 * 3 + 2 * 6 + 1 * 6 + 2 * 6)  # frames kept x channels


def test_a_second_video_after_reset_is_a_fresh_one():
    encoder, first, second = Encoder(), video(8), video(8)
    tails = Tails(encoder, {"attention": Memory()})
    tails(first)
    tails.reset()
    assert tails.nbytes == 0
    assert torch.allclose(tails(second), encoder(second), atol=1e-6)


def test_frames_that_give_nothing_yet_wait():
    encoder, given = Encoder(), video(5)
    tails = Tails(encoder, {"attention": Memory()})
    outputs = [tails(frame) for frame in given.split(1, 2)]
    assert [output is not None for output in outputs] == [True, False, False, False, True]
    waiting = Tails(Causal(3, 3, stride=4))
    waiting(given[:, :, :1])
    assert waiting(given[:, :, 1:2]) is None
    with pytest.raises(RecipeError, match="wait for more"):
        waiting(given[:, :, 2:3], given)
    with pytest.raises(RecipeError, match="chunk is 1 or more"):
        tails.whole(given, 0)


def test_nothing_stays_on_the_network():
    encoder, given = Encoder(), video(8)
    before = {name: set(vars(m)) for name, m in encoder.named_modules()}
    plain = encoder(given)
    tails = Tails(encoder, {"attention": Memory()})
    tails(given[:, :, :4])
    assert torch.equal(encoder(given), plain)
    assert {name: set(vars(m)) for name, m in encoder.named_modules()} == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in encoder.modules())


def test_what_looks_ahead_is_refused():
    for padding in ((1, 1, 1), (0, 1, 1)):
        with pytest.raises(HostError, match="not causal"):
            Tails(torch.nn.Sequential(torch.nn.Conv3d(3, 3, 3, padding=padding)))(video(5))
    with pytest.raises(RecipeError, match="no module 'there'"):
        Tails(Encoder(), {"there": Memory()})


def test_an_error_of_the_network_leaves_the_tails_as_they_were():
    encoder, given = Encoder(), video(12)
    tails = Tails(encoder, {"attention": Memory()})
    parts = [tails(given[:, :, :4])]
    with pytest.raises(RuntimeError):
        tails(video(4, channels=5))
    parts.append(tails(given[:, :, 4:]))
    assert torch.allclose(torch.cat(parts, 2), encoder(given), atol=1e-5)


# -- autoencoders of diffusers --------------------------------------------------------------------


def test_wans_own_chunking_and_the_whole_agree_with_tails():
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False]
    ).eval()
    vae.config.scale_factor_temporal = 1
    given = video(9, size=16)
    whole = vae.encoder(given)
    theirs = vae.encode(given).latent_dist.parameters
    assert torch.allclose(vae.quant_conv(whole), theirs, atol=1e-5)
    tails = Tails(vae.encoder)
    for chunk in (1, 2, 4, 9):
        assert torch.allclose(tails.whole(given, chunk), whole, atol=1e-5)
    latent = video(5, channels=4, size=4)
    whole = vae.decoder(vae.post_quant_conv(latent))
    theirs = vae.decode(latent).sample
    assert torch.allclose(whole.clamp(-1, 1), theirs, atol=1e-5)
    tails = Tails(vae.decoder)
    for chunk in (1, 2, 5):
        ours = tails.whole(vae.post_quant_conv(latent), chunk)
        assert torch.allclose(ours, whole, atol=1e-5)


def test_the_strided_encoder_of_ltx_keeps_its_phase():
    vae = AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False),
        decoder_spatio_temporal_scaling=(True, True, False),
        decoder_inject_noise=(False, False, False, False),
        upsample_residual=(False, False, False),
        upsample_factor=(1, 1, 1),
        patch_size=1,
        encoder_causal=True,
    ).eval()
    given = video(17, size=16)
    whole = vae.encoder(given)
    tails = Tails(vae.encoder)
    for chunk in (1, 3, 4, 17):
        chunked = tails.whole(given, chunk)
        assert chunked.shape == whole.shape
        assert torch.allclose(chunked, whole, atol=1e-5)


def test_cogvideox_gets_what_its_own_cache_gives_it():
    vae = AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
    ).eval()
    chunks = video(13, size=16).split((5, 4, 4), 2)
    tails, cache = Tails(vae.encoder), None
    for frames in chunks:
        theirs, cache = vae.encoder(frames, conv_cache=cache)
        ours, _ = tails(frames)
        assert torch.allclose(ours, theirs, atol=1e-5)
