"""Random tiny denoisers of diffusers, with what their calls need besides a latent and a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

TEXT = 6  # tokens of text


@dataclass(frozen=True)
class Denoiser:
    """A family of denoisers.

    Attributes:
        name: class in diffusers.
        config: of the tiny model.
        latent: shape of one sample.
        extra: makes the other arguments for a batch, from a generator.
        time: `training` for timesteps in [0, 1000), `unit` for noise levels in [0, 1],
            `reversed` for models whose time rises from 0 to 1.
        arguments: names of the latent and of the time.
        listed: the model takes a list of samples.
        blocks: sites inside the model are supported. Not in U-Nets, and not where text is
            concatenated between blocks.
    """

    name: str
    config: dict[str, Any]
    latent: tuple[int, ...]
    extra: Callable[[int, torch.Generator], dict[str, Any]]
    time: str = "training"
    arguments: tuple[str, str] = ("hidden_states", "timestep")
    listed: bool = False
    blocks: bool = field(default=True)

    def build(self) -> torch.nn.Module:
        """A model with random weights, large enough that its blocks matter."""
        torch.manual_seed(0)
        model = getattr(diffusers, self.name)(**self.config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1 and float(weight.abs().max()) == 0:
                    torch.nn.init.normal_(weight, std=0.2)  # zero-initialized heads and gates
        return model

    def start(self, batch: int, seed: int = 0) -> tuple[torch.Tensor, dict[str, Any]]:
        """A first latent, and the other arguments of the call."""
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn(batch, *self.latent, generator=generator)
        return latent, self.extra(batch, generator)

    def call(
        self, model: Any, latent: torch.Tensor, sigma: float, extra: dict[str, Any]
    ) -> torch.Tensor:
        """What the model returns, with the channels of the latent."""
        time = {"training": 1000 * sigma, "unit": sigma, "reversed": 1 - sigma}[self.time]
        x, t = self.arguments
        given = list(latent.unbind(0)) if self.listed else latent
        times = torch.full((len(latent),), float(time))
        output = model(**{x: given, t: times}, **extra, return_dict=False)[0]
        output = torch.stack(list(output)) if self.listed else output
        for axis in range(1, latent.ndim):  # learned variances come as further channels
            output = output.narrow(axis, 0, min(output.shape[axis], latent.shape[axis]))
        return output


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    model: Any,
    steps: int = 8,
    batch: int = 1,
    seed: int = 0,
    stop: int | None = None,
) -> torch.Tensor:
    """Integrate with Euler steps from noise to the end, or until step `stop`."""
    latent, extra = denoiser.start(batch, seed)
    sigmas = torch.linspace(1.0, 0.0, steps + 1)
    for i in range(steps if stop is None else stop):
        output = denoiser.call(model, latent, float(sigmas[i]), extra)
        latent = latent + (sigmas[i + 1] - sigmas[i]) * output
    return latent


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[list[torch.nn.Module]]:
    """All linear layers that run inside, one entry for each time."""
    ran: list[torch.nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda m, a, o: ran.append(m))
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def text(width: int, tokens: int = TEXT, name: str = "encoder_hidden_states") -> Any:
    """Arguments of a model that takes one text embedding."""
    return lambda b, g: {name: torch.randn(b, tokens, width, generator=g)}


def _grid(height: int, width: int, axes: int) -> torch.Tensor:
    ids = torch.zeros(height * width, axes)
    ids[:, 1] = torch.arange(height * width) // width
    ids[:, 2] = torch.arange(height * width) % width
    return ids


def _flux(b: int, g: torch.Generator) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(b, TEXT, 32, generator=g),
        "pooled_projections": torch.randn(b, 16, generator=g),
        "img_ids": _grid(4, 4, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def _flux2(b: int, g: torch.Generator) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(b, TEXT, 32, generator=g),
        "img_ids": _grid(4, 4, 4).expand(b, -1, -1),
        "txt_ids": torch.zeros(b, TEXT, 4),
        "guidance": torch.ones(b),
    }


def _ids(b: int, g: torch.Generator) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(b, TEXT, 32, generator=g),
        "img_ids": _grid(4, 4, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def _classes(b: int, g: torch.Generator) -> dict[str, Any]:
    return {"class_labels": torch.randint(0, 8, (b,), generator=g)}


def _pixart(b: int, g: torch.Generator) -> dict[str, Any]:
    sizes = {"aspect_ratio": None, "resolution": None}
    return {
        "encoder_hidden_states": torch.randn(b, TEXT, 16, generator=g),
        "added_cond_kwargs": sizes,
    }


def _sd3(b: int, g: torch.Generator) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(b, TEXT, 16, generator=g),
        "pooled_projections": torch.randn(b, 32, generator=g),
    }


def _qwen(b: int, g: torch.Generator) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(b, TEXT, 16, generator=g),
        "encoder_hidden_states_mask": torch.ones(b, TEXT, dtype=torch.long),
        "img_shapes": [[(1, 4, 4)]] * b,
    }


def _hunyuan_video(b: int, g: torch.Generator) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(b, TEXT, 16, generator=g),
        "pooled_projections": torch.randn(b, 8, generator=g),
        "encoder_attention_mask": torch.ones(b, TEXT),
        "guidance": torch.full((b,), 6000.0),
    }


def _masked(channels: int, **others: Any) -> Any:
    return lambda b, g: {
        "encoder_hidden_states": torch.randn(b, TEXT, channels, generator=g),
        "encoder_attention_mask": torch.ones(b, TEXT, dtype=torch.bool),
        **others,
    }


def _cosmos(b: int, g: torch.Generator) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(b, TEXT, 16, generator=g),
        "attention_mask": torch.ones(b, TEXT),
        "fps": 30,
    }


def _cogview(b: int, g: torch.Generator) -> dict[str, Any]:
    size = torch.tensor([[64, 64]]).repeat(b, 1)
    return {
        "encoder_hidden_states": torch.randn(b, TEXT, 8, generator=g),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(b, 2, dtype=torch.long),
    }


def _hunyuan_dit(b: int, g: torch.Generator) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(b, 4, 8, generator=g),
        "text_embedding_mask": torch.ones(b, 4),
        "encoder_hidden_states_t5": torch.randn(b, 4, 8, generator=g),
        "text_embedding_mask_t5": torch.ones(b, 4),
        "image_meta_size": torch.tensor([[64.0, 64.0, 64.0, 64.0, 0.0, 0.0]] * b),
        "style": torch.zeros(b, dtype=torch.long),
        "image_rotary_emb": [torch.ones(16, 8), torch.zeros(16, 8)],
    }


def _z_image(b: int, g: torch.Generator) -> dict[str, Any]:
    return {"cap_feats": [torch.randn(8, 16, generator=g) for _ in range(b)]}


def _hidream(b: int, g: torch.Generator) -> dict[str, Any]:
    return {
        "encoder_hidden_states_t5": torch.randn(b, TEXT, 8, generator=g),
        "encoder_hidden_states_llama3": torch.randn(2, b, TEXT, 4, generator=g),
        "pooled_embeds": torch.randn(b, 8, generator=g),
    }


def _omnigen(b: int, g: torch.Generator) -> dict[str, Any]:
    tokens = TEXT + 1 + 16
    return {
        "input_ids": torch.randint(0, 10, (b, TEXT), generator=g),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(b, tokens, tokens),
        "position_ids": torch.arange(tokens).repeat(b, 1),
    }


_WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 3,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}
_FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
}

DENOISERS = [
    Denoiser(
        "FluxTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 16, "axes_dims_rope": (4, 4, 8)},
        (16, 4), _flux, time="unit",
    ),
    Denoiser(
        "Flux2Transformer2DModel",
        {**_FLUX, "timestep_guidance_channels": 32, "axes_dims_rope": (4, 4, 4, 4)},
        (16, 4), _flux2, time="unit",
    ),
    Denoiser(
        "ChromaTransformer2DModel",
        {**_FLUX, "axes_dims_rope": (4, 4, 8), "approximator_num_channels": 8,
         "approximator_hidden_dim": 16, "approximator_layers": 1},
        (16, 4), _ids, time="unit",
    ),
    Denoiser(
        "BriaTransformer2DModel",
        {**_FLUX, "attention_head_dim": 8, "pooled_projection_dim": None,
         "axes_dims_rope": (0, 4, 4)},
        (16, 4), _ids, time="unit",
    ),
    Denoiser(
        "DiTTransformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8,
         "num_layers": 3, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 1000},
        (4, 8, 8), _classes,
    ),
    Denoiser(
        "PixArtTransformer2DModel",
        {"sample_size": 8, "num_layers": 3, "patch_size": 2, "attention_head_dim": 8,
         "num_attention_heads": 2, "caption_channels": 16, "cross_attention_dim": 16,
         "in_channels": 4, "out_channels": 8, "norm_type": "ada_norm_single",
         "use_additional_conditions": False},
        (4, 8, 8), _pixart,
    ),
    Denoiser(
        "SD3Transformer2DModel",
        {"sample_size": 8, "patch_size": 1, "in_channels": 4, "num_layers": 3,
         "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16,
         "caption_projection_dim": 16, "pooled_projection_dim": 32, "out_channels": 4,
         "pos_embed_max_size": 8},
        (4, 8, 8), _sd3,
    ),
    Denoiser(
        "QwenImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 3,
         "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16,
         "axes_dims_rope": (8, 4, 4)},
        (16, 16), _qwen, time="unit",
    ),
    Denoiser(
        "Lumina2Transformer2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 3,
         "num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2,
         "axes_dim_rope": (4, 2, 2), "axes_lens": (64, 64, 64), "cap_feat_dim": 32},
        (4, 8, 8), _masked(32), time="reversed",
    ),
    Denoiser(
        "LuminaNextDiT2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 3,
         "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 16, "learn_sigma": False,
         "cross_attention_dim": 32},
        (4, 8, 8),
        lambda b, g: {
            "encoder_hidden_states": torch.randn(b, TEXT, 32, generator=g),
            "encoder_mask": torch.ones(b, TEXT),
            "image_rotary_emb": torch.randn(384, 384, 4, generator=g),
            "cross_attention_kwargs": {},
        },
        time="reversed",
    ),
    Denoiser(
        "SanaTransformer2DModel",
        {"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 3,
         "attention_head_dim": 4, "num_attention_heads": 2, "num_cross_attention_heads": 2,
         "cross_attention_head_dim": 4, "cross_attention_dim": 8, "caption_channels": 8,
         "sample_size": 8},
        (4, 8, 8), text(8),
    ),
    Denoiser(
        "HunyuanDiT2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 4,
         "attention_head_dim": 8, "num_attention_heads": 2, "cross_attention_dim": 8,
         "cross_attention_dim_t5": 8, "pooled_projection_dim": 4, "hidden_size": 16,
         "text_len": 4, "text_len_t5": 4, "activation_fn": "gelu-approximate"},
        (4, 8, 8), _hunyuan_dit,
    ),
    Denoiser(
        "HunyuanVideoTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10,
         "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1, "patch_size": 1,
         "patch_size_t": 1, "guidance_embeds": True, "text_embed_dim": 16,
         "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4)},
        (4, 2, 4, 4), _hunyuan_video,
    ),
    Denoiser("WanTransformer3DModel", _WAN, (4, 2, 8, 8), text(16)),
    Denoiser("SkyReelsV2Transformer3DModel", _WAN, (4, 2, 8, 8), text(16)),
    Denoiser(
        "CogVideoXTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
         "time_embed_dim": 2, "text_embed_dim": 16, "num_layers": 3, "sample_width": 8,
         "sample_height": 8, "sample_frames": 9, "patch_size": 2,
         "temporal_compression_ratio": 4, "max_text_seq_length": TEXT},
        (3, 4, 8, 8), text(16),
    ),
    Denoiser(
        "LTXVideoTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
         "cross_attention_dim": 16, "num_layers": 3, "qk_norm": "rms_norm_across_heads",
         "caption_channels": 16},
        (32, 4), _masked(16, num_frames=2, height=4, width=4),
    ),
    Denoiser(
        "MochiTransformer3DModel",
        {"patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3,
         "pooled_projection_dim": 16, "in_channels": 4, "qk_norm": "rms_norm",
         "text_embed_dim": 16, "time_embed_dim": 4, "max_sequence_length": 16},
        (4, 2, 8, 8), _masked(16),
    ),
    Denoiser(
        "CosmosTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12,
         "num_layers": 3, "mlp_ratio": 2, "text_embed_dim": 16, "adaln_lora_dim": 4,
         "max_size": (4, 32, 32), "patch_size": (1, 2, 2), "rope_scale": (2.0, 1.0, 1.0),
         "concat_padding_mask": False, "extra_pos_embed_type": "learnable"},
        (4, 1, 8, 8), _cosmos, time="unit",
    ),
    Denoiser(
        "AllegroTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
         "num_layers": 3, "cross_attention_dim": 24, "sample_width": 8, "sample_height": 8,
         "sample_frames": 8, "caption_channels": 8},
        (4, 2, 8, 8), text(8),
    ),
    Denoiser(
        "LatteTransformer3DModel",
        {"sample_size": 8, "num_layers": 2, "patch_size": 2, "attention_head_dim": 4,
         "num_attention_heads": 2, "caption_channels": 8, "in_channels": 4,
         "cross_attention_dim": 8, "out_channels": 8, "attention_bias": True,
         "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000,
         "norm_type": "ada_norm_single", "norm_elementwise_affine": False, "norm_eps": 1e-6,
         "video_length": 2},
        (4, 2, 8, 8), text(8),
    ),
    Denoiser(
        "AuraFlowTransformer2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 2,
         "num_single_dit_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
         "caption_projection_dim": 16, "joint_attention_dim": 16, "out_channels": 4,
         "pos_embed_max_size": 64},
        (4, 8, 8), text(16), time="unit",
    ),
    Denoiser(
        "CogView3PlusTransformer2DModel",
        {"patch_size": 2, "in_channels": 4, "num_layers": 3, "attention_head_dim": 4,
         "num_attention_heads": 2, "out_channels": 4, "text_embed_dim": 8, "time_embed_dim": 8,
         "condition_dim": 2, "pos_embed_max_size": 8, "sample_size": 8},
        (4, 8, 8), _cogview,
    ),
    Denoiser(
        "CogView4Transformer2DModel",
        {"patch_size": 2, "in_channels": 4, "num_layers": 3, "attention_head_dim": 4,
         "num_attention_heads": 4, "out_channels": 4, "text_embed_dim": 8, "time_embed_dim": 8,
         "condition_dim": 4},
        (4, 8, 8), _cogview,
    ),
    Denoiser(
        "EasyAnimateTransformer3DModel",
        {"attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 4, "mmdit_layers": 2,
         "num_layers": 3, "out_channels": 4, "patch_size": 2, "sample_height": 60,
         "sample_width": 90, "text_embed_dim": 16, "time_embed_dim": 8,
         "time_position_encoding_type": "3d_rope", "timestep_activation_fn": "silu"},
        (4, 2, 8, 8), text(16),
    ),
    Denoiser(
        "OmniGenTransformer2DModel",
        {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4,
         "intermediate_size": 32, "num_layers": 3, "pad_token_id": 0, "vocab_size": 100,
         "in_channels": 4, "time_step_dim": 4,
         "rope_scaling": {"long_factor": [1, 2], "short_factor": [1, 2]}},
        (4, 8, 8), _omnigen, time="reversed",
    ),
    Denoiser(
        "HiDreamImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
         "num_single_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
         "caption_channels": [8, 4], "text_emb_dim": 8, "num_routed_experts": 2,
         "num_activated_experts": 2, "axes_dims_rope": (4, 2, 2), "max_resolution": (8, 8),
         "llama_layers": (0, 1, 0, 1), "force_inference_output": True},
        (4, 8, 8), _hidream, arguments=("hidden_states", "timesteps"), blocks=False,
    ),
    Denoiser(
        "ZImageTransformer2DModel",
        {"all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 16, "dim": 16,
         "n_layers": 3, "n_refiner_layers": 1, "n_heads": 1, "n_kv_heads": 2, "qk_norm": True,
         "cap_feat_dim": 16, "rope_theta": 256.0, "t_scale": 1000.0, "axes_dims": [8, 4, 4],
         "axes_lens": [256, 32, 32]},
        (16, 1, 8, 8), _z_image, time="reversed", arguments=("x", "t"), listed=True,
    ),
    Denoiser(
        "UNet2DConditionModel",
        {"block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 16,
         "in_channels": 4, "out_channels": 4,
         "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 16,
         "attention_head_dim": 4, "norm_num_groups": 4},
        (4, 16, 16), text(16), arguments=("sample", "timestep"), blocks=False,
    ),
]  # fmt: skip
NAMES = [denoiser.name for denoiser in DENOISERS]


def denoiser(name: str) -> Denoiser:
    """The family of that class name."""
    return DENOISERS[NAMES.index(name)]
