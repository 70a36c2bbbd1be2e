"""Focal Guidance (arXiv:2601.07287): layers that hardly answer to the text borrow a text map.

Within one step, maps of visual queries to text keys are kept from layers that respond to the
prompt, and blended into weak layers deeper in the model: `A <- (1 - w) A + w A_source`. It changes
the picture and saves no work; only the layers it blends into lose the fused kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from recollect.diffusion.artefacts import Artefact
from recollect.diffusion.attention.maps import AttentionMap
from recollect.diffusion.companions import Companion
from recollect.errors import HostError, RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.attention import Attending
    from recollect.diffusion.host.hooks import Installed

NAME = "recollect-focal"
FOCAL_LAYERS = "focal-layers"


@dataclass(frozen=True)
class FocalGuidance(Companion):
    """Blends text maps of some blocks into others.

    Attributes:
        blend: weight of the borrowed map; 0 changes nothing, to the bit.
        sources: blocks whose maps are lent, averaged over heads and over those that ran.
        weak: blocks that borrow; each must come after a source.
        layers: file of both, from `LayerRanks.save`, instead of the numbers; its model is checked.
    """

    blend: float = 0.3
    sources: tuple[int, ...] = ()
    weak: tuple[int, ...] = ()
    layers: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.blend <= 1:
            raise RecipeError(f"blend is between 0 and 1, not {self.blend}")
        if self.layers and (self.sources or self.weak):
            raise RecipeError("give `sources` and `weak`, or the file of both, not all")
        for name in ("sources", "weak"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))

    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:

        from recollect.diffusion.host.attention import AttentionHook, Layout, attentions
        from recollect.diffusion.host.blocks import find_blocks

        blocks = [f"{block.name}." for block in find_blocks(model)]
        sources, weak = self._chosen(model, len(blocks))
        if self.blend == 0:
            return
        lending = tuple(blocks[number] for number in sources)
        borrowing = tuple(blocks[number] for number in weak)
        loans = _Loans(self.blend, session)
        layout = Layout()
        heard = dict.fromkeys((*lending, *borrowing), 0)
        for name, module in attentions(model).items():
            listen = (
                loans.lend
                if name.startswith(lending)
                else loans.borrow
                if name.startswith(borrowing)
                else loans.pass_by
            )
            installed.add(module, AttentionHook(name, module, listen, layout), NAME)
            for block in heard:
                heard[block] += name.startswith(block)
        if deaf := [block for block, count in heard.items() if not count]:
            raise HostError(f"{deaf[0][:-1]} has no attention that can be recognized")

    def _chosen(
        self, model: torch.nn.Module, count: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        sources, weak = self.sources, self.weak
        if self.layers:
            held = Artefact.load(self.layers, FOCAL_LAYERS)
            held.check(model)
            sources = tuple(held.tensors["sources"].tolist())
            weak = tuple(held.tensors["weak"].tolist())
        if not sources or not weak:
            raise RecipeError("give blocks as `sources` and `weak`, or a file of them as `layers`")
        if not all(0 <= block < count for block in (*sources, *weak)):
            raise HostError(f"{type(model).__name__} has the blocks 0 to {count - 1}")
        if set(sources) & set(weak) or min(weak) < min(sources):
            raise RecipeError("every weak block comes after a source, and is none itself")
        return sources, weak


class _Loans:
    """The mean text map of the sources that have run in the call in progress."""

    def __init__(self, weight: float, session: Session) -> None:
        self.weight, self.session = weight, session
        self._held: WeakKeyDictionary[Any, AttentionMap] = WeakKeyDictionary()

    def pass_by(self, name: str, attending: Attending) -> None:
        """Layers that are neither: heard only for the layout of their tokens."""

    @torch.no_grad()
    def lend(self, name: str, attending: Attending) -> None:
        evaluation, keys = self.session.evaluation, attending.text_keys
        if attending.unclear:
            raise HostError(f"{name} joins as many text tokens as visual ones; add one to the text")
        if evaluation is None or keys is None:
            return
        rows = torch.arange(attending.visual.start, attending.visual.stop)
        seen = attending.mean(rows.to(attending.query.device))[..., keys]
        if evaluation not in self._held:
            self._held[evaluation] = AttentionMap(rows, torch.zeros_like(seen))
        held = self._held[evaluation]
        held.total, held.count = held.total + seen, held.count + 1

    def borrow(self, name: str, attending: Attending) -> torch.Tensor | None:
        evaluation, keys = self.session.evaluation, attending.text_keys
        if evaluation is None or keys is None or evaluation not in self._held:
            return None  # no text here, or the sources were left out on this step
        source = self._held[evaluation].mean
        if len(source) != len(attending.query):
            compute = getattr(evaluation, "compute", None)
            if compute is None or int(compute.sum()) != len(attending.query):
                raise HostError(
                    f"{name} runs for {len(attending.query)} samples and its sources ran for "
                    f"{len(source)}; use batch='any' with Focal Guidance"
                )
            source = source[compute.to(source.device)]
        return _attend(attending, source, keys, self.weight)


def blended(
    probabilities: torch.Tensor, source: torch.Tensor, keys: slice, weight: float
) -> torch.Tensor:
    """Attention with some of its text part borrowed; rows still sum to 1.

    What visual keys receive shrinks or grows by one factor a row, where a row has any.

    Args:
        probabilities: (B, Q, K).
        source: text map (B, Q, T) to borrow; T the text keys.
        keys: which of the K keys are text.
        weight: of the borrowed map.
    """
    text = probabilities[..., keys]
    mixed = torch.lerp(text, source, weight)
    rest = 1 - text.sum(-1, keepdim=True)
    left = (1 - mixed.sum(-1, keepdim=True)).clamp_min(0)
    only_text = text.shape[-1] == probabilities.shape[-1]
    changed = probabilities if only_text else probabilities * (left / rest.clamp_min(1e-12))
    changed = changed.clone()
    changed[..., keys] = mixed
    return changed / changed.sum(-1, keepdim=True)


def _attend(attending: Attending, source: torch.Tensor, keys: slice, weight: float) -> torch.Tensor:
    """The attention call with explicit probabilities, blended for the visual queries."""
    every = torch.arange(attending.query.shape[2], device=attending.query.device)
    group = attending.query.shape[1] // attending.key.shape[1]
    heads = []
    for head, probabilities in enumerate(attending.probabilities(every)):
        visual = probabilities[:, attending.visual]
        probabilities = probabilities.clone()
        probabilities[:, attending.visual] = blended(visual, source, keys, weight)
        value = attending.value[:, head // group]
        heads.append((probabilities @ value.float()).to(value.dtype))
    return torch.stack(heads, 1)
