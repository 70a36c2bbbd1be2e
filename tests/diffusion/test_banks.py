"""Condition tokens run once: exactly what the masked joint sequence gives, and never again."""

from __future__ import annotations

import pytest
import torch
from denoisers import TEXT, denoiser
from diffusers.models.embeddings import apply_rotary_emb

from recollect.diffusion.artefacts import Artefact, fingerprint
from recollect.diffusion.banks.conditions import LearningBank, condition_ids
from recollect.diffusion.banks.lora import KIND, new_adapter, train_condition
from recollect.diffusion.engine.attach import accelerated
from recollect.diffusion.policy import DiffusionPolicy, policy
from recollect.diffusion.schedules import Interval
from recollect.errors import HostError, RecipeError

FLUX = denoiser("FluxTransformer2DModel")
(CHANNELS,), GRID, SMALL = FLUX.latent[1:], (3, 4), (2, 2)
TOKENS = GRID[0] * GRID[1]
IDS = torch.cat([condition_ids(0, GRID, GRID), condition_ids(1, SMALL, GRID),
                 condition_ids(2, GRID, GRID, shift=(0, 4))])  # fmt: skip
FLAGS = IDS[:, 0]


@pytest.fixture(scope="module")
def model():
    return FLUX.build()


@pytest.fixture
def adapter(model, tmp_path):
    """A file with an adapter that changes something, and its weights."""
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: (down.detach(), 0.3 * torch.randn(up.shape, generator=generator))
        for name, (down, up) in new_adapter(model, rank=2).items()
    }
    tensors = {f"{n}.{k}": t for n, pair in weights.items() for k, t in zip(("down", "up"), pair)}  # noqa: B905
    path = tmp_path / "adapter.safetensors"
    Artefact(KIND, fingerprint(model), {}, tensors).save(path)
    return str(path), weights


def request(batch=2, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator)

    return {
        "hidden_states": normal(len(IDS), CHANNELS),
        "encoder_hidden_states": normal(TEXT, 32),
        "pooled_projections": normal(16),
        "timestep": torch.full((batch,), 0.7),
        "img_ids": IDS,
        "txt_ids": torch.zeros(TEXT, 3),
        "return_dict": False,
    }


def result(model, named) -> torch.Tensor:
    with torch.no_grad():
        return model(**named)[0][:, :TOKENS]


def allowed(ids: torch.Tensor) -> torch.Tensor:
    """EasyControl's mask: text and result see all, a condition sees itself."""
    numbers = torch.cat([torch.zeros(TEXT), ids[:, 0]])
    return (numbers[:, None] == 0) | (numbers[:, None] == numbers)


def oracle(model, named, weights=None, mask=True) -> torch.Tensor:
    """One joint sequence with mask, noise level and adapters per token, spelled out."""
    ids, weights = named["img_ids"], weights or {}
    condition = ids[:, 0] > 0
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}

    def linear(layer, x):
        """A layer, with the adapter added where tokens are conditions."""
        down, up = weights.get(names[layer], (None, None))
        out = layer(x)
        if down is not None:
            at = (
                condition
                if x.shape[1] == len(ids)
                else torch.cat([torch.zeros(TEXT) > 0, condition])
            )
            out = out + (x @ down.T @ up.T) * at[:, None]
        return out

    here = model.time_text_embed(named["timestep"] * 1000, named["pooled_projections"])
    there = model.time_text_embed(
        0 * named["timestep"], torch.zeros_like(named["pooled_projections"])
    )
    both = torch.where(condition[:, None], there[:, None], here[:, None])  # (B, N, W)

    def modulation(norm, emb, parts):
        return norm.linear(torch.nn.functional.silu(emb)).chunk(parts, -1)

    def ln(x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)

    def heads(x):
        return x.unflatten(-1, (2, 16))

    rope = model.pos_embed(torch.cat([named["txt_ids"], ids]))
    seen = allowed(ids) if mask else None

    def attention(q, k, v):
        q, k = (apply_rotary_emb(t, rope, sequence_dim=1) for t in (q, k))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return out.transpose(1, 2).flatten(2)

    x = model.x_embedder(named["hidden_states"])
    y = model.context_embedder(named["encoder_hidden_states"])
    for block in model.transformer_blocks:
        a = block.attn
        sx, cx, gx, sm, cm, gm = modulation(block.norm1, both, 6)
        sy, cy, gy, tm, dm, hm = modulation(block.norm1_context, here[:, None], 6)
        nx, ny = ln(x) * (1 + cx) + sx, ln(y) * (1 + cy) + sy
        q = torch.cat(
            [a.norm_added_q(heads(a.add_q_proj(ny))), a.norm_q(heads(linear(a.to_q, nx)))], 1
        )
        k = torch.cat(
            [a.norm_added_k(heads(a.add_k_proj(ny))), a.norm_k(heads(linear(a.to_k, nx)))], 1
        )
        v = torch.cat([heads(a.add_v_proj(ny)), heads(linear(a.to_v, nx))], 1)
        out = attention(q, k, v)
        x = x + gx * linear(a.to_out[0], out[:, TEXT:])
        y = y + gy * a.to_add_out(out[:, :TEXT])
        inner = linear(block.ff.net[0].proj, ln(x) * (1 + cm) + sm)
        x = x + gm * linear(block.ff.net[2], torch.nn.functional.gelu(inner, approximate="tanh"))
        y = y + hm * block.ff_context(ln(y) * (1 + dm) + tm)
    joint = torch.cat([y, x], 1)
    every = torch.cat([here[:, None].expand(-1, TEXT, -1), both.expand(len(x), -1, -1)], 1)
    for block in model.single_transformer_blocks:
        a = block.attn
        shift, scale, gate = modulation(block.norm, every, 3)
        n = ln(joint) * (1 + scale) + shift
        out = attention(
            a.norm_q(heads(linear(a.to_q, n))),
            a.norm_k(heads(linear(a.to_k, n))),
            heads(linear(a.to_v, n)),
        )
        mlp = block.act_mlp(linear(block.proj_mlp, n))
        joint = joint + gate * linear(block.proj_out, torch.cat([out, mlp], 2))
    scale, shift = modulation(model.norm_out, here[:, None], 2)
    return model.proj_out(ln(joint[:, TEXT : TEXT + TOKENS]) * (1 + scale) + shift)


def test_the_oracle_is_the_model_where_nothing_is_a_condition(model):
    named = request()
    named |= {"hidden_states": named["hidden_states"][:, :TOKENS], "img_ids": IDS[:TOKENS]}
    with torch.no_grad():
        assert torch.allclose(oracle(model, named), result(model, named), atol=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_every_step_is_what_the_masked_sequence_gives(model, adapter, adapted):
    path, weights = adapter
    chosen = policy("easycontrol", lora=path if adapted else ())
    with accelerated(model, chosen):
        for seed, level in enumerate([1.0, 0.6, 0.2]):
            named = request(seed=0)
            moved = request(seed=seed)["hidden_states"][:, :TOKENS]
            named["hidden_states"][:, :TOKENS] = moved
            named["timestep"] = torch.full((2,), level)
            with torch.no_grad():
                wanted = oracle(model, named, weights if adapted else None)
                unmasked = oracle(model, named, weights if adapted else None, mask=False)
            found = result(model, named)
            assert torch.allclose(found, wanted, atol=1e-5)
            assert not torch.allclose(found, unmasked, atol=1e-3)


def banks(acceleration) -> dict[int, dict[str, torch.Tensor]]:
    """Keys of every condition, by layer."""
    (session,) = acceleration.sessions.values()
    (branch,) = session.branches
    slots = branch.beside["conditions"].slots
    return {
        n: {layer: pair[0].clone() for layer, pair in s.bank.layers.items()}
        for n, s in slots.items()
    }


def equal(one, other) -> bool:
    return all(torch.equal(one[layer], other[layer]) for layer in one)


def test_text_and_noise_leave_the_bank_alone_and_a_condition_changes_its_slice(model):
    with accelerated(model, "easycontrol") as acceleration:
        named = request()
        result(model, named)
        first = banks(acceleration)
        assert sorted(first) == [1, 2]
        noisier = {**named, "timestep": torch.full((2,), 0.5),
                   "hidden_states": named["hidden_states"].clone()}  # fmt: skip
        noisier["hidden_states"][:, :TOKENS] *= 1.1
        result(model, noisier)
        assert all(equal(first[n], banks(acceleration)[n]) for n in first)
        acceleration.reset()
        result(
            model,
            {
                **noisier,
                **{n: request(seed=9)[n] for n in ("encoder_hidden_states", "pooled_projections")},
            },
        )
        assert all(equal(first[n], banks(acceleration)[n]) for n in first)
        noisier["hidden_states"][:, FLAGS == 2] += 0.1
        noisier["timestep"] = torch.full((2,), 0.4)
        acceleration.reset()
        result(model, noisier)
        assert equal(first[1], banks(acceleration)[1])
        assert not equal(first[2], banks(acceleration)[2])
        assert acceleration.nbytes > 0
        acceleration.reset()
        assert acceleration.nbytes == 0


def test_conditions_run_once_and_then_no_layer_sees_them(model):
    seen: list[int] = []
    handle = model.x_embedder.register_forward_hook(lambda m, a, o: seen.append(o.shape[1]))
    with accelerated(model, "easycontrol"):
        for level in (0.9, 0.8, 0.7):
            result(model, {**request(), "timestep": torch.full((2,), level)})
    handle.remove()
    assert seen == [4, TOKENS, TOKENS, TOKENS, TOKENS]


def test_computing_conditions_on_every_step_gives_the_same_bits(model):
    named, later = request(), {**request(), "timestep": torch.full((2,), 0.3)}
    outputs = []
    for reuse in (True, False):
        with accelerated(model, "easycontrol", reuse=reuse):
            outputs.append((result(model, named), result(model, later)))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_an_adapter_touches_nothing_but_conditions(model, adapter):
    path, _ = adapter
    named = request()
    alone = {**named, "hidden_states": named["hidden_states"][:, :TOKENS], "img_ids": IDS[:TOKENS]}
    plain = result(model, alone)
    with accelerated(model, "easycontrol", lora=path):
        assert torch.equal(result(model, alone), plain)
    whole = result(model, named)
    with accelerated(model, "easycontrol", lora=path, first=3):  # nothing is a condition then
        assert torch.equal(result(model, named), whole)


def test_an_adapter_learns_through_the_bank(model, adapter):
    """From nothing to what another adapter does."""
    with accelerated(model, "easycontrol", lora=adapter[0]):
        wanted = result(model, request(batch=1))
    weights = new_adapter(model, rank=2)
    chosen = DiffusionPolicy(gate=Interval(every=1), companions=(LearningBank(weights=weights),))
    losses: list[float] = []
    with accelerated(model, chosen):

        def loss() -> torch.Tensor:
            found = model(**request(batch=1))[0][:, :TOKENS]
            error = torch.nn.functional.mse_loss(found, wanted)
            losses.append(error.item())
            return error

        artefact = train_condition(model, weights, loss, steps=10, rate=5e-2)
    assert losses[-1] < 0.5 * losses[0]
    artefact.check(model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_restoring_leaves_no_trace(model, adapter):
    before = {name: set(module.__dict__) for name, module in model.named_modules()}
    with accelerated(model, "easycontrol", lora=adapter[0]):
        result(model, request())
    assert before == {name: set(module.__dict__) for name, module in model.named_modules()}


def test_wrong_adapters_and_arguments_are_refused(model, adapter):
    path, _ = adapter
    with pytest.raises(RecipeError, match="level"):
        policy("easycontrol", level=2.0)
    with (
        accelerated(model, "easycontrol", lora=(path,) * 3),
        pytest.raises(HostError, match="3 adapters"),
    ):
        result(model, request())
    torch.manual_seed(1)
    other = type(model).from_config(model.config)
    with pytest.raises(HostError, match="another model"):
        accelerated(other, "easycontrol", lora=path).__enter__()


# -- references that see noise ---------------------------------------------------------------------


def test_renewing_on_every_step_is_the_untouched_model(model):
    named = request()
    plain = result(model, named)
    with accelerated(model, "reference-bank", renew=1):
        assert torch.equal(result(model, named), plain)


def test_between_renewals_the_references_are_frozen_and_do_not_run(model):
    named, seen = request(), []
    later = {**named, "timestep": torch.full((2,), 0.6)}
    plain, first = result(model, later), result(model, named)
    handle = model.x_embedder.register_forward_hook(lambda m, a, o: seen.append(o.shape[1]))
    with accelerated(model, "reference-bank", renew=2) as acceleration:
        assert torch.equal(result(model, named), first)
        frozen = result(model, later)
        result(model, {**named, "timestep": torch.full((2,), 0.5)})
        shares = [record.computed for _, record in acceleration.report().steps]
    handle.remove()
    assert seen == [len(IDS), TOKENS, len(IDS)]
    assert shares == pytest.approx([1, TOKENS / len(IDS), 1])
    assert not torch.equal(frozen, plain)
    assert torch.allclose(frozen, plain, atol=0.2)
