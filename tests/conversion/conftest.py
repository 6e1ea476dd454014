"""Tiny checkpoints of every architecture, made from the table with numpy alone."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from conversion.layout import param_specs
from conversion.match import DTYPES

TINY = {
    "model_type": "openai-gpt",
    "n_layer": 2,
    "n_embd": 12,
    "n_head": 3,
    "n_positions": 8,
    "vocab_size": 20,
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "n_special": 0,  # of old checkpoints; kept as it is
}


@dataclass
class Checkpoint:
    """One checkpoint in both forms: the tree, and torch's names as transformers saves them."""

    config: dict[str, Any]
    params: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def save(self, folder: Path, tensors: Mapping[str, np.ndarray] | None = None) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(dict(self.tensors if tensors is None else tensors), folder / "model.safetensors")
        return folder


def build(architecture: str, dtype: str = "float32", **changes: Any) -> Checkpoint:
    config = TINY | {"architectures": [architecture]} | changes
    made = Checkpoint(config)
    random = np.random.default_rng(0)
    for row in param_specs(config, architecture):
        leaf = random.standard_normal(row.shape).astype(DTYPES[dtype])
        node = made.params
        for key in row.path[:-1]:
            node = node.setdefault(key, {})
        node[row.path[-1]] = leaf
        tensor = np.ascontiguousarray(leaf.T) if row.transposed else leaf
        made.tensors[row.torch] = tensor
    if architecture == "OpenAIGPTDoubleHeadsModel" and config.get("tie_word_embeddings", True):
        made.tensors["lm_head.weight"] = made.tensors.pop("transformer.tokens_embed.weight")
    return made


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    a, b = np.asarray(a), np.asarray(b)
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.fixture
def checkpoint() -> Callable[..., Checkpoint]:
    """``checkpoint(architecture, dtype="float32", **config_changes)``."""
    return build


@pytest.fixture
def identical() -> Callable[[Any, Any], bool]:
    """Whether two trees (or arrays) have the same keys, dtypes, shapes and bits."""
    return same


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder, hidden ones too."""
    return lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}
