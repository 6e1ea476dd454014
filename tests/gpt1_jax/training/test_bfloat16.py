"""Training in bfloat16: its losses are those of float32."""

from pathlib import Path

import numpy as np
import pytest
from support.small_training import pretrain

from gpt1_jax.demo import FOLDER
from gpt1_jax.training.log import read_log


@pytest.mark.nightly
def test_pretrain_bfloat16_loss_matches_float32(tmp_path: Path) -> None:
    """Two hundred steps of a model of the demo's size and vocabulary, at the paper's rate."""
    text = Path(__file__).parents[3] / "LICENSE"  # prose that does not change
    losses = []
    for dtype in ("float32", "bfloat16"):
        pretrain(
            [text],
            tmp_path / dtype,
            tokenizer=FOLDER,
            n_layer=4,
            n_embd=192,
            n_head=3,
            n_positions=64,
            batch_size=4,
            steps=200,
            learning_rate=2.5e-4,
            warmup=20,
            dropout=0.1,
            dtype=dtype,
        )
        log = read_log(tmp_path / dtype / "log.jsonl")
        losses.append(np.array([record["loss"] for record in log if "loss" in record]))
    full, half = losses
    assert len(full) == len(half) == 200
    assert full[-20:].mean() < full[:20].mean() - 2  # there is a curve
    # Measured: 2.5e-4. Four times the rate, or half the batch, makes single steps part by a percent
    # or more: a token that lies between two predictions falls to either, as any rounding has it.
    assert 0 < np.abs(half / full - 1).max() < 1e-2
