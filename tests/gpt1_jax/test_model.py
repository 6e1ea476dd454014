"""The four models: outputs, arguments, heads, precision and dropout, against plain numpy."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.small_models import (
    MODELS,
    difference,
    leaves_equal,
    numpy_logits,
    random_ids,
    small_config,
    small_model,
)

import gpt1_jax as gpt1
from gpt1_jax.model import MLP, Attention, Block
from gpt1_jax.nn import layers

BASE, LM, DOUBLE, CLASSIFIER = MODELS
V, E, N, L = 13, 8, 2, 1
ROWS = {BASE: (2,), LM: (2,), DOUBLE: (2, 2), CLASSIFIER: (2,)}
T = 4
PAD = 0
# Two float32 computations in different orders. Measured: 3e-7.
TOLERANCE = 2e-6


@functools.cache
def made(cls: Any, **fields: Any) -> Any:
    return small_model(cls, n_layer=L, pad_token_id=PAD, num_labels=3, **fields)


@functools.cache
def function(cls: Any, **fields: Any) -> tuple[Any, Any]:
    return gpt1.functional(made(cls, **fields))


def call(cls: Any, *args: Any, **kwargs: Any) -> Any:
    apply, params = function(cls)
    return apply(params, *args, **kwargs)


def ids_for(cls: Any, seed: int = 0) -> np.ndarray:
    return random_ids(*ROWS[cls], T, seed=seed)


def arguments_for(cls: Any) -> dict[str, Any]:
    """Every array that the model takes, and all outputs."""
    ids = ids_for(cls)
    arguments: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": np.ones(ids.shape, np.int32),
        "token_type_ids": ids_for(cls, seed=1),
        "position_ids": np.asarray([3, 0, 2, 1]),
        "output_attentions": True,
        "output_hidden_states": True,
    }
    arguments["attention_mask"][..., 0, :2] = 0
    if cls is LM:
        arguments |= {"labels": ids, "num_items_in_batch": 5}
    if cls is DOUBLE:
        places = random_ids(2, 2, size=T)
        arguments |= {"labels": ids, "mc_labels": np.asarray([1, 0]), "mc_token_ids": places}
    if cls is CLASSIFIER:
        arguments["labels"] = np.asarray([2, 0])
    return arguments


@functools.cache
def full(cls: Any) -> Any:
    return call(cls, **arguments_for(cls))


def embedding() -> np.ndarray:
    return np.asarray(function(LM)[1]["transformer"]["tokens_embed"]["embedding"])


# Outputs.

FIELDS = {
    BASE: ("last_hidden_state", "hidden_states", "attentions"),
    LM: ("loss", "logits", "hidden_states", "attentions"),
    DOUBLE: ("loss", "mc_loss", "logits", "mc_logits", "hidden_states", "attentions"),
    CLASSIFIER: ("loss", "logits", "hidden_states", "attentions"),
}
SHAPES = {
    BASE: {"last_hidden_state": (2, T, E)},
    LM: {"loss": (), "logits": (2, T, V)},
    DOUBLE: {"loss": (), "mc_loss": (), "logits": (2, 2, T, V), "mc_logits": (2, 2)},
    CLASSIFIER: {"loss": (), "logits": (2, 3)},
}


@pytest.mark.parametrize("cls", MODELS)
def test_model_output_has_expected_fields_and_shapes(cls: Any) -> None:
    out, rows = full(cls), ROWS[cls]
    for name, shape in SHAPES[cls].items():
        assert (out[name].shape, out[name].dtype) == (shape, jnp.float32), name
    assert [state.shape for state in out.hidden_states] == [(*rows, T, E)] * (L + 1)
    assert [weights.shape for weights in out.attentions] == [(*rows, N, T, T)] * L
    values = [getattr(out, name) for name in FIELDS[cls]]
    assert all(a is b for a, b in zip(out.to_tuple(), values, strict=True))
    assert all(out[i] is value for i, value in enumerate(values))
    assert all(out[name] is getattr(out, name) for name in FIELDS[cls])
    assert out[:2] == out.to_tuple()[:2]
    assert out[-1] is out.attentions


@pytest.mark.parametrize("cls", MODELS)
def test_model_output_omits_unrequested_fields(cls: Any) -> None:
    out = call(cls, ids_for(cls))
    wanted = [name for name in SHAPES[cls] if not name.endswith("loss")]
    assert len(out.to_tuple()) == len(wanted)
    assert all(out[i] is out[name] for i, name in enumerate(wanted))
    for name in {*FIELDS[cls]} - {*wanted}:
        assert getattr(out, name) is None


@pytest.mark.parametrize("cls", MODELS)
def test_model_output_is_a_pytree(cls: Any) -> None:
    out = full(cls)
    host = jax.tree.map(np.asarray, out)
    assert type(host) is type(out)
    assert len(jax.tree.leaves(out)) == len(SHAPES[cls]) + L + 1 + L
    np.testing.assert_array_equal(host.hidden_states[1], out.hidden_states[1])


def test_model_output_rejects_unknown_fields() -> None:
    with pytest.raises(KeyError):
        full(LM)["past_key_values"]
    with pytest.raises(IndexError):
        full(LM)[4]


@pytest.mark.nightly
@pytest.mark.parametrize("cls", [DOUBLE, CLASSIFIER])
def test_model_eager_call_matches_compiled(cls: Any) -> None:
    eager = made(cls)(**arguments_for(cls))
    for ours, expected in zip(jax.tree.leaves(eager), jax.tree.leaves(full(cls)), strict=True):
        assert difference(ours, expected) < TOLERANCE


def test_model_config_sets_default_outputs() -> None:
    model = small_model(LM, n_layer=L, output_attentions=True, output_hidden_states=True)
    out = jax.eval_shape(lambda ids: model(ids), ids_for(LM))
    assert (len(out.hidden_states), len(out.attentions)) == (L + 1, L)
    out = jax.eval_shape(
        lambda ids: model(ids, output_attentions=False, output_hidden_states=False), ids_for(LM)
    )
    assert out.hidden_states is out.attentions is None


def test_hidden_states_start_at_embedding_and_end_at_last_state() -> None:
    params = function(BASE)[1]
    ids = ids_for(BASE)
    out = call(BASE, ids, output_hidden_states=True)
    tables = (np.asarray(params[name]["embedding"]) for name in ("tokens_embed", "positions_embed"))
    tokens, positions = tables
    expected = tokens[ids] + positions[:T]
    np.testing.assert_array_equal(out.hidden_states[0], expected)
    np.testing.assert_array_equal(out.hidden_states[-1], out.last_hidden_state)


def test_modules_alone_make_the_block_of_a_model() -> None:
    config = small_config(n_layer=1)
    block = Block(config, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, T, E)), jnp.float32)
    h, weights, past = block(x)

    # The paper's figure 1, made of the modules by hand.
    attn, mlp = Attention(config, rngs=nnx.Rngs(1)), MLP(config, rngs=nnx.Rngs(2))
    nnx.update(attn, nnx.state(block.attn))
    nnx.update(mlp, nnx.state(block.mlp))
    a, own_weights, _ = attn(x)
    n = block.ln_1(x + a)
    assert leaves_equal(h, block.ln_2(n + mlp(n)))
    assert leaves_equal(weights, own_weights)
    assert past is None

    model = gpt1.OpenAIGPTModel(config, rngs=nnx.Rngs(3))
    nnx.update(model.h[0], nnx.state(block))
    out = model(inputs_embeds=x - model.positions_embed.embedding[None, :T])
    assert difference(out.last_hidden_state, h) < TOLERANCE


def test_attention_alone_reads_a_cache_token_by_token() -> None:
    config = small_config(n_layer=1)
    attn = Attention(config, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, T, E)), jnp.float32)
    past: Any = gpt1.Cache.empty(config, 1, 2 * T).layer(0)
    read = []
    for t in range(T):
        a, _, past = attn(x[:, t : t + 1], past=past)
        past = dataclasses.replace(past, index=past.index + 1)
        read.append(a)
    assert difference(jnp.concatenate(read, axis=1), attn(x)[0]) < TOLERANCE


class Doubled(nnx.Module):
    """Twice a linear layer: some other module in its place."""

    def __init__(self, layer: nnx.Linear):
        self.layer = layer

    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * self.layer(x)


def test_model_takes_another_module_for_a_linear_layer() -> None:
    model = small_model(LM, n_layer=1)
    attn: Any = model.transformer.h[0].attn
    expected = small_model(LM, n_layer=1)
    for name in ("kernel", "bias"):
        variable = getattr(expected.transformer.h[0].attn.c_attn, name)
        variable.set_value(2 * variable.get_value())
    attn.c_attn = Doubled(attn.c_attn)
    ids = ids_for(LM)
    assert difference(model(ids).logits, expected(ids).logits) < TOLERANCE
    apply, params = gpt1.functional(model)
    assert difference(apply(params, ids).logits, expected(ids).logits) < TOLERANCE


class Overriding(LM):
    """A model of a user's own, whose call is not checked."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Any = None, attention_mask: Any = None, **rest: Any
    ) -> Any:
        return super().__call__(input_ids, attention_mask, **rest)


@pytest.mark.nightly
def test_subclass_may_override_the_call() -> None:
    config = small_config(n_layer=1)
    model, ids = Overriding(config, rngs=nnx.Rngs(0)), ids_for(LM)
    expected = LM(config, rngs=nnx.Rngs(0))
    apply, params = gpt1.functional(model)
    out = apply(params, ids, labels=ids)
    assert difference(out.loss, expected(ids, labels=ids).loss) < TOLERANCE
    assert leaves_equal(
        gpt1.generate(model, ids, max_new_tokens=2), gpt1.generate(expected, ids, max_new_tokens=2)
    )


@pytest.mark.parametrize("module", [Attention, MLP, Block])
def test_modules_alone_take_dtypes(module: Any) -> None:
    one = module(small_config(), dtype="bfloat16", rngs=nnx.Rngs(0))
    out = one(jnp.ones((1, T, E), jnp.bfloat16))
    assert (out if module is MLP else out[0]).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(one))} == {jnp.dtype("float32")}
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        module(small_config(), dtype="int8", rngs=nnx.Rngs(0))


def test_attention_weights_are_causal_and_sum_to_one() -> None:
    out = call(LM, ids_for(LM), output_attentions=True)
    for weights in out.attentions:
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)  # measured: 1.2e-7
        assert not np.triu(weights, 1).any()


# Arguments.


def test_model_logits_match_numpy() -> None:
    ids, mask = ids_for(LM), np.asarray([[0, 1, 1, 1], [1, 1, 1, 0]])
    params = function(LM)[1]
    logits = call(LM, ids, mask).logits
    assert difference(logits, numpy_logits(params, ids, mask)) < TOLERANCE


@pytest.mark.nightly
def test_model_logits_match_numpy_in_float64() -> None:
    # Flax's layer norm compares the dtype of its input with float32, which "strict" forbids.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model = small_model(LM, n_layer=1, param_dtype="float64")
        ids = jnp.asarray(ids_for(LM))
        out = model(ids, labels=ids)
        assert out.logits is not None
        assert out.loss is not None
        assert (out.logits.dtype, out.loss.dtype) == (jnp.float64, jnp.float64)
        # Measured: 7e-16.
        assert difference(out.logits, numpy_logits(model.params, np.asarray(ids))) < 2e-14


@pytest.mark.nightly
def test_model_accepts_any_leading_dimensions() -> None:
    ids = random_ids(2, 3, T)
    flat = call(LM, ids.reshape(6, T), labels=ids.reshape(6, T), output_attentions=True)
    deep = call(LM, ids, labels=ids, output_attentions=True)
    assert difference(deep.logits, flat.logits.reshape(2, 3, T, V)) < TOLERANCE
    assert difference(deep.loss, flat.loss) < TOLERANCE
    assert deep.attentions[0].shape == (2, 3, N, T, T)
    single = call(LM, ids[0, 0], labels=ids[0, 0])
    assert single.logits.shape == (T, V)
    assert difference(single.logits, flat.logits[0]) < TOLERANCE


def test_model_embeds_token_types_and_accepts_inputs_embeds() -> None:
    ids, types = ids_for(LM), ids_for(LM, seed=1)
    table = embedding()
    by_embeddings = call(LM, inputs_embeds=table[ids]).logits
    np.testing.assert_array_equal(by_embeddings, call(LM, ids).logits)
    typed = call(LM, ids, token_type_ids=types).logits
    assert difference(typed, call(LM, inputs_embeds=table[ids] + table[types]).logits) < TOLERANCE
    shared = call(LM, ids, token_type_ids=types[0]).logits
    assert difference(shared[0], typed[0]) < TOLERANCE


def test_position_ids_default_to_range_and_match_numpy() -> None:
    ids, params = ids_for(LM), function(LM)[1]
    # Operation by operation: what is compiled as a whole differs, and may round otherwise.
    default = made(LM)(ids).logits
    np.testing.assert_array_equal(made(LM)(ids, position_ids=np.arange(T)).logits, default)
    compiled = call(LM, ids, position_ids=np.arange(T)).logits
    assert difference(compiled, default) < TOLERANCE
    later = np.asarray([4, 0, 7, 7])
    expected = numpy_logits(params, ids, positions=later)
    assert difference(call(LM, ids, position_ids=later).logits, expected) < TOLERANCE
    assert difference(default, expected) > 0.1


def test_positions_from_mask_make_left_padding_neutral() -> None:
    ids = ids_for(LM)
    alone = call(LM, ids[:, 1:]).logits
    mask = np.asarray([[0, 1, 1, 1]] * 2)
    padded = call(LM, ids, mask, positions_from_mask=True).logits
    assert difference(padded[:, 1:], alone) < TOLERANCE
    # By default positions are 0..T-1 whatever the mask.
    assert difference(call(LM, ids, mask).logits[:, 1:], alone) > 0.1


def test_positions_from_mask_without_mask_use_defaults() -> None:
    ids = ids_for(LM)
    np.testing.assert_array_equal(
        call(LM, ids, positions_from_mask=True).logits, call(LM, ids).logits
    )


@pytest.mark.parametrize(
    ("kept", "places"),
    [
        (1, [[3], [3]]),
        (2, [[2, 3]] * 2),
        (9, [[0, 1, 2, 3]] * 2),
        ([2, 0], [[2, 0]] * 2),
        ([[1], [3]], [[1], [3]]),
        (np.asarray([[1, 1], [3, 0]]), [[1, 1], [3, 0]]),
    ],
    ids=str,
)
def test_logits_to_keep_selects_positions(kept: Any, places: Any) -> None:
    ids = ids_for(LM)
    expected = np.take_along_axis(
        np.asarray(call(LM, ids).logits), np.asarray(places)[..., None], axis=1
    )
    assert difference(made(LM)(ids, logits_to_keep=kept).logits, expected) < TOLERANCE


@pytest.mark.parametrize("cls", [BASE, LM])
def test_functional_supports_vmap_over_rows(cls: Any) -> None:
    apply, params = function(cls)
    ids = ids_for(cls)
    mapped = jax.vmap(lambda row: apply(params, row))(ids)
    for ours, expected in zip(
        jax.tree.leaves(mapped), jax.tree.leaves(apply(params, ids)), strict=True
    ):
        assert difference(ours, expected) < TOLERANCE


@pytest.mark.parametrize("afn", ["gelu_new", "relu", "silu", "swish"])
def test_activation_matches_numpy(afn: str) -> None:
    model = small_model(LM, n_layer=1, afn=afn)
    act: Any = model.transformer.h[0].mlp.act
    x = np.linspace(-4, 4, 50)
    expected = {
        "gelu_new": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "relu": np.maximum(x, 0),
        "silu": x / (1 + np.exp(-x)),
        "swish": x / (1 + np.exp(-x)),
    }
    assert difference(act(jnp.asarray(x, jnp.float32)), expected[afn]) < TOLERANCE


# Heads and losses.


def nats(logits: Any, labels: Any) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, np.asarray(labels)[..., None], -1)[..., 0]


def test_lm_loss_matches_numpy() -> None:
    ids = ids_for(LM)
    out = full(LM)  # with num_items_in_batch = 5
    expected = nats(out.logits[:, :-1], ids[:, 1:])
    assert difference(out.loss, expected.sum() / 5) < TOLERANCE
    labels = ids.copy()
    labels[0, 1:3] = -100
    mean = (nats(out.logits[:, :-1], ids[:, 1:])[labels[:, 1:] != -100]).mean()
    arguments = {**arguments_for(LM), "labels": labels, "num_items_in_batch": None}
    assert difference(call(LM, **arguments).loss, mean) < TOLERANCE


@pytest.mark.nightly
def test_tied_head_has_no_parameter_and_sums_gradients() -> None:
    """The embedding's gradient is the sum over both its uses: those of an untied copy."""
    apply, params = function(LM)
    table = params["transformer"]["tokens_embed"]["embedding"]
    assert "lm_head" not in params
    untied_apply, untied_params = function(LM, tie_word_embeddings=False)
    assert untied_params["lm_head"]["kernel"].shape == (E, V)
    untied_params = {**params, "lm_head": {"kernel": table.T}}
    ids = ids_for(LM)
    # On a CPU the two heads sum in different orders: see ``nn/matmul.py``.
    assert (
        difference(apply(params, ids).logits, untied_apply(untied_params, ids).logits) < TOLERANCE
    )
    one = jax.grad(lambda p: apply(p, ids, labels=ids).loss)(params)
    two = jax.grad(lambda p: untied_apply(p, ids, labels=ids).loss)(untied_params)
    total = one["transformer"]["tokens_embed"]["embedding"]
    parts = (two["transformer"]["tokens_embed"]["embedding"], two["lm_head"]["kernel"].T)
    assert difference(total, parts[0] + parts[1]) < TOLERANCE
    assert min(float(jnp.abs(part).max()) for part in parts) > 1e-2


def test_lm_loss_gradient_matches_finite_differences() -> None:
    """Along random directions, by differences of the float64 formula."""
    apply, params = function(LM)
    ids = ids_for(LM)
    gradient = jax.grad(lambda p: apply(p, ids, labels=ids).loss)(params)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        way = jax.tree.map(lambda leaf, rng=rng: rng.standard_normal(leaf.shape), wide)

        def loss(step: float, way: Any = way) -> Any:
            moved = jax.tree.map(lambda leaf, by: leaf + step * by, wide, way)
            return nats(numpy_logits(moved, ids)[:, :-1], ids[:, 1:]).mean()

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        products = jax.tree.map(lambda g, by: (np.asarray(g, np.float64) * by).sum(), gradient, way)
        # Measured: 5e-7.
        assert difference(sum(jax.tree.leaves(products)), slope) < 3e-6


def test_untied_head_uses_its_own_weights() -> None:
    apply, params = function(LM, tie_word_embeddings=False)
    out = apply(params, ids_for(LM), output_hidden_states=True)
    expected = np.asarray(out.hidden_states[-1], np.float64) @ np.asarray(
        params["lm_head"]["kernel"], np.float64
    )
    assert difference(out.logits, expected) < TOLERANCE


SUMMARIES = [
    {"summary_type": "cls_index"},
    {"summary_type": "first"},
    {"summary_type": "last"},
    {"summary_type": "mean"},
    {"summary_activation": "tanh"},
    {"summary_proj_to_labels": False},
    {"summary_use_proj": False, "summary_activation": "tanh"},
]


@pytest.mark.nightly
@pytest.mark.parametrize("fields", SUMMARIES, ids=str)
def test_multiple_choice_head_matches_numpy(fields: dict[str, Any]) -> None:
    """The state of each choice along its tokens, projected and activated."""
    model = small_model(DOUBLE, n_layer=1, num_labels=3, **fields)
    assert model.config.num_labels == 1
    apply, params = gpt1.functional(model)
    ids, places = ids_for(DOUBLE), np.asarray([[0, 3], [2, 1]])
    out = apply(params, ids, mc_token_ids=places, output_hidden_states=True)
    states = np.asarray(out.hidden_states[-1], np.float64)
    kind = fields.get("summary_type", "cls_index")
    expected = {
        "cls_index": np.take_along_axis(states, places[..., None, None], axis=-2)[..., 0, :],
        "first": states[..., 0, :],
        "last": states[..., -1, :],
        "mean": states.mean(-2),
    }[kind]
    if fields.get("summary_use_proj", True):
        head = params["multiple_choice_head"]["summary"]
        expected = expected @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"])
    if "summary_activation" in fields:
        expected = np.tanh(expected)
    if expected.shape[-1] == 1:
        expected = expected[..., 0]
    assert difference(out.mc_logits, expected) < TOLERANCE


def test_mc_token_ids_default_to_last_position() -> None:
    """Padding or not."""
    ids, last = ids_for(DOUBLE), np.full((2, 2), T - 1)
    for padding in (1, 0):
        mask = np.ones((2, 2, T), np.int32)
        mask[..., -1] = padding
        told = call(DOUBLE, ids, mask, mc_token_ids=last).mc_logits
        np.testing.assert_array_equal(call(DOUBLE, ids, mask).mc_logits, told)
        before = call(DOUBLE, ids, mask, mc_token_ids=last - 1).mc_logits
        assert difference(before, told) > 1e-2


def test_double_heads_losses_match_numpy() -> None:
    out, arguments = full(DOUBLE), arguments_for(DOUBLE)
    expected = nats(out.mc_logits, arguments["mc_labels"]).mean()
    assert difference(out.mc_loss, expected) < TOLERANCE
    ids = arguments["input_ids"]
    expected = nats(out.logits[..., :-1, :], ids[..., 1:]).mean()
    assert difference(out.loss, expected) < TOLERANCE


def test_double_heads_accepts_flat_masks_and_positions() -> None:
    ids = ids_for(DOUBLE)
    mask, places = np.ones((2, 2, T), np.int32), np.tile([3, 0, 2, 1], (2, 2, 1))
    mask[0, 1, -1] = 0
    deep = call(DOUBLE, ids, mask, position_ids=places).mc_logits
    flat = call(DOUBLE, ids, mask.reshape(4, T), position_ids=places.reshape(4, T)).mc_logits
    np.testing.assert_array_equal(deep, flat)


@pytest.mark.parametrize(
    ("ids", "places"),
    [
        ([[1, 2, 3, 4], [1, 2, PAD, PAD]], [3, 1]),
        ([[PAD, PAD, 3, 4], [1, PAD, 3, PAD]], [3, 2]),
        ([[PAD, PAD, PAD, PAD], [1, PAD, PAD, PAD]], [0, 0]),
    ],
)
def test_classifier_uses_last_token_that_is_not_padding(ids: Any, places: list[int]) -> None:
    out = call(CLASSIFIER, ids, output_hidden_states=True)
    states = np.asarray(out.hidden_states[-1], np.float64)[np.arange(2), places]
    kernel = np.asarray(function(CLASSIFIER)[1]["score"]["kernel"], np.float64)
    assert difference(out.logits, states @ kernel) < TOLERANCE


def test_classifier_uses_last_position_if_padding_is_unknown() -> None:
    ids = np.asarray([[1, 2, PAD, PAD]])
    table = np.asarray(function(CLASSIFIER)[1]["transformer"]["tokens_embed"]["embedding"])
    by_embeddings = made(CLASSIFIER)(inputs_embeds=table[ids], output_hidden_states=True)
    kernel = np.asarray(function(CLASSIFIER)[1]["score"]["kernel"], np.float64)
    assert by_embeddings.hidden_states is not None
    expected = np.asarray(by_embeddings.hidden_states[-1], np.float64)[:, -1] @ kernel
    assert difference(by_embeddings.logits, expected) < TOLERANCE
    padless = small_model(CLASSIFIER, n_layer=L, num_labels=3)
    assert difference(padless(ids).logits, expected) < TOLERANCE


def test_classifier_loss_matches_numpy() -> None:
    out = full(CLASSIFIER)
    assert difference(out.loss, nats(out.logits, [2, 0]).mean()) < TOLERANCE
    numbers = np.asarray([[0.5, 1.0, 2.0], [0.0, -1.0, 3.0]], np.float32)
    model = small_model(CLASSIFIER, num_labels=3, pad_token_id=PAD, problem_type="regression")
    out = model(ids_for(CLASSIFIER), labels=numbers)
    assert out.loss is not None
    assert difference(out.loss, ((np.asarray(out.logits) - numbers) ** 2).mean()) < TOLERANCE


# Precision.


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Against float32, weights and states being rounded to 8 or 11 bits. Measured: 8e-3, 9e-4.
    [("bfloat16", 3e-2), ("float16", 3e-3)],
)
@pytest.mark.parametrize("cls", [DOUBLE, CLASSIFIER])
def test_model_in_half_precision_stays_close_to_float32(
    cls: Any, dtype: str, tolerance: float
) -> None:
    apply, params = function(cls, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    arguments = arguments_for(cls)
    out = apply(params, **arguments)
    assert {state.dtype for state in out.hidden_states} == {jnp.dtype(dtype)}
    assert {weights.dtype for weights in out.attentions} == {jnp.dtype("float32")}
    for name in SHAPES[cls]:
        assert out[name].dtype == jnp.float32
        error = difference(out[name], full(cls)[name])
        assert 1e-6 < error < tolerance, name


def test_param_dtype_sets_computation_dtype() -> None:
    model = small_model(LM, n_layer=1, param_dtype="bfloat16")
    out = jax.eval_shape(
        lambda ids: model(ids, output_hidden_states=True, output_attentions=True), ids_for(LM)
    )
    assert out.logits.dtype == jnp.float32
    assert {state.dtype for state in out.hidden_states} == {jnp.dtype("bfloat16")}
    assert out.attentions[0].dtype == jnp.float32


def equations(jaxpr: Any, name: str) -> list[Any]:
    """The equations of a primitive, those within other equations included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            found.append(equation)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += equations(inner, name)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cls", MODELS)
def test_matmul_uses_precision_and_accumulates_in_float32(cls: Any, tied: bool, dtype: str) -> None:
    model = small_model(cls, n_layer=L, dtype=dtype, precision="highest", tie_word_embeddings=tied)
    apply, params = gpt1.functional(model)
    ids = ids_for(cls) if cls is not CLASSIFIER else ids_for(cls)[:1]
    products = equations(jax.make_jaxpr(apply)(params, ids).jaxpr, "dot_general")
    heads = {BASE: 0, LM: 1, DOUBLE: 2, CLASSIFIER: 1}[cls]
    if cls in (LM, DOUBLE) and tied and dtype == "float32":
        heads += 1  # the product with a table has two forms for few rows
    # c_attn, scores, mixing, c_proj, c_fc and c_proj in each block.
    assert len(products) == 6 * L + heads
    highest = jax.lax.Precision.HIGHEST
    for product in products:
        assert product.params["precision"] in (highest, (highest, highest))
        assert product.params["preferred_element_type"] == jnp.float32
        assert product.outvars[0].aval.dtype == jnp.float32


def test_matmul_precision_defaults_to_jax_default() -> None:
    apply, params = function(LM)
    products = equations(jax.make_jaxpr(apply)(params, ids_for(LM)).jaxpr, "dot_general")
    assert {product.params["precision"] for product in products} == {None}


# Dropout.

RATES: dict[str, Any] = {
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.3,
    "resid_pdrop": 0.5,
    "summary_first_dropout": 0.2,
    "summary_last_dropout": 0.4,
}


MANY = random_ids(16, 1, 8)


@functools.cache
def dropping() -> tuple[Any, Any, Any]:
    """A model with every site of dropout, its function and its parameters."""
    model = small_model(
        DOUBLE, n_embd=32, summary_use_proj=False, summary_activation="tanh", **RATES
    )
    return model, *gpt1.functional(model)


@functools.cache
def dropped(seed: int) -> Any:
    _, apply, params = dropping()
    return apply(params, MANY, deterministic=False, dropout_key=jax.random.key(seed))


def test_dropout_is_off_by_default() -> None:
    _, apply, params = dropping()
    expected = apply(params, MANY)
    with pytest.raises(ValueError, match="dropout_key draws nothing unless deterministic=False"):
        apply(params, MANY, dropout_key=jax.random.key(0))
    assert difference(dropped(0).logits, expected.logits) > 0.05


def test_dropout_depends_only_on_its_key() -> None:
    again = dropped.__wrapped__(0)
    np.testing.assert_array_equal(again.logits, dropped(0).logits)
    np.testing.assert_array_equal(again.mc_logits, dropped(0).mc_logits)
    assert len({np.asarray(dropped(seed).logits).tobytes() for seed in range(4)}) == 4


@pytest.mark.nightly
def test_dropout_uses_its_rate_and_an_independent_mask_per_site(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dropout's inputs and outputs, seen from inside an eager call of the model."""
    sites: list[tuple[Any, np.ndarray, np.ndarray]] = []

    def spy(layer: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        out = layers.dropout(layer, x, key)
        sites.append((key, np.asarray(x), np.asarray(out)))
        return out

    compiled = dropped(0)  # before the spy, which must not be compiled in
    monkeypatch.setattr("gpt1_jax.model.dropout", spy)
    model, _, _ = dropping()
    blocks = model.config.n_layer
    key = jax.random.key(0)
    out = model(MANY, deterministic=False, dropout_key=key, output_attentions=True)
    # A compiled call drops the same. Measured, at this width: 3e-6.
    assert difference(out.logits, compiled.logits) < 1e-5
    assert difference(out.mc_logits, compiled.mc_logits) < 1e-5
    # The weights put out are those after dropout.
    for weights, site in zip(out.attentions, sites[1 : 1 + 3 * blocks : 3], strict=True):
        np.testing.assert_array_equal(weights[:, 0], site[2])

    block = ["attn_pdrop", "resid_pdrop", "resid_pdrop"]  # weights, c_proj, the MLP's c_proj
    names = ["embd_pdrop", *block * blocks, "summary_first_dropout", "summary_last_dropout"]
    for name, (_, before, after) in zip(names, sites, strict=True):
        rate, there = RATES[name], before != 0
        kept = (after != 0)[there]
        # Bernoulli: at least 300 places, so that five deviations are at most 0.14.
        assert there.sum() >= 300
        assert abs(1 - kept.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / there.sum()), name
        np.testing.assert_allclose(
            after[there][kept], before[there][kept] / (1 - rate), rtol=1e-6, err_msg=name
        )  # measured: 1.2e-7
    assert len({jax.random.key_data(key).tobytes() for key, _, _ in sites}) == len(sites)
    # Masks of one shape and rate that are independent differ in 2 * rate * (1 - rate) of places.
    for name in ("attn_pdrop", "resid_pdrop"):
        pairs = (site for site_name, site in zip(names, sites, strict=True) if site_name == name)
        masks = [(after != 0)[before != 0] for _, before, after in pairs]
        assert len(masks) == (blocks if name == "attn_pdrop" else 2 * blocks)
        for one, other in itertools.combinations(masks, 2):
            expected = 2 * RATES[name] * (1 - RATES[name])
            error = 5 * np.sqrt(expected * (1 - expected) / one.size)  # five standard errors
            assert np.mean(one != other) == pytest.approx(expected, abs=error)


def test_dropout_preserves_the_mean() -> None:
    """Over many keys, and mapped over them."""
    model = small_model(BASE, n_layer=1, embd_pdrop=0.5, attn_pdrop=0.0, resid_pdrop=0.0)
    apply, params = gpt1.functional(model)
    ids = random_ids(1, 3)

    @jax.jit
    def mean(keys: Any) -> Any:
        def one(key: Any) -> Any:
            return apply(
                params, ids, output_hidden_states=True, deterministic=False, dropout_key=key
            ).hidden_states[0]

        return jax.vmap(one)(keys).mean(0)

    expected = np.asarray(apply(params, ids, output_hidden_states=True).hidden_states[0])
    number = 2000
    found = mean(jax.random.split(jax.random.key(0), number))
    # At rate 1/2 a value deviates by its own size, so that the mean does by 1/sqrt(2000) of it.
    worst = np.abs(found - expected) / (np.abs(expected) / np.sqrt(number))
    assert worst.max() < 5


def test_dropout_with_zero_rates_has_no_effect() -> None:
    rates: dict[str, Any] = dict.fromkeys(RATES, 0.0)
    model = small_model(DOUBLE, n_layer=1, **rates)
    apply, params = gpt1.functional(model)
    off = apply(params, ids_for(DOUBLE))
    on = apply(params, ids_for(DOUBLE), deterministic=False, dropout_key=jax.random.key(0))
    np.testing.assert_array_equal(on.logits, off.logits)
    np.testing.assert_array_equal(on.mc_logits, off.mc_logits)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("int8", "^dtype is 'int8', but must be one of float32, "),
        ("nonsense", "^dtype is 'nonsense', but must be one of float32, "),
        ("float64", "^dtype is float64, which needs jax.config.update"),
    ],
)
def test_model_rejects_invalid_dtype(dtype: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(gpt1.OpenAIGPTLMHeadModel, dtype=dtype)
