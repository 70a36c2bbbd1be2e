"""Settings of the recipes for editing models: regions, and kept keys and values of the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from recollect.diffusion.editing.calibrate import calibrate_decay
from recollect.diffusion.policy import policy
from recollect.errors import HostError
from recollect.evaluate.diffusion.workbench import Setting, Workbench

# The zoo's grid of 8 x 8 tokens is small: the paper's morphology would fill half of it.
_REGIONS: dict[str, Any] = {"similarity": 0.93, "erode": 1, "dilate": 1}


def _regione(bench: Workbench, name: str) -> Iterator[Setting]:
    """RegionE, over the steps on the region between whole ones; with its decay, over that, too."""
    warmup = max(2, round(bench.steps * 6 / 28))
    chosen: dict[str, Any] = {**_REGIONS, "warmup": warmup}
    if name.endswith("decay"):
        path = bench.path("decay.safetensors")
        calibrate_decay(bench.painter.target, bench.run, **_REGIONS).save(path)
        chosen |= {"decay": str(path), "delta": 0.04}
    for refresh in (1, 2, 4):
        made = policy("regione", **chosen, refresh=refresh)
        yield Setting(name, f"{name}, refresh after {refresh}", made)


def _references(bench: Workbench, name: str) -> Iterator[Setting]:
    for renew in (2, 3, 4):
        yield Setting(name, f"{name}, renewed every {renew}", policy(name, renew=renew))


def _easycontrol(bench: Workbench, name: str) -> Iterator[Setting]:
    """The condition run once, to the bit; and a forecast beside it."""
    if bench.painter.base is None:
        raise HostError("this model is drawn without conditions")
    once = policy(bench.painter.base, reuse=True)
    if name == "easycontrol":
        yield Setting(name, name, once)
        return
    for every in (2, 3, 4):
        forecast = policy("taylorseer", every=every, warmup=2, companions=once.companions)
        yield Setting(name, f"{name} {every}", forecast)


MAKERS: dict[str, Callable[[Workbench, str], Iterator[Setting]]] = {
    "regione": _regione,
    "regione with decay": _regione,
    "reference-bank": _references,
    "easycontrol": _easycontrol,
    "easycontrol + taylorseer": _easycontrol,
}
