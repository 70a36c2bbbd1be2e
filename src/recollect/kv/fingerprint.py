"""A short name for "this very model": what is cached for one must never be used with another."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel

# Settings that do not change what the model computes.
_IRRELEVANT = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype")


def fingerprint(model: PreTrainedModel) -> str:
    """Hex digest over the configuration and a sample of every parameter.

    Sampling (first and last values of each tensor, and its shape) tells fine-tuned siblings apart
    at the cost of a few milliseconds; the dtype counts, since cached bytes depend on it.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in _IRRELEVANT}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = torch.cat([flat[:16], flat[-16:]]).float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:32]
