"""Weights put aside while they are not needed: in host memory, or in a file that goes with us."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from recollect.errors import RecipeError, StoreError

PLACES = ("host", "disk")


class Shelf:
    """Holds the weights of modules, whose own parameters are empty meanwhile.

    Args:
        place: `host` (frees the memory of an accelerator) or `disk` (frees that of the host too; a
            temporary folder, removed with this object).
    """

    def __init__(self, place: str) -> None:
        if place not in PLACES:
            raise RecipeError(f"weights are put aside in {' or '.join(PLACES)}, not '{place}'")
        self._away: dict[torch.nn.Module, dict[str, torch.Tensor] | Path] = {}
        self._folder: Path | None = None
        if place == "disk":
            folder = tempfile.TemporaryDirectory(prefix="recollect-")
            self._folder = Path(folder.name)
            weakref.finalize(self, folder.cleanup)
        self._files = 0

    def __contains__(self, module: torch.nn.Module) -> bool:
        return module in self._away

    def put(self, module: torch.nn.Module, only: tuple[str, ...] | None = None) -> None:
        """Empty the module's parameters (all, or those named). Raises StoreError."""
        parameters = {
            name: p for name, p in module.named_parameters() if only is None or name in only
        }
        weights = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
        if self._folder is None:
            self._away[module] = weights
        else:
            self._files += 1
            path = self._folder / f"{self._files}.safetensors"
            try:
                save_file(weights, path)
            except OSError as error:
                raise StoreError(f"cannot put weights aside in {path}: {error}") from error
            self._away[module] = path
        for parameter in parameters.values():
            parameter.data = parameter.data.new_empty(0)

    def peek(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The weights of a module that is away, in host memory."""
        away = self._away[module]
        return load_file(away) if isinstance(away, Path) else away

    def back(self, module: torch.nn.Module) -> None:
        """Give a module its weights again, on its device of today and bit by bit.

        Weights that it was given meanwhile stay.
        """
        weights = self.peek(module)
        for name, parameter in module.named_parameters():
            if name in weights and parameter.numel() == 0:
                parameter.data = weights[name].to(parameter.device, parameter.dtype)
        self.forget(module)

    def forget(self, module: torch.nn.Module) -> None:
        """Drop what is held of a module."""
        away = self._away.pop(module)
        if isinstance(away, Path):
            away.unlink(missing_ok=True)

    def clear(self) -> None:
        """Give every module its weights again."""
        for module in list(self._away):
            self.back(module)
