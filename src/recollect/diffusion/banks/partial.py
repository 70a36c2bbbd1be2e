"""Evaluate a denoiser in FLUX's layout on some of its image tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from recollect.diffusion.banks.bank import KVBank
from recollect.diffusion.engine.values import split
from recollect.diffusion.host.call import take_rows
from recollect.diffusion.host.flux import (
    FluxAttentionHook,
    Plan,
    Plans,
    attention_modules,
    flat,
    rotary,
)
from recollect.errors import HostError

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.hooks import Installed

Forward = Callable[..., Any]
Named = dict[str, Any]
"""Arguments of the denoiser by name."""


class Partial:
    """A denoiser whose attention takes keys and values from a bank.

    Args:
        model: the denoiser.
        session: what is attached to it.
        installed: takes the hooks back.
        name: of the companion, to tell its hooks from others.
    """

    def __init__(
        self, model: torch.nn.Module, session: Session, installed: Installed, name: str
    ) -> None:
        self.model, self.names = model, session.signature.names
        self.plans = Plans()
        for layer, module in attention_modules(model).items():
            installed.add(module, FluxAttentionHook(layer, self.plans), f"recollect {name}")

    def whole(self, forward: Forward, named: Named, bank: KVBank) -> Any:
        """The output for all tokens; their keys and values go into the bank."""
        _check(named)
        with self.plans.using(Plan(_text(named), bank.put)):
            return forward(**named)

    def rows(self, forward: Forward, named: Named, rows: torch.Tensor) -> torch.Tensor:
        """The output tensor for some samples (B,) bool, computed whole."""
        if not bool(rows.all()):
            _, named = take_rows(self.names, (), named, rows)
        return split(forward(**named))[0][0]

    def tokens(
        self,
        forward: Forward,
        named: Named,
        bank: KVBank,
        chosen: torch.Tensor,
        rows: torch.Tensor,
        banked: bool = True,
    ) -> torch.Tensor:
        """The output tensor for chosen tokens; 0 for all others.

        Text and the chosen tokens run, and attend to the bank, in which the rows of the chosen
        ones are overwritten. Samples with fewer tokens than others are padded with one of theirs.

        Args:
            forward: the denoiser.
            named: its arguments for all tokens.
            bank: keys and values of all image tokens.
            chosen: tokens (B, S) bool, the first S of the image tokens.
            rows: samples (B,) bool with at least one of them; others are left out.
            banked: False to attend to text and the chosen tokens alone.

        Returns:
            (B, S, C).
        """
        _check(named)
        samples = rows.nonzero()[:, 0]
        places, real = _padded(chosen[samples])
        _, some = ({}, dict(named)) if bool(rows.all()) else take_rows(self.names, (), named, rows)
        ids, text = flat(named["img_ids"]), _text(named)
        table = rotary(self.model, named["txt_ids"], ids)
        words = torch.arange(text, device=places.device).expand(len(places), text)
        own = torch.cat([words, places + text], 1)
        queries = (table[0][own], table[1][own])
        if banked:
            plan = Plan(
                text,
                lambda layer, k, v: bank.overwrite(layer, samples, places, k, v),
                queries,
                table,
            )
        else:
            mask = torch.cat([torch.ones_like(words, dtype=torch.bool), real], 1)
            plan = Plan(text, _same, queries, queries, mask[:, None, None])
        latent = some["hidden_states"]
        some["hidden_states"] = latent[torch.arange(len(latent))[:, None], places]
        some["img_ids"] = ids[places[0]]  # only their number matters: attention has its own table
        with self.plans.using(plan):
            (found,), _ = split(forward(**some))
        moved = found.new_zeros(*chosen.shape, found.shape[-1])
        moved[samples[:, None], places] = found
        return moved


def _padded(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the chosen tokens (b, n), rows filled up with their first, and which are real."""
    counts = chosen.sum(1)
    most = int(counts.max())
    places = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    real = torch.arange(most, device=chosen.device) < counts[:, None]
    return torch.where(real, places, places[:, :1]), real


def _same(layer: str, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return key, value


def _text(named: Named) -> int:
    return int(named["encoder_hidden_states"].shape[1])


def _check(named: Named) -> None:
    for other in ("controlnet_block_samples", "controlnet_single_block_samples"):
        if named.get(other) is not None:
            raise HostError("banks of keys and values do not work with a ControlNet; leave it out")
