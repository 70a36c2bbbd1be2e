"""Tails: a video of any length through causal convolutions chunk by chunk, exactly.

A causal convolution over time needs nothing of the past but its last input frames. They are kept
for each convolution and sampling step, and take the place of its padding in the next chunk, so that
memory does not grow with the video (the feature cache of CDT, arXiv:2503.03708; Wan, LTX and
CogVideoX have one of their own in their decoders).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from recollect.errors import HostError, RecipeError

TIME = 2  # axis of frames in (B, C, F, H, W)
_Key = tuple[str, int, int]  # module, how often it ran before in the pass, sampling step


class Memory(NamedTuple):
    """How far a module other than a convolution looks back.

    Attributes:
        frames: earlier input frames that an output frame depends on.
        axis: of the frames, in the module's first argument and in its result.
    """

    frames: int = 1
    axis: int = TIME


class Tails:
    """Runs a network on a video that comes in chunks.

    The network is one of causal 3-D convolutions, that pad with zeros or their first frame as many
    frames as they look back; of modules that see one frame at a time; and of those named in
    `memory`. Temporal strides keep their phase from chunk to chunk: frames that give no output yet
    wait for the next chunk. Norms, poolings and attention over several frames see one chunk only.

    Args:
        network: e.g. the encoder or the decoder of a video autoencoder. Nothing stays on it
            between calls.
        memory: modules by their dotted names that look back without being a convolution.

    Raises:
        HostError: a convolution that looks ahead.
        RecipeError: a name in `memory` that is no module.
    """

    def __init__(
        self, network: torch.nn.Module, memory: Mapping[str, Memory] | None = None
    ) -> None:
        self.network, self.memory = network, dict(memory or {})
        found = dict(network.named_modules())
        if unknown := self.memory.keys() - found.keys():
            raise RecipeError(f"the network has no module '{unknown.pop()}'")
        self._convolutions = {
            name: module for name, module in found.items() if isinstance(module, torch.nn.Conv3d)
        }
        self._tails: dict[_Key, torch.Tensor] = {}
        self._waiting: dict[int, torch.Tensor] = {}

    def __call__(self, frames: torch.Tensor, *args: Any, step: int = 0, **kwargs: Any) -> Any:
        """What the network returns for the next frames.

        Args:
            frames: (B, C, F, H, W), the continuation of the last call's with this step.
            step: sampling step of a diffusion decoder: each has tails of its own.
            args, kwargs: further arguments of the network.

        Returns:
            The network's result; None where the frames are too few for one output frame.
        """
        waiting = self._waiting.get(step)
        if waiting is not None:
            if any(isinstance(a, torch.Tensor) and a.ndim == 5 for a in (*args, *kwargs.values())):
                raise RecipeError(
                    "frames wait for more of their kind, which cannot be matched with the other "
                    "videos given; use chunks of a multiple of the network's temporal stride"
                )
            frames = torch.cat([waiting, frames], TIME)
        fresh: dict[_Key, torch.Tensor] = {}
        try:
            with self._in_force(step, fresh):
                output = self.network(frames, *args, **kwargs)
        except _TooFew:
            self._waiting[step] = frames.clone()
            return None
        self._waiting.pop(step, None)
        self._tails |= fresh
        return output

    def whole(self, video: torch.Tensor, chunk: int) -> torch.Tensor:
        """A whole video (B, C, F, H, W) in chunks of so many frames, from a fresh start.

        For networks that take frames and return frames. Raises RecipeError for a chunk below 1, or
        a video that is too short for one output frame.
        """
        if chunk < 1:
            raise RecipeError(f"chunk is 1 or more, not {chunk}")
        self.reset()
        given = [self(frames) for frames in video.split(chunk, TIME)]
        self.reset()
        if not (kept := [frames for frames in given if frames is not None]):
            raise RecipeError(f"{video.shape[TIME]} frames are too few for one output frame")
        return torch.cat(kept, TIME)

    def reset(self) -> None:
        """Forget the video; the next chunk begins one."""
        self._tails, self._waiting = {}, {}

    @property
    def nbytes(self) -> int:
        """Bytes of tails and of frames that wait."""
        held = (*self._tails.values(), *self._waiting.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    @contextmanager
    def _in_force(self, step: int, fresh: dict[_Key, torch.Tensor]) -> Iterator[None]:
        """Convolutions and modules with a memory use their tails; new ones are put in `fresh`."""
        chunk = _Chunk(self._tails, fresh, step)
        with ExitStack() as stack:
            for name, module in self._convolutions.items():
                handle = module.register_forward_pre_hook(
                    lambda _, __, name=name: chunk.enter(name)
                )
                stack.callback(handle.remove)
            for name, memory in self.memory.items():
                looking = _LookingBack(chunk, name, memory)
                owner = self.network.get_submodule(name)
                handle = owner.register_forward_pre_hook(looking.before, prepend=True)
                stack.callback(handle.remove)
                handle = owner.register_forward_hook(looking.after)
                stack.callback(handle.remove)
            stack.enter_context(chunk)
            yield


class _TooFew(Exception):
    """A convolution was given fewer frames than one output frame needs."""


class _Chunk(TorchFunctionMode):
    """One pass of the network: exchanges the padding in time of convolutions for their tails."""

    def __init__(
        self, tails: Mapping[_Key, torch.Tensor], fresh: dict[_Key, torch.Tensor], step: int
    ) -> None:
        super().__init__()
        self.tails, self.fresh, self.step = tails, fresh, step
        self._name = ""
        self._ran: Counter[str] = Counter()

    def enter(self, name: str) -> None:
        """The convolution of that name is about to run."""
        self._name = name

    def key(self, name: str) -> _Key:
        """Where the tail of a module's next run belongs."""
        self._ran[name] += 1
        return name, self._ran[name], self.step

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.conv3d or not self._name:
            return func(*args, **kwargs)
        name, self._name = self._name, ""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        reach = _first(given.get("dilation", 1)) * (given["weight"].shape[TIME] - 1)
        stride = _first(given.get("stride", 1))
        if reach or stride > 1:
            given["input"] = self._continued(name, given["input"], reach, stride, given)
        return func(**given)

    def _continued(
        self, name: str, frames: torch.Tensor, reach: int, stride: int, given: Mapping[str, Any]
    ) -> torch.Tensor:
        """The frames to convolve: those given, behind the tail instead of behind padding."""
        if _first(given.get("padding", 0)) not in (0, "valid") or not _padded(frames, reach):
            raise HostError(
                f"{name or 'the convolution'} is not causal: it must look back {reach} frames, "
                "behind as many frames of zeros or of its first frame"
            )
        key = self.key(name)
        tail = self.tails.get(key)
        if tail is not None:
            frames = torch.cat([tail, frames[:, :, reach:]], TIME)
        if frames.shape[TIME] <= reach:
            raise _TooFew
        outputs = (frames.shape[TIME] - reach - 1) // stride + 1
        self.fresh[key] = frames[:, :, outputs * stride :].clone()
        return frames


class _LookingBack:
    """Gives a module its last frames again, and drops what it returns for them."""

    def __init__(self, chunk: _Chunk, name: str, memory: Memory) -> None:
        self.chunk, self.name, self.memory = chunk, name, memory
        self._given: list[int] = []

    def before(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Put the tail in front."""
        frames, axis = args[0], self.memory.axis
        key = self.chunk.key(self.name)
        tail = self.chunk.tails.get(key)
        if tail is not None:
            frames = torch.cat([tail, frames], axis)
        self._given.append(0 if tail is None else tail.shape[axis])
        keep = min(self.memory.frames, frames.shape[axis])
        self.chunk.fresh[key] = frames.narrow(axis, frames.shape[axis] - keep, keep).clone()
        return (frames, *args[1:])

    def after(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        """Take off what belongs to the tail."""
        axis, begin = self.memory.axis, self._given.pop()
        return output.narrow(axis, begin, output.shape[axis] - begin)


def _padded(frames: torch.Tensor, reach: int) -> bool:
    """Whether the first frames are padding: zeros, or copies of the frame behind them."""
    if not reach:
        return True
    front = frames[:, :, :reach]
    if front.shape[TIME] < reach:
        return False
    if not bool(front.any()):
        return True
    following = frames[:, :, reach : reach + 1]
    return bool(following.shape[TIME]) and bool((front == following).all())


def _first(size: Any) -> Any:
    """The entry of time, where a size is given for every axis."""
    return size[0] if isinstance(size, tuple | list) else size
