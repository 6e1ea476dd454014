"""Activations, read and replaced, against hooks on torch's own model."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from support.torch_reference import flax_model, largest_difference, torch_model  # noqa: E402
from support.torch_sites import torch_capture, torch_patch  # noqa: E402

import gpt1_jax as gpt1  # noqa: E402
from gpt1_jax.explore.activations import match_sites  # noqa: E402

SIZES = {"vocab_size": 13, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
IDS = np.random.default_rng(0).integers(13, size=(2, 5))
MASK = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
EVERY = ("*", "h.*.*", "h.*.*.*")
TOLERANCE = 1e-5  # relative to the largest value; measured: 1.1e-6


@pytest.fixture(scope="module")
def reference() -> Any:
    return torch_model("OpenAIGPTLMHeadModel", **SIZES)


@pytest.fixture(scope="module")
def model(reference: Any) -> gpt1.OpenAIGPTLMHeadModel:
    return flax_model(reference)


@pytest.fixture(scope="module")
def theirs(reference: Any) -> dict[str, Any]:
    mask = torch.from_numpy(MASK)
    return torch_capture(reference, torch.from_numpy(IDS), attention_mask=mask)


def test_capture_matches_torch_at_every_site(model: Any, theirs: dict[str, Any]) -> None:
    ours = gpt1.capture(model, IDS, EVERY, attention_mask=MASK)
    assert list(ours) == list(match_sites(model, EVERY))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert largest_difference(value, theirs[name]) <= TOLERANCE, name


def choose(on: Any, new: Any, value: Any) -> Any:
    return jnp.where(on, new, value)


@pytest.mark.parametrize("positions", [None, [1, -1]])
def test_patch_matches_torch_at_every_site(
    reference: Any, model: Any, theirs: dict[str, Any], positions: Any
) -> None:
    """One program, which has an edit for every site, and is told which one to make."""
    rng = np.random.default_rng(1)
    new = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in theirs.items()}
    for chosen in theirs:
        edits = {name: Partial(choose, name == chosen, new[name]) for name in theirs}
        ours = gpt1.patch(model, IDS, edits, positions=positions, attention_mask=MASK).logits

        def edit(value: Any, chosen: str = chosen) -> Any:
            axis = 2 if chosen.endswith(("scores", "weights")) else 1
            places = range(5) if positions is None else np.arange(5)[positions]
            given = torch.from_numpy(new[chosen])
            parts = [(given if t in places else value).select(axis, t) for t in range(5)]
            return torch.stack(parts, axis)

        expected = torch_patch(
            reference,
            torch.from_numpy(IDS),
            {chosen: edit},
            attention_mask=torch.from_numpy(MASK),
        )
        assert largest_difference(ours, expected) <= TOLERANCE, chosen


POSITIONS = np.arange(7, 32, 8)


def remove_head(z: Any, head: Any) -> Any:
    return jnp.where((jnp.arange(z.shape[-2]) == head)[:, None], 0, z)


def restore(state: Any, value: Any, k: Any) -> Any:
    here = jnp.arange(value.shape[-2]) == jnp.asarray(POSITIONS)[k]
    return jnp.where(here[:, None], state, value)


@pytest.mark.nightly
def test_sweeps_at_full_size_match_eager_hooks() -> None:
    """Every head removed, and states restored at four positions, in every third of twelve layers.

    Torch has the runs of a layer as the rows of one batch.
    """
    torch.manual_seed(0)
    reference = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig()).eval()
    model = flax_model(reference)
    clean, corrupted = np.random.default_rng(2).integers(40478, size=(2, 1, 32))
    states = gpt1.capture(model, clean, "h.[0369].out")
    removed = gpt1.sweep(model, corrupted, {"h.[0369].attn.z": remove_head}, 12)
    edits = {name: Partial(restore, state) for name, state in states.items()}
    restored = gpt1.sweep(model, corrupted, edits, len(POSITIONS))
    assert len(removed) == len(restored) == 4
    theirs = torch_capture(reference, torch.from_numpy(clean))
    kept = ~torch.eye(12, dtype=torch.bool)[:, None, :, None]  # runs, 1, heads, 1
    places = torch.from_numpy(POSITIONS)
    there = (torch.arange(32) == places[:, None])[:, :, None]  # runs, positions, 1

    def expected(name: str, runs: int, edit: Any) -> Any:
        ids = torch.from_numpy(corrupted).repeat(runs, 1)
        return torch_patch(reference, ids, {name: edit})[:, -1].numpy()

    largest = np.abs(expected("logits", 1, lambda logits: logits)).max()
    for name, logits in removed.items():
        right = expected(name, 12, lambda z: z * kept)
        # Measured on three layers: 1.2e-6; states restored, 9.4e-7.
        assert np.abs(logits[:, 0, -1] - right).max() <= 1e-5 * largest, name
    for name, logits in restored.items():
        right = expected(name, 4, lambda h, state=theirs[name]: torch.where(there, state, h))
        assert np.abs(logits[:, 0, -1] - right).max() <= 1e-5 * largest, name
