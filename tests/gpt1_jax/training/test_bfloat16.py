"""Training in bfloat16: its losses are those of float32."""

from pathlib import Path

import numpy as np
import pytest
from small_training import pretrain

from gpt1_jax.demo import FOLDER
from gpt1_jax.training.log import read_log

PROJECT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_loss_falls_as_in_float32(tmp_path: Path) -> None:
    """Two hundred steps of a model of the demo's size and vocabulary, on the project's own text."""
    texts = [PROJECT / "README.md", *sorted((PROJECT / "gpt1_jax").glob("*.py"))]
    losses = []
    for dtype in ("float32", "bfloat16"):
        pretrain(
            texts,
            tmp_path / dtype,
            tokenizer=FOLDER,
            n_layer=4,
            n_embd=192,
            n_head=3,
            n_positions=64,
            batch_size=4,
            steps=200,
            learning_rate=1e-3,
            warmup=20,
            dropout=0.1,
            dtype=dtype,
        )
        log = read_log(tmp_path / dtype / "log.jsonl")
        losses.append(np.array([record["loss"] for record in log if "loss" in record]))
    full, half = losses
    assert len(full) == len(half) == 200
    assert full[-20:].mean() < full[:20].mean() - 2  # there is a curve
    # Measured: 7e-5. With half as many tokens in a batch, one step parts by 1.4 %: a token lies
    # between two predictions, where float32 has a gradient norm of 90 too, of the same weights.
    assert 0 < np.abs(half / full - 1).max() < 1e-2
