"""A model that writes a given text: what follows a position is a matter of the position alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from support.small_models import small_model
from support.small_tokenizer import SIZE

import gpt1_jax as gpt1

# Random models of this size share the compiled functions.
SIZES = {"vocab_size": SIZE, "n_positions": 64, "n_layer": 1, "n_embd": 64, "n_head": 1}


def scripted_model(script: Sequence[int]) -> gpt1.OpenAIGPTLMHeadModel:
    """The likeliest token to stand at position i is ``script[i]``, whatever stands before.

    The embedding of position i is that of the token at i + 1, many times over, and the block adds
    nothing to it.
    """
    V, T, E = SIZES["vocab_size"], SIZES["n_positions"], SIZES["n_embd"]
    model = small_model(gpt1.OpenAIGPTLMHeadModel, **SIZES)
    params: dict[Any, Any] = dict(flatten_dict(model.params))
    tokens = np.random.default_rng(0).choice([-1.0, 1.0], size=(V, E))
    positions = np.zeros((T, E))
    positions[: len(script) - 1] = 20 * tokens[np.asarray(script)[1:]]
    for path, leaf in params.items():
        if "c_proj" in path:
            params[path] = np.zeros(leaf.shape)
    params["transformer", "tokens_embed", "embedding"] = tokens
    params["transformer", "positions_embed", "embedding"] = positions
    model.load_params(unflatten_dict(params))
    return model
