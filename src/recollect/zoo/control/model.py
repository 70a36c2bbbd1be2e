"""A transformer diffusion policy: plans, drawn out of noise while looking at an observation.

Blocks of self-attention over the plan, cross-attention to the observation and a feed-forward net,
as in Diffusion Policy (Chi et al. 2023, arXiv:2303.04137), in diffusers' layout.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from recollect.zoo.control.task import CHUNK, TOKENS


class PolicyTransformer(ModelMixin, ConfigMixin):
    """The plan behind a noisy one, told from the timestep and what is observed."""

    @register_to_config
    def __init__(
        self,
        chunk: int = CHUNK,
        tokens: int = TOKENS,
        width: int = 48,
        heads: int = 4,
        layers: int = 4,
    ) -> None:
        super().__init__()
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(width, width)
        self.observation_encoder = _Encoder(tokens, width)
        self.proj_in = torch.nn.Linear(2, width)
        self.places = torch.nn.Parameter(0.02 * torch.randn(chunk, width))
        self.transformer_blocks = torch.nn.ModuleList(
            BasicTransformerBlock(
                width, heads, width // heads, cross_attention_dim=width, activation_fn="gelu"
            )
            for _ in range(layers)
        )
        self.norm_out = torch.nn.LayerNorm(width)
        self.proj_out = torch.nn.Linear(width, 2)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
    ) -> Any:
        """Plans (B, 16, 2) behind `sample` at timesteps (B,), for observations (B, 5, 2)."""
        time = self.time_embed(self.time_proj(timestep.expand(len(sample))).to(sample.dtype))
        seen = self.observation_encoder(encoder_hidden_states)
        hidden = self.proj_in(sample) + self.places + time[:, None]
        for block in self.transformer_blocks:
            hidden = block(hidden, encoder_hidden_states=seen)
        plan = self.proj_out(self.norm_out(hidden))
        return Transformer2DModelOutput(sample=plan) if return_dict else (plan,)


class _Encoder(torch.nn.Module):
    """Observed points as tokens that have looked at one another."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embed = torch.nn.Sequential(
            torch.nn.Linear(2, width), torch.nn.GELU(), torch.nn.Linear(width, width)
        )
        self.kinds = torch.nn.Parameter(0.02 * torch.randn(tokens, width))
        self.mix = BasicTransformerBlock(width, 4, width // 4, activation_fn="gelu")

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.mix(self.embed(points) + self.kinds)
