"""What a user gets wrong, and what the message says: by the models' calls and by ``apply``."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.small_models import MODELS, SIZES, small_config, small_model

import gpt1_jax as gpt1
from gpt1_jax import pure
from gpt1_jax.nn import validation
from gpt1_jax.nn.validation import check_arguments, without_device_values

V, P, E = SIZES["vocab_size"], SIZES["n_positions"], SIZES["n_embd"]
IDS = [[1, 2, 3], [4, 5, 6]]
EMBEDS = np.zeros((2, 3, E), np.float32)
CHOICES = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]  # (2, 2, 3)

BASE, LM = gpt1.OpenAIGPTModel, gpt1.OpenAIGPTLMHeadModel
DOUBLE, CLASSIFIER = gpt1.OpenAIGPTDoubleHeadsModel, gpt1.OpenAIGPTForSequenceClassification


def cached(rows: int = 2, length: int = 8, filled: int = 0, **sizes: int) -> gpt1.Cache:
    cache = gpt1.Cache.empty(small_config(**sizes), rows, length)
    index: Any = np.int32(filled)  # on the host, where both calls check it
    return gpt1.Cache(cache.keys, cache.values, cache.mask, index)


def out_of_range(name: str, place: list[int], value: int, size: int, what: str) -> str:
    return f"{name}{place} is {value}, but must be in [0, {size}), {what} being {size}"


BOTH_ARE_WRONG = "give either input_ids or inputs_embeds, not "
VOCABULARY, POSITIONS, TOKENS = "vocab_size", "n_positions", "the number of tokens"
# The arguments as a function: a cache is made where the test runs, not where it is collected.
WRONG: dict[str, tuple[type, Callable[[], dict[str, Any]], str]] = {
    "id too large": (
        LM,
        lambda: {"input_ids": [[1, 2], [3, V]]},
        out_of_range("input_ids", [1, 1], V, V, VOCABULARY),
    ),
    "id negative": (
        LM,
        lambda: {"input_ids": [[1, -1]]},
        out_of_range("input_ids", [0, 1], -1, V, VOCABULARY),
    ),
    "id -100": (
        BASE,
        lambda: {"input_ids": np.asarray([-100])},
        out_of_range("input_ids", [0], -100, V, VOCABULARY),
    ),
    "id beyond int32": (
        BASE,
        lambda: {"input_ids": np.asarray([[1, 2**32 + 1]])},
        out_of_range("input_ids", [0, 1], 2**32 + 1, V, VOCABULARY),
    ),
    "too many tokens": (
        BASE,
        lambda: {"input_ids": [[1] * (P + 1)]},
        f"{P + 1} tokens, but the model has n_positions = {P}",
    ),
    "too many embeddings": (
        BASE,
        lambda: {"inputs_embeds": np.zeros((1, P + 1, E), np.float32)},
        f"{P + 1} tokens, but the model has n_positions = {P}",
    ),
    "neither ids nor embeddings": (LM, dict, BOTH_ARE_WRONG + "neither"),
    "both ids and embeddings": (
        LM,
        lambda: {"input_ids": IDS, "inputs_embeds": EMBEDS},
        BOTH_ARE_WRONG + "both",
    ),
    "ragged ids": (
        LM,
        lambda: {"input_ids": [[1, 2], [3]]},
        "input_ids has rows of unequal length; pad them and give a mask",
    ),
    "float ids": (
        LM,
        lambda: {"input_ids": np.ones((2, 3), np.float32)},
        "input_ids has dtype float32, but must be integer",
    ),
    "bool ids": (
        LM,
        lambda: {"input_ids": np.ones((2, 3), bool)},
        "input_ids has dtype bool, but must be integer",
    ),
    "text": (LM, lambda: {"input_ids": "the president is"}, "input_ids has dtype"),
    "a number": (
        LM,
        lambda: {"input_ids": 3},
        "the tokens have shape (), but there must be at least one token",
    ),
    "no tokens": (
        LM,
        lambda: {"input_ids": np.zeros((2, 0), np.int32)},
        "the tokens have shape (2, 0), but there must be at least one token",
    ),
    "no rows": (
        LM,
        lambda: {"input_ids": np.zeros((0, 3), np.int32)},
        "the tokens have shape (0, 3), but there must be at least one token",
    ),
    "an empty list": (
        LM,
        lambda: {"input_ids": []},
        "the tokens have shape (0,), but there must be at least one token",
    ),
    "narrow embeddings": (
        LM,
        lambda: {"inputs_embeds": np.zeros((2, 3, E - 1), np.float32)},
        f"inputs_embeds is {E - 1} wide, but must be n_embd = {E} wide",
    ),
    "mask of another length": (
        LM,
        lambda: {"input_ids": IDS, "attention_mask": [[1, 1], [1, 1]]},
        "attention_mask has shape (2, 2), but must have (2, 3)",
    ),
    "mask of one row": (
        BASE,
        lambda: {"input_ids": IDS, "attention_mask": [1, 1, 1]},
        "attention_mask has shape (3,), but must have (2, 3)",
    ),
    "mask of four dimensions": (
        BASE,
        lambda: {"input_ids": IDS, "attention_mask": np.ones((2, 1, 1, 3))},
        "attention_mask has shape (2, 1, 1, 3), but must have (2, 3)",
    ),
    "mask of halves": (
        LM,
        lambda: {"input_ids": IDS, "attention_mask": [[1, 1, 0.5], [1, 0, 0]]},
        "attention_mask[0, 2] is 0.5, but must be 1 for a token or 0 for padding",
    ),
    "additive mask": (
        BASE,
        lambda: {"input_ids": IDS, "attention_mask": np.asarray([[0, 0, -1e9]] * 2)},
        "attention_mask[0, 2] is -1000000000.0, but must be 1 for a token or 0 for padding",
    ),
    "mask of bytes": (
        DOUBLE,
        lambda: {"input_ids": CHOICES, "attention_mask": np.full((2, 2, 3), 255, np.uint8)},
        "attention_mask[0, 0, 0] is 255, but must be 1 for a token or 0 for padding",
    ),
    "mask of NaN": (
        CLASSIFIER,
        lambda: {"input_ids": [[1, 2]], "attention_mask": [[1, np.nan]]},
        "attention_mask[0, 1] is nan, but must be 1 for a token or 0 for padding",
    ),
    "mask of objects": (
        LM,
        lambda: {"input_ids": IDS, "attention_mask": np.ones((2, 3), object)},
        "attention_mask has dtype object, but must be bool, integer or float",
    ),
    "complex embeddings": (
        LM,
        lambda: {"inputs_embeds": EMBEDS.astype(complex)},
        "inputs_embeds has dtype complex128, but must be bool, integer or float",
    ),
    "ragged embeddings": (
        LM,
        lambda: {"inputs_embeds": [[[0.0] * E], [[0.0]]]},
        "inputs_embeds has rows of unequal length",
    ),
    "time differences": (
        LM,
        lambda: {"input_ids": np.ones((2, 3), "m8[s]")},
        "input_ids has dtype timedelta64[s], but must be integer",
    ),
    "number of items in words": (
        LM,
        lambda: {"input_ids": IDS, "labels": IDS, "num_items_in_batch": "three"},
        "num_items_in_batch has dtype <U5, but must be bool, integer or float",
    ),
    "position too large": (
        LM,
        lambda: {"input_ids": IDS, "position_ids": [0, 1, P]},
        out_of_range("position_ids", [2], P, P, POSITIONS),
    ),
    "position negative": (
        BASE,
        lambda: {"input_ids": IDS, "position_ids": [[0, 1, 2], [-1, 0, 1]]},
        out_of_range("position_ids", [1, 0], -1, P, POSITIONS),
    ),
    "too few positions": (
        BASE,
        lambda: {"input_ids": IDS, "position_ids": [0, 1]},
        "position_ids has shape (2,), but must have (2, 3)",
    ),
    "positions twice": (
        LM,
        lambda: {"input_ids": IDS, "position_ids": [0, 1, 2], "positions_from_mask": True},
        "give either position_ids or positions_from_mask=True, not both",
    ),
    "token type too large": (
        LM,
        lambda: {"input_ids": IDS, "token_type_ids": [[0, 0, V], [0, 0, 0]]},
        out_of_range("token_type_ids", [0, 2], V, V, VOCABULARY),
    ),
    "token types of another shape": (
        BASE,
        lambda: {"input_ids": IDS, "token_type_ids": [[0, 0]]},
        "token_type_ids has shape (1, 2), but must have (2, 3)",
    ),
    "label too large": (
        LM,
        lambda: {"input_ids": IDS, "labels": [[1, 2, 3], [4, V, 6]]},
        out_of_range("labels", [1, 1], V, V, VOCABULARY) + ", or -100",
    ),
    "label -1": (
        DOUBLE,
        lambda: {"input_ids": IDS, "labels": [[1, 2, 3], [4, 5, -1]]},
        out_of_range("labels", [1, 2], -1, V, VOCABULARY) + ", or -100",
    ),
    "labels of another shape": (
        LM,
        lambda: {"input_ids": IDS, "labels": [1, 2, 3]},
        "labels has shape (3,), but must have (2, 3)",
    ),
    "labels of some logits": (
        LM,
        lambda: {"input_ids": IDS, "labels": IDS, "logits_to_keep": 2},
        "labels need all logits, so logits_to_keep must be 0",
    ),
    "labels of some places": (
        LM,
        lambda: {"input_ids": IDS, "labels": IDS, "logits_to_keep": [0, 1]},
        "labels need all logits, so logits_to_keep must be 0",
    ),
    "negative logits_to_keep": (
        LM,
        lambda: {"input_ids": IDS, "logits_to_keep": -1},
        "logits_to_keep is -1, but must be 0 (all) or more",
    ),
    "logits_to_keep out of range": (
        LM,
        lambda: {"input_ids": IDS, "logits_to_keep": [0, 3]},
        out_of_range("logits_to_keep", [1], 3, 3, TOKENS),
    ),
    "logits_to_keep of other rows": (
        LM,
        lambda: {"input_ids": IDS, "logits_to_keep": [[0], [1], [2]]},
        "logits_to_keep has shape (3, 1), but must have",
    ),
    "mc_token_ids out of range": (
        DOUBLE,
        lambda: {"input_ids": CHOICES, "mc_token_ids": [[0, 3], [0, 0]]},
        out_of_range("mc_token_ids", [0, 1], 3, 3, TOKENS),
    ),
    "mc_token_ids -1": (
        DOUBLE,
        lambda: {"input_ids": CHOICES, "mc_token_ids": [[-1, 2], [0, 0]]},
        out_of_range("mc_token_ids", [0, 0], -1, 3, TOKENS),
    ),
    "mc_token_ids of another shape": (
        DOUBLE,
        lambda: {"input_ids": CHOICES, "mc_token_ids": [0, 1]},
        "mc_token_ids has shape (2,), but must have (2, 2)",
    ),
    "mc_labels out of range": (
        DOUBLE,
        lambda: {"input_ids": CHOICES, "mc_labels": [0, 2]},
        out_of_range("mc_labels", [1], 2, 2, "the number of choices") + ", or -100",
    ),
    "mc_labels of another shape": (
        DOUBLE,
        lambda: {"input_ids": CHOICES, "mc_labels": [0, 1, 0]},
        "mc_labels has shape (3,), but must have (2,)",
    ),
    "cache of another batch": (
        LM,
        lambda: {"input_ids": IDS, "cache": cached(rows=3)},
        "the cache holds 2 layers of (3, 2, 8, 4), but these tokens need 2 of (2, 2, 8, 4)",
    ),
    "cache of another depth": (
        BASE,
        lambda: {"input_ids": IDS, "cache": cached(n_layer=3)},
        "the cache holds 3 layers of (2, 2, 8, 4), but these tokens need 2 of (2, 2, 8, 4)",
    ),
    "cache of other heads": (
        LM,
        lambda: {"input_ids": IDS, "cache": cached(n_head=4)},
        "the cache holds 2 layers of (2, 4, 8, 2), but these tokens need 2 of (2, 2, 8, 4)",
    ),
    "cache too short": (
        LM,
        lambda: {"input_ids": IDS, "cache": cached(length=5, filled=3)},
        "3 cached and 3 new tokens, but the cache has room for 5",
    ),
    "cache longer than the model": (
        BASE,
        lambda: {"input_ids": IDS, "cache": cached(length=20, filled=P - 2)},
        f"{P - 2} cached and 3 new tokens, but the model has n_positions = {P}",
    ),
    "cache with a mask of halves": (
        LM,
        lambda: {
            "input_ids": IDS,
            "cache": dataclasses.replace(cached(), mask=np.full((2, 8), 0.5, np.float32)),
        },
        "the cache's mask[0, 0] is 0.5, but must be 1 for a token or 0 for padding",
    ),
    "seed in place of a key": (
        LM,
        lambda: {"input_ids": IDS, "deterministic": False, "dropout_key": 0},
        "dropout_key is 0, but must be a key: jax.random.key(seed)",
    ),
    "dropout without a key": (
        LM,
        lambda: {"input_ids": IDS, "deterministic": False},
        "deterministic=False needs a dropout_key: jax.random.key(seed)",
    ),
    "rows without a pad token": (
        CLASSIFIER,
        lambda: {"input_ids": IDS},
        "2 rows need config.pad_token_id, to find where each of them ends",
    ),
    "one dimension to classify": (
        CLASSIFIER,
        lambda: {"input_ids": [1, 2]},
        "the tokens have shape (2,), but must be (batch, T)",
    ),
    "three dimensions to classify": (
        CLASSIFIER,
        lambda: {"input_ids": CHOICES},
        "the tokens have shape (2, 2, 3), but must be (batch, T)",
    ),
    "class too large": (
        CLASSIFIER,
        lambda: {"input_ids": [[1, 2]], "labels": [2]},
        out_of_range("labels", [0], 2, 2, "num_labels") + ", or -100",
    ),
    "class for no row": (
        CLASSIFIER,
        lambda: {"input_ids": [[1, 2]], "labels": [0, 1]},
        "labels has shape (2,), but for 1 rows and num_labels = 2 must have",
    ),
    "too few classes": (
        CLASSIFIER,
        lambda: {"input_ids": [[1, 2]], "labels": [[0.0, 1.0, 1.0]]},
        "labels has shape (1, 3), but for 1 rows and num_labels = 2 must have (1, 2)",
    ),
}
WRONG_FOR_MASKS = {
    "ragged mask": ([[1, 1, 1], [1]], "attention_mask has rows of unequal length"),
    "text as a mask": ("attend", "attention_mask has shape ()"),
}


@pytest.fixture(scope="module")
def models() -> dict[type, Any]:
    return {cls: small_model(cls) for cls in (BASE, LM, DOUBLE, CLASSIFIER)}


@pytest.fixture(scope="module")
def applies(models: dict[type, Any]) -> dict[type, Callable[..., Any]]:
    def with_params(model: Any) -> Callable[..., Any]:
        apply, params = gpt1.functional(model)
        return lambda *args, **arguments: apply(params, *args, **arguments)

    return {cls: with_params(model) for cls, model in models.items()}


@pytest.mark.parametrize("case", WRONG)
def test_model_call_reports_invalid_arguments(case: str, models: dict[type, Any]) -> None:
    cls, arguments, message = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        models[cls](**arguments())


@pytest.mark.parametrize("case", WRONG)
def test_apply_reports_invalid_arguments(case: str, applies: dict[type, Any]) -> None:
    cls, arguments, message = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        applies[cls](**arguments())


# On a device, where ``apply`` does not look.
ON_DEVICE: dict[str, tuple[type, dict[str, Any], str]] = {
    f"{name} {value}": (
        LM,
        {"input_ids": [[1, 2, 3]], name: [[0, value, 1]]},
        f"{name}[0, 1] is {value}",
    )
    for name, size in (
        ("input_ids", V),
        ("position_ids", P),
        ("token_type_ids", V),
        ("labels", V),
        ("logits_to_keep", 3),
    )
    for value in (-1, size)
}
ON_DEVICE |= {
    "mc_token_ids": (
        DOUBLE,
        {"input_ids": CHOICES, "mc_token_ids": [[0, 3], [1, -1]]},
        "mc_token_ids[0, 1] is 3",
    ),
    "mc_labels": (DOUBLE, {"input_ids": CHOICES, "mc_labels": [0, -1]}, "mc_labels[1] is -1"),
    "class": (CLASSIFIER, {"input_ids": [[1, 2]], "labels": [-1]}, "labels[0] is -1"),
}


@pytest.mark.nightly
@pytest.mark.parametrize("case", ON_DEVICE)
def test_ids_out_of_range_on_a_device_raise_in_the_model_and_give_nan_in_apply(
    case: str, models: dict, applies: dict
) -> None:
    cls, arguments, message = ON_DEVICE[case]
    arguments = {name: jnp.asarray(value) for name, value in arguments.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        models[cls](**arguments)
    right = applies[cls](input_ids=CHOICES if cls is DOUBLE else [[1, 2, 3]])
    out = applies[cls](**arguments)
    assert not any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(right))
    assert any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(out))


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "uint32"])
def test_ids_of_narrow_dtypes_give_the_same_results(dtype: str) -> None:
    """Whose greatest value may be below the vocabulary's size and the number of positions."""
    config = small_config(vocab_size=40_000, n_positions=512, n_layer=1)
    apply, params = gpt1.functional(gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0)))
    names = ("input_ids", "labels", "position_ids", "token_type_ids")
    wide = {name: np.asarray(IDS) for name in names}
    narrow = {name: np.asarray(IDS, dtype) for name in names}
    expected, found = apply(params, **wide), apply(params, **narrow)
    np.testing.assert_array_equal(expected.logits, found.logits)
    assert expected.loss == found.loss
    kept = [
        apply(params, np.asarray(IDS), logits_to_keep=np.asarray([0, 2], each)).logits
        for each in (np.int32, dtype)
    ]
    np.testing.assert_array_equal(*kept)


@pytest.mark.nightly
@pytest.mark.parametrize("value", [0.5, 2, -1, 255, np.nan, np.inf, -1e9])
@pytest.mark.parametrize("attention", ["manual", "xla"])
def test_mask_on_a_device_raises_in_the_model_and_gives_nan_in_its_row_in_apply(
    attention: Any, value: float
) -> None:
    model = small_model(LM, n_layer=1, attention=attention)
    apply, params = gpt1.functional(model)
    ids, wrong = jnp.asarray(IDS), jnp.asarray([[1, 1, 1], [1, value, 0]], jnp.float32)
    with pytest.raises(ValueError, match=re.escape("attention_mask[1, 1] is ")):
        model(ids, wrong)
    right = apply(params, ids, jnp.ones((2, 3)), output_hidden_states=True)
    for call in (apply, jax.jit(apply, static_argnames="output_hidden_states")):
        out = call(params, ids, wrong, output_hidden_states=True)
        for found, expected in zip(jax.tree.leaves(out), jax.tree.leaves(right), strict=True):
            np.testing.assert_array_equal(found[0], expected[0])
            assert jnp.isnan(found[1]).all()


@pytest.mark.nightly
@pytest.mark.parametrize("attention", ["manual", "xla"])
def test_mask_of_other_values_gives_nan_in_its_row_for_good(attention: Any) -> None:
    """What follows in the cache, whose own mask is right, is NaN too."""
    model = small_model(LM, n_layer=1, attention=attention)
    apply, params = gpt1.functional(model)
    cache = gpt1.Cache.empty(model.config, 2, 8)
    mask = jnp.asarray([[0.5, 1, 1], [1, 1, 1]])
    cache = apply(params, jnp.asarray(IDS), mask, cache=cache).cache
    for _ in range(2):
        out = apply(params, jnp.asarray([[1], [2]]), cache=cache)
        cache = out.cache
        assert jnp.isnan(out.logits[0]).all()
        assert jnp.isfinite(out.logits[1]).all()


@pytest.mark.parametrize("cls", [DOUBLE, CLASSIFIER])
def test_mask_of_other_values_gives_nan_in_the_heads_of_its_row(cls: type, applies: dict) -> None:
    model = small_model(cls, pad_token_id=0)
    apply, params = gpt1.functional(model)
    ids = jnp.asarray([IDS] if cls is DOUBLE else IDS)
    mask = jnp.ones(ids.shape, jnp.int32).at[..., 1, 0].set(2)
    out = apply(params, ids, mask)
    scores = out.mc_logits[0] if cls is DOUBLE else out.logits
    assert jnp.isfinite(scores[0]).all()
    assert jnp.isnan(scores[1]).all()


def test_apply_takes_lists_of_arrays_and_flags_on_a_device(applies: dict) -> None:
    expected = applies[LM](input_ids=IDS).logits
    rows: Any = [jnp.asarray(row) for row in IDS]
    found = applies[LM](input_ids=rows, deterministic=jnp.asarray(True)).logits
    np.testing.assert_array_equal(expected, found)


def test_apply_gives_nan_where_the_cache_is_full(models: dict, applies: dict) -> None:
    ids = jnp.asarray(IDS)
    cache = applies[LM](input_ids=ids, cache=cached(length=4)).cache
    with pytest.raises(ValueError, match="3 cached and 3 new tokens"):
        models[LM](input_ids=ids, cache=cache)
    assert jnp.isnan(applies[LM](input_ids=ids, cache=cache).logits).all()


def test_apply_and_model_say_that_a_cache_was_donated(applies: dict, models: dict) -> None:
    cache = cached()
    ids = np.asarray(IDS)
    assert applies[LM](input_ids=ids, cache=cache).cache.index == 3
    for call in (applies[LM], models[LM]):
        with pytest.raises(ValueError, match="give the cache that this call returned"):
            call(input_ids=ids, cache=cache)


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "labels"])
def test_apply_reads_no_values_of_arrays_on_a_device(name: str, applies: dict) -> None:
    """A read of a deleted array raises an error: here no frame of a check may be above it."""
    arguments = {each: jnp.ones((2, 3), jnp.int32) for each in ("input_ids", name)}
    arguments[name].delete()
    with pytest.raises((RuntimeError, ValueError), match="deleted") as error:
        applies[LM](**arguments)
    assert not any(Path(entry.path).name == "validation.py" for entry in error.traceback)


@pytest.mark.parametrize("classify", [False, True])
def test_check_arguments_reads_no_values_of_deleted_arrays(classify: bool) -> None:
    arguments: dict[str, Any] = {
        "input_ids": jnp.ones((2, 3), jnp.int32),
        "attention_mask": jnp.ones((2, 3)),
        "labels": jnp.ones((2,) if classify else (2, 3), jnp.int32),
        "num_items_in_batch": jnp.float32(4),
    }
    if not classify:
        arguments |= {"positions_from_mask": True, "cache": gpt1.Cache.empty(small_config(), 2, 8)}
    for leaf in jax.tree.leaves(arguments):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    config = small_config(pad_token_id=0)
    checked = without_device_values(arguments)
    assert check_arguments(config, classify=classify, **checked) == (2, 3)


@pytest.mark.parametrize("case", WRONG_FOR_MASKS)
def test_attention_mask_errors_name_the_argument(case: str, models: dict, applies: dict) -> None:
    mask, message = WRONG_FOR_MASKS[case]
    for call in (models[LM], applies[LM]):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(input_ids=IDS, attention_mask=mask)


FOREIGN = {
    "return_dict": (False, "the output is a mapping, whose to_tuple() returns the tuple"),
    "past_key_values": ((), "pass cache=Cache.empty(config, rows, length), and then the cache of"),
    "use_cache": (True, "pass cache=Cache.empty(config, rows, length), and then the cache of"),
    "head_mask": (np.ones(2), "a head is left out by setting its rows of attn.c_proj to 0"),
}


@pytest.mark.difference("unknown arguments")
@pytest.mark.difference("caches")
@pytest.mark.parametrize("name", FOREIGN)
def test_arguments_of_transformers_say_what_to_use(name: str, models: dict, applies: dict) -> None:
    value, instead = FOREIGN[name]
    public = ("OpenAIGPTLMHeadModel.__call__()", "apply() of OpenAIGPTLMHeadModel")
    for call, function in zip((models[LM], applies[LM]), public, strict=True):
        message = re.escape(f"{function} takes no {name}: {instead}")
        with pytest.raises(TypeError, match=f"^{message}"):
            call(input_ids=IDS, **{name: value})


def test_arguments_without_effect_are_accepted(models: dict, applies: dict) -> None:
    for call in (models[LM], applies[LM]):
        expected = call(IDS)
        for values in ({"return_dict": True, "use_cache": False}, dict.fromkeys(FOREIGN)):
            np.testing.assert_array_equal(call(IDS, **values).logits, expected.logits)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("problem_type", "labels", "fits"),
    [
        ("single_label_classification", [0], True),
        ("single_label_classification", [[1]], True),
        ("single_label_classification", [-100], True),
        ("single_label_classification", [2], False),
        ("single_label_classification", [0.0], False),
        ("multi_label_classification", [[0, 1]], True),
        ("multi_label_classification", [1], False),
        ("regression", [[0.5, 7.0]], True),
        ("regression", [0.5], False),
        (None, [1], True),
        (None, [[1.0, 0.0]], True),
        (None, [0.5], False),
        (None, [[0, 1]], False),
    ],
)
def test_classifier_checks_labels_against_problem_type(
    problem_type: str, labels: Any, fits: bool
) -> None:
    model = small_model(CLASSIFIER, problem_type=problem_type, pad_token_id=0)
    if fits:
        assert model(IDS, labels=labels * 2).loss is not None
        return
    with pytest.raises(ValueError, match=r"^labels"):
        model(IDS, labels=labels * 2)


RIGHT: dict[str, dict[str, Any]] = {
    "unsigned ids": {"input_ids": np.asarray(IDS, np.uint8)},
    "int64 ids": {"input_ids": np.asarray(IDS, np.int64)},
    "first and last id": {"input_ids": [[0, V - 1, 0], [1, 1, 1]]},
    "bool mask": {"input_ids": IDS, "attention_mask": np.ones((2, 3), bool)},
    "float mask": {"input_ids": IDS, "attention_mask": np.ones((2, 3), np.float64)},
    "last position": {"input_ids": IDS, "position_ids": [0, 0, P - 1]},
    "positions for all rows": {"input_ids": IDS, "position_ids": [[2, 1, 0]]},
    "token types for all rows": {"input_ids": IDS, "token_type_ids": [[0, V - 1, 0]]},
    "ignored labels": {"input_ids": IDS, "labels": [[-100, 2, -100], [V - 1, 0, -100]]},
    "more logits than tokens": {"input_ids": IDS, "logits_to_keep": 9},
    "logits of a numpy number": {"input_ids": IDS, "logits_to_keep": np.int64(2)},
}


@pytest.mark.nightly
@pytest.mark.parametrize("case", RIGHT)
def test_model_call_accepts_valid_arguments(case: str, models: dict) -> None:
    assert np.isfinite(models[LM](**RIGHT[case]).logits).all()


def test_cache_can_fill_the_last_positions() -> None:
    model = small_model(LM)
    full = cached(length=P, filled=P - 3)
    out = model(IDS, cache=full)
    assert out.cache is not None
    assert out.cache.index == P


@pytest.mark.nightly
@pytest.mark.parametrize("positions", ["given", "from the mask"])
@pytest.mark.parametrize("cls", [BASE, LM])
def test_padded_cache_may_exceed_n_positions(positions: str, cls: type) -> None:
    """Where positions do not count the padding, only they have to be in range."""
    longer = cached(length=P + 8, filled=P)
    arguments = {"positions_from_mask": True}
    if positions == "given":
        arguments = {"position_ids": np.asarray([0, 1, 2])}
    assert small_model(cls)(IDS, cache=longer, **arguments).cache.index == P + 3


@pytest.mark.parametrize("cls", [BASE, LM])
def test_positions_from_mask_must_fit_n_positions(cls: type) -> None:
    cache = cached(length=P + 8, filled=P)
    full = gpt1.Cache(cache.keys, cache.values, cache.mask.at[:, :P].set(1), cache.index)
    with pytest.raises(ValueError, match=f"n_positions = {P}"):
        small_model(cls)(IDS, cache=full, positions_from_mask=True)


TRACED_AND_WRONG = {
    "too many tokens": ({"input_ids": np.ones((1, P + 1), np.int32)}, "9 tokens"),
    "float ids": ({"input_ids": np.ones((2, 3), np.float32)}, "input_ids has dtype float32"),
    "mask shape": (
        {"input_ids": np.asarray(IDS), "attention_mask": np.ones((2, 2))},
        "attention_mask has shape (2, 2)",
    ),
    "label shape": (
        {"input_ids": np.asarray(IDS), "labels": np.ones((2, 2), np.int32)},
        "labels has shape (2, 2)",
    ),
    "float positions": (
        {"input_ids": np.asarray(IDS), "position_ids": np.ones(3, np.float32)},
        "position_ids has dtype float32",
    ),
    "embedding width": ({"inputs_embeds": np.ones((2, 3, E + 1), np.float32)}, "9 wide"),
}


@pytest.mark.parametrize("case", TRACED_AND_WRONG)
def test_apply_checks_shapes_and_dtypes_inside_jit(case: str, applies: dict) -> None:
    arguments, message = TRACED_AND_WRONG[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(lambda arguments: applies[LM](**arguments), arguments)


def test_validation_skips_values_inside_jit(applies: dict, models: dict) -> None:
    """Which only the host could: the call is compiled for every value."""
    wrong = {
        "input_ids": np.full((2, 3), V + 1),
        "attention_mask": np.ones((2, 3)),
        "position_ids": np.full((2, 3), P),
        "token_type_ids": np.full((2, 3), -1),
        "labels": np.full((2, 3), V),
    }
    out = jax.eval_shape(lambda arguments: applies[LM](**arguments), wrong)
    assert out.logits.shape == (2, 3, V)
    assert out.loss.shape == ()
    graphdef, state = nnx.split(models[LM])

    def call(state: Any, arguments: Any) -> Any:
        return nnx.merge(graphdef, state)(**arguments)

    assert jax.eval_shape(call, state, wrong).logits.shape == (2, 3, V)


def test_apply_checks_traced_cache_by_shape(applies: dict) -> None:
    def call(ids: Any, cache: Any) -> Any:
        return applies[LM](input_ids=ids, cache=cache)

    ids = np.asarray(IDS)
    assert jax.eval_shape(call, ids, cached(length=3, filled=3)).cache.length == 3
    with pytest.raises(ValueError, match="room for 2"):
        jax.eval_shape(call, ids, cached(length=2))
    with pytest.raises(ValueError, match="the cache holds"):
        jax.eval_shape(call, ids, cached(rows=1))


@pytest.mark.nightly
@pytest.mark.parametrize("cls", MODELS)
def test_arguments_are_checked_once(
    cls: Any, models: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        checks.append(1)
        return check_arguments(*args, **kwargs)

    monkeypatch.setattr(validation, "check_arguments", counted)
    monkeypatch.setattr(pure, "check_arguments", counted)
    ids = np.ones((1, 2, 3) if cls is DOUBLE else (1, 3), np.int32)
    models[cls](ids)
    assert len(checks) == 1
    jax.clear_caches()  # so that it is traced, which checks nothing more
    apply, params = pure.functional(models[cls])
    apply(params, ids)
    assert len(checks) == 2


@pytest.mark.parametrize("name", ["logits_to_keep", "deterministic"])
def test_none_is_rejected_where_it_is_no_value(name: str, models: dict, applies: dict) -> None:
    message = {"logits_to_keep": "logits_to_keep is None", "deterministic": "needs a dropout_key"}
    for call in (models[LM], applies[LM]):
        with pytest.raises(ValueError, match=message[name]):
            call(input_ids=[[1, 2, 3]], **{name: None})


@pytest.mark.nightly
def test_wrong_arguments_name_the_call(models: dict, applies: dict) -> None:
    public = (r"OpenAIGPTModel.__call__\(\)", r"apply\(\) of OpenAIGPTModel")
    for call, function in zip((models[BASE], applies[BASE]), public, strict=True):
        with pytest.raises(TypeError, match=f"^{function} takes no labels; its arguments are inp"):
            call(input_ids=[[1, 2, 3]], labels=[[1, 2, 3]])
        with pytest.raises(TypeError, match=f"^{function} takes no config; its arguments are inp"):
            call(input_ids=[[1, 2, 3]], config=None)
        with pytest.raises(TypeError, match=f"{function} takes no atention_mask: did you mean att"):
            call([[1, 2, 3]], atention_mask=None)
        with pytest.raises(TypeError, match=f"^{function} takes 7 arguments by place, but got 8"):
            call(*[None] * 8)
        with pytest.raises(TypeError, match=f"^{function} got input_ids by place and by name"):
            call([[1, 2, 3]], input_ids=[[1, 2, 3]])
    for cls in (DOUBLE, CLASSIFIER):  # no cache, which is what None says
        ids = np.ones((1, 2, 3) if cls is DOUBLE else (1, 3), np.int32)
        assert models[cls](input_ids=ids, cache=None) is not None
        assert applies[cls](input_ids=ids, cache=None) is not None
