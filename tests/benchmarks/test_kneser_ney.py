"""The n-gram model against its formulas, written out slowly, and by hand."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.small_tokenizer import SIZE, write_small

from benchmarks import kneser_ney as suite
from benchmarks.kneser_ney import FALLBACK, KneserNey

V = 5
texts = st.lists(st.integers(0, V - 1), min_size=6, max_size=80)
orders = st.integers(1, 5)


def slow_prob(ids: list[int], context: tuple[int, ...], token: int, order: int) -> float:
    """p(token | context) with dictionaries and loops; V tokens."""

    def counts(n: int) -> Counter[tuple[int, ...]]:
        grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        if n == order:
            return Counter(grams)
        longer = {tuple(ids[i : i + n + 1]) for i in range(len(ids) - n)}
        return Counter(gram[1:] for gram in longer)

    def discount(table: Counter[tuple[int, ...]], count: int) -> float:
        if count == 0:
            return 0.0
        n = [sum(c == i for c in table.values()) for i in range(5)]
        values = list(FALLBACK)
        if all(n[1:]):
            y = n[1] / (n[1] + 2 * n[2])
            estimates = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
            if all(0 < estimates[i] <= i + 1 for i in range(3)):
                values = estimates
        return values[min(count, 3) - 1]

    if len(context) >= order:
        context = context[len(context) - order + 1 :]
    table = counts(len(context) + 1)
    shorter = slow_prob(ids, context[1:], token, order) if context else 1 / V
    here = {w: table[(*context, w)] for w in range(V)}
    total = sum(here.values())
    if total == 0:
        return shorter
    kept = max(0, here[token] - discount(table, here[token])) / total
    return kept + sum(discount(table, c) for c in here.values()) / total * shorter


@given(texts, orders, st.lists(st.integers(0, V - 1), max_size=7))
def test_log_probs_sum_to_one_after_any_context(
    ids: list[int], order: int, context: list[int]
) -> None:
    model = KneserNey.fit(np.array(ids), V, order)
    log_probs = [model.log_probs(np.array([*context, w]))[-1] for w in range(V)]
    assert sum(map(math.exp, log_probs)) == pytest.approx(1, abs=1e-13)  # measured: 3.4e-16
    assert max(log_probs) <= 1e-13
    assert min(log_probs) > -math.inf


@given(texts, orders, st.lists(st.integers(0, V - 1), min_size=1, max_size=8))
def test_log_probs_match_the_formula(ids: list[int], order: int, text: list[int]) -> None:
    log_probs = KneserNey.fit(np.array(ids), V, order).log_probs(np.array(text))
    slow = [slow_prob(ids, tuple(text[:t]), text[t], order) for t in range(len(text))]
    assert log_probs == pytest.approx(np.log(slow), abs=1e-12)  # measured: 0


@pytest.mark.parametrize(("order", "length"), [(2, 100), (3, 200), (4, 200)])
def test_log_probs_match_formula_with_estimated_discounts(order: int, length: int) -> None:
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.geometric(0.4, size=length) - 1, V - 1)
    grams = np.lib.stride_tricks.sliding_window_view(ids, order)
    assert suite._discounts(np.unique(grams, axis=0, return_counts=True)[1]) != FALLBACK
    text = rng.integers(V, size=20)
    log_probs = KneserNey.fit(ids, V, order).log_probs(text)
    slow = [slow_prob(ids.tolist(), tuple(text[:t]), text[t], order) for t in range(len(text))]
    assert log_probs == pytest.approx(np.log(slow), abs=1e-12)  # measured: 0


def test_discounts_match_hand_computed_values() -> None:
    seen = [1] * 8 + [2] * 4 + [3] * 2 + [4] + [90]
    # Y = 8 / (8 + 2 * 4); 1 - 2Y 4/8, 2 - 3Y 2/4, 3 - 4Y 1/2.
    assert suite._discounts(np.array(seen)) == (0.5, 1.25, 2.0)
    # None seen four times. Y = 1/3 and two seen thrice, which would take nothing from one seen
    # twice. Twice as many thrice as twice with Y = 1/2, which would take -1.
    for odd in ([1, 2, 3], [1, 2, 3, 3, 4], [1] * 8 + [2] * 4 + [3] * 8 + [4]):
        assert suite._discounts(np.array(odd)) == FALLBACK


def test_log_probs_of_order_one_match_hand_computation() -> None:
    model = KneserNey.fit(np.array([0, 0, 0, 1, 1, 2]), 4, order=1)
    # Counts 3, 2, 1, 0 of 6, less 1.5, 1 and 0.5: three of six tokens are left to 1/4 each.
    expected = [1.5 / 6 + 1 / 8, 1 / 6 + 1 / 8, 0.5 / 6 + 1 / 8, 1 / 8]
    assert np.exp(model.log_probs(np.arange(4))) == pytest.approx(expected, rel=1e-15)


def test_log_probs_of_order_two_match_hand_computation() -> None:
    model = KneserNey.fit(np.array([0, 1, 0, 1, 2, 1]), 4, order=2)
    # 01 twice, 10, 12 and 21 once. So 1 follows two tokens, 0 and 2 follow one each, of four.
    alone = [0.5 / 4 + 2 / 16, 1 / 4 + 2 / 16, 0.5 / 4 + 2 / 16, 2 / 16]
    # After 0: 1 twice, less 1. After 1: 0 and 2 once, less 0.5 each. After 3, which is not there,
    # the tokens alone.
    pairs = {
        (0, 1): 1 / 2 + 1 / 2 * alone[1],
        (0, 2): 1 / 2 * alone[2],
        (1, 0): 0.5 / 2 + 1 / 2 * alone[0],
        (1, 1): 1 / 2 * alone[1],
        (3, 1): alone[1],
    }
    for pair, expected in pairs.items():
        first, second = np.exp(model.log_probs(np.array(pair)))
        assert first == pytest.approx(alone[pair[0]], rel=1e-15)
        assert second == pytest.approx(expected, rel=1e-15)


def test_log_probs_limit_context_to_the_order() -> None:
    rng = np.random.default_rng(0)
    model = KneserNey.fit(rng.integers(V, size=300), V, order=3)
    text = rng.integers(V, size=50)
    whole = model.log_probs(text)
    for t in range(2, 50):
        assert model.log_probs(text[t - 2 : t + 1])[-1] == whole[t]
    assert model.log_probs(text[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("ids", "order", "message"),
    [
        ([0, 1, 2], 4, "3 tokens hold no n-gram of the order 4"),
        ([0, 1, 2], 0, "order is 0, but must be at least 1"),
        ([0, 5, 1], 2, r"the id 5 is not in \[0, 5\)"),
        ([0, -1, 1], 2, r"the id -1 is not in \[0, 5\)"),
        ([[0, 1, 2]], 2, r"ids must be integers \(T,\), not int64 \(1, 3\)"),
        ([0.0, 1.0], 2, r"ids must be integers \(T,\), not float64 \(2,\)"),
    ],
)
def test_fit_rejects_bad_input(ids: list, order: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KneserNey.fit(np.array(ids), V, order)


def test_log_probs_rejects_ids_outside_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"the id 5 is not in \[0, 5\)"):
        KneserNey.fit(np.array([0, 1, 2]), V, 2).log_probs(np.array([5]))


@pytest.fixture
def texts_folder(tmp_path: Path) -> Path:
    write_small(tmp_path / "model")
    (tmp_path / "a.txt").write_text("the press is in the inn.\n\nthe thing is the press")
    (tmp_path / "b.txt").write_text("is it in the press?\n")
    (tmp_path / "test.txt").write_bytes("the thing\r\nis in ö\n".encode())
    return tmp_path


def test_kneser_ney_scores_a_test_file(
    texts_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, test = texts_folder, texts_folder / "test.txt"
    train = (folder / "a.txt", folder / "b.txt")
    (score,) = suite.kneser_ney(folder / "model", train, (test,), order=3)
    # The tokenizer strips the dots off the o, and each end of a line is but a space to it.
    tokenizer = suite.gpt1.Tokenizer.from_pretrained(folder / "model")
    ids = tokenizer.encode("the thing is in o")
    text = " ".join(file.read_text() for file in train)
    model = KneserNey.fit(np.array(tokenizer.encode(text)), SIZE, 3)
    nats = -model.log_probs(np.array(ids)).sum()
    characters = len("the thing\r\nis in o\n")
    assert score == suite.Score(tokens=len(ids), characters=characters, nats=nats)
    assert score.perplexity == pytest.approx(math.exp(nats / len(ids)))
    assert score.bits_per_character == pytest.approx(nats / math.log(2) / characters)
    out = capsys.readouterr().out
    assert f"perplexity {score.perplexity:.2f} per token" in out
    assert f"{score.bits_per_character:.4f} bits per character" in out


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff", "test.txt is not UTF-8"), (b" \n", "test.txt is empty")]
)
def test_kneser_ney_rejects_invalid_files(texts_folder: Path, content: bytes, message: str) -> None:
    test = texts_folder / "test.txt"
    test.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        suite.kneser_ney(texts_folder / "model", (texts_folder / "a.txt",), (test,))
