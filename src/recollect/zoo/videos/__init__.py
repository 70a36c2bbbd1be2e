"""A tiny trained video diffusion model of moving shapes, and a classifier that judges its clips.

model, captions = recollect.zoo.videos.load("tiny-video-dit")  # diffusers' WanTransformer3DModel
clips = recollect.zoo.videos.sample(model, captions, shapes, motions)  # (B, 3, 8, 16, 16)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from recollect.errors import RecipeError
from recollect.zoo.videos.captions import Captions
from recollect.zoo.videos.clips import FRAMES, MOTIONS, SHAPES, draw
from recollect.zoo.videos.sampling import sample

__all__ = [
    "FRAMES",
    "MOTIONS",
    "SHAPES",
    "Captions",
    "draw",
    "load",
    "load_folder",
    "names",
    "path",
    "sample",
]

_FOLDER = Path(__file__).parent / "models"


def names() -> tuple[str, ...]:
    """The models that ship with the package."""
    return tuple(sorted(card.parent.name for card in _FOLDER.glob("*/card.json")))


def path(name: str) -> str:
    """The folder of a model, as `from_pretrained` wants it. Raises RecipeError."""
    if name not in names():
        raise RecipeError(f"unknown video model '{name}' (there are: {', '.join(names())})")
    return str(_FOLDER / name)


def load(name: str) -> tuple[Any, Captions]:
    """The model of that name, ready for inference, and its table of captions."""
    return load_folder(path(name))


def load_folder(folder: str | Path) -> tuple[Any, Captions]:
    """The same from a folder that `recollect zoo train` has written."""
    from diffusers import WanTransformer3DModel

    # `from_pretrained` wants accelerate for a model with modules that are kept in float32.
    model = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(str(folder)))
    weights = load_file(Path(folder) / "diffusion_pytorch_model.safetensors")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.eval(), Captions.load(folder)
