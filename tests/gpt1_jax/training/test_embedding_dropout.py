"""Dropout on the embedding tables: rate, mean, and that all who read a row share its mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import small_model

import gpt1_jax as gpt1
from gpt1_jax.pretrained import flatten
from gpt1_jax.pure import merge, split
from gpt1_jax.training.embedding_dropout import drop_from_tables, with_dropped_tables

RATE = 0.3


@pytest.mark.parametrize("cls", [gpt1.OpenAIGPTModel, gpt1.OpenAIGPTLMHeadModel])
def test_drop_from_tables_changes_only_embeddings(cls: type[gpt1.OpenAIGPTModel]) -> None:
    params = small_model(cls).params
    dropped = flatten(drop_from_tables(params, RATE, jax.random.key(0)))
    for path, leaf in flatten(params).items():
        if path[-1] != "embedding":
            assert dropped[path] is leaf
            continue
        kept = np.asarray(dropped[path]) != 0
        assert not kept.all()
        np.testing.assert_allclose(
            np.asarray(dropped[path])[kept], np.asarray(leaf)[kept] / (1 - RATE), rtol=1e-6
        )


def test_drop_from_tables_masks_have_rate_and_are_independent() -> None:
    ones = {
        "transformer": {
            "tokens_embed": {"embedding": jnp.ones((400, 250))},
            "positions_embed": {"embedding": jnp.ones((400, 250))},
        }
    }
    masks = [
        np.asarray(leaf) == 0
        for seed in (0, 1)
        for leaf in flatten(drop_from_tables(ones, RATE, jax.random.key(seed))).values()
    ]
    n = 100_000  # elements of a mask: the share of dropped ones is within 4 standard errors
    for mask in masks:
        assert abs(mask.mean() - RATE) < 4 * np.sqrt(RATE * (1 - RATE) / n)
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            both = (mask & other).mean()
            assert abs(both - RATE**2) < 4 * np.sqrt(RATE**2 * (1 - RATE**2) / n)


@pytest.mark.nightly
def test_with_dropped_tables_shares_mask_across_batch() -> None:
    """Equal sequences of a batch stay equal, which they do not with dropout on the sum."""
    model = small_model(gpt1.OpenAIGPTLMHeadModel, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    graphdef, params = split(model)
    ids = jnp.tile(jnp.arange(8, dtype=jnp.int32)[None], (3, 1))
    found = []

    def objective(params, batch, key):
        found.append(merge(graphdef, params)(batch["ids"]).logits)
        return jnp.zeros(()), {"weight": jnp.ones(())}

    with_dropped_tables(objective, RATE)(params, {"ids": ids}, jax.random.key(0))
    objective(params, {"ids": ids}, jax.random.key(0))
    with_dropped, without = found
    np.testing.assert_array_equal(with_dropped[0], with_dropped[1])
    assert not np.allclose(with_dropped, without)
