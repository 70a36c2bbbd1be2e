"""Region-aware editing with a trained model: in a pipeline of diffusers, and what it is worth."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline

import recollect
from recollect.diffusion.artefacts import Artefact
from recollect.diffusion.editing import calibrate_decay, edit
from recollect.diffusion.editing.decay import KIND, VelocityDecay
from recollect.diffusion.editing.loop import euler
from recollect.diffusion.policy import policy
from recollect.errors import HostError, RecipeError
from recollect.evaluate.pictures import psnr
from recollect.zoo import edits as zoo
from recollect.zoo.edits import sampling

REGIONS = {"similarity": 0.93, "erode": 1, "dilate": 1}


@pytest.fixture(scope="module")
def loaded():
    return zoo.load("tiny-flux-edit")


def levels(steps: int) -> list[float]:
    return [1 - n / steps for n in range(steps)]


def given(loaded, count: int, seed: int):
    """A set of edits, and the arguments of `edit` for them."""
    pairs = zoo.draw_edits(count, torch.Generator().manual_seed(seed))
    prompt = loaded[1](pairs.instructions)
    return pairs, {
        "noise": sampling.noise(count, seed),
        "picture": sampling.pack(pairs.before),
        "ids": sampling.positions(),
        "text": prompt.words,
        "pooled": prompt.pooled,
    }


def test_a_pipeline_of_diffusers_edits_by_regions_unchanged(loaded):
    """Kontext's own pipeline, with pictures for latents, gives what the loop gives."""
    pairs, arguments = given(loaded, 2, 0)
    pipe = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL(latent_channels=3, block_out_channels=(4,), norm_num_groups=2),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=loaded[0],
    )
    pipe.set_progress_bar_config(disable=True)

    def run() -> torch.Tensor:
        return pipe(
            image=pairs.before,
            prompt_embeds=arguments["text"],
            pooled_prompt_embeds=arguments["pooled"],
            latents=arguments["noise"],
            height=16,
            width=16,
            max_area=256,
            num_inference_steps=12,
            output_type="latent",
        ).images

    plain = run()
    assert torch.allclose(
        plain, edit(loaded[0], sigmas=levels(12), spec=None, **arguments), atol=1e-4
    )
    chosen = policy("regione", warmup=3, refresh=2, **REGIONS)
    with recollect.accelerated(pipe, chosen) as acceleration:
        region = run()
        shares = [record.computed for _, record in acceleration.report().steps]
    wanted = edit(loaded[0], sigmas=levels(12), spec=chosen, **arguments)
    assert torch.allclose(region, wanted, atol=1e-4)
    assert not torch.allclose(region, plain, atol=1e-3)
    assert [share < 1 for share in shares] == [False] * 3 + [True, True, False] * 2 + [
        True,
        False,
        False,
    ]
    assert torch.equal(run(), plain)


@pytest.fixture(scope="module")
def decay(loaded, tmp_path_factory):
    """A decay fitted on 12 steps."""
    pairs, _ = given(loaded, 4, 5)
    pipe = SimpleNamespace(transformer=loaded[0], scheduler=euler(levels(12)))
    prompt = loaded[1](pairs.instructions)

    def run() -> None:
        latent, picture = sampling.noise(4, 77), sampling.pack(pairs.before)
        with torch.no_grad():
            for time in pipe.scheduler.timesteps:
                level = (time / 1000).expand(4)
                guess = sampling.velocity(loaded[0], latent, picture, level, prompt)
                latent = pipe.scheduler.step(guess, time, latent, return_dict=False)[0]

    path = tmp_path_factory.mktemp("decay") / "decay.safetensors"
    calibrate_decay(pipe, run, **REGIONS).save(path)
    return str(path)


def test_a_decay_is_one_number_per_step_and_leaves_steps_out(loaded, decay):
    fitted = VelocityDecay.of(Artefact.load(decay, KIND))
    assert len(fitted.gamma) == 11
    assert all(0.7 < fitted.ratio(step) < 1.2 for step in range(1, 12))
    _, arguments = given(loaded, 2, 1)
    chosen = {"warmup": 3, "refresh": 3, **REGIONS}
    plain = edit(loaded[0], sigmas=levels(12), spec="regione", **arguments, **chosen)
    never, always = (
        edit(loaded[0], sigmas=levels(12), spec="regione", decay=decay, delta=delta, **arguments,
             **chosen)
        for delta in (-1.0, 1.0)
    )  # fmt: skip
    assert torch.equal(never, plain)
    assert not torch.equal(always, plain)


def test_a_decay_of_another_schedule_or_model_is_refused(loaded, decay):
    _, arguments = given(loaded, 1, 1)
    with pytest.raises(RecipeError, match="calibrate it again"):
        edit(loaded[0], sigmas=levels(10), spec="regione", decay=decay, **arguments)
    other = type(loaded[0]).from_config(loaded[0].config)
    with pytest.raises(HostError, match="another model"):
        edit(other, sigmas=levels(12), spec="regione", decay=decay, **arguments)


def test_a_decay_with_the_ratios_of_the_velocities_is_exact():
    fitted = VelocityDecay((1.02, 1.0), (1.0, 0.9, 0.8))
    assert fitted.ratio(1) == pytest.approx(1.02 * 0.9)
    assert fitted.ratio(2) == pytest.approx(0.9)


@pytest.mark.parametrize("seed", [1000, 2000])
def test_bank_and_refresh_are_worth_it_and_so_is_the_whole_against_fewer_steps(loaded, seed):
    """At 28 steps: without bank or refresh it is worse; fewer steps of more FLOPs are too."""
    _, arguments = given(loaded, 4, seed)

    def decibels(steps: int, spec: str | None, **changed) -> float:
        found = edit(loaded[0], sigmas=levels(steps), spec=spec, **arguments, **changed)
        return float(psnr(sampling.unpack(found), plain).mean())

    plain = sampling.unpack(edit(loaded[0], sigmas=levels(28), spec=None, **arguments))
    chosen = {**REGIONS, "refresh": 2}  # 56% of the FLOPs
    whole = decibels(28, "regione", **chosen)
    assert whole > decibels(28, "regione", **{**chosen, "refresh": 99}) + 3
    assert whole > decibels(28, "regione", **chosen, bank=False) + 3
    assert whole > decibels(17, None) + 1  # 61%
