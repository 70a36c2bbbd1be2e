"""Hooks of the table of times: one watches the first evaluation, the others answer for modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from recollect.diffusion.dataflow import watch
from recollect.diffusion.host.hook import Hook

if TYPE_CHECKING:
    from recollect.diffusion.host.hooks import Installed
    from recollect.diffusion.tables import Feature, Table

NAME = "recollect-table"


class FindHook(Hook):
    """Watches the first evaluation, then puts hooks on the modules that it found."""

    def __init__(self, table: Table, installed: Installed) -> None:
        super().__init__()
        self.table, self.installed = table, installed

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward, table = self.fn_ref.original_forward, self.table
        if table.features:
            return forward(*args, **kwargs)
        seen = watch(module, table.session.signature, forward, args, kwargs)
        for feature in table.find(module, seen):
            self.installed.add(feature.module, FeatureHook(table, feature), NAME)
            for given, named in seen.free[feature.name]:
                feature.module(*given, **named)  # what this evaluation asked enters the table
        return seen.output


class FeatureHook(Hook):
    """Answers for one module."""

    def __init__(self, table: Table, feature: Feature) -> None:
        super().__init__()
        self.table, self.feature = table, feature

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.table.look_up(self.feature, self.fn_ref.original_forward, args, kwargs)
