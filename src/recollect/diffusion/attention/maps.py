"""Attention maps of a denoiser, averaged over heads and steps while it samples.

Fused kernels never form them, so a few hundred rows are computed beside: a running sum and a count
for each module and branch, never a list. The model's output is untouched, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch

from recollect.diffusion.companions import Companion
from recollect.errors import HostError, RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.attention import Attending
    from recollect.diffusion.host.hooks import Installed

Keys = Literal["visual", "text", "all"]
NAME = "recollect-maps"


@dataclass
class AttentionMap:
    """What one attention module gave to its keys, on average.

    Attributes:
        rows: the queries (R,) that were looked at; empty where only their mean is kept.
        total: sum of the probabilities over calls, averaged over heads: (B, R, K), or (B, K).
        count: calls that were added.
    """

    rows: torch.Tensor
    total: torch.Tensor
    count: int = 0

    @property
    def mean(self) -> torch.Tensor:
        """Probabilities (B, R, K) or (B, K), averaged over the calls."""
        return self.total / self.count


@dataclass(frozen=True)
class AttentionMaps(Companion):
    """Records attention maps; read them with `of`.

    They add up over steps and generations until `clear`: a result, not the state of a request.

    Attributes:
        rows: queries that are looked at, the same ones on every call; None for all.
        keys: whose attention is kept: that of image and video tokens (`visual`), of text, or of
            `all` keys. Queries are always the visual ones. Calls without such keys are left out.
        received: keep only what each key received, averaged over the queries: (B, K) a module.
        seed: which queries are drawn.
    """

    rows: int | None = 256
    keys: Keys = "all"
    received: bool = False
    seed: int = 0
    _kept: MutableMapping[torch.nn.Module, dict[tuple[Any, ...], AttentionMap]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise RecipeError(f"rows is 1 or more, not {self.rows}")
        if self.keys not in ("visual", "text", "all"):
            raise RecipeError(f"keys is visual, text or all, not '{self.keys}'")

    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:

        from recollect.diffusion.host.attention import AttentionHook, Layout, attentions

        found = attentions(model)
        if not found:
            raise HostError(f"{type(model).__name__} has no attention that can be recognized")
        kept = self._kept.setdefault(model, {})

        def listen(name: str, attending: Attending) -> None:
            branch = getattr(session.evaluation, "branch", None)  # none while surveying
            if branch is not None:
                self._add(kept, name, branch.name, attending)

        layout = Layout()
        for name, module in found.items():
            installed.add(module, AttentionHook(name, module, listen, layout), NAME)

    def of(self, model: torch.nn.Module) -> dict[str, AttentionMap]:
        """The maps of a model by the name of the module, all branches together.

        Raises:
            HostError: nothing was heard: the model has not run, or its attention does not end in
                torch's `scaled_dot_product_attention`.
            RecipeError: batches of different sizes were drawn; clear in between.
        """
        found: dict[str, AttentionMap] = {}
        for (name, _, _), one in self._kept.get(model, {}).items():
            if (old := found.get(name)) is None:
                found[name] = AttentionMap(one.rows, one.total, one.count)
                continue
            if old.total.shape != one.total.shape:
                raise RecipeError(
                    f"{name} has maps of {tuple(old.total.shape)} and {tuple(one.total.shape)}: "
                    "clear() between batches of different sizes, or read them by `branches`"
                )
            old.total, old.count = old.total + one.total, old.count + one.count
        if not found:
            raise HostError(
                f"no attention of {type(model).__name__} was heard: let it run first, with the "
                "native attention backend and blocks that are not compiled"
            )
        return found

    def branches(self, model: torch.nn.Module) -> Iterator[tuple[str, str, AttentionMap]]:
        """Module, branch of guidance and map, one by one."""
        for (name, branch, _), one in self._kept.get(model, {}).items():
            yield name, branch, one

    def clear(self) -> None:
        """Forget all maps."""
        for kept in self._kept.values():
            kept.clear()

    @torch.no_grad()
    def _add(
        self,
        kept: dict[tuple[Any, ...], AttentionMap],
        name: str,
        branch: str,
        attending: Attending,
    ) -> None:
        keys = {
            "visual": attending.visual_keys,
            "text": attending.text_keys,
            "all": slice(0, attending.key.shape[2]),
        }[self.keys]
        if attending.unclear and self.keys != "all":
            raise HostError(f"{name} joins as many text tokens as visual ones: use keys='all'")
        if keys is None:
            return
        rows = sampled(attending.visual, self.rows, self.seed, attending.query.device)
        seen = attending.mean(rows)[..., keys]
        if self.received:
            rows, seen = rows[:0], seen.mean(1)
        key = (name, branch, seen.shape)
        if key not in kept:
            kept[key] = AttentionMap(rows, torch.zeros_like(seen))
        kept[key].total += seen
        kept[key].count += 1


def over_modules(maps: Mapping[str, AttentionMap]) -> torch.Tensor:
    """The mean map of modules that see the same queries and keys: (B, R, K) or (B, K).

    With `keys="text"` and all rows it tells where on the frame each word of the prompt is looked
    for (the maps that ELBO-T2IAlign, arXiv:2506.09740, segments by).

    Raises RecipeError where the modules' maps differ in shape.
    """
    means = [one.mean for one in maps.values()]
    if len({mean.shape for mean in means}) != 1:
        raise RecipeError("these modules see different queries or keys; average some of them")
    return torch.stack(means).mean(0)


def sampled(
    tokens: slice, count: int | None, seed: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Some of the places in `tokens`, in order, the same ones each time: (R,) int64."""
    length = tokens.stop - tokens.start
    if count is None or count >= length:
        places = torch.arange(length)
    else:
        generator = torch.Generator().manual_seed(seed)
        places = torch.randperm(length, generator=generator)[:count].sort().values
    return (places + tokens.start).to(device)


def record_maps(
    target: Any, run: Callable[[], Any], maps: AttentionMaps | None = None
) -> dict[str, AttentionMap]:
    """Maps of a denoiser, or of a pipeline's only one, while `run` samples uncached.

    Args:
        target: pipeline or denoiser.
        run: draws the samples.
        maps: what to record; visual and text keys for 256 queries by default.

    Raises:
        HostError: nothing was heard, or a pipeline with several denoisers.
    """
    from recollect.diffusion.engine.attach import accelerated, denoisers
    from recollect.diffusion.policy import DiffusionPolicy
    from recollect.diffusion.schedules import Interval

    maps = maps or AttentionMaps()
    found = list(denoisers(target).values())
    if len(found) > 1:
        raise HostError(f"{type(target).__name__} has {len(found)} denoisers; pass one of them")
    with accelerated(target, DiffusionPolicy(gate=Interval(every=1), companions=(maps,))):
        run()
    return maps.of(found[0])
