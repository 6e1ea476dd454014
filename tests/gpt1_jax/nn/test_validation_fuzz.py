"""Arrays of every dtype, byte order, layout and shape: right values, or one ValueError."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from support.small_models import SIZES, leaves_equal, small_model

import gpt1_jax as gpt1

V, P, E = SIZES["vocab_size"], SIZES["n_positions"], SIZES["n_embd"]
B, T = 2, 3
MODEL = gpt1.OpenAIGPTLMHeadModel
# Every argument that is an array, with the number of values that it may hold.
INDICES = {"input_ids": V, "labels": V, "position_ids": P, "token_type_ids": V}
INTEGERS = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
FLOATS = ("f2", "f4", "f8", "g", ml_dtypes.bfloat16)
NO_NUMBERS: tuple[Any, ...] = ("c8", "c16", "O", "S3", "U3", "M8[s]", "m8[s]", [("a", "i4")], "V4")


@pytest.fixture(scope="module")
def calls() -> dict[str, Callable[..., Any]]:
    """The model's own call, which is never compiled, and its compiled ``apply``."""
    model = small_model(MODEL, n_layer=1)
    apply, params = gpt1.functional(model)
    return {"model": model, "apply": lambda **arguments: apply(params, **arguments)}


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    raw[:] = np.frombuffer(array.tobytes(), np.uint8)
    return raw.view(array.dtype).reshape(array.shape)


# The same values, otherwise laid out.
LAYOUTS: tuple[Callable[[np.ndarray], Any], ...] = (
    lambda array: array,
    lambda array: array.astype(array.dtype.newbyteorder("S")),
    np.asfortranarray,
    lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    lambda array: array[..., ::-1].copy()[..., ::-1],
    read_only,
    unaligned,
    lambda array: unaligned(array.astype(array.dtype.newbyteorder("S"))),
)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_of_any_width_order_and_layout_give_the_same_results(
    dtype: str, calls: dict
) -> None:
    rng = np.random.default_rng(int(dtype[1]))
    for trial in range(12):
        plain = {name: rng.integers(size, size=(B, T)) for name, size in INDICES.items()}
        plain["attention_mask"] = rng.integers(2, size=(B, T))
        found = {
            name: LAYOUTS[rng.integers(len(LAYOUTS))](array.astype(dtype))
            for name, array in plain.items()
        }
        expected = calls["apply"](**{name: array.astype(dtype) for name, array in plain.items()})
        assert leaves_equal(calls["apply"](**found), expected)
        if trial % 6 == 0:  # the model's own call is slow
            assert leaves_equal(calls["model"](**found), calls["model"](**plain))


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_of_any_width_order_and_layout_give_the_same_results(
    dtype: Any, calls: dict
) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(2, size=(B, T)).astype(dtype)
    embeds = rng.integers(-9, 9, size=(B, T, E)).astype(dtype)
    for call in calls.values():
        expected = call(inputs_embeds=embeds.astype("f4"), attention_mask=mask.astype("f4"))
        for layout in LAYOUTS:
            found = call(inputs_embeds=layout(embeds), attention_mask=layout(mask))
            assert leaves_equal(found, expected)


@pytest.mark.parametrize("dtype", NO_NUMBERS, ids=str)
@pytest.mark.parametrize("name", [*INDICES, "attention_mask", "inputs_embeds", "logits_to_keep"])
def test_arrays_of_no_numbers_are_refused_by_name(name: str, dtype: Any, calls: dict) -> None:
    shape = (B, T, E) if name == "inputs_embeds" else (B, T)
    arguments: dict[str, Any] = {"input_ids": np.ones((B, T), int)}
    if name == "inputs_embeds":
        del arguments["input_ids"]
    arguments[name] = np.zeros(shape, dtype)
    for call in calls.values():
        with pytest.raises(ValueError, match=f"^{name} has dtype .*, but must be "):
            call(**arguments)


def test_arrays_of_any_shape_give_right_shapes_or_name_the_argument(calls: dict) -> None:
    """Shapes of up to three dimensions of sizes that fit, and that do not."""
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(150):
        sizes = rng.choice([0, 1, B, T, P + 1], size=rng.integers(4), p=[0.1, 0.3, 0.2, 0.3, 0.1])
        shape = tuple(sizes.tolist())
        name = rng.choice([*INDICES, "attention_mask", "logits_to_keep"])
        arguments = {"input_ids": np.ones((B, T), int)} | {name: np.zeros(shape, int)}
        try:
            # Checked with its values, and traced, which is fast.
            out = jax.eval_shape(lambda arguments=arguments: calls["model"](**arguments))
        except ValueError as error:
            message = str(error)
            assert message.startswith((name, "the tokens have shape", f"{P + 1} tokens, but"))
            with pytest.raises(ValueError, match=re.escape(message)):
                calls["apply"](**arguments)
        else:
            accepted += 1
            assert out.logits.shape[:-2] == (shape[:-1] if name == "input_ids" else (B,))
    assert 20 < accepted < 130


VALUES = (0, 1, 1.0, -0.0, True, 2, -1, 0.5, 1 + 1e-9, 255, np.nan, np.inf, -np.inf, -1e9, 1e-30)


def test_masks_of_any_values_are_refused_unless_they_are_zeros_and_ones(calls: dict) -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        mask = rng.choice(VALUES[:5], size=(B, T))
        mask.flat[rng.integers(B * T)] = value = rng.choice(VALUES)
        call = calls[rng.choice(["model", "apply"])]
        arguments = {"input_ids": np.ones((B, T), int)}
        arguments["attention_mask"] = mask.tolist() if rng.random() < 0.5 else mask
        if value in (0, 1):
            assert jnp.isfinite(call(**arguments).logits).all()
            continue
        refused += 1
        with pytest.raises(ValueError, match=re.escape(f"is {value}, but must be 1 for a token")):
            call(**arguments)
    assert 50 < refused < 150


def test_masks_of_any_values_inside_jit_give_nan_in_the_rows_that_are_wrong(calls: dict) -> None:
    rng = np.random.default_rng(0)
    compiled = jax.jit(
        lambda mask: calls["apply"](input_ids=jnp.ones((B, T), int), attention_mask=mask)
    )
    values = np.asarray([value for value in VALUES if value != 1 + 1e-9], np.float32)
    right = np.isin(values, (0, 1))
    for _ in range(100):
        chosen = rng.integers(len(values), size=(B, T))
        chosen[rng.integers(B)] = 1  # a row that is right, often beside one that is not
        logits = compiled(values[chosen]).logits
        for row, logits_of_row in zip(chosen, logits, strict=True):
            assert jnp.isnan(logits_of_row).all() == (not right[row].all())
            assert jnp.isfinite(logits_of_row).all() == right[row].all()


@pytest.mark.parametrize("dtype", ["i1", "i4", "u4"])
def test_indices_of_any_values_inside_jit_give_nan_where_they_are_wrong(
    dtype: str, calls: dict
) -> None:
    """None is counted from the end, and none is moved to the nearest that is right."""
    rng = np.random.default_rng(0)
    compiled = jax.jit(lambda arguments: calls["apply"](**arguments))
    low = 0 if dtype.startswith("u") else -3
    for _ in range(60):
        arguments = {
            name: rng.integers(size, size=(B, T)).astype(dtype) for name, size in INDICES.items()
        }
        name = rng.choice([*INDICES])
        place = int(rng.integers(B)), int(rng.integers(1, T))  # the first label is not predicted
        arguments[name][place] = value = rng.integers(low, INDICES[name] + 3)
        wrong = not 0 <= value < INDICES[name]
        out = compiled(arguments)
        assert jnp.isnan(out.loss) == wrong
        in_row = wrong and name != "labels"
        assert jnp.isnan(out.logits[place]).all() == in_row
        assert jnp.isfinite(out.logits[1 - place[0]]).all()


def test_ids_in_four_bits_are_read_rightly(calls: dict[str, Callable[..., Any]]) -> None:
    ids = np.asarray([[0, 1, 7]])
    for call in calls.values():
        expected = call(input_ids=ids).logits
        np.testing.assert_array_equal(call(input_ids=ids.astype(ml_dtypes.int4)).logits, expected)


def test_masked_arrays_are_refused(calls: dict[str, Callable[..., Any]]) -> None:
    masked = np.ma.array([[1, 1, 1]], mask=[[False, False, True]])
    for call in calls.values():
        for name in ("attention_mask", "labels", "input_ids"):
            with pytest.raises(ValueError, match=f"{name} is a masked array"):
                call(**{"input_ids": np.ones((1, 3), int), name: masked})
