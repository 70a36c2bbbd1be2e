"""What must hold over whole trajectories: oracles, life of the state, branches, batches, faults."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from denoisers import counted, denoiser, sample

from recollect.diffusion import DiffusionPolicy, accelerate, accelerated, restore
from recollect.diffusion.drifts import FirstBlock, LatentChange, ModulatedInput
from recollect.diffusion.predictors import FoCa, Modes, Reuse, Taylor
from recollect.diffusion.schedules import Interval, Mask
from recollect.diffusion.sites import Blocks, Hidden, Modules, Span, StageSpan, Transform, Velocity
from recollect.errors import HostError, RecipeError

FLUX = denoiser("FluxTransformer2DModel")
GATES = [
    Interval(every=2),
    Mask(steps=(True, True, False, True, False, False)),
    LatentChange(threshold=0.3, warmup=2),
    FirstBlock(threshold=0.3),
    ModulatedInput(threshold=0.2),
]
PREDICTORS = [Reuse(), Taylor(1), Taylor(2, "logit_sigma"), FoCa(), Modes()]
SITES = [
    Velocity(),
    Transform(),
    Hidden(),
    Span(),
    Span(front=1, rear=1),
    StageSpan(),
    Blocks((1, 2)),
    Modules(),
    Modules(attention=True, feed_forward=False),
]


@pytest.fixture(scope="module")
def model():
    return FLUX.build()


@pytest.fixture(scope="module")
def expected(model):
    return sample(FLUX, model, 6)


class Synthetic(torch.nn.Module):
    """A denoiser whose output is a known function of time and latent."""

    def __init__(self, function):
        super().__init__()
        self.function, self.calls = function, 0

    def forward(self, hidden_states, timestep, return_dict=True):
        self.calls += 1
        return (self.function(hidden_states, timestep.view(-1, 1)),)


def euler(model, sigmas: list[float], batch: int = 1) -> torch.Tensor:
    x = torch.randn(batch, 8, generator=torch.Generator().manual_seed(0))
    for now, then in itertools.pairwise(sigmas):
        (v,) = model(x, torch.full((batch,), now), return_dict=False)
        x = x + (then - now) * v
    return x


SIGMAS = torch.linspace(1, 0, 13).tolist()
MASK = (True, False, False, True, True, False, True, False, False, False, True, False)


def test_reused_velocity_under_euler_is_the_longer_step():
    model = Synthetic(lambda x, t: torch.sin(3 * x) + t)
    longer = [s for s, kept in zip(SIGMAS, MASK, strict=False) if kept] + [0.0]
    expected = euler(model, longer)
    policy = DiffusionPolicy(Velocity(), Mask(steps=MASK), Reuse())
    with accelerated(model, policy):
        assert torch.allclose(euler(model, SIGMAS), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "policy"),
    [
        (lambda x, t: 2 * t - 1 + 0 * x, DiffusionPolicy(predictor=Taylor(1, "sigma"))),
        (lambda x, t: 3.0 + 0 * x, DiffusionPolicy(predictor=Reuse())),
        (lambda x, t: x + 2.0, DiffusionPolicy(Transform(), predictor=Reuse())),
    ],
    ids=["linear in the clock", "constant", "latent plus constant"],
)
def test_what_a_forecast_is_exact_on(function, policy):
    policy = DiffusionPolicy(policy.site, Interval(every=4, warmup=2), policy.predictor)
    model = Synthetic(function)
    expected, plain = euler(model, SIGMAS), model.calls
    with accelerated(model, policy):
        assert torch.allclose(euler(model, SIGMAS), expected, atol=1e-5)
    assert model.calls - plain < plain


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("gate", GATES, ids=lambda g: type(g).__name__)
def test_every_gate_takes_every_predictor_at_every_site(model, expected, site, gate):
    for predictor in PREDICTORS:
        policy = DiffusionPolicy(site, gate, predictor)
        with accelerated(model, policy) as acceleration:
            first = sample(FLUX, model, 6)
            computed = acceleration.report().computed
            assert torch.equal(first, sample(FLUX, model, 6))  # nothing is left over
        assert 1 <= computed < 6, predictor
        assert torch.isfinite(first).all()


@pytest.mark.parametrize("policy", [Span(), Modules(), Velocity()], ids=str)
def test_an_abandoned_generation_leaves_no_trace(model, policy):
    with accelerated(model, DiffusionPolicy(policy, Interval(every=3), Taylor(1))):
        alone = sample(FLUX, model, 7, seed=1)
    for stop in (1, 2, 5):
        with accelerated(model, DiffusionPolicy(policy, Interval(every=3), Taylor(1))):
            sample(FLUX, model, 9, seed=2, stop=stop)
            assert torch.equal(sample(FLUX, model, 7, seed=1), alone), stop


def test_steps_prompts_and_batches_may_change_between_generations(model):
    runs = [{"steps": 5, "seed": 1}, {"steps": 9, "seed": 2, "batch": 3}, {"steps": 5, "seed": 3}]
    alone = []
    for run in runs:
        with accelerated(model, "fbcache + taylorseer", threshold=0.1):
            alone.append(sample(FLUX, model, **run))
    with accelerated(model, "fbcache + taylorseer", threshold=0.1):
        for run, expected in zip(runs, alone, strict=True):
            assert torch.equal(sample(FLUX, model, **run), expected)


def guided(model, order: str, spec, extra_call: bool = False, **arguments) -> torch.Tensor:
    """Two calls per step, conditional and not, in either order."""
    latent, conditional = FLUX.start(1, seed=5)
    _, unconditional = FLUX.start(1, seed=6)
    sigmas = torch.linspace(1, 0, 9)
    with torch.no_grad(), accelerated(model, spec, **arguments):
        for i in range(8):
            out = {}
            for name in order:
                extra = conditional if name == "c" else unconditional
                out[name] = FLUX.call(model, latent, float(sigmas[i]), extra)
            v = out["u"] + 2 * (out["c"] - out["u"])
            if not (extra_call and i == 3):
                latent = latent + (sigmas[i + 1] - sigmas[i]) * v
    return latent


@pytest.mark.parametrize("spec", ["taylorseer", "fora"])
def test_branches_are_told_by_their_conditioning_in_either_order(model, spec):
    assert torch.equal(guided(model, "cu", spec), guided(model, "uc", spec))


def test_the_first_branch_decides_for_the_step(model):
    latent, conditional = FLUX.start(1, seed=5)
    _, unconditional = FLUX.start(1, seed=6)
    with torch.no_grad(), accelerated(model, "easycache", threshold=0.2) as acceleration:
        for sigma in torch.linspace(1, 0.1, 10):
            for extra in (conditional, unconditional):
                v = FLUX.call(model, latent, float(sigma), extra)
            latent = latent - 0.1 * v
        records = [record for _, record in acceleration.report().steps]
    assert 0 < sum(r.computed == 0 for r in records) < 20
    assert [r.computed for r in records[::2]] == [r.computed for r in records[1::2]]


def test_one_batch_of_both_branches_is_one_request(model):
    latent, conditional = FLUX.start(1, seed=5)
    _, unconditional = FLUX.start(1, seed=6)
    both = {
        name: torch.cat([unconditional[name], conditional[name]])
        if conditional[name].ndim > 2 or name == "pooled_projections"
        else conditional[name]
        for name in conditional
        if name not in ("img_ids", "txt_ids")
    } | {name: conditional[name] for name in ("img_ids", "txt_ids")}
    sigmas = torch.linspace(1, 0, 9)
    with torch.no_grad(), accelerated(model, "taylorseer", every=3):
        for i in range(8):
            u, c = FLUX.call(model, torch.cat([latent, latent]), float(sigmas[i]), both).chunk(2)
            latent = latent + (sigmas[i + 1] - sigmas[i]) * (u + 2 * (c - u))
    assert torch.allclose(latent, guided(model, "uc", "taylorseer", every=3), atol=1e-5)


@pytest.mark.parametrize("site", [Velocity(), Span(), Hidden(), Modules()], ids=str)
@pytest.mark.parametrize(
    "gate", [LatentChange(threshold=0.1, warmup=2), FirstBlock(threshold=0.3)], ids=str
)
def test_split_gives_each_sample_what_it_gets_alone(model, site, gate):
    policy = DiffusionPolicy(site, gate, Taylor(1), batch="split")
    latent, extra = FLUX.start(3, seed=4)
    latent = latent * torch.tensor([0.2, 1.0, 3.0]).view(3, 1, 1)  # they drift at different speeds
    sigmas = torch.linspace(1, 0, 11)

    def run(rows: slice) -> torch.Tensor:
        x = latent[rows]
        given = {n: v if n.endswith("ids") else v[rows] for n, v in extra.items()}
        with torch.no_grad(), accelerated(model, policy) as acceleration:
            for i in range(10):
                x = x + (sigmas[i + 1] - sigmas[i]) * FLUX.call(model, x, float(sigmas[i]), given)
            shares.append([r.computed for _, r in acceleration.report().steps])
        return x

    shares: list[list[float]] = []
    together = run(slice(0, 3))
    assert any(0 < share < 1 for share in shares[0])  # they really disagree
    for i in range(3):
        assert torch.allclose(together[i : i + 1], run(slice(i, i + 1)), atol=1e-5), i


def test_any_computes_everybody_when_one_needs_it(model):
    latent, extra = FLUX.start(2, seed=4)
    latent = latent * torch.tensor([0.2, 3.0]).view(2, 1, 1)
    for batch, allowed in (("any", {0.0, 1.0}), ("all", {0.0, 1.0}), ("split", {0.0, 0.5, 1.0})):
        x = latent
        with torch.no_grad(), accelerated(model, "fbcache", threshold=0.3, batch=batch) as a:
            for sigma in torch.linspace(1, 0.1, 10):
                x = x - 0.1 * FLUX.call(model, x, float(sigma), extra)
            shares = {r.computed for _, r in a.report().steps}
        assert shares <= allowed
    assert 0.5 in shares


def test_requests_on_two_threads_do_not_meet(model):
    with accelerated(model, "fora", every=3):
        alone = [sample(FLUX, model, 6, seed=seed) for seed in (1, 2)]
    results, barrier = {}, threading.Barrier(2)

    def run(seed: int) -> None:
        torch.set_num_threads(1)
        barrier.wait()
        results[seed] = sample(FLUX, model, 6, seed=seed)

    with accelerated(model, "fora", every=3):
        threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(results[1], alone[0])
    assert torch.equal(results[2], alone[1])


def test_interleaved_requests_equal_their_solo_runs(model):
    """Other prompts are told apart; equal prompts by the name of the request."""
    sigmas = torch.linspace(1, 0, 9)

    def step(x, i, extra):
        return x + (sigmas[i + 1] - sigmas[i]) * FLUX.call(model, x, float(sigmas[i]), extra)

    for same_prompt in (False, True):
        starts = [FLUX.start(1, seed=s) for s in (1, 2)]
        extras = [starts[0][1], starts[0][1] if same_prompt else starts[1][1]]
        with torch.no_grad():
            alone = []
            for (x, _), extra in zip(starts, extras, strict=True):
                with accelerated(model, "taylorseer"):
                    for i in range(8):
                        x = step(x, i, extra)
                alone.append(x)
            xs = [x for x, _ in starts]
            with accelerated(model, "taylorseer") as acceleration:
                for i in range(8):
                    for r in range(2):
                        if r == 1 and i > 4:
                            continue  # the second is aborted midway
                        with acceleration.request(f"request {r}"):
                            xs[r] = step(xs[r], i, extras[r])
        assert torch.equal(xs[0], alone[0])


def test_two_models_of_one_class_are_independent():
    one, other = FLUX.build(), FLUX.build()
    plain = sample(FLUX, other, 5)
    with accelerated(one, "fora"), accelerated(other, "taylorseer"):
        restore(one)
        assert not torch.equal(sample(FLUX, other, 5), plain)
        assert torch.equal(sample(FLUX, one, 5), plain)
    assert torch.equal(sample(FLUX, other, 5), plain)


def test_other_hooks_stay_whichever_goes_first(model, expected):
    from diffusers.hooks import HookRegistry, ModelHook

    class Doubling(ModelHook):
        def new_forward(self, module, *args, **kwargs):
            return (2 * self.fn_ref.original_forward(*args, **kwargs)[0],)

    registry = HookRegistry.check_if_exists_or_initialize(model)
    acceleration = accelerate(model, "taylorseer", every=1)
    registry.register_hook(Doubling(), "doubling")
    doubled = sample(FLUX, model, 6)
    acceleration.restore()
    assert torch.equal(sample(FLUX, model, 6), doubled)
    registry.remove_hook("doubling")
    assert torch.equal(sample(FLUX, model, 6), expected)


def test_a_fault_of_ours_leaves_the_generation_uncached(model, expected, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(Reuse, "predict", broken)
    for site in (Velocity(), Span(), Modules()):
        policy = DiffusionPolicy(site, Interval(every=3), Reuse())
        warned = pytest.warns(RuntimeWarning, match="goes on uncached")
        with accelerated(model, policy), warned:
            assert torch.equal(sample(FLUX, model, 6), expected)


def test_an_exception_of_the_model_is_the_callers_and_frees_the_state(model):
    with accelerated(model, "fora") as acceleration:
        alone = sample(FLUX, model, 6)
        sample(FLUX, model, 6, stop=3)
        hook = model.proj_out.register_forward_hook(lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample(FLUX, model, 6)
        hook.remove()
        assert acceleration.nbytes == 0
        assert torch.equal(sample(FLUX, model, 6), alone)


def test_the_report_counts_what_really_ran(model):
    with counted(model) as one:
        sample(FLUX, model, 1)
    with accelerated(model, "taylorseer", every=3) as acceleration, counted(model) as ran:
        sample(FLUX, model, 9)
        assert len(ran) == acceleration.report().computed * len(one)
    assert "evaluations computed" in str(acceleration.report())


def test_state_is_never_saved_with_the_model(model):
    before = set(model.state_dict())
    with accelerated(model, "fora") as acceleration:
        sample(FLUX, model, 3)
        assert acceleration.nbytes > 0
        assert set(model.state_dict()) == before
    assert acceleration.nbytes == 0


def test_state_over_the_limit_is_refused_before_anything_is_skipped(model):
    with (
        accelerated(model, "fora", limit=1000),
        pytest.raises(RecipeError, match="over the limit of 1,000"),
    ):
        sample(FLUX, model, 3)
    with accelerated(model, "taylorseer", limit=1000):
        sample(FLUX, model, 3)


def test_one_step_is_computed(model):
    with accelerated(model, "taylorseer"):
        assert torch.equal(sample(FLUX, model, 1), sample(FLUX, model, 1))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: object(), "has no denoiser"),
        (lambda: torch.nn.Linear(2, 2), "takes none of timestep"),
    ],
)
def test_what_cannot_be_accelerated_is_refused(target, message):
    with pytest.raises(HostError, match=message):
        accelerate(target(), "taylorseer")


def test_twice_is_refused_and_the_first_stays(model):
    with accelerated(model, "taylorseer") as acceleration:
        with pytest.raises(HostError, match="accelerated already"):
            accelerate(model, "fora")
        sample(FLUX, model, 3)
        assert acceleration.report().evaluations == 3


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [("snapkv", {}), ("taylorseer", {"speed": 3}), ("taylorseeer", {}), ("fora", {"batch": "x"})],
)
def test_wrong_recipes_are_refused(model, spec, arguments):
    with pytest.raises(RecipeError):
        accelerate(model, spec, **arguments)
    assert not hasattr(model, "_diffusers_hook")
