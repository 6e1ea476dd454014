"""Generation against transformers: ids, scores and lengths of tiny models, for all settings."""

import copy
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

torch = pytest.importorskip("torch")
from support.torch_reference import flax_model, torch_model  # noqa: E402
from transformers import GenerationConfig  # noqa: E402

import gpt1_jax as gpt1  # noqa: E402

V = 31
SIZES = {"vocab_size": V, "n_positions": 64, "n_layer": 2, "n_embd": 12, "n_head": 3}
IDS = st.integers(0, V - 1)
MODELS = [torch_model("OpenAIGPTLMHeadModel", seed, **SIZES) for seed in range(4)]
TWINS = [flax_model(copy.deepcopy(model)) for model in MODELS]

prompts = st.lists(IDS, min_size=1, max_size=16)
words = st.lists(st.lists(IDS, min_size=1, max_size=3), min_size=1, max_size=3)


def constrained(new: int) -> dict[str, st.SearchStrategy[Any]]:
    """The settings that hold for every way of choosing."""
    return {
        "min_new_tokens": st.integers(1, new),
        "repetition_penalty": st.sampled_from([0.5, 1.1, 1.3, 2.0]),
        "no_repeat_ngram_size": st.integers(1, 4),
        "bad_words_ids": words,
        "suppress_tokens": st.lists(IDS, min_size=1, max_size=5, unique=True),
        "forced_bos_token_id": IDS,
        "forced_eos_token_id": IDS,
        "eos_token_id": IDS | st.lists(IDS, min_size=1, max_size=2, unique=True),
    }


@st.composite
def calls(draw: st.DrawFn, beams: bool) -> dict[str, Any]:
    new = draw(st.integers(1, 12))
    chosen = draw(st.fixed_dictionaries({}, optional=constrained(new)))
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        if chosen.get(name) in chosen.get("suppress_tokens", ()):
            del chosen[name]
    if beams:
        # A second beam with no token left has ties at -inf, which either may break as it likes.
        if chosen.get("no_repeat_ngram_size") == 1:
            del chosen["no_repeat_ngram_size"]
        chosen["num_beams"] = 3
        chosen["num_return_sequences"] = draw(st.integers(1, chosen["num_beams"]))
        chosen["length_penalty"] = draw(st.sampled_from([1.0, 0.0, -1.0, 0.6, 2.0]))
        chosen["early_stopping"] = draw(st.sampled_from([False, True, "never"]))
    return {"max_new_tokens": new, "pad_token_id": 30, **chosen}


def reference(model: Any, prompt: list[int], chosen: dict[str, Any]) -> Any:
    """What transformers makes of one prompt: ids and scores."""
    ids = torch.tensor([prompt])
    config = GenerationConfig(**chosen, do_sample=False)
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        return_dict_in_generate=True,
        output_scores=True,
    )


@pytest.mark.nightly
@given(seed=st.integers(0, 3), rows=st.lists(prompts, min_size=3, max_size=3), chosen=calls(False))
@settings(max_examples=20)
def test_greedy_matches_transformers(
    seed: int, rows: list[list[int]], chosen: dict[str, Any]
) -> None:
    """Every row of a ragged batch is what transformers makes of it alone."""
    masks = [[1] * len(row) for row in rows]  # pad tokens are tokens too
    ours = gpt1.generate(TWINS[seed], rows, masks, **chosen, return_dict_in_generate=True)
    # Prompts of one width come back as an array, which pads the rows that end early.
    for i, prompt in enumerate(rows):
        theirs = reference(MODELS[seed], prompt, chosen)
        ids = theirs.sequences[0].numpy()
        np.testing.assert_array_equal(ours.sequences[i][: len(ids)], ids)
        assert set(ours.sequences[i][len(ids) :]) <= {30}
        expected = MODELS[seed].compute_transition_scores(
            theirs.sequences, theirs.scores, normalize_logits=True
        )[0]
        got = ours.transition_scores[i][: len(expected)]
        np.testing.assert_allclose(got, expected, atol=5e-6, rtol=1e-6)  # measured: 1.5e-6


@pytest.mark.nightly
@pytest.mark.difference("rows of a batch")
@given(seed=st.integers(0, 3), rows=st.lists(prompts, min_size=3, max_size=3), chosen=calls(True))
@settings(max_examples=20)
def test_beam_search_matches_transformers(
    seed: int, rows: list[list[int]], chosen: dict[str, Any]
) -> None:
    """Every row of a ragged batch is what transformers makes of it alone."""
    each = chosen["num_return_sequences"]
    masks = [[1] * len(row) for row in rows]  # pad tokens are tokens too
    ours = gpt1.generate(TWINS[seed], rows, masks, **chosen, return_dict_in_generate=True)
    assert ours.sequences_scores is not None
    for i, prompt in enumerate(rows):
        theirs = reference(MODELS[seed], prompt, chosen)
        scores = theirs.sequences_scores.numpy()
        # Where fewer texts than asked for are possible, both fill up with rows out of the running.
        possible = scores > -1e8
        got = ours.sequences_scores[i * each : (i + 1) * each]
        np.testing.assert_array_equal(got > -1e8, possible)
        # Sums of up to 12 log-probabilities; a length penalty below 0 multiplies them by up to 12.
        np.testing.assert_allclose(
            got[possible],
            scores[possible],
            atol=2e-5,  # measured: 1.5e-5, and 3.1e-5, one bit, of a score in the hundreds
            rtol=1e-6,
        )
        for row, ids in zip(
            (ours.sequences[i * each + j] for j in np.flatnonzero(possible)),
            theirs.sequences.numpy()[possible],
            strict=True,
        ):
            width = min(len(row), len(ids))
            np.testing.assert_array_equal(row[:width], ids[:width])
            assert set(row[width:]) | set(ids[width:]) <= {30}


@pytest.mark.nightly
@pytest.mark.parametrize(
    "chosen",
    [{"temperature": 1.7}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.7}],
    ids=lambda chosen: next(iter(chosen)),
)
def test_sampling_matches_transformers_distribution(chosen: dict[str, Any]) -> None:
    """20,000 first tokens against what transformers' own processors leave: chi-square."""
    prompt, draws = [3, 1, 4], 20_000
    out = gpt1.generate(TWINS[1], [prompt] * draws, max_new_tokens=1, do_sample=True, **chosen)
    config = GenerationConfig(do_sample=True, **chosen)
    ids = torch.tensor([prompt])
    processors = MODELS[1]._get_logits_processor(config, input_ids_seq_length=3)
    assert len(processors) == 1
    with torch.no_grad():
        scores = processors(ids, MODELS[1](ids).logits[:, -1])
    expected = torch.softmax(scores.double(), dim=-1)[0].numpy() * draws
    counts = np.bincount(out[:, -1], minlength=V)
    assert not counts[expected == 0].any()
    # Rare tokens are counted together, as the test wants five of each kind.
    rare = expected < 5
    observed = [*counts[~rare], counts[rare].sum()]
    wanted = [*expected[~rare], expected[rare].sum()]
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert len(wanted) > 3
    assert stats.chisquare(observed, wanted).pvalue > 1e-3
