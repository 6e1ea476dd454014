"""The checks find what is wrong."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import gpt1_jax as gpt1
from benchmarks.accelerator import checks, work
from benchmarks.roofline import TINY
from gpt1_jax.nn import attention


def bench(**references: Any) -> Any:
    return SimpleNamespace(
        config=gpt1.OpenAIGPTConfig(**TINY),
        sizes=work.QUICK,
        platform="cpu",
        load=lambda **numerics: None,
        reference=lambda name: references[name.split(".")[0]],
    )


@pytest.fixture
def nothing_traced() -> Iterator[None]:
    """`apply` is traced once for equal models, so a fault would stay."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.nightly
@pytest.mark.usefixtures("nothing_traced")
@pytest.mark.parametrize("fault", ["none", "looks ahead", "sees padding", "not a number"])
def test_attention_finds_wrong_masks(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., jax.Array] = jax.nn.dot_product_attention

    def wrong(*arrays: Any, mask: Any, is_causal: bool, **options: Any) -> jax.Array:
        if fault == "looks ahead":
            is_causal = False
        elif fault == "sees padding" and mask is not None:
            mask = mask | (mask.sum(axis=-1, keepdims=True) > 0)
        mixed = right(*arrays, mask=mask, is_causal=is_causal, **options)
        return mixed * jax.numpy.nan if fault == "not a number" else mixed

    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", wrong)
    # The backward pass of JAX's own attention mixes dtypes, which the tests forbid otherwise.
    with jax.numpy_dtype_promotion("standard"):
        found = checks.attention(bench())
    assert found.passed == (fault == "none"), found.rows
    cells = [cell for row in found.rows for cell in row.items()]
    columns = {name for name, value in cells if isinstance(value, float)}
    assert columns == {"no padding", "right padding", "left padding", "odd length", "one query"}


@pytest.mark.parametrize("wrong", [None, "greedy", "sampling", "beams"])
def test_generated_ids_finds_the_first_difference(
    wrong: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {way: [[1, 2, 3, 4], [5, 6, 7, 8]] for way in ("greedy", "sampling", "beams")}
    written = {way: [list(text) for text in texts] for way, texts in expected.items()}
    if wrong is not None:
        written[wrong][1][2] = 9
    monkeypatch.setattr(work, "texts", lambda *_: written)
    found = checks.generated_ids(bench(texts=expected))
    assert found.passed == (wrong is None)
    for row in found.rows:
        first = 2 if row[""] == wrong else None
        assert (row["equal"], row["first difference"]) == (1 if first else 2, first)


@pytest.mark.parametrize(("apart", "passes"), [(1e-6, True), (1e-4, False), (float("nan"), False)])
def test_training_compares_every_loss(
    apart: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = np.linspace(4, 3, work.STEPS)
    found = expected.copy()
    found[7] *= 1 + apart
    monkeypatch.setattr(work, "training_losses", lambda *_: found.tolist())
    assert checks.training(bench(losses=expected.tolist())).passed == passes


@pytest.mark.parametrize(("error", "passes"), [(1e-7, True), (1e-5, False), (float("nan"), False)])
@pytest.mark.parametrize("what", ["logits", "['0']", "['1']"])
def test_precision_compares_float32_with_the_host(
    error: float, passes: bool, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    exact = {name: rng.standard_normal((2, 3, 5)) for name in ("logits", "['0']", "['1']")}
    exact["loss"] = np.asarray(2.0)
    host = {f"host {name}": array * (1 + 1e-7) for name, array in exact.items()}
    found = {**exact, what: exact[what] * (1 + error)}
    monkeypatch.setattr(work, "logits_and_gradients", lambda *_: found)
    assert checks.precision(bench(float64={**exact, **host})).passed == passes
