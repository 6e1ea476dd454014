"""The parts of a model whose adapters are trained: merged in a step, or beside their layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import difference, random_ids, small_model

import gpt1_jax as gpt1
from gpt1_jax.pretrained import flatten
from gpt1_jax.pure import merge
from gpt1_jax.training.lm_objective import lm_loss
from gpt1_jax.training.lora import LoraSettings, TrainedParts, split_adapted
from gpt1_jax.training.step import Sums

NO_DROPOUT: dict[str, Any] = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
BATCH = {"tokens": jnp.asarray(random_ids(2, 8))}


def parts(**fields: Any) -> TrainedParts:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, n_layer=1, **NO_DROPOUT)
    chosen = LoraSettings(rank=2, target_modules=("c_attn", "mlp.c_proj"), **fields)
    found = split_adapted(model, chosen, 0, train_heads=False)
    for i, leaf in enumerate(jax.tree.leaves(found.trained)):
        assert leaf.dtype == jnp.float32, i
    rng = np.random.default_rng(0)
    trained = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), found.trained
    )
    return TrainedParts(**{**vars(found), "trained": trained})


def loss(found: TrainedParts, trained: Any, seed: Any = 0) -> jax.Array:
    combine = found.combine_to_train or found.combine

    def objective(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Sums]:
        return lm_loss(merge(found.structure, params), batch, key)

    return found.wrap(objective)(combine(trained, found.frozen), BATCH, jax.random.key(seed))[0]


@pytest.mark.nightly
def test_split_adapted_with_dropout_trains_what_it_merges() -> None:
    """At a rate that drops nothing, the adapters beside their layers are those that are merged."""
    merged, beside = parts(), parts(dropout=1e-9)
    assert merged.combine_to_train is None
    assert jax.tree.structure(beside.trained) == jax.tree.structure(merged.trained)
    value, gradient = jax.jit(jax.value_and_grad(lambda t: loss(merged, t)))(merged.trained)
    same, also = jax.jit(jax.value_and_grad(lambda t: loss(beside, t)))(merged.trained)
    assert difference(same, value) < 1e-5 * value  # measured: 2e-7 of it
    for path, leaf in flatten(gradient).items():
        assert difference(flatten(also)[path], leaf) < 2e-5, path  # measured: 2e-6
    params = beside.combine(merged.trained, beside.frozen)
    assert jax.tree.structure(params) == jax.tree.structure(
        small_model(gpt1.OpenAIGPTLMHeadModel, n_layer=1).params
    )


def test_split_adapted_dropout_depends_on_the_key() -> None:
    found = parts(dropout=0.5)
    compiled = jax.jit(lambda seed: loss(found, found.trained, seed))
    losses = [float(compiled(seed)) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_split_adapted_trains_heads_when_asked() -> None:
    model = small_model(gpt1.OpenAIGPTForSequenceClassification, num_labels=3)
    found = split_adapted(model, LoraSettings(), 0, train_heads=True)
    assert found.trained["heads"].keys() == {"score"}
    assert found.frozen.keys() == {"transformer"}
    params = found.combine(found.trained, found.frozen)
    assert jax.tree.structure(params) == jax.tree.structure(model.params)
