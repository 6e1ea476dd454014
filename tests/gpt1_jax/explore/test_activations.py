"""Captured and patched activations: what stays as it is without them, transformations, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial
from support.compilations import compilations
from support.small_models import MODELS, difference, random_ids, small_model

import gpt1_jax as gpt1
from gpt1_jax.explore.activations import match_sites
from gpt1_jax.model import lm_logits
from gpt1_jax.nn.attention import Cache, Mask
from gpt1_jax.nn.sites import BLOCK_SITES
from gpt1_jax.pure import merge, split

LM = gpt1.OpenAIGPTLMHeadModel
EVERY = ("*", "h.*.*", "h.*.*.*")
IDS, OTHER = random_ids(2, 5), random_ids(2, 5, seed=1)


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return small_model(LM)


@pytest.fixture(scope="module")
def single() -> gpt1.OpenAIGPTLMHeadModel:
    """Of one block, which compiles in half the time."""
    return small_model(LM, n_layer=1)


@pytest.fixture(scope="module")
def other(model: Any) -> dict[str, jax.Array]:
    return gpt1.capture(model, OTHER, EVERY)


def forward(model: Any, *args: Any, **inputs: Any) -> Any:
    apply, params = gpt1.functional(model)
    return apply(params, *args, **inputs)


def lowered(model: Any, **flags: Any) -> str:
    structure, params = split(model)

    def run(params: Any, ids: Any) -> Any:
        return merge(structure, params).forward(ids, **flags)

    shape = (1, 2, 5) if "Double" in type(model).__name__ else (1, 5)
    return jax.jit(run).lower(params, jnp.zeros(shape, jnp.int32)).as_text()


FLAGS = {"output_attentions": True, "output_hidden_states": True}


@pytest.mark.nightly
@pytest.mark.parametrize(("cls", "flags"), [*((cls, {}) for cls in MODELS), (LM, FLAGS)])
def test_plain_program_is_the_same_text_without_sites(
    cls: Any, flags: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(cls)
    text = lowered(model, **flags)
    for module in ("model", "nn.attention"):
        monkeypatch.setattr(f"gpt1_jax.{module}.site", lambda name, value: value)
    assert lowered(model, **flags) == text


@pytest.mark.parametrize("cls", MODELS)
def test_every_named_site_arises_in_every_model(cls: Any) -> None:
    model = small_model(cls, n_layer=1)
    ids = random_ids(1, 2, 5) if "Double" in cls.__name__ else random_ids(1, 5)
    found = gpt1.capture(model, ids, EVERY)
    logits = [] if cls is gpt1.OpenAIGPTModel else ["logits"]
    assert list(found) == ["embed", *(f"h.0.{name}" for name in BLOCK_SITES), *logits]
    assert found["h.0.attn.z"].shape == (*ids.shape, 2, 4)
    assert found["h.0.attn.scores"].shape == (*ids.shape[:-1], 2, 5, 5)
    assert found["h.0.mlp.act"].shape == (*ids.shape, 32)


def test_ids_without_rows_give_activations_without_rows(single: Any) -> None:
    found = gpt1.capture(single, IDS[0], ["h.0.*", "logits"])
    assert found["h.0.out"].shape == (5, 8)
    whole = gpt1.capture(single, IDS[:1], ["h.0.*", "logits"])
    for name, value in found.items():
        assert difference(value, whole[name][0]) < 1e-6


def test_patch_of_the_last_state_replaces_the_output(model: Any, other: Any) -> None:
    name = "h.1.out"
    patched = gpt1.patch(model, IDS, {name: other[name]}, positions=-1, output_hidden_states=True)
    plain = forward(model, IDS)
    assert difference(patched.logits[:, -1], other["logits"][:, -1]) < 1e-6
    assert difference(patched.logits[:, :-1], plain.logits[:, :-1]) < 1e-6
    assert difference(patched.hidden_states[-1][:, -1], other[name][:, -1]) < 1e-6


def test_capture_sees_what_is_patched(single: Any) -> None:
    edits = {"h.0.attn.z": 0.0, "h.0.mlp.act": jnp.negative}
    sites = ("h.0.attn.z", "h.0.mlp.*")
    found = gpt1.capture(single, IDS, sites, edits=edits, positions=[0, 2])
    assert not found["h.0.attn.z"][:, jnp.array([0, 2])].any()
    assert found["h.0.attn.z"][:, jnp.array([1, 3, 4])].all()
    act = jax.nn.gelu(found["h.0.mlp.pre"])
    act = act.at[:, jnp.array([0, 2])].multiply(-1)
    assert difference(found["h.0.mlp.act"], act) < 1e-6


def test_edit_function_may_call_the_model(single: Any) -> None:
    """The model that an edit calls is not patched, nor is its compiled forward afterwards."""
    apply, params = gpt1.functional(single)
    ids = random_ids(1, 3)  # a shape that nothing else has compiled

    def twice_logits(value: Any) -> Any:
        return 2 * apply(params, ids).logits

    patched = gpt1.patch(single, ids, {"logits": twice_logits}).logits
    plain = apply(params, ids).logits
    assert difference(patched, 2 * plain) < 1e-6
    assert difference(plain, gpt1.patch(single, ids, {}).logits) < 1e-6


def remove_head(head: Any, z: Any) -> Any:
    return jnp.where((jnp.arange(z.shape[-2]) == head)[:, None], 0, z)


def test_other_arrays_and_positions_compile_nothing(model: Any, other: Any) -> None:
    def run(head: int, position: int) -> Any:
        edits = {"h.0.out": other["h.0.out"] + head, "h.1.attn.z": Partial(remove_head, head)}
        return gpt1.patch(model, IDS, edits, positions=position).logits

    first = run(0, 1)
    with compilations() as compiled:
        second = run(1, 3)
    assert not compiled
    assert difference(first, second) > 0.1


def test_vmap_and_jit_sweep_layers_positions_and_heads(model: Any, other: Any) -> None:
    states = jnp.stack([other[f"h.{layer}.out"] for layer in range(2)])
    graphdef, state = nnx.split(model)

    def choose(on: Any, new: Any, value: Any) -> Any:
        return jnp.where(on, new, value)

    @jax.jit
    def sweep(state: Any) -> Any:
        model = nnx.merge(graphdef, state)

        def run(layer: Any, position: Any) -> Any:
            edits = {f"h.{i}.out": Partial(choose, layer == i, states[i]) for i in range(2)}
            out = gpt1.patch(model, IDS, edits, positions=position, logits_to_keep=1)
            return out.logits

        run = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
        return run(jnp.arange(2), jnp.arange(5))

    found = sweep(state)
    assert found.shape == (2, 5, 2, 1, 13)
    for layer in range(2):
        for position in range(5):
            edits = {f"h.{i}.out": Partial(choose, layer == i, states[i]) for i in range(2)}
            alone = gpt1.patch(model, IDS, edits, positions=position, logits_to_keep=1)
            assert difference(found[layer, position], alone.logits) < 1e-6


@pytest.mark.nightly
def test_gradient_reaches_a_patched_state_and_parameters(single: Any) -> None:
    """Of a model that rematerialises too, which is left out where activations are asked for."""
    graphdef, state = nnx.split(single)
    rematerialising, _ = nnx.split(LM(single.config, remat="all", rngs=nnx.Rngs(0)))

    def loss(state: Any, x: Any) -> Any:
        model = nnx.merge(rematerialising, state)
        return gpt1.patch(model, IDS, {"embed": x}, labels=IDS).loss

    def expected_loss(state: Any, x: Any) -> Any:
        model: Any = nnx.merge(graphdef, state)
        x, *_ = model.transformer.h[0](x, Mask.build(None, 5, None))
        log_probs = jax.nn.log_softmax(lm_logits(model, x)[:, :-1])
        return -jnp.take_along_axis(log_probs, IDS[:, 1:, None], -1).mean()

    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    found = jax.jit(jax.grad(loss, (0, 1)))(state, x)
    expected = jax.jit(jax.grad(expected_loss, (0, 1)))(state, x)
    for ours, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert difference(ours, right) < 1e-5


def at_position(new: Any, value: Any, k: Any) -> Any:
    return jnp.where((jnp.arange(5) == k)[None, :, None], new, value)


def half_head(z: Any, head: Any) -> Any:
    return jnp.where((jnp.arange(2) == head)[:, None], z / 2, z)


def kth_if(on: Any, edit: Any, k: Any, value: Any) -> Any:
    return jnp.where(on, edit(value, k), value)


@pytest.mark.nightly
def test_sweep_runs_are_those_of_patch(model: Any, other: Any) -> None:
    """Edits of every kind at once, of padded rows, at the edges of blocks and inside them."""
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    at = {name: Partial(at_position, other[name]) for name in ("embed", "h.0.out", "h.1.mlp_sum")}
    edits = {**at, "h.*.attn.z": half_head}
    found = gpt1.sweep(model, IDS, edits, 3, attention_mask=mask, batch_size=2)
    assert list(found) == ["embed", "h.0.attn.z", "h.0.out", "h.1.attn.z", "h.1.mlp_sum"]
    for name, logits in found.items():
        assert logits.shape == (3, 2, 1, 13)
        for k in range(3):  # by one program for all of them
            one = {
                each: Partial(kth_if, each == name, Partial(edits.get(each, half_head)), k)
                for each in found
            }
            alone = gpt1.patch(model, IDS, one, attention_mask=mask, logits_to_keep=1).logits
            assert difference(logits[k], alone) < 1e-6, (name, k)


def test_sweep_takes_choices() -> None:
    model = small_model(gpt1.OpenAIGPTDoubleHeadsModel, n_layer=1)
    found = gpt1.sweep(model, IDS[None], {"h.0.attn.z": half_head}, 2)["h.0.attn.z"]
    assert found.shape == (2, 1, 2, 1, 13)
    assert difference(found[1], found[0]) > 0.1


def test_sweep_returns_what_metric_makes_of_logits(single: Any) -> None:
    def best(logits: Any) -> Any:
        return {"logits": logits, "best": logits[-1].max()}

    edits = {"h.0.attn.z": half_head}
    found = gpt1.sweep(single, IDS[0], edits, 2, logits_to_keep=0, metric=best)["h.0.attn.z"]
    assert found["logits"].shape == (2, 5, 13)
    assert found["best"].tolist() == found["logits"][:, -1].max(-1).tolist()


@pytest.mark.parametrize(
    ("edits", "arguments", "message"),
    [
        ({"logits": half_head}, {}, "patches what comes before the logits"),
        ({}, {}, "the edits are empty, but must be for one site at least"),
        ({"h.0.attn.z": 0.0}, {}, r"the edit of h\.0\.attn\.z must be a function"),
        ({"h.2.attn.z": half_head}, {}, "the layers 0 to 1"),
        ({"h.0.attn.z": half_head}, {"count": 0}, "count is 0, but must be a positive integer"),
        ({"h.0.attn.z": half_head}, {"batch_size": 0}, "batch_size is 0, but must be a positive"),
        ({"h.0.attn.z": half_head}, {"labels": IDS}, r"sweep\(\) takes no labels"),
        ({"h.0.attn.z": lambda z, k: z[:, 0]}, {}, r"the new value of h\.0\.attn\.z has shape"),
    ],
)
def test_wrong_sweep_is_one_clear_error(
    model: Any, edits: Any, arguments: Any, message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        gpt1.sweep(model, IDS, edits, **{"count": 2, **arguments})


def test_traced_position_out_of_range_gives_nan(single: Any) -> None:
    patched = jax.jit(lambda p: gpt1.patch(single, IDS, {"h.0.out": 0.0}, positions=p).logits)
    assert jnp.isnan(patched(jnp.array([1, 5]))).all()
    assert not jnp.isnan(patched(jnp.array([1, -5]))).any()


@pytest.mark.parametrize("kind", ["fused", "int8"])
def test_capture_works_in_every_kind_of_model(kind: str, single: Any) -> None:
    fused = small_model(LM, n_layer=1, attention="xla")
    its = fused if kind == "fused" else gpt1.quantize(single)
    sites, mask = ("h.0.attn.*", "h.0.mlp.act", "logits"), np.array([[0, 0, 1, 1, 1], [1] * 5])
    found = gpt1.capture(its, IDS, sites, attention_mask=mask)
    expected = gpt1.capture(single, IDS, sites, attention_mask=mask)
    for name, value in found.items():
        if "scores" not in name:  # which are as low as numbers go
            most = 0.1 if kind == "int8" else 1e-5
            assert difference(value, expected[name]) < most, name


@pytest.mark.nightly
def test_patch_extends_a_cache_without_taking_it(single: Any) -> None:
    """Values that were patched stay in the cache for later tokens; the given one can be reused."""
    cache = forward(single, IDS[:, :3], cache=Cache.empty(single.config, 2, 5)).cache

    def patched() -> Any:
        return gpt1.patch(single, IDS[:, 3:], {"h.*.attn.v": 0.0}, cache=cache, positions=0)

    out, again = patched(), patched()
    whole = gpt1.patch(single, IDS, {"h.*.attn.v": 0.0}, positions=3)
    assert difference(out.logits, whole.logits[:, 3:]) < 1e-6
    assert difference(again.logits, out.logits) == 0
    assert not out.cache.values[0][:, :, 3].any()


SHAPE = r"must broadcast to \(2, 5, 8\)"


@pytest.mark.parametrize(
    ("edits", "positions", "message"),
    [
        ({"h.0.out": np.zeros((3, 8))}, None, rf"the new value of h\.0\.out .* {SHAPE}"),
        ({"h.0.out": lambda x: x[0, :3]}, None, rf"the new value of h\.0\.out .* {SHAPE}"),
        ({"h.0.out": lambda x: None}, None, r"the edit of h\.0\.out returned None"),
        ([("h.0.out", 0.0)], None, "edits are a list, but must be a dict by site"),
        ({"h.0.out": 0.0, "h.*.out": 1.0}, None, r"two of the edits are for h\.0\.out"),
        ({"h.0.out": "zero"}, None, r"the value for h\.0\.out has dtype <U4"),
        ({"h.0.out": 0.0}, 5, "positions hold 5, but must be -5 to 4"),
        ({"h.0.out": 0.0}, [0.5], "must be an integer or a list of integers"),
        ({"h.0.out": 0.0}, [[1], [2]], "must be an integer or a list of integers"),
        ({"h.2.out": 0.0}, None, r"'h\.2\.out': the model has the layers 0 to 1"),
        ({"h.0.attn.zz": 0.0}, None, r"did you mean h\.0\.attn\.z"),
        ({"nothing": 0.0}, None, "there are embed, logits, and in every block"),
        ({3: 0.0}, None, "a site is 3, but must be a string"),
    ],
)
def test_wrong_edits_are_one_clear_error(
    model: Any, edits: Any, positions: Any, message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as error:
        gpt1.patch(model, IDS, edits, positions=positions)
    assert "\n" not in str(error.value)


def test_positions_of_a_site_without_positions_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"logits has shape \(2, 1, 13\), where no dimension"):
        gpt1.patch(model, IDS, {"logits": 0.0}, positions=0, logits_to_keep=1)
    classifier = small_model(gpt1.OpenAIGPTForSequenceClassification, num_labels=5)
    with pytest.raises(ValueError, match=r"logits has shape \(1, 5\), where no dimension"):
        gpt1.patch(classifier, IDS[:1], {"logits": 0.0}, positions=0)
    with pytest.raises(TypeError, match=r"patch\(\) takes no output_attention"):
        gpt1.patch(model, IDS, {}, output_attention=True)
    with pytest.raises(ValueError, match=r"input_ids\[0, 0\] is 17"):
        gpt1.capture(model, IDS + 6, "embed")


@given(st.data())
def test_match_sites_finds_exactly_the_names_of_a_pattern(model: Any, data: st.DataObject) -> None:
    names = match_sites(model, EVERY)
    name = data.draw(st.sampled_from(names))
    parts = name.split(".")
    hidden = data.draw(st.lists(st.booleans(), min_size=len(parts), max_size=len(parts)))
    pattern = ".".join("*" if h else p for h, p in zip(hidden, parts, strict=True))
    found = match_sites(model, [pattern])
    assert name in found
    assert list(found) == [each for each in names if fits(each, pattern)]
    assert match_sites(model, found) == found


def fits(name: str, pattern: str) -> bool:
    ours, theirs = name.split("."), pattern.split(".")
    return len(ours) == len(theirs) and all(
        b in ("*", a) for a, b in zip(ours, theirs, strict=True)
    )
