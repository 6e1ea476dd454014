"""Weights that are damaged at random: read as their own libraries read them, or refused."""

import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.mutations import mutate_bytes, mutate_json, read_or_refuse

from conversion import ARCHITECTURES, param_specs, read, write

LM_HEAD = ARCHITECTURES[1]
FORMATS = {
    "safetensors": {},
    "shards": {"max_shard_size": "4KB"},
    "npy": {"format": "openai"},
    "pickle": {"safe_serialization": False},
    "pickled shards": {"safe_serialization": False, "max_shard_size": "4KB"},
}
DAMAGES = 60  # of each format; some thousands were tried by hand


def damage(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.8:
        data = mutate_json(rng, data)
    elif path.suffix == ".safetensors" and rng.random() < 0.5:
        end = 8 + int.from_bytes(data[:8], "little")
        header = mutate_json(rng, data[8:end])
        data = len(header).to_bytes(8, "little") + header + data[end:]
    else:
        data = mutate_bytes(rng, data)
    path.write_bytes(data)


def reference(folder: Path, rows) -> dict[str, np.ndarray]:
    """The arrays by torch's names, as safetensors, torch or numpy read them."""
    if (folder / "params_shapes.json").is_file():
        flat = np.concatenate([np.load(folder / f"params_{n}.npy") for n in range(10)])
        stops = np.cumsum([math.prod(row.shape) for row in rows])
        return dict(zip((row.torch for row in rows), np.split(flat, stops), strict=False))
    arrays = {}
    for path in folder.glob("*.safetensors"):
        arrays |= load_file(path)
    for path in folder.glob("*.bin"):
        torch = pytest.importorskip("torch")
        state = torch.load(path, weights_only=True, mmap=False)
        arrays |= {name: tensor.detach().numpy() for name, tensor in state.items()}
    return arrays


@pytest.mark.nightly
@pytest.mark.parametrize("kind", FORMATS)
def test_read_reads_damaged_weights_rightly_or_refuses_them(checkpoint, tmp_path, kind):
    if "pickle" in kind:
        pytest.importorskip("torch")
    made = checkpoint(LM_HEAD)
    write(tmp_path / "whole", made.config, made.params, **FORMATS[kind])
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    outcomes = set()
    for seed in range(DAMAGES):
        rng = random.Random(f"{kind} {seed}")
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(seed))
        name = rng.choice(names)
        damage(rng, folder / name)
        found = read_or_refuse(lambda folder=folder: read(folder))
        outcomes.add(found is None)
        if found is None:
            continue
        rows = param_specs(made.config, LM_HEAD)
        arrays = reference(folder, rows)
        for row in rows:
            leaf: Any = found[1]
            for key in row.path:
                leaf = leaf[key]
            same = row.to_torch(leaf).tobytes() == arrays[row.torch].tobytes()
            assert same, f"{kind} {seed}: {name}, {row.torch}"
    assert outcomes == {True, False}
