"""Tiny models with random weights, and the plain numpy that their outputs are compared with."""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

import gpt1_jax as gpt1
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel

MODELS = (
    gpt1.OpenAIGPTModel,
    gpt1.OpenAIGPTLMHeadModel,
    gpt1.OpenAIGPTDoubleHeadsModel,
    gpt1.OpenAIGPTForSequenceClassification,
)
SIZES: dict[str, Any] = {
    "vocab_size": 13,
    "n_positions": 8,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
}

Model = TypeVar("Model", bound=OpenAIGPTPreTrainedModel)


def small_config(**fields: Any) -> gpt1.OpenAIGPTConfig:
    return gpt1.OpenAIGPTConfig(**{**SIZES, **fields})


def small_model(
    cls: type[Model],
    *,
    seed: int = 0,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    attention: Any = "manual",
    **fields: Any,
) -> Model:
    """A model whose every parameter is random, biases and gains too, and far from uniform."""
    shape = _shape if attention == "manual" else _shape.__wrapped__  # which may depend on JAX
    model = nnx.clone(
        shape(
            cls,
            small_config(**fields),
            jax.config.jax_enable_x64,  # pyright: ignore[reportAttributeAccessIssue]
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            attention=attention,
        )
    )
    model.load_params(random_params(model, seed))
    return model


@functools.cache
def _shape(cls: type[Model], config: gpt1.OpenAIGPTConfig, x64: bool, **numerics: Any) -> Model:
    """A model without values, whose making takes five times as long as all else of it."""
    return nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **numerics))


def random_params(model: OpenAIGPTPreTrainedModel, seed: int) -> dict[str, Any]:
    """New values for every parameter, by the kind of its leaf."""
    rng = np.random.default_rng(seed)

    def values(path: tuple[str, ...], leaf: Any) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape)
        if path[-1] == "scale":
            return 1 + 0.1 * noise
        return noise * (0.1 if path[-1] == "bias" else 0.3)

    return unflatten_dict({p: values(p, leaf) for p, leaf in flatten_dict(model.params).items()})


def spoil(model: OpenAIGPTPreTrainedModel, path: str, value: float = np.nan, row: int = -1) -> None:
    """Set a number, or a row, of a model's parameter that is named by its path with dots."""
    leaves: Any = flatten_dict(model.params)
    leaf = leaves[*path.split(".")]
    leaves[*path.split(".")] = leaf.at[row].set(value)
    model.load_params(unflatten_dict(leaves))


def random_ids(*shape: int, seed: int = 0, size: int = SIZES["vocab_size"]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, size, shape).astype(np.int32)


def numpy_logits(
    params: Any, ids: np.ndarray, mask: Any = None, positions: Any = None, n_head: int = 2
) -> np.ndarray:
    """The language model in float64 numpy, tied, with the tanh GELU: (B, T) -> (B, T, V)."""
    table = np.asarray(params["transformer"]["tokens_embed"]["embedding"], np.float64)
    return numpy_states(params, ids, mask, positions, n_head) @ table.T


def numpy_states(
    params: Any, ids: np.ndarray, mask: Any = None, positions: Any = None, n_head: int = 2
) -> np.ndarray:
    """The states of any of the models with a head, likewise: (B, T) -> (B, T, E)."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    body = params["transformer"]
    B, T = ids.shape
    positions = np.arange(T) if positions is None else positions

    def linear(x: np.ndarray, layer: Any) -> np.ndarray:
        return x @ layer["kernel"] + layer["bias"]

    def norm(x: np.ndarray, layer: Any) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * layer["scale"] + layer["bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(B, T, n_head, -1).swapaxes(1, 2)

    x = body["tokens_embed"]["embedding"][ids] + body["positions_embed"]["embedding"][positions]
    for i in range(len(body["h"])):
        block = body["h"][str(i)]
        query, key, value = map(heads, np.split(linear(x, block["attn"]["c_attn"]), 3, axis=-1))
        mixed = numpy_weights(query, key, mask) @ value
        mixed = mixed.swapaxes(1, 2).reshape(x.shape)
        x = norm(x + linear(mixed, block["attn"]["c_proj"]), block["ln_1"])
        inner = linear(x, block["mlp"]["c_fc"])
        inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        x = norm(x + linear(inner, block["mlp"]["c_proj"]), block["ln_2"])
    return x


def numpy_weights(query: Any, key: Any, mask: Any = None) -> np.ndarray:
    """GPT-1's formula, one query at a time: divide, replace what lies after, add the padding."""
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    for t in range(scores.shape[-2]):
        scores[..., t, t + 1 :] = -1e4
    if mask is not None:
        lowest = float(np.finfo(np.float32).min)
        scores = scores + (1.0 - np.asarray(mask, np.float64))[:, None, None, :] * lowest
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def difference(ours: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value where that is above 1."""
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    assert ours.shape == expected.shape, f"{ours.shape} against {expected.shape}"
    return float(np.abs(ours - expected).max() / max(1.0, np.abs(expected).max()))


def leaves_equal(ours: Any, expected: Any) -> bool:
    """Whether two trees have one structure and the same bits."""
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
    return all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    )
