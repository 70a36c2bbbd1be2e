"""Tables of what depends on time alone: sinusoids, time embeddings, modulation.

A trajectory asks the same few timesteps again and again, so the modules that see nothing else need
to run once for each; afterwards their results are looked up, and their weights may be put aside
(the cache of temporal features of TFMQ-DM, arXiv:2407.19547).
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recollect.diffusion.artefacts import Artefact, fingerprint
from recollect.diffusion.companions import Companion
from recollect.diffusion.dataflow import Seen, outermost
from recollect.diffusion.engine.values import Template, Value, nbytes, split
from recollect.diffusion.engine.versions import checksum, stamp
from recollect.diffusion.rows import CODECS, Key, Row, Rows, content, digest
from recollect.diffusion.shelf import PLACES, Shelf
from recollect.errors import HostError, RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.hooks import Installed

FEATURES = "temporal-features"
Teacher = Callable[["Feature"], Any]
Forward = Callable[..., Any]


@dataclass(frozen=True)
class TimeTable(Companion):
    """Looks up what depends on nothing but time, class, guidance and pooled text.

    Which modules these are is seen on the first evaluation, by following the latent and the tokens
    through it. A row's key is the content of the module's inputs, their dtype and device; rows go
    when the module's weights change (a LoRA), which is looked at on every call and, bit by bit,
    once a trajectory. What is not in the table is computed and put there.

    A request with a new pooled text misses at every step, as a table of FLUX's modulation is one
    of (time, guidance, text): what it helps there is the next picture of the same prompt.

    Attributes:
        exact: rows hold for a whole batch, and give the bits the modules gave. Otherwise each
            sample (or token, where each has its own time) has a row of its own: a time that many
            share is computed once, and results may differ in the last bit, as a matrix product
            depends on the size of its batch.
        table_bytes: most bytes of rows; the ones unused for longest go first.
        offload: where the modules' weights go once a trajectory needed none of them: `host`,
            `disk`, or nowhere. They come back when a row is missing. While they are away, the
            model cannot be saved or fused with adapters: restore it first.
        codec: `dense`, or `int8` with a scale and a minimum per row (not exact).
        features: path of the temporal features of a quantized denoiser, as
            `quantized.temporal.calibrate_features` writes them; empty for none.
    """

    exact: bool = True
    table_bytes: int = 256 * 2**20
    offload: str = ""
    codec: str = "dense"
    features: str = ""

    def __post_init__(self) -> None:
        if self.table_bytes < 0:
            raise RecipeError(f"table_bytes is 0 or more, not {self.table_bytes}")
        if self.offload and self.offload not in PLACES:
            raise RecipeError(f"offload is {' or '.join(PLACES)}, not '{self.offload}'")
        if self.codec not in CODECS:
            raise RecipeError(f"codec is one of {', '.join(CODECS)}, not '{self.codec}'")
        if self.exact and self.codec != "dense":
            raise RecipeError(f"codec='{self.codec}' is not exact; pass exact=False with it")

    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:
        # Here, so that recipes are listed without diffusers.
        from recollect.diffusion.host.lookups import NAME, FeatureHook, FindHook

        table = Table(self, session)
        if self.features:
            made = Artefact.load(self.features, FEATURES)
            made.check(model)
            table.load(made)
            for feature in table.features:  # known already: the first evaluation is served too
                installed.add(feature.module, FeatureHook(table, feature), NAME)
        installed.add(model, FindHook(table, installed), NAME)
        installed.undo(table.close)
        _TABLES[model] = table


def table_of(model: torch.nn.Module) -> Table:
    """The table at work on a denoiser. Raises HostError where there is none."""
    if (found := _TABLES.get(model)) is None:
        raise HostError(f"this {type(model).__name__} has no table of times")
    return found


class Feature:
    """A module whose results are in the table.

    Attributes:
        name, module: the module.
        stamp: where its weights lie, and how often they were written to.
        checksum: of their bits.
        asked, missed: look-ups since the last trajectory began.
    """

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        self.name, self.module = name, module
        self.stamp: Any = None
        self.checksum: Any = None
        self.asked = self.missed = 0


class Table:
    """Rows of one denoiser.

    Attributes:
        features: the modules that are looked up; empty until one evaluation was seen.
        hits, misses: look-ups that found a row, and that did not.
        teacher: where set, says what enters the table instead of what a module returns, or None.
        lines: module's name -> scale and shift (2, C) of what it returns.
    """

    def __init__(self, settings: TimeTable, session: Session) -> None:
        self.settings, self.session = settings, session
        self.features: list[Feature] = []
        self.hits = self.misses = 0
        self.teacher: Teacher | None = None
        self.lines: dict[str, torch.Tensor] = {}
        self._rows = Rows(settings.table_bytes)
        self._shelf = Shelf(settings.offload) if settings.offload else None
        self._lock = threading.RLock()

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self._rows.nbytes

    @property
    def rows(self) -> Counter[str]:
        """Number of rows by module."""
        return self._rows.counts()

    @property
    def weights(self) -> int:
        """Bytes of the modules' weights in the model's own memory now."""
        return sum(nbytes(list(f.module.parameters())) for f in self.features)

    def close(self) -> None:
        """Give the weights back and drop all rows."""
        if self._shelf is not None:
            self._shelf.clear()
        self.clear()

    def clear(self) -> None:
        """Drop all rows."""
        self._rows.clear()

    def find(self, model: torch.nn.Module, seen: Seen) -> list[Feature]:
        """Note the modules that one evaluation showed. Raises HostError where there are none."""
        self.features = [Feature(name, inner) for name, inner in outermost(model, seen)]
        if not self.features:
            raise HostError(f"nothing in {type(model).__name__} depends on time alone")
        return self.features

    def look_up(self, feature: Feature, forward: Forward, args: Any, kwargs: Any) -> Any:
        """What the module would return."""
        with self._lock:
            if feature.module.training or torch.is_grad_enabled():
                return self._run(feature, forward, args, kwargs)
            self._begin(feature)
            taught = None if self.teacher is None else self.teacher(feature)
            given, around = split((args, kwargs))
            if not self.settings.exact and (rows := _shared_rows(given)):
                return self._by_rows(feature, forward, given, around, rows, taught)
            key = (feature.name, digest(given, around))
            row = self._find(key, feature)
            if row is not None:
                return row.read()
            output = self._run(feature, forward, args, kwargs) if taught is None else taught
            self._insert(key, *split(output))
            return output

    def _by_rows(
        self,
        feature: Feature,
        forward: Forward,
        given: Value,
        around: Template,
        rows: int,
        taught: Any,
    ) -> Any:
        """The same, where every sample or token has a row of its own."""
        flat = [content(t).reshape(rows, -1) for t in given]
        whole = np.concatenate(flat, axis=1)
        _, first, place = np.unique(whole, axis=0, return_index=True, return_inverse=True)
        keys = [(feature.name, digest(tuple(tensor[i] for tensor in given), around)) for i in first]
        found = [self._find(key, feature) for key in keys]
        missing = [n for n, row in enumerate(found) if row is None]
        if missing:
            chosen = torch.as_tensor(first[missing])
            if taught is None:
                few, named = around.fill([t[chosen.to(t.device)] for t in given])
                value, template = split(self._run(feature, forward, few, named))
            else:
                value, template = split(taught)
                value = tuple(t[chosen.to(t.device)] for t in value)
            if any(t.ndim < 2 or t.shape[0] != len(missing) for t in value):
                few, named = around.fill(given)
                return self._run(feature, forward, few, named)  # not row by row: left alone
            for place_of, n in enumerate(missing):
                one = tuple(tensor[place_of] for tensor in value)
                found[n] = self._insert(keys[n], one, template)
        known = [row for row in found if row is not None]
        index = torch.as_tensor(place.reshape(-1))
        stacked = [torch.stack(one) for one in zip(*(r.tensors() for r in known), strict=True)]
        return known[0].template.fill([tensor[index.to(tensor.device)] for tensor in stacked])

    def _find(self, key: Key, feature: Feature) -> Row | None:
        row = self._rows.find(key)
        feature.asked += 1
        feature.missed += row is None
        self.misses += row is None
        self.hits += row is not None
        return row

    def _insert(self, key: Key, value: Value, template: Template) -> Row:
        """Store a result; one that was rebuilt keeps the precision it was rebuilt with."""
        codec = "dense" if key[0] in self.lines else self.settings.codec
        return self._rows.insert(key, value, template, codec)

    # -- weights ---------------------------------------------------------------------------------

    def _begin(self, feature: Feature) -> None:
        """Drop rows of other weights; put weights aside that a trajectory did without."""
        step = self.session.step
        starts = step is None or step.index == 0
        shelf, module = self._shelf, feature.module
        if shelf is not None and module in shelf:
            if all(p.numel() == 0 for p in module.parameters()):
                return
            shelf.back(module)  # somebody gave it other weights meanwhile
        now = stamp(module)
        if now != feature.stamp or starts:
            bits = checksum(module)
            if feature.checksum is not None and bits != feature.checksum:
                self._rows.drop(feature.name)
            feature.stamp, feature.checksum = now, bits
        if starts:
            if shelf is not None and feature.asked and not feature.missed:
                shelf.put(module)
            feature.asked = feature.missed = 0

    def _run(self, feature: Feature, forward: Forward, args: Any, kwargs: Any) -> Any:
        if self._shelf is not None and feature.module in self._shelf:
            self._shelf.back(feature.module)
            feature.stamp = stamp(feature.module)
        output = forward(*args, **kwargs)
        line = self.lines.get(feature.name)
        if line is None:
            return output
        value, template = split(output)
        scale, shift = line.to(value[0].device)
        return template.fill([(t.float() * scale + shift).to(t.dtype) for t in value])

    # -- files -----------------------------------------------------------------------------------

    def save(self, path: str, ways: dict[str, dict[str, float]]) -> None:
        """Write rows and lines. Raises StoreError.

        Args:
            path: where to.
            ways: for each module the error of its output `rebuilt` by a line, and `kept` as a row;
                the rows of those that are better kept are written.
        """
        kept = {name for name, errors in ways.items() if errors["kept"] < errors["rebuilt"]}
        rows, dtypes = self._rows.state(kept)
        tensors = {f"row/{name}": tensor for name, tensor in rows.items()}
        tensors |= {f"line/{name}": line for name, line in self.lines.items()}
        settings = {"ways": ways, "rows": dtypes}
        Artefact(FEATURES, fingerprint(self.session.model), settings, tensors).save(path)

    def load(self, made: Artefact) -> None:
        """Take the features, rows and lines that `save` wrote."""
        model = self.session.model
        self.features = [Feature(name, model.get_submodule(name)) for name in made.settings["ways"]]
        self._rows.load(made.tensors, made.settings["rows"], "row/")
        for key, line in made.tensors.items():
            if key.startswith("line/"):
                self.lines[key.removeprefix("line/")] = line


_TABLES: weakref.WeakKeyDictionary[torch.nn.Module, Table] = weakref.WeakKeyDictionary()


def _shared_rows(given: Value) -> int:
    """How many rows all inputs have; 0 where they differ or have none."""
    counts = {t.shape[0] if t.ndim else 0 for t in given}
    return counts.pop() if len(counts) == 1 else 0
