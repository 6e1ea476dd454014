"""Arrays of numpy's in any byte order, and where a compiled function is given them."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from support.small_models import SIZES, difference, leaves_equal, random_ids, small_model

import gpt1_jax as gpt1
from gpt1_jax.nn.host_arrays import as_array, native, native_leaves

LM, DOUBLE = gpt1.OpenAIGPTLMHeadModel, gpt1.OpenAIGPTDoubleHeadsModel
IDS = random_ids(2, 4)


def swapped(array: Any) -> Any:
    """The same values in the other byte order."""
    array = np.asarray(array)
    return array.astype(array.dtype.newbyteorder("S"))


@pytest.mark.parametrize(
    "dtype", [bool, np.int8, np.uint16, np.int64, np.float16, np.float64, ml_dtypes.bfloat16]
)
def test_native_swaps_the_bytes_of_foreign_orders_alone(dtype: Any) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    assert native(array) is array
    found = native(swapped(array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(as_array(swapped(array)), array)
    assert native(swapped(array)[0, 1]) == array[0, 1]


def test_native_leaves_swaps_what_lies_on_the_host() -> None:
    tree = {"a": jax.numpy.ones(2), "b": (np.float32(1), None)}
    assert native_leaves(tree) == tree
    foreign = {"a": tree["a"], "b": (swapped(np.arange(3)), None)}
    found = native_leaves(foreign)
    assert found["a"] is tree["a"]
    assert found["b"][0].dtype.isnative
    np.testing.assert_array_equal(found["b"][0], np.arange(3))


# After a call with the native array, JAX's compiled function takes the other for one of its kind.
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (LM, {"input_ids": IDS}),
        (LM, {"input_ids": IDS, "attention_mask": np.asarray([[0, 1, 1, 1]] * 2, np.float32)}),
        (LM, {"input_ids": IDS, "attention_mask": np.asarray([[0, 1, 1, 1]] * 2, np.int64)}),
        (LM, {"input_ids": IDS, "labels": IDS, "num_items_in_batch": np.float32(3)}),
        (LM, {"input_ids": IDS, "position_ids": np.arange(4)[::-1]}),
        (LM, {"input_ids": IDS, "token_type_ids": IDS[::-1]}),
        (LM, {"input_ids": IDS, "logits_to_keep": np.asarray([1, 2])}),
        (LM, {"inputs_embeds": np.ones((2, 4, SIZES["n_embd"]), np.float32)}),
        (
            LM,
            {
                "input_ids": IDS,
                "deterministic": False,
                "dropout_key": np.asarray(jax.random.PRNGKey(1)),
            },
        ),
        (DOUBLE, {"input_ids": IDS[None], "mc_token_ids": np.asarray([[1, 2]])}),
        (DOUBLE, {"input_ids": IDS[None], "labels": IDS[None], "mc_labels": np.asarray([1])}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_apply_and_model_read_foreign_byte_orders_rightly(cls: Any, arguments: Any) -> None:
    model = small_model(cls, n_layer=1)
    apply, params = gpt1.functional(model)
    native_out = apply(params, **arguments)
    foreign = {
        name: swapped(value) if isinstance(value, np.ndarray | np.generic) else value
        for name, value in arguments.items()
    }
    assert leaves_equal(apply(params, **foreign), native_out)
    assert leaves_equal(model(**foreign), model(**arguments))


def test_apply_and_model_read_params_and_caches_of_foreign_byte_order_rightly() -> None:
    model = small_model(LM, n_layer=1)
    apply, params = gpt1.functional(model)
    on_host = jax.tree.map(np.asarray, params)
    cache = apply(params, IDS, cache=gpt1.Cache.empty(model.config, 2, 8)).cache
    cache = jax.tree.map(np.asarray, cache)
    expected = apply(on_host, IDS, cache=cache).logits
    foreign = jax.tree.map(swapped, cache)
    np.testing.assert_array_equal(
        apply(jax.tree.map(swapped, on_host), IDS, cache=foreign).logits, expected
    )
    # Measured: 2e-7.
    assert difference(model(IDS, cache=foreign).logits, expected) < 1e-6


def test_generate_reads_foreign_byte_orders_rightly() -> None:
    model = small_model(LM, n_layer=1)
    mask = np.asarray([[0, 1, 1, 1], [1, 1, 1, 1]], np.float32)
    np.testing.assert_array_equal(
        gpt1.generate(model, swapped(IDS), swapped(mask), max_new_tokens=3),
        gpt1.generate(model, IDS, mask, max_new_tokens=3),
    )


def test_load_params_reads_foreign_byte_orders_rightly() -> None:
    model = small_model(LM, n_layer=1)
    before = model.params
    model.load_params(jax.tree.map(swapped, before))
    assert leaves_equal(model.params, before)
