"""Split and join are inverse, and what is frozen is what was asked for."""

from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given
from support.small_models import MODELS, small_model

import gpt1_jax as gpt1
from gpt1_jax.pretrained import flatten
from gpt1_jax.training.freezing import combine_params, split_frozen

LAYERS = 3
PARAMS = {cls: small_model(cls, n_layer=LAYERS, num_labels=2).params for cls in MODELS}


# What leaves something to train in a model without a head of its own, too.
PARTS = [(e, n) for e in (False, True) for n in range(LAYERS + 1) if not e or n < LAYERS]


@given(st.sampled_from(MODELS), st.sampled_from(PARTS))
def test_join_inverts_split_frozen(cls: Any, parts: tuple[bool, int]) -> None:
    params = PARAMS[cls]
    embeddings, layers = parts
    trained, frozen = split_frozen(params, embeddings=embeddings, layers=layers)
    assert not flatten(trained).keys() & flatten(frozen).keys()
    assert all(branches(trained) + branches(frozen))
    joined = combine_params(trained, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    pairs = zip(jax.tree.leaves(joined), jax.tree.leaves(params), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)


def branches(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Every nested dict within ``tree``."""
    inner = [value for value in tree.values() if isinstance(value, dict)]
    return inner + [branch for value in inner for branch in branches(value)]


@pytest.mark.parametrize("cls", MODELS)
def test_split_frozen_freezes_requested_parts(cls: Any) -> None:
    params = PARAMS[cls]
    trained, frozen = split_frozen(params, embeddings=True, layers=2)
    body = frozen.get("transformer", frozen)
    assert set(body) == {"tokens_embed", "positions_embed", "h"}
    assert set(body["h"]) == {"0", "1"}
    assert set(trained.get("transformer", trained)["h"]) == {"2"}


@pytest.mark.parametrize(
    ("cls", "head"),
    [
        (gpt1.OpenAIGPTDoubleHeadsModel, "multiple_choice_head"),
        (gpt1.OpenAIGPTForSequenceClassification, "score"),
    ],
)
def test_split_frozen_can_leave_only_the_head(cls: Any, head: str) -> None:
    trained, _ = split_frozen(PARAMS[cls], embeddings=True, layers=LAYERS)
    assert set(trained) == {head}


def test_split_frozen_freezes_nothing_by_request() -> None:
    params = PARAMS[gpt1.OpenAIGPTLMHeadModel]
    trained, frozen = split_frozen(params, embeddings=False, layers=0)
    assert frozen == {}
    assert flatten(trained).keys() == flatten(params).keys()


@pytest.mark.nightly
def test_join_passes_gradients_inside_jit() -> None:
    """The gradient of the trained part, through ``combine_params`` in a compiled function."""
    apply, params = gpt1.functional(small_model(gpt1.OpenAIGPTLMHeadModel))
    ids = np.arange(8)[None]

    @jax.jit
    def whole_and_part(params: Any) -> Any:
        trained, frozen = split_frozen(params, embeddings=True, layers=1)
        part = jax.grad(lambda t: apply(combine_params(t, frozen), input_ids=ids, labels=ids).loss)(
            trained
        )
        return jax.grad(lambda p: apply(p, input_ids=ids, labels=ids).loss)(params), part

    whole, part = map(flatten, whole_and_part(params))
    assert {path[:3] for path in part} == {("transformer", "h", "1")}
    for path, gradient in part.items():
        np.testing.assert_allclose(gradient, whole[path], rtol=0, atol=1e-6)  # measured: 0


@pytest.mark.parametrize("layers", [-1, LAYERS + 1])
def test_split_frozen_rejects_layers_out_of_range(layers: int) -> None:
    with pytest.raises(ValueError, match=f"^{layers} layers cannot be frozen: the model has 3, "):
        split_frozen(PARAMS[gpt1.OpenAIGPTLMHeadModel], embeddings=False, layers=layers)


@pytest.mark.parametrize("cls", [gpt1.OpenAIGPTModel, gpt1.OpenAIGPTLMHeadModel])
def test_split_frozen_rejects_freezing_everything(cls: Any) -> None:
    with pytest.raises(ValueError, match="embeddings and all 3 layers are frozen"):
        split_frozen(PARAMS[cls], embeddings=True, layers=LAYERS)


def test_join_rejects_overlapping_trees() -> None:
    trained, frozen = split_frozen(PARAMS[gpt1.OpenAIGPTLMHeadModel], embeddings=False, layers=1)
    frozen["transformer"]["tokens_embed"] = trained["transformer"]["tokens_embed"]
    message = "both trained and frozen.*: transformer.tokens_embed.embedding$"
    with pytest.raises(ValueError, match=message):
        combine_params(trained, frozen)
