"""Region-aware editing: what runs, what jumps, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from denoisers import TEXT, denoiser
from hypothesis import given
from hypothesis import strategies as st

from recollect.diffusion.banks.bank import KVBank
from recollect.diffusion.banks.partial import Partial
from recollect.diffusion.editing import RegionEdit, edit, editing
from recollect.diffusion.editing.loop import euler
from recollect.diffusion.editing.regions import Layout, dilated, edited, eroded
from recollect.diffusion.engine.attach import accelerate
from recollect.diffusion.policy import policy
from recollect.errors import HostError, RecipeError

FLUX = denoiser("FluxTransformer2DModel")
(CHANNELS,), HEIGHT, WIDTH = FLUX.latent[1:], 4, 5
TOKENS = HEIGHT * WIDTH
SIGMAS = [1.0, 0.9, 0.75, 0.6, 0.4, 0.3, 0.2, 0.1]


@pytest.fixture(scope="module")
def model():
    return FLUX.build()


def grid_ids(flags=(0, 1), height=HEIGHT, width=WIDTH) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    each = [torch.stack([torch.full_like(rows, f), rows, columns], -1).flatten(0, 1) for f in flags]
    return torch.cat(each).float()


def request(batch=1, seed=0) -> dict[str, torch.Tensor]:
    """Arguments of `edit`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator)

    return {
        "noise": normal(TOKENS, CHANNELS),
        "picture": normal(TOKENS, CHANNELS),
        "ids": grid_ids(),
        "text": normal(TEXT, 32),
        "pooled": normal(16),
    }


def run(model, spec, batch=1, seed=0, sigmas=SIGMAS, **arguments) -> torch.Tensor:
    return edit(model, sigmas=sigmas, spec=spec, **request(batch, seed), **arguments)


def small(**changed) -> RegionEdit:
    given = {"warmup": 2, "refresh": 2, "tail": 1, "erode": 1, "dilate": 1, **changed}
    return RegionEdit(**given)


# -- the whole -------------------------------------------------------------------------------------


def test_everything_edited_is_the_uncached_edit_to_the_bit(model):
    plain = run(model, None, batch=2)
    region = run(model, "regione", batch=2, warmup=2, refresh=2, tail=1, erode=1, dilate=1,
                 similarity=1.1)  # fmt: skip
    assert torch.equal(plain, region)


def test_no_steps_on_a_region_is_the_uncached_edit_to_the_bit(model):
    assert torch.equal(run(model, None), run(model, "regione", refresh=0, similarity=-1.1))


def test_nothing_edited_is_one_longer_euler_step(model):
    """The tokens jump from each whole step to the next: Euler on the whole steps' levels."""
    sparse = [SIGMAS[i] for i in (0, 1, 4, 7)]  # warm-up, its last, refresh, tail
    assert small().stops(len(SIGMAS)) == [1, 4, 7]
    jumped = run(model, "regione", batch=2, warmup=2, refresh=2, tail=1, similarity=-1.1)
    assert torch.allclose(jumped, run(model, None, batch=2, sigmas=sparse), atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(model):
    """Ragged regions are padded, whole ones and empty ones run on their own."""
    arguments = request(4)
    picture = arguments["picture"]
    picture[0] = 100  # nothing is edited where estimate and picture agree
    spec = policy("regione", warmup=2, refresh=3, tail=1, erode=1, dilate=1, similarity=0.1)
    together = edit(model, sigmas=SIGMAS, spec=spec, **arguments)
    for row in range(4):
        alone = {n: t if n == "ids" else t[row : row + 1] for n, t in arguments.items()}
        assert torch.allclose(edit(model, sigmas=SIGMAS, spec=spec, **alone)[0], together[row],
                              atol=1e-4)  # fmt: skip


def test_only_the_region_and_the_text_run_between_whole_steps(model):
    seen: list[int] = []
    handle = model.x_embedder.register_forward_hook(lambda m, a, o: seen.append(o.shape[1]))
    spec = policy("regione", warmup=2, refresh=2, tail=1, erode=1, dilate=1, similarity=0.0)
    scheduler, arguments = euler(SIGMAS), request()
    latent = arguments["noise"]
    with editing(model, scheduler, spec) as acceleration, torch.no_grad():
        for time in scheduler.timesteps:
            velocity = call(model, latent, arguments, time / 1000)
            latent = scheduler.step(velocity, time, latent, return_dict=False)[0]
        report = acceleration.report()
        assert acceleration.nbytes > 0
    handle.remove()
    whole = 2 * TOKENS
    assert [seen[i] == whole for i in range(8)] == [i in (0, 1, 4, 7) for i in range(8)]
    assert all(0 < n < TOKENS for n in seen if n != whole)
    shares = [record.computed for _, record in report.steps]
    assert shares == pytest.approx([n / whole for n in seen])


def call(model, latent, arguments, level) -> torch.Tensor:
    return model(
        hidden_states=torch.cat([latent, arguments["picture"]], 1),
        encoder_hidden_states=arguments["text"],
        pooled_projections=arguments["pooled"],
        timestep=torch.as_tensor(level).expand(len(latent)),
        img_ids=arguments["ids"],
        txt_ids=torch.zeros(TEXT, 3),
        return_dict=False,
    )[0][:, :TOKENS]


# -- the map ---------------------------------------------------------------------------------------


def marked(*places: tuple[int, int], size: int = 7) -> torch.Tensor:
    grid = torch.zeros(1, size, size, dtype=torch.bool)
    for row, column in places:
        grid[0, row, column] = True
    return grid


def test_a_speck_vanishes_and_a_patch_grows_from_its_centre():
    assert not dilated(eroded(marked((3, 3)), 3), 5).any()
    patch = marked(*((r, c) for r in (2, 3, 4) for c in (2, 3, 4)))
    assert torch.equal(eroded(patch, 3), marked((3, 3)))
    grown = dilated(eroded(patch, 3), 5)
    assert torch.equal(grown, marked(*((r, c) for r in range(1, 6) for c in range(1, 6))))


@given(st.integers(0, 2**49 - 1), st.sampled_from([1, 3, 5]))
def test_erosion_takes_away_and_dilation_adds(bits, width):
    grid = torch.tensor([(bits >> n) & 1 for n in range(49)], dtype=torch.bool).view(1, 7, 7)
    assert not (eroded(grid, width) & ~grid).any()
    assert not (grid & ~dilated(grid, width)).any()
    if width == 1:
        assert torch.equal(eroded(grid, 1), grid)
        assert torch.equal(dilated(grid, 1), grid)


def test_tokens_are_edited_where_the_direction_changes_whatever_the_length():
    layout = Layout.of(grid_ids())
    picture = torch.randn(1, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1))
    estimate = 3 * picture
    estimate[:, 7] = -picture[:, 7]
    found = edited(estimate, picture, layout, 0.9, 1, 1)
    assert found.nonzero().tolist() == [[0, 7]]
    assert edited(picture, picture, layout, 1.1, 1, 1).all()


# -- the bank --------------------------------------------------------------------------------------


class Holder:
    """What `Partial` asks of a session and of the installation of hooks."""

    def __init__(self, model):
        from recollect.diffusion.host.call import Signature
        from recollect.diffusion.host.hooks import Installed

        self.signature = Signature.of(model, model.forward)
        self.installed = Installed()


def test_with_all_or_unchanged_tokens_the_bank_gives_ordinary_attention(model):
    """All tokens selected, and some selected while the others are as they were."""
    holder, arguments = Holder(model), request(2)
    partial = Partial(model, holder, holder.installed, "test")
    named = {
        "hidden_states": torch.cat([arguments["noise"], arguments["picture"]], 1),
        "encoder_hidden_states": arguments["text"],
        "pooled_projections": arguments["pooled"],
        "timestep": torch.full((2,), 0.5),
        "img_ids": arguments["ids"],
        "txt_ids": torch.zeros(TEXT, 3),
        "return_dict": False,
    }
    try:
        with torch.no_grad():
            plain = model(**named)[0]
            bank = KVBank()
            kept = partial.whole(model, named, bank)[0]
            everyone = torch.ones(2, dtype=torch.bool)
            whole = partial.tokens(
                model, named, bank, torch.ones(2, 2 * TOKENS, dtype=torch.bool), everyone
            )
            some = torch.zeros(2, TOKENS, dtype=torch.bool)
            some[0, [1, 5, 6]] = some[1, [0, 19]] = True
            part = partial.tokens(model, named, bank, some, everyone)
    finally:
        holder.installed.remove()
    assert torch.equal(kept, plain)
    assert torch.allclose(whole, plain, atol=1e-5)
    assert torch.allclose(part[some], plain[:, :TOKENS][some], atol=1e-5)
    assert not part[~some].any()
    assert bank.nbytes == 4 * 2 * 2 * (2 * TOKENS) * 32 * 4  # layers x KV x batch x tokens x width


# -- refusals and leaving --------------------------------------------------------------------------


def test_restoring_leaves_no_trace(model):
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    run(model, "regione", warmup=2, refresh=2, tail=1)
    after = {name: dict(module.__dict__) for name, module in model.named_modules()}
    assert before.keys() == after.keys()
    assert all(before[name].keys() == after[name].keys() for name in before)


def test_an_abandoned_edit_leaves_the_next_one_alone(model):
    spec = policy("regione", warmup=2, refresh=3, tail=1, erode=1, dilate=1, similarity=0.0)
    fresh = run(model, spec, seed=1)
    scheduler, arguments = euler(SIGMAS), request()
    with editing(model, scheduler, spec), torch.no_grad():
        for time in scheduler.timesteps[:4]:
            call(model, arguments["noise"], arguments, time / 1000)
        latent, other = request(seed=1)["noise"], request(seed=1)
        scheduler.set_timesteps(sigmas=SIGMAS)
        for time in scheduler.timesteps:
            velocity = call(model, latent, other, time / 1000)
            latent = scheduler.step(velocity, time, latent, return_dict=False)[0]
    assert torch.equal(latent, fresh)


def test_branches_of_guidance_share_the_map_and_keep_banks_of_their_own(model):
    """Guidance with two equal branches is the edit without guidance."""
    spec = policy("regione", warmup=2, refresh=3, tail=1, erode=1, dilate=1, similarity=0.0)
    single = run(model, spec)
    scheduler, arguments = euler(SIGMAS), request()
    other = {**arguments, "text": arguments["text"] + 1e-6}
    latent = arguments["noise"]
    with editing(model, scheduler, spec) as acceleration, torch.no_grad():
        for time in scheduler.timesteps:
            one, two = (call(model, latent, named, time / 1000) for named in (arguments, other))
            latent = scheduler.step(two + 2.0 * (one - two), time, latent, return_dict=False)[0]
        assert len({record.branch for _, record in acceleration.report().steps}) == 2
    assert torch.allclose(latent, single, atol=1e-3)


def test_halves_of_batched_guidance_share_the_map(model):
    """Two prompts on one picture in one batch: what one of them edits runs for both."""
    arguments = {n: t if n == "ids" else t.repeat(2, 1, 1)[: 2] if t.ndim == 3 else t.repeat(2, 1)
                 for n, t in request().items()}  # fmt: skip
    arguments["text"] = request(2, seed=3)["text"]
    scheduler = euler(SIGMAS)
    spec = policy("regione", warmup=2, refresh=3, tail=1, erode=1, dilate=1, similarity=0.0)
    latent = arguments["noise"]
    with editing(model, scheduler, spec) as acceleration, torch.no_grad():
        for time in scheduler.timesteps[:2]:
            velocity = call(model, latent, arguments, time / 1000)
            one, two = velocity.chunk(2)
            step = scheduler.step((one + two) / 2, time, latent[:1], return_dict=False)[0]
            latent = step.repeat(2, 1, 1)
        (session,) = acceleration.sessions.values()
        (branch,) = session.branches
        found = branch.beside["regione"].map
    assert torch.equal(found[0], found[1])
    assert found.any()
    assert not found.all()


@pytest.mark.parametrize("argument", [{"warmup": 0}, {"erode": 2}, {"dilate": 0}, {"tail": -1}])
def test_wrong_arguments_are_refused(argument):
    with pytest.raises(RecipeError):
        policy("regione", **argument)


def test_what_it_cannot_work_with_is_refused(model):
    with pytest.raises(RecipeError, match="decides itself"):
        accelerate(model, "regione + taylorseer")
    with accelerate(model, "regione"), pytest.raises(HostError, match="noise levels to come"):
        call(model, request()["noise"], request(), 0.5)
    with pytest.raises(HostError, match="same height and width"):
        edit(model, sigmas=SIGMAS, **{**request(), "ids": grid_ids((0, 1), WIDTH, HEIGHT)}
             | {"ids": torch.cat([grid_ids((0,)), grid_ids((1,), WIDTH, HEIGHT)])})  # fmt: skip
    with pytest.raises(HostError, match="tokens of a picture"):
        Layout.of(grid_ids((0,)))
    with pytest.raises(RecipeError, match="falling noise levels"):
        edit(model, sigmas=[0.5, 0.5], **request())
    with pytest.raises(RecipeError, match="over the limit"):
        run(model, "regione", warmup=2, refresh=2, tail=1, limit=1000)
