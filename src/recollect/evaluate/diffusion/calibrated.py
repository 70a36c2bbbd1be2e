"""Settings of recipes that learn or profile something of the model first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from recollect.diffusion import ertacache as erta
from recollect.diffusion.attention.profiling import profile_blocks
from recollect.diffusion.attention.responses import rank_layers
from recollect.diffusion.engine.attach import accelerated
from recollect.diffusion.learned import bac as updates
from recollect.diffusion.learned import gate_fits
from recollect.diffusion.learned.harmonica import Training, save_router, train_router
from recollect.diffusion.policy import DiffusionPolicy, policy
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.profiles import record_each
from recollect.diffusion.quantized import cachequant as joint
from recollect.diffusion.quantized.calibrate import calibrate
from recollect.diffusion.quantized.qc import select, variance_correction
from recollect.diffusion.quantized.temporal import calibrate_features
from recollect.diffusion.schedules import Interval
from recollect.diffusion.sites import Branch, Modules, Site
from recollect.errors import HostError
from recollect.evaluate.diffusion.workbench import Setting, Workbench

_TRAJECTORIES = 10  # that a router is trained on, where none is given


def magcache(bench: Workbench, name: str) -> Iterator[Setting]:
    """MagCache with ratios of this model, over its threshold."""
    made = gate_fits.magcache(bench.model, bench.run)
    for threshold in (0.06, 0.12, 0.24):
        yield Setting(name, f"{name} {threshold}", policy(made, threshold=threshold))


def teacache(bench: Workbench, name: str) -> Iterator[Setting]:
    """TeaCache with a polynomial fitted to this model, over its threshold."""
    made = gate_fits.teacache(bench.model, bench.run)
    for threshold in (0.05, 0.1, 0.2):
        yield Setting(name, f"{name} {threshold}", policy(made, threshold=threshold))


def ertacache(bench: Workbench, name: str) -> Iterator[Setting]:
    """ERTACache, over its threshold; `with lengths` also changes the lengths of steps."""
    lengths = name.endswith("lengths")
    for threshold in (0.1, 0.2, 0.3):
        path = bench.path(f"{name}-{threshold}.safetensors")
        timeline = bench.trajectory.scheduler() if lengths else None
        made = erta.calibrate(path, bench.model, bench.run, threshold, timeline)
        yield Setting(name, f"{name} {threshold}", made.policy, made.sigmas)


def _harmonica(bench: Workbench, name: str) -> Iterator[Setting]:
    """Routers for two shares of the modules: those in the folder, or briefly trained ones."""
    for share in (0.5, 0.35):
        path = bench.path(f"harmonica-{share}.safetensors")
        if not path.exists():
            training = Training(trajectories=_TRAJECTORIES, share=share)
            router = train_router(bench.model, bench.trajectory, training)
            save_router(path, bench.model, router, bench.trajectory, training)
        chosen = policy(name, artefact=str(path))
        yield Setting(name, f"{name} {share:.0%} of the modules", chosen)


def _bac(bench: Workbench, name: str) -> Iterator[Setting]:
    """BAC, over the updates of a module."""
    profiles = record_each(bench.model, bench.run, Modules())
    repeated = tuple(n for n in ("observation_encoder",) if hasattr(bench.model, n))
    for share in (0.5, 0.33, 0.25, 0.1):
        count = max(2, round(share * bench.steps))
        found = updates.module_schedules(bench.model, profiles, count, union=3)
        path = bench.path(f"{name}-{count}.safetensors")
        made = updates.save_schedules(path, bench.model, found, bench.trajectory.conditions)
        yield Setting(name, f"{name}, {count} updates", policy(made, repeated=repeated))


def _table(bench: Workbench, name: str) -> Iterator[Setting]:
    yield Setting(name, name, policy(name))


def _quantized(bench: Workbench, name: str) -> Iterator[Setting]:
    """Integers alone, and with temporal features rebuilt or kept; no step is skipped."""
    for bits in (8, 4):
        integers = bench.integers(bits)
        yield Setting(name, f"{name} W{bits}A8", policy(name, companions=(integers,)))
        path = str(bench.path(f"features-{bits}.safetensors"))
        try:
            table = calibrate_features(path, bench.model, bench.pool, integers)
        except HostError:
            continue  # nothing in this model depends on time alone
        chosen = policy(name, companions=(integers, table))
        series = f"{name}, temporal features"
        yield Setting(series, f"{name} W{bits}A8, temporal features", chosen)


def _cachequant(bench: Workbench, name: str) -> Iterator[Setting]:
    """CacheQuant at W8A8, over the steps for each computed one."""
    site: Site = Branch() if hasattr(bench.model, "up_blocks") else Modules()
    for every in (2, 3, 4):
        folder = bench.path(f"{name}-{every}")
        folder.mkdir(exist_ok=True)
        made = joint.calibrate(folder, bench.model, bench.run, bench.integers(8), every, site)
        yield Setting(name, f"{name} W8A8, every {every}", made)


def _qc(bench: Workbench, name: str) -> Iterator[Setting]:
    """Q&C at W8A8: clustered calibration samples, and the variance of what is reused restored."""
    latents, times = bench.pool.samples()
    rows = select(latents, times, min(24, len(times)))
    path = str(bench.path(f"{name}-integers.safetensors"))
    integers = calibrate(path, bench.model, bench.pool.only(rows), per_step=False)
    truths = record_each(bench.model, bench.run, Modules())
    guesses = record_each(bench.model, bench.run, Modules(), (integers,))
    for every in (2, 3, 4):
        base = DiffusionPolicy(Modules(), Interval(every=every), companions=(integers,))
        path = str(bench.path(f"{name}-variance-{every}.safetensors"))
        computed = tuple(range(0, bench.steps, every))
        with accelerated(bench.model, policy("quantized", companions=(integers,))):
            corrector = variance_correction(path, bench.model, guesses, truths, Reuse(), computed)
        yield Setting(name, f"{name} W8A8, every {every}", replace(base, corrector=corrector))


def _profilingdit(bench: Workbench, name: str) -> Iterator[Setting]:
    """ProfilingDiT: half of the blocks, those that look least at what moves."""
    found = profile_blocks(bench.model, lambda number: bench.run())
    path = str(bench.path(f"{name}.safetensors"))
    found.save(path, count=len(found.scores) // 2)
    for every in (2, 3, 6):
        yield Setting(name, f"{name} {every}", policy(name, profile=path, every=every, warmup=2))


def _focal(bench: Workbench, name: str) -> Iterator[Setting]:
    """Focal Guidance between the blocks that answer most and least to the text."""
    if bench.painter.grid is None:
        raise HostError("no grid of visual tokens to look for responses in")
    path = bench.path(f"{name}.safetensors")
    rank_layers(bench.model, bench.run, bench.painter.grid).save(path)
    for blend in (0.1, 0.3):
        yield Setting(name, f"{name} {blend}", policy(name, layers=str(path), blend=blend))


MAKERS: dict[str, Callable[[Workbench, str], Iterator[Setting]]] = {
    "ertacache with lengths": ertacache,
    "harmonica": _harmonica,
    "bac": _bac,
    "tfmq-tib": _table,
    "quantized": _quantized,
    "cachequant": _cachequant,
    "qc": _qc,
    "profilingdit": _profilingdit,
    "focal-guidance": _focal,
}
