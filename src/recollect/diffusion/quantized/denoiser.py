"""A denoiser on integers: W8A8 or W4A8, with ranges of activations for every timestep."""

from __future__ import annotations

import hashlib
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from recollect.diffusion.artefacts import Artefact, fingerprint, stand_in
from recollect.diffusion.companions import Companion
from recollect.diffusion.engine.values import nbytes
from recollect.diffusion.quantized.arithmetic import (
    Codes,
    activation_range,
    encode_activation,
    multiply,
    per_output,
)
from recollect.diffusion.shelf import PLACES, Shelf
from recollect.errors import HostError, RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.hooks import Installed

QUANTIZED = "quantized-denoiser"
CONSUMERS = "quantized-consumers"


@dataclass(frozen=True)
class Quantized(Companion):
    """Runs linear and convolutional layers on integers that `calibrate` made.

    A companion and not a function that changes the model, so that it comes off again and goes with
    every site, gate and predictor. Its hooks are the innermost ones: what a policy caches is what
    the quantized layer gave. The float weights leave memory while it is attached. Sums of products
    run in float32, so this saves memory, not time; kernels for integers (torchao) have neither
    ranges per timestep nor convolutions.

    Attributes:
        weights: path of the integers.
        originals: where the float weights wait: `disk`, or `host`, which frees the memory of an
            accelerator only.
        consumers: path of corrections for the layers that read a cached feature (CacheQuant), as
            `cachequant.correct_consumers` writes them; empty for none.
    """

    inner: ClassVar[bool] = True

    weights: str = ""
    originals: str = "disk"
    consumers: str = ""

    def __post_init__(self) -> None:
        if self.originals not in PLACES:
            raise RecipeError(f"originals is {' or '.join(PLACES)}, not '{self.originals}'")

    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:
        from recollect.diffusion.host.integers import NAME, LayerHook, MomentHook

        if not self.weights:
            raise HostError("the quantized denoiser needs weights=: make them with calibrate")
        made = Artefact.load(self.weights, QUANTIZED)
        made.check(model)
        moment = Moment(session)
        installed.add(model, MomentHook(moment), NAME)
        denoiser = QuantizedDenoiser(model, made, Shelf(self.originals), moment)
        # Corrections fitted on the quantized model are refused by the float one, and the reverse.
        installed.undo(stand_in(model, f"{fingerprint(model)}+{denoiser.digest}"))
        installed.undo(denoiser.close)
        if self.consumers:
            corrections = Artefact.load(self.consumers, CONSUMERS)
            if getattr(session.policy.gate, "steps", None) != tuple(corrections.settings["steps"]):
                raise HostError("the corrections of consumers were made for another schedule")
            denoiser.correct(corrections)
        for layer in denoiser.layers.values():
            denoiser.shelf.put(layer.module, ("weight",))
            installed.add(layer.module, LayerHook(layer, moment), NAME)
        _ATTACHED[model] = denoiser


class Moment:
    """Where the call in progress on this thread is: its time, and its number on the trajectory."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._local = threading.local()

    @property
    def time(self) -> float:
        """The timestep the denoiser was given; the largest, where samples or tokens differ."""
        return float(getattr(self._local, "time", 0.0))

    @time.setter
    def time(self, value: float) -> None:
        self._local.time = value

    @property
    def skipped(self) -> int | None:
        """Number of the step in progress if it is one that reuses; None otherwise."""
        step, evaluation = self.session.step, self.session.evaluation
        compute = getattr(evaluation, "compute", None)
        reuses = step is not None and compute is not None and not bool(compute.any())
        return step.index if step is not None and reuses else None


class Layer:
    """One quantized layer.

    Attributes:
        module: the layer, its float weight away.
        codes: its weight.
        channels: input channels (the first ones) that are cached ones; 0 where none are.
        lines: number of a reused step -> scale and shift (2, out) for what those channels give.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        codes: Codes,
        bits: int,
        times: np.ndarray,
        low: torch.Tensor,
        high: torch.Tensor,
    ) -> None:
        self.module, self.codes, self.bits, self.times = module, codes, bits, times
        self.low, self.high = low.numpy(), high.numpy()
        self.channels = 0
        self.lines: dict[int, torch.Tensor] = {}

    def encode(self, x: torch.Tensor, time: float) -> tuple[torch.Tensor, float]:
        """The input as integers (their zero point taken off), and their scale.

        Times between calibrated ones have ranges between theirs.
        """
        low, high = (float(np.interp(time, self.times, ends)) for ends in (self.low, self.high))
        to = activation_range(low, high, self.bits)
        return encode_activation(x, to), to.scale

    def run(self, x: torch.Tensor, time: float, skipped: int | None) -> torch.Tensor:
        """The layer's output."""
        if self.codes.codes.device != x.device:
            self.codes = self.codes.to(x.device)
        integers, scale = self.encode(x, time)
        weight, bias = self.codes.integers(), getattr(self.module, "bias", None)
        line = None if skipped is None else self.lines.get(skipped)
        if line is not None:
            gain, shift = line.to(x.device)
            weight[:, : self.channels] *= gain.view(-1, *[1] * (weight.ndim - 1))
        output = multiply(self.module, integers, weight)
        output *= per_output(self.module, scale * self.codes.scale)
        if line is not None:
            output += per_output(self.module, shift)
        if bias is not None:
            output += per_output(self.module, bias.float())
        return output.to(x.dtype)


class QuantizedDenoiser:
    """The layers of one denoiser while it is quantized.

    Attributes:
        layers: by name.
        shelf: where their float weights are.
        moment: where the call in progress is.
        digest: tells these integers from others.
    """

    def __init__(
        self, model: torch.nn.Module, made: Artefact, shelf: Shelf, moment: Moment
    ) -> None:
        self.model, self.shelf, self.moment = model, shelf, moment
        digest = hashlib.blake2b(digest_size=8)
        for name, tensor in sorted(made.tensors.items()):
            if not name.endswith(".codes"):  # scales and ranges tell as much, and are few
                digest.update(name.encode() + tensor.numpy().tobytes())
        self.digest = digest.hexdigest()
        times = made.tensors["times"].numpy()
        self.layers = {}
        for name, (_, activation_bits) in made.settings["bits"].items():
            part = {k: made.tensors[f"{name}.{k}"] for k in ("codes", "scale", "low", "high")}
            codes = Codes(part["codes"], part["scale"], tuple(made.settings["shapes"][name]))
            module = model.get_submodule(name)
            self.layers[name] = Layer(
                module, codes, activation_bits, times, part["low"], part["high"]
            )

    def correct(self, made: Artefact) -> None:
        """Take corrections for layers that read cached channels. Raises HostError."""
        made.check(self.model)
        for name, channels in made.settings["channels"].items():
            self.layers[name].channels = channels
        for key, line in made.tensors.items():
            name, _, index = key.rpartition("/")
            self.layers[name].lines[int(index)] = line

    def float_weight(self, name: str) -> torch.Tensor:
        """A layer's float weight, in host memory."""
        return self.shelf.peek(self.layers[name].module)["weight"]

    @property
    def nbytes(self) -> int:
        """Bytes of the model as it is now: integers, scales, and what was left in float."""
        kept = nbytes(list(self.model.parameters()))
        return kept + sum(nbytes(layer.codes[:2]) for layer in self.layers.values())

    def close(self) -> None:
        """Give the layers their float weights again."""
        self.shelf.clear()
        _ATTACHED.pop(self.model, None)


_ATTACHED: weakref.WeakKeyDictionary[torch.nn.Module, QuantizedDenoiser] = (
    weakref.WeakKeyDictionary()
)


def quantized(model: torch.nn.Module) -> QuantizedDenoiser:
    """What `Quantized` put on a denoiser. Raises HostError where it is not attached."""
    if (found := _ATTACHED.get(model)) is None:
        raise HostError(f"this {type(model).__name__} is not quantized")
    return found
