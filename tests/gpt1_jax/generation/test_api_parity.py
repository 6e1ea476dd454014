"""What ``generate`` takes and returns beside ids, against transformers'."""

import copy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_tokenizer import write_small

torch = pytest.importorskip("torch")
import transformers  # noqa: E402
from support.torch_reference import flax_model, torch_model  # noqa: E402

import gpt1_jax as gpt1  # noqa: E402

V = 31
THEIRS = torch_model(
    "OpenAIGPTLMHeadModel", vocab_size=V, n_positions=64, n_layer=2, n_embd=12, n_head=3
)
OURS = flax_model(copy.deepcopy(THEIRS))
PROMPT = [3, 1, 4, 1, 5]
RULES: dict[str, Any] = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}


def reference(ids: Any, **options: Any) -> Any:
    """What transformers generates, greedily unless beams are asked for, with a mask of ones."""
    ids = torch.as_tensor(ids)
    options = {"do_sample": False, "pad_token_id": 0, **options}
    return THEIRS.generate(ids, attention_mask=torch.ones_like(ids), **options)


@pytest.mark.nightly
@pytest.mark.parametrize("beams", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generate_returns_scores_and_logits_as_transformers(beams: dict[str, Any]) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 6,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        **RULES,
        **beams,
    }
    expected = reference([PROMPT], **options)
    got = gpt1.generate(OURS, [PROMPT], **options)
    np.testing.assert_array_equal(got.sequences, expected.sequences)
    for name in ("scores", "logits"):
        ours, theirs = getattr(got, name), getattr(expected, name)
        assert isinstance(ours, tuple)
        assert len(ours) == len(theirs)
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert a.dtype == np.float32
            # In the first step of a search only the first beam counts.
            rows = slice(0, 1) if step == 0 else slice(None)
            np.testing.assert_allclose(a[rows], b[rows], rtol=0, atol=2e-5)  # measured: 3.8e-6
    if beams:
        np.testing.assert_array_equal(got.beam_indices, expected.beam_indices)
    assert got.scores is not None
    transitions = THEIRS.compute_transition_scores(
        torch.as_tensor(got.sequences),
        tuple(map(torch.tensor, got.scores)),
        None if got.beam_indices is None else torch.as_tensor(got.beam_indices).long(),
        normalize_logits=not beams,
    )
    np.testing.assert_allclose(got.transition_scores, transitions, rtol=0, atol=2e-5)


def favour_next(logits: jax.Array, state: Any) -> jax.Array:
    """Make the token after the last one likelier, and the more so the longer the text is."""
    last = jnp.take_along_axis(state.tokens, state.lengths[:, None] - 1, axis=1)
    bonus = jax.nn.one_hot((last[:, 0] + 1) % V, V, dtype=jnp.float32)
    scale = state.lengths.astype(jnp.float32) + state.step.astype(jnp.float32)
    return logits + scale[:, None] * bonus


class FavourNext(transformers.LogitsProcessor):
    """The same for transformers."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        length = input_ids.shape[1]
        bonus = torch.nn.functional.one_hot((input_ids[:, -1] + 1) % V, V).float()
        return scores + (length + length - len(PROMPT)) * bonus


@pytest.mark.nightly
@pytest.mark.difference("functions of the user")
@pytest.mark.parametrize("beams", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_logits_processor_matches_transformers(beams: dict[str, Any]) -> None:
    options: dict[str, Any] = {"max_new_tokens": 9, **RULES, **beams}
    plain = gpt1.generate(OURS, [PROMPT], **options)
    expected = reference([PROMPT], logits_processor=[FavourNext()], **options)
    got = gpt1.generate(OURS, [PROMPT], logits_processor=[favour_next], **options)
    np.testing.assert_array_equal(got, expected)
    assert (got != plain).any()


def test_logits_processor_of_transformers_is_refused() -> None:
    given: Any = [FavourNext()]
    with pytest.raises(ValueError, match=r"FavourNext object .*, but must have functions f\(log"):
        gpt1.generate(OURS, [PROMPT], logits_processor=given)


def ends_at_pair(state: gpt1.GenerationState) -> jax.Array:
    """Whether the sum of the last two tokens is 1 modulo 4."""
    last = jnp.take_along_axis(state.tokens, state.lengths[:, None] - 1, axis=1)
    before = jnp.take_along_axis(state.tokens, state.lengths[:, None] - 2, axis=1)
    return (last + before)[:, 0] % 4 == 1


class EndsAtPair(transformers.StoppingCriteria):
    """The same for transformers."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return (input_ids[:, -1] + input_ids[:, -2]) % 4 == 1


@pytest.mark.nightly
@pytest.mark.difference("functions of the user")
@pytest.mark.parametrize("beams", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_stopping_criteria_match_transformers(beams: dict[str, Any]) -> None:
    lengths = set()
    for first in range(8):
        prompt = [first, *PROMPT]
        options: dict[str, Any] = {"max_new_tokens": 9, **RULES, **beams}
        expected = reference([prompt], stopping_criteria=[EndsAtPair()], **options)
        got = gpt1.generate(OURS, [prompt], stopping_criteria=[ends_at_pair], **options)
        np.testing.assert_array_equal(got, expected)
        lengths.add(got.shape[1])
    assert min(lengths) < 6 + 9


class Recorder:
    """A streamer that keeps what it is handed."""

    def __init__(self) -> None:
        self.puts: list[list[Any]] = []
        self.ended = False

    def put(self, value: Any) -> None:
        self.puts.append(value.tolist())

    def end(self) -> None:
        self.ended = True


def test_streamer_is_handed_a_prompt_for_each_return_sequence() -> None:
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 2}
    theirs, ours = Recorder(), Recorder()
    reference([PROMPT], streamer=theirs, **options)
    gpt1.generate(OURS, [PROMPT], streamer=ours, **options)
    assert ours.puts[0] == theirs.puts[0]
    assert list(map(np.shape, ours.puts)) == list(map(np.shape, theirs.puts))


@pytest.mark.parametrize("rows", [[PROMPT], [PROMPT, PROMPT[::-1]]])
def test_streamer_is_handed_what_transformers_hands(rows: list[list[int]]) -> None:
    options: dict[str, Any] = {"max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": [6, 7, 8]}
    theirs, ours = Recorder(), Recorder()
    expected = reference(rows, streamer=theirs, **options)
    got = gpt1.generate(OURS, rows, streamer=ours, **options)
    np.testing.assert_array_equal(got, expected)
    assert ours.puts == theirs.puts
    assert ours.ended


def test_streamer_of_transformers_prints_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = gpt1.Tokenizer.from_pretrained(write_small(tmp_path))
    as_theirs: Any = tokenizer
    streamer: Any = transformers.TextStreamer(as_theirs)
    ids = gpt1.generate(OURS, [PROMPT], max_new_tokens=4, streamer=streamer)
    assert capsys.readouterr().out.strip() == tokenizer.decode(ids[0]).strip()


@pytest.mark.difference("inputs_embeds")
def test_inputs_embeds_match_torch() -> None:
    """Against whole forwards: transformers' own ``generate`` takes none for this model."""
    embeds = np.random.default_rng(0).normal(size=(2, 7, 12)).astype(np.float32)
    got = gpt1.generate(
        OURS, None, [[1] * 7, [0, 0] + [1] * 5], inputs_embeds=embeds, max_new_tokens=8
    )
    assert got.shape == (2, 8)
    for row, prompt in zip(got, (embeds[0], embeds[1, 2:]), strict=True):
        read = torch.tensor(prompt)[None]
        for token in row:
            with torch.no_grad():
                logits = THEIRS(inputs_embeds=read).logits[0, -1]
            assert token == logits.argmax()
            own = THEIRS.get_input_embeddings()(torch.tensor([[int(token)]]))
            read = torch.cat([read, own], dim=1).detach()


def test_model_generate_is_generate() -> None:
    ids = torch.tensor([PROMPT]).numpy()
    got = OURS.generate(ids, max_new_tokens=4, **RULES)
    np.testing.assert_array_equal(got, reference([PROMPT], max_new_tokens=4, **RULES))


PAD = 1


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        ([[PAD, PAD, 9, 8]], {"pad_token_id": PAD}),
        ([[PAD, PAD, 9, 8], [4, 5, 6, 7]], {"pad_token_id": PAD}),
        ([[PAD, 9, PAD, 8]], {"pad_token_id": PAD}),
        # Where pad is an end token, or not set, it is a token as any other.
        ([[PAD, PAD, 9, 8]], {"pad_token_id": PAD, "eos_token_id": [PAD, 2]}),
        ([[PAD, PAD, 9, 8]], {"eos_token_id": PAD}),
        ([[PAD, PAD, 9, 8]], {}),
    ],
)
def test_padding_is_inferred_as_in_transformers(
    rows: list[list[int]], settings: dict[str, Any]
) -> None:
    expected = THEIRS.generate(
        torch.tensor(rows), do_sample=False, max_new_tokens=6, **settings
    ).numpy()
    got = gpt1.generate(OURS, rows, max_new_tokens=6, **settings)
    np.testing.assert_array_equal(got, expected)
