"""What was learned or profiled for one model, in a file that refuses other models."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recollect.errors import HostError, StoreError

_SAMPLE = 256  # values of each weight that enter the fingerprint: large models stay quick to tell
_FORMAT = "1"


@dataclass(frozen=True)
class Artefact:
    """Tensors and settings that belong to one model.

    Attributes:
        kind: what this is, e.g. `affine-correction`.
        model: `fingerprint` of the model it was made for.
        settings: plain data; conditions under which it holds (steps, solver, guidance …).
        tensors: by name, on the CPU.
    """

    kind: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all. Raises StoreError."""
        path = Path(path)
        about = {
            "format": _FORMAT,
            "kind": self.kind,
            "model": self.model,
            "settings": json.dumps(dict(self.settings)),
        }
        # safetensors needs at least one tensor; an empty one stands for none.
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
        unfinished = path.with_name(path.name + ".unfinished")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors or {"": torch.empty(0)}, unfinished, metadata=about)
            os.replace(unfinished, path)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path, kind: str) -> Artefact:
        """Read what `save` wrote. Raises StoreError on anything else, or another kind."""
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys() if name}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise StoreError(f"cannot read {path}: {error}") from error
        if about.get("kind") != kind:
            raise StoreError(f"{path} holds '{about.get('kind')}', not '{kind}'")
        if about.get("format") != _FORMAT:
            raise StoreError(f"{path} was written by another version of recollect; make it again")
        return cls(kind, about["model"], json.loads(about["settings"]), tensors)

    def check(self, model: torch.nn.Module) -> None:
        """Raises HostError when this was made for another model."""
        if fingerprint(model) != self.model:
            raise HostError(
                f"the {self.kind} was made for another model than this {type(model).__name__} "
                "(or its weights have changed); make it again"
            )


_STANDING: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()


def stand_in(model: torch.nn.Module, name: str) -> Callable[[], None]:
    """Let a model go by this fingerprint while its weights are held in another form.

    Returns what ends it.
    """
    _STANDING[model] = name

    def end() -> None:
        _STANDING.pop(model, None)

    return end


def version(path: str | Path) -> int:
    """When a file was written, in nanoseconds: what is kept of it is read anew when it changes."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0  # reading says what is wrong


def fingerprint(model: torch.nn.Module) -> str:
    """A name for a model's class, configuration and weights.

    Weights enter by their shapes and evenly spread values, so another checkpoint of the same
    architecture has another fingerprint. Hooks and devices do not matter.
    """
    if (standing := _STANDING.get(model)) is not None:
        return standing
    digest = hashlib.blake2b(type(model).__name__.encode(), digest_size=16)
    config = {k: v for k, v in dict(getattr(model, "config", {})).items() if not k.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        flat = weight.detach().flatten()
        if flat.numel():
            places = torch.linspace(0, flat.numel() - 1, min(_SAMPLE, flat.numel())).long()
            digest.update(flat[places.to(flat.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
