"""Every rule against transformers' own class for it, and all of them in transformers' own order.

A padded row is compared with the reference on the row alone. Ours and theirs must agree to the bit;
where a test allows less, it says how much and why.
"""

import functools
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

torch = pytest.importorskip("torch")
import transformers  # noqa: E402
from support.torch_reference import torch_model  # noqa: E402
from transformers.generation import logits_process as reference  # noqa: E402

from gpt1_jax import GenerationConfig, OpenAIGPTConfig  # noqa: E402
from gpt1_jax.generation import processors as processors_module  # noqa: E402
from gpt1_jax.generation.processors import DecodeContext, process, processors, warpers  # noqa: E402

SHAPES = [(1, 2), (3, 50)]
SLOTS = 12
CONFIG = OpenAIGPTConfig(vocab_size=50, n_layer=1, n_embd=8, n_head=2)

# XLA divides by a scalar by multiplying with its reciprocal, torch divides: one bit of float32.
DIVISION = 2.4e-7  # measured: 1.2e-7
TINY = np.finfo(np.float32).tiny

apply = jax.jit(lambda rules, logits, context: process(rules, logits, context))


def rule(kind: str, V: int, **fields: Any) -> Any:
    """The processor of that name, as ``generate`` builds it."""
    asked = GenerationConfig(**{"eos_token_id": (), **fields})
    rules = (*processors(asked, V), *warpers(asked, V))
    return next(r for r in rules if type(r).__name__ == kind)


# name -> (random number generator, V) -> ours, and theirs for a text of T tokens, of them n new.
Pair = tuple[Any, Callable[[int, int], Any]]


def repetition_penalty(rng: np.random.Generator, V: int) -> Pair:
    penalty = float(np.exp(rng.uniform(-2, 2)))
    theirs = reference.RepetitionPenaltyLogitsProcessor(penalty)
    return rule("RepetitionPenalty", V, repetition_penalty=penalty), lambda T, n: theirs


def no_repeat_ngram(rng: np.random.Generator, V: int) -> Pair:
    size = int(rng.integers(1, 5))
    theirs = reference.NoRepeatNGramLogitsProcessor(size)
    return rule("NoRepeatNGram", V, no_repeat_ngram_size=size), lambda T, n: theirs


def bad_words(rng: np.random.Generator, V: int) -> Pair:
    few = min(V, 4)
    words = [rng.integers(few, size=rng.integers(1, 5)).tolist() for _ in range(rng.integers(6))]
    words.append(rng.integers(few, size=rng.integers(1, 5)).tolist())
    eos = int(rng.integers(few))
    theirs = reference.NoBadWordsLogitsProcessor(words, eos)
    return rule("NoBadWords", V, bad_words_ids=words, eos_token_id=eos), lambda T, n: theirs


def min_new_tokens(rng: np.random.Generator, V: int) -> Pair:
    least, eos = int(rng.integers(1, 5)), rng.integers(V, size=rng.integers(1, 3)).tolist()
    ours = rule("MinNewTokens", V, min_new_tokens=least, eos_token_id=eos)
    return ours, lambda T, n: reference.MinNewTokensLengthLogitsProcessor(T - n, least, eos)


def forced_first(rng: np.random.Generator, V: int) -> Pair:
    token = int(rng.integers(V))
    theirs = reference.ForcedBOSTokenLogitsProcessor(token)
    return rule("ForcedBOS", V, forced_bos_token_id=token), lambda T, n: theirs


def forced_last(rng: np.random.Generator, V: int) -> Pair:
    most, tokens = int(rng.integers(1, 5)), rng.integers(V, size=rng.integers(1, 4)).tolist()
    forced = tokens[0] if len(tokens) == 1 else tokens
    ours = rule("ForcedEOS", V, max_new_tokens=most, forced_eos_token_id=forced)
    return ours, lambda T, n: reference.ForcedEOSTokenLogitsProcessor(T - n + most, forced)


def suppress(rng: np.random.Generator, V: int) -> Pair:
    tokens = rng.integers(V, size=rng.integers(1, 2 * V)).tolist()
    theirs = reference.SuppressTokensLogitsProcessor(tokens)
    return rule("SuppressTokens", V, suppress_tokens=tokens), lambda T, n: theirs


def temperature(rng: np.random.Generator, V: int) -> Pair:
    value = float(10 ** rng.uniform(-2, 2))
    theirs = reference.TemperatureLogitsWarper(value)
    return rule("Temperature", V, do_sample=True, temperature=value), lambda T, n: theirs


def warper(
    kind: str, field: str, draw: Callable[[np.random.Generator, int], Any], cls: Any
) -> Callable[[np.random.Generator, int], Pair]:
    """One of those that keep one token at least, or, with beams, one more than there are ends."""

    def pair(rng: np.random.Generator, V: int) -> Pair:
        value = draw(rng, V)
        fields: dict[str, Any] = {"do_sample": True, field: value}
        keep = int(rng.integers(1, 5))
        if keep > 1:
            fields |= {"num_beams": 2, "eos_token_id": [0] * (keep - 1)}
        theirs = cls(value, min_tokens_to_keep=keep)
        return rule(kind, V, **fields), lambda T, n: theirs

    return pair


RULES: dict[str, Callable[[np.random.Generator, int], Pair]] = {
    "RepetitionPenalty": repetition_penalty,
    "NoRepeatNGram": no_repeat_ngram,
    "NoBadWords": bad_words,
    "MinNewTokens": min_new_tokens,
    "ForcedBOS": forced_first,
    "ForcedEOS": forced_last,
    "SuppressTokens": suppress,
    "Temperature": temperature,
    "TopK": warper(
        "TopK", "top_k", lambda rng, V: int(rng.integers(1, V + 4)), reference.TopKLogitsWarper
    ),
    "TopP": warper(
        "TopP", "top_p", lambda rng, V: float(rng.uniform(0.001, 0.999)), reference.TopPLogitsWarper
    ),
    "MinP": warper(
        "MinP", "min_p", lambda rng, V: float(10 ** rng.uniform(-5, 0)), reference.MinPLogitsWarper
    ),
    "Typical": warper(
        "Typical",
        "typical_p",
        lambda rng, V: float(rng.uniform(0.001, 0.999)),
        reference.TypicalLogitsWarper,
    ),
}


def mostly_impossible(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """At most four tokens a row that are not -inf, and one at least."""
    logits = np.full(shape, -np.inf)
    for row in logits:
        row[rng.integers(shape[1], size=4)] = rng.normal(size=4)
    return logits


def one_huge(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    logits = rng.normal(size=shape)
    logits[:, rng.integers(shape[1])] = 10 ** rng.uniform(1, 30)
    return logits


FIELDS: dict[str, tuple[str, Any]] = {
    "TopP": ("top_p", reference.TopPLogitsWarper),
    "MinP": ("min_p", reference.MinPLogitsWarper),
    "Typical": ("typical_p", reference.TypicalLogitsWarper),
}

LOGITS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "any": lambda rng, shape: rng.normal(size=shape, scale=10 ** rng.uniform(-2, 1.5)),
    "ties": lambda rng, shape: rng.integers(-8, 8, size=shape) / 4,
    "all equal": lambda rng, shape: np.full(shape, rng.normal()),
    "one huge": one_huge,
    "mostly -inf": mostly_impossible,
    "+-1e30": lambda rng, shape: rng.choice([-1e30, 0, 1e30], size=shape),
    "tiny differences": lambda rng, shape: 1 + 2.0**-23 * rng.integers(4, size=shape),
}


@st.composite
def cases(draw: Any) -> tuple[np.random.Generator, np.ndarray, DecodeContext]:
    """Logits and the texts that they continue, of few tokens so that these repeat."""
    B, V = draw(st.sampled_from(SHAPES))
    kind = draw(st.sampled_from(list(LOGITS)))
    length = draw(st.integers(1, SLOTS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng, LOGITS[kind](rng, (B, V)).astype(np.float32), random_context(rng, B, V, length)


def random_context(rng: np.random.Generator, B: int, V: int, length: int) -> DecodeContext:
    start = rng.integers(length, size=B).astype(np.int32)
    return DecodeContext(
        tokens=rng.integers(min(V, 4), size=(B, SLOTS)).astype(np.int32),  # type: ignore[arg-type]
        start=start,  # type: ignore[arg-type]
        length=np.asarray(length, np.int32),  # type: ignore[arg-type]
        new=np.asarray(rng.integers(length - start.max()), np.int32),  # type: ignore[arg-type]
    )


def alone(
    make: Callable[[int, int], Any], logits: np.ndarray, context: DecodeContext
) -> np.ndarray:
    """What the reference makes of each row, unpadded and alone."""
    rows = []
    for row, tokens, start in zip(logits, context.tokens, context.start, strict=True):
        text = torch.from_numpy(np.array(tokens[int(start) : int(context.length)], np.int64))
        theirs = make(len(text), int(context.new))
        rows.append(theirs(text[None], torch.from_numpy(row[None].copy())).numpy())
    return np.concatenate(rows)


def probabilities(row: np.ndarray) -> np.ndarray:
    p = np.exp(row.astype(np.float64) - row.max())
    return p / p.sum()


def undecided(ours: Any, logits: np.ndarray) -> np.ndarray:
    """(B, V) bool, tokens that float32's rounding may keep or not, as float64 tells."""
    none = np.zeros(logits.shape, bool)
    near = {"TopP": near_top_p, "MinP": near_min_p, "Typical": near_typical}
    name = type(ours).__name__
    return np.stack([near[name](ours, row) for row in logits]) if name in near else none


def slack(row: np.ndarray) -> float:
    """How near sums, ratios and information must be for float32 to decide: more for more terms."""
    return 5e-7 * (1 + len(row) / 2000)  # measured: 2.4e-7 for V = 50, 4.3e-6 for V = 40478


def near_top_p(ours: processors_module.TopP, row: np.ndarray) -> np.ndarray:
    ascending = np.sort(row)
    sums = np.cumsum(probabilities(ascending))
    # Of equally likely tokens it counts whether their sum up to the last of them is too small.
    reach = sums[np.searchsorted(ascending, row, side="right") - 1]
    spared = row >= ascending[-int(ours.at_least)]
    return (np.abs(reach - float(ours.rest)) <= slack(row)) & ~spared


def near_min_p(ours: processors_module.MinP, row: np.ndarray) -> np.ndarray:
    ratio = np.exp(row.astype(np.float64) - row.max())
    spared = row >= np.sort(row)[-int(ours.at_least)]
    # Of tokens whose probability vanishes in float32, theirs spares any and ours the likeliest.
    vanishing = (ratio < TINY) & ((ratio >= TINY).sum() < int(ours.at_least))
    return (np.abs(ratio / float(ours.p) - 1) <= slack(row)) & ~spared | vanishing


def near_typical(ours: processors_module.Typical, row: np.ndarray) -> np.ndarray:
    possible = np.isfinite(row)
    either = np.zeros(row.shape, bool)
    either[possible] = _near_typical(ours, row[possible])
    return either


def _near_typical(ours: processors_module.Typical, row: np.ndarray) -> np.ndarray:
    """Which tokens come before which may be a matter of rounding too."""
    log_p = row.astype(np.float64) - row.max()
    log_p -= np.log(np.exp(log_p).sum())
    p = np.exp(log_p)
    distance = np.abs(log_p - (p * log_p).sum())
    order = np.argsort(distance)
    sums = np.concatenate([[0], np.cumsum(p[order])])
    near = slack(row) * np.maximum(1, distance)
    first = np.searchsorted(distance[order], distance - near, side="left")
    last = np.searchsorted(distance[order], distance + near, side="right")
    # Tokens that are equally likely, this one among them, stay or go together.
    _, which, equals = np.unique(row, return_inverse=True, return_counts=True)
    equals = equals[which]
    kept = (sums[last] - equals * p < float(ours.p) - slack(row)) | (
        last - equals < int(ours.at_least)
    )
    dropped = (sums[first] > float(ours.p) + slack(row)) & (first >= int(ours.at_least))
    return ~kept & ~dropped


def with_ties(kept: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """``kept`` with all tokens that are as likely as one of it: the deviation of ours."""
    return np.stack(
        [
            np.where(np.isin(row, row[np.isfinite(got)]), row, -np.inf)
            for got, row in zip(kept, logits, strict=True)
        ]
    ).astype(np.float32)


def check(
    ours: Any, make: Callable[[int, int], Any], logits: np.ndarray, context: DecodeContext
) -> Any:
    """Compare one rule with its reference; return what ours gives."""
    got = np.asarray(apply((ours,), logits, context))
    expected = alone(make, logits, context)
    name = type(ours).__name__
    if name in ("TopP", "MinP", "Typical"):
        expected = with_ties(expected, logits)
    if name in ("Temperature", "RepetitionPenalty"):
        np.testing.assert_allclose(got, expected, rtol=DIVISION)
        return got
    either = undecided(ours, logits) & (np.isfinite(got) != np.isfinite(expected))
    np.testing.assert_array_equal(got[~either], expected[~either])
    return got


@pytest.mark.nightly
@pytest.mark.parametrize("name", RULES)
@given(case=cases())
@settings(max_examples=50)
def test_processor_matches_transformers(
    name: str, case: tuple[np.random.Generator, np.ndarray, DecodeContext]
) -> None:
    rng, logits, context = case
    check(*RULES[name](rng, logits.shape[1]), logits, context)


@pytest.mark.nightly
@pytest.mark.parametrize("name", RULES)
def test_processor_matches_transformers_on_full_vocabulary(name: str) -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(1, 40478), scale=1 + seed).astype(np.float32)
        context = random_context(rng, 1, 40478, SLOTS)
        check(*RULES[name](rng, 40478), logits, context)


def met_by(name: str, row: np.ndarray, rng: np.random.Generator) -> float:
    """A threshold that is a sum or a ratio of the row's probabilities, up to rounding."""
    row = row[np.isfinite(row)]
    p = probabilities(np.sort(row))
    if name == "MinP":
        return float(np.float32(rng.choice((p / p[-1])[p > TINY])))
    if name == "Typical":
        p = p[p > TINY]
        p = p[np.argsort(np.abs(np.log(p) - (p * np.log(p)).sum()))]
    value = float(np.float32(rng.choice(np.cumsum(p))))
    value = 1 - value if name == "TopP" else value
    return value if 0 < value < 1 else 0.5


@pytest.mark.parametrize("name", FIELDS)
@given(case=cases())
@settings(max_examples=50)
def test_warper_matches_transformers_near_threshold(
    name: str, case: tuple[np.random.Generator, np.ndarray, DecodeContext]
) -> None:
    rng, logits, context = case
    field, cls = FIELDS[name]
    pair = warper(name, field, lambda rng, V: met_by(name, logits[0], rng), cls)
    check(*pair(rng, logits.shape[1]), logits, context)


@pytest.mark.parametrize("name", ["TopP", "Typical"])
def test_warper_matches_transformers_at_exact_threshold(name: str) -> None:
    """Where both compute the same probabilities, the same tokens are kept: < is no <=."""
    rng = np.random.default_rng(0)
    context = random_context(rng, 1, 2, 1)
    field, cls = FIELDS[name]
    compared = 0
    for lower in np.linspace(-3, -1, 100, dtype=np.float32):
        logits = np.array([[lower, 0]], np.float32)
        p = np.asarray(jax.nn.softmax(logits) if name == "TopP" else exp_log_softmax(logits))
        if (p != torch.from_numpy(logits).softmax(-1).numpy()).any():
            continue
        compared += 1
        # Of two tokens the likelier is the more typical: it is nearer to the mean information.
        reached = p[0, 0] if name == "TopP" else p[0, 1]
        for threshold, count in ((reached, 1), (np.nextafter(reached, np.float32(0)), None)):
            value = 1 - float(threshold) if name == "TopP" else float(threshold)
            ours = rule(name, 2, do_sample=True, **{field: value})
            theirs = alone(lambda T, n, value=value: cls(value), logits, context)
            got = np.asarray(apply((ours,), logits, context))
            np.testing.assert_array_equal(got, theirs)
            assert np.isfinite(got).sum() == (count or (2 if name == "TopP" else 1))
    assert compared > 10


exp_log_softmax = jax.jit(lambda logits: jax.numpy.exp(jax.nn.log_softmax(logits)))


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.99])
def test_top_p_keeps_ties_together(top_p: float) -> None:
    """The one deviation: torch cuts there, in the order that its sorting happens to give."""
    logits = np.zeros((1, 8), np.float32)
    logits[0, 2:4] = 1
    context = random_context(np.random.default_rng(0), 1, 8, 1)
    theirs = np.isfinite(alone(lambda T, n: reference.TopPLogitsWarper(top_p), logits, context))[0]
    got = np.asarray(apply((rule("TopP", 8, do_sample=True, top_p=top_p),), logits, context))[0]
    likely = logits[0] == 1
    groups = (likely, np.ones(8, bool)) if (theirs & ~likely).any() else (likely,)
    np.testing.assert_array_equal(np.isfinite(got), groups[-1])
    # 2e / (2e + 6) = 0.475 is the probability of the two likely tokens.
    assert theirs.sum() == {0.01: 1, 0.3: 2, 0.5: 3, 0.99: 8}[top_p]


# Theirs to ours, in our order.
CLASSES: dict[Any, str] = {
    reference.RepetitionPenaltyLogitsProcessor: "RepetitionPenalty",
    reference.NoRepeatNGramLogitsProcessor: "NoRepeatNGram",
    reference.NoBadWordsLogitsProcessor: "NoBadWords",
    reference.MinNewTokensLengthLogitsProcessor: "MinNewTokens",
    reference.ForcedBOSTokenLogitsProcessor: "ForcedBOS",
    reference.ForcedEOSTokenLogitsProcessor: "ForcedEOS",
    reference.SuppressTokensLogitsProcessor: "SuppressTokens",
    reference.TemperatureLogitsWarper: "Temperature",
    reference.TopKLogitsWarper: "TopK",
    reference.TopPLogitsWarper: "TopP",
    reference.MinPLogitsWarper: "MinP",
    reference.TypicalLogitsWarper: "Typical",
}


@pytest.fixture(scope="module")
def model() -> Any:
    return torch_model("OpenAIGPTLMHeadModel", vocab_size=50, n_layer=1, n_embd=8, n_head=2)


def transformers_rules(model: Any, asked: GenerationConfig, text: int, new: int) -> list[Any]:
    """Transformers' own list, for a text of so many tokens of which so many are new."""
    fields = asked.to_dict()
    prompt = text - new
    config = transformers.GenerationConfig(**fields, max_length=prompt + asked.max_new_tokens)
    model._prepare_special_tokens(config, True, device="cpu")
    return model._get_logits_processor(config, input_ids_seq_length=prompt, device="cpu")


tokens = st.integers(0, 49)
words = st.lists(st.lists(st.integers(0, 3) | tokens, min_size=1, max_size=4), min_size=1)
CONSTRAINTS: dict[str, st.SearchStrategy[Any]] = {
    "min_new_tokens": st.integers(1, 6),
    "repetition_penalty": st.floats(0.2, 5),
    "no_repeat_ngram_size": st.integers(1, 4),
    "bad_words_ids": words,
    "suppress_tokens": st.lists(tokens, min_size=1, max_size=9),
    "forced_bos_token_id": tokens,
    "forced_eos_token_id": tokens | st.lists(tokens, min_size=1, max_size=3),
    "eos_token_id": tokens | st.lists(tokens, min_size=1, max_size=3),
}
WARPERS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0.05, 20),
    "top_k": st.integers(1, 55),
    "top_p": st.floats(0.01, 0.99),
    "min_p": st.floats(0.001, 1),
    "typical_p": st.floats(0.01, 0.99),
}


@st.composite
def any_settings(draw: Any) -> GenerationConfig:
    fields = draw(st.fixed_dictionaries({}, optional=CONSTRAINTS))
    if draw(st.booleans()):
        fields["do_sample"] = True
        fields |= draw(st.fixed_dictionaries({}, optional=WARPERS))
    most = max(1, fields.get("min_new_tokens", 0)) + draw(st.integers(0, 3))
    fields |= {"max_new_tokens": most, "num_beams": draw(st.integers(1, 3))}
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = np.atleast_1d(fields.get(name, 0)).tolist()
        if set(forced) <= set(fields.get("suppress_tokens", ())):
            fields.pop(name, None)
    return GenerationConfig(**fields)


@pytest.mark.nightly
@given(asked=any_settings(), length=st.integers(1, SLOTS), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_processors_apply_in_transformers_order(
    model: Any, asked: GenerationConfig, length: int, seed: int
) -> None:
    """Each of theirs, in their order, does what ours does; and ours are applied in that order."""
    rng = np.random.default_rng(seed)
    context = random_context(rng, 3, 50, length)
    logits = rng.normal(size=(3, 50), scale=10 ** rng.uniform(-1, 1.5)).astype(np.float32)
    ours = processors(full := asked.for_model(CONFIG), 50)
    if asked.do_sample:
        ours += warpers(full, 50)
    assert [type(one).__name__ for one in ours] == list(CLASSES.values())[: len(ours)]
    their_lists = functools.partial(transformers_rules, model, asked)
    names = [CLASSES[type(rule)] for rule in their_lists(SLOTS, 0)]
    assert names == [n for n in CLASSES.values() if n in names]

    step = logits
    for one in ours:
        name = type(one).__name__
        if name in names:
            i = names.index(name)
            step = check(one, lambda T, n, i=i: their_lists(T, n)[i], step, context)
        else:
            np.testing.assert_array_equal(apply((one,), step, context), step)
    np.testing.assert_array_equal(apply(ours, logits, context), step)


@pytest.mark.parametrize("ends", [0, 1, 2, 3])
@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("field", ["top_k", "top_p", "min_p", "typical_p"])
def test_warpers_keep_enough_tokens_for_beam_search(
    model: Any, field: str, num_beams: int, ends: int
) -> None:
    """One more than there are ends, where all could end."""
    fields: dict[str, Any] = {field: {"top_k": 1, "min_p": 1.0}.get(field, 0.001)}
    fields |= {"do_sample": True, "num_beams": num_beams}
    if ends:
        fields["eos_token_id"] = range(ends)
    asked = GenerationConfig(**fields)
    rng = np.random.default_rng(0)
    context, logits = random_context(rng, 3, 50, 3), rng.normal(size=(3, 50)).astype(np.float32)
    got = apply(warpers(asked.for_model(CONFIG), 50), logits, context)
    (theirs,) = transformers_rules(model, asked, 3, 0)
    np.testing.assert_array_equal(got, alone(lambda T, n: theirs, logits, context))
    assert (np.isfinite(got).sum(axis=1) == (1 if num_beams == 1 else max(2, ends + 1))).all()
