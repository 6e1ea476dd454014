"""The tiny models of the golden values: configuration, inputs and weights, from numpy alone."""

from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

import conversion

CONFIG: dict[str, Any] = {
    "vocab_size": 17,
    "n_positions": 16,
    "n_layer": 2,
    "n_embd": 12,
    "n_head": 3,
    "num_labels": 3,
    "pad_token_id": 0,
}
_IDS = [[3, 1, 4, 1, 5, 9], [0, 0, 2, 6, 5, 3]]
_MASK = [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
_POSITIONS = [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]]
_COMMON = {"attention_mask": _MASK, "position_ids": _POSITIONS, "token_type_ids": _IDS}
INPUTS: dict[str, dict[str, Any]] = {
    "OpenAIGPTModel": {"input_ids": _IDS, **_COMMON},
    "OpenAIGPTLMHeadModel": {
        "input_ids": _IDS,
        **_COMMON,
        "labels": [[3, 1, -100, 1, 5, 9], [-100, -100, 2, 6, 5, 3]],
    },
    "OpenAIGPTDoubleHeadsModel": {
        "input_ids": [_IDS],
        "mc_token_ids": [[5, 3]],
        "labels": [_IDS],
        "mc_labels": [1],
    },
    "OpenAIGPTForSequenceClassification": {"input_ids": _IDS, **_COMMON, "labels": [2, 0]},
}


def random_params(architecture: str) -> dict[str, Any]:
    """Weights in the tree of ``conversion``, wide enough for attention to be far from uniform."""
    rng = np.random.default_rng(2018)
    leaves = {}
    for row in conversion.param_specs(CONFIG, architecture):
        values = rng.normal(scale=0.3, size=row.shape) + (row.path[-1] == "scale")
        leaves[row.path] = values.astype(np.float32)
    return unflatten_dict(leaves)
