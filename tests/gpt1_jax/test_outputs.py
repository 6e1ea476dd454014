"""Outputs as mappings, compared with those of transformers, call by call."""

import copy
import dataclasses
import functools
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from support.small_models import SIZES, small_model

import gpt1_jax as gpt1
from gpt1_jax.outputs import ModelOutput

IDS = [[1, 2, 3, 4]]


@functools.cache
def ours() -> Any:
    return small_model(gpt1.OpenAIGPTLMHeadModel)(IDS, labels=IDS, output_hidden_states=True)


@functools.cache
def theirs() -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**SIZES))
    ids = torch.tensor(IDS)
    return model(ids, labels=ids, output_hidden_states=True)


def names(**fields: object) -> list[str]:
    return list(fields)


def unpacked(out: Any) -> tuple[object, ...]:
    loss, logits, hidden_states = out
    return loss, logits, hidden_states


LOOKS: dict[str, Callable[[Any], object]] = {
    "names in it": lambda out: [name in out for name in ("loss", "attentions", "nope", 0)],
    "iteration": list,
    "unpacking": unpacked,
    "keywords": lambda out: names(**out),
    "keys": lambda out: list(out.keys()),
    "items": lambda out: [(name, value is out[name]) for name, value in out.items()],
    "values": lambda out: [
        value is getattr(out, name) for name, value in zip(out, out.values(), strict=True)
    ],
    "get": lambda out: (out.get("loss") is out.loss, out.get("attentions"), out.get("nope", 1)),
    "length": len,
    "truth": bool,
    "dict": lambda out: list(dict(out)),
    "equality": lambda out: (out == out, out == dict(out), dict(out) == out, out == out.to_tuple()),
    "places": lambda out: (out[0] is out.loss, out[-1] is out.hidden_states, len(out[:2])),
    "tuple": lambda out: [
        value is out[name] for name, value in zip(out, out.to_tuple(), strict=True)
    ],
    "absent attribute": lambda out: out.attentions,
    "unknown name": lambda out: out["nope"],
    "absent name": lambda out: out["attentions"],
    "unknown place": lambda out: out[3],
    "unknown attribute": lambda out: out.nope,
    "hash": hash,
}


@pytest.mark.nightly
@pytest.mark.difference("frozen outputs")
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_model_output_is_a_mapping_as_in_transformers(look: Callable[[Any], object]) -> None:
    def seen(out: Any) -> object:
        try:
            return look(out)
        except (LookupError, AttributeError, TypeError) as error:
            return type(error)

    assert seen(ours()) == seen(theirs())


def test_model_output_maps_names_to_arrays_without_transformers() -> None:
    out = ours()
    assert issubclass(type(out), Mapping)
    assert list(out) == ["loss", "logits", "hidden_states"]
    assert dict(**out)["logits"] is out.logits
    with pytest.raises(KeyError, match="nope"):
        out["nope"]


def test_model_output_passes_through_jit_and_grad() -> None:
    @jax.jit
    def doubled(out: Any) -> Any:
        return dataclasses.replace(out, loss=2 * out["loss"])

    again = doubled(ours())
    assert type(again) is type(ours())
    assert list(again) == list(ours())
    assert float(again["loss"]) == 2 * float(ours().loss)
    gradient = jax.grad(lambda out: out["loss"])(ours())
    assert list(gradient) == list(ours())
    assert float(gradient.loss) == 1


@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_model_output_can_be_copied(twin: Callable[[Any], Any]) -> None:
    again = twin(ours())
    assert list(again) == list(ours())
    np.testing.assert_array_equal(again.logits, ours().logits)


def test_model_output_may_be_any_frozen_dataclass() -> None:
    @dataclasses.dataclass(frozen=True)
    class Found(ModelOutput):
        sequences: np.ndarray
        scores: np.ndarray | None = None

    out = Found(np.zeros((1, 2)))
    assert list(out) == ["sequences"]
    assert out[0] is out["sequences"] is out.sequences
    assert out == dict(out)
