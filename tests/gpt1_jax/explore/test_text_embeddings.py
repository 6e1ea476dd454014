"""Embeddings of many texts against the model's own states of each alone."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from support.compilations import compilations
from support.small_models import difference, small_model, spoil
from support.small_tokenizer import SIZE, write_small
from support.vocabularies import write_bert

import gpt1_jax as gpt1
from gpt1_jax.explore import text_embeddings
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel
from gpt1_jax.pure import split
from gpt1_jax.scoring import batch_shapes

E, LAYERS = 8, 2
SIZES = {"vocab_size": SIZE, "n_positions": 16, "n_embd": E, "n_layer": LAYERS, "n_head": 2}
rng = np.random.default_rng(0)
IDS = [rng.integers(0, SIZE, size).tolist() for size in (3, 16, 1, 12, 8, 9, 5, 4, 2)]


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return small_model(gpt1.OpenAIGPTLMHeadModel, **SIZES)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> gpt1.Tokenizer:
    return gpt1.Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("small") / "small"))


@pytest.fixture(scope="module")
def states(model: gpt1.OpenAIGPTLMHeadModel) -> list[np.ndarray]:
    """Of every text alone, the states of all layers: (n_layer + 1, T, E)."""
    apply, params = gpt1.functional(model)
    found = []
    for ids in IDS:
        padded = np.zeros((1, 16), np.int32)
        padded[0, : len(ids)] = ids
        hidden = apply(params, padded, output_hidden_states=True).hidden_states
        found.append(np.stack([np.asarray(state)[0, : len(ids)] for state in hidden]))
    return found


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_embed_equals_the_states_of_each_text_alone(
    model: gpt1.OpenAIGPTLMHeadModel, states: list[np.ndarray], layer: int
) -> None:
    mean = gpt1.embed(model, IDS, layer=layer, batch_tokens=64)
    assert (mean.shape, mean.dtype) == ((len(IDS), E), np.float32)
    for found, expected in zip(mean, states, strict=True):
        assert difference(found, expected[layer].mean(axis=0)) < 1e-5


def test_embed_pools(model: gpt1.OpenAIGPTLMHeadModel, states: list[np.ndarray]) -> None:
    last = gpt1.embed(model, IDS, layer=-2, pooling="last")
    every = gpt1.embed(model, IDS, layer=1, pooling="none")
    assert (last.shape, last.dtype, every[0].dtype) == ((len(IDS), E), np.float32, np.float32)
    for i, expected in enumerate(states):
        assert difference(every[i], expected[1]) < 1e-5
        assert difference(last[i], expected[1][-1]) < 1e-5


@pytest.mark.parametrize("cls", [gpt1.OpenAIGPTModel, gpt1.OpenAIGPTForSequenceClassification])
def test_embed_takes_any_model(
    model: gpt1.OpenAIGPTLMHeadModel, cls: type[OpenAIGPTPreTrainedModel]
) -> None:
    other = small_model(cls, **SIZES)
    body = model.params["transformer"]
    params = body if cls is gpt1.OpenAIGPTModel else {**other.params, "transformer": body}
    other.load_params(params)
    np.testing.assert_array_equal(gpt1.embed(other, IDS[:2]), gpt1.embed(model, IDS[:2]))


def test_embed_compiles_once_for_each_shape(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    texts = [np.arange(1 + i % 16, dtype=np.int64) for i in range(48)]
    options: dict[str, Any] = {"layer": 0, "pooling": "last"}  # as no other test
    lengths = sorted(map(len, texts), reverse=True)
    with compilations() as compiled:
        for _ in range(2):
            gpt1.embed(model, texts, batch_tokens=80, **options)
    assert len(compiled) == len(set(batch_shapes(lengths, 16, 80)))


def test_layers_beyond_the_chosen_one_are_not_computed(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    structure, params = split(model)
    ids, lengths = np.zeros((4, 16), np.int32), np.ones(4, np.int32)

    def products(layer: int) -> int:
        lowered = text_embeddings._states.lower(structure, params, ids, lengths, layer, "mean")
        return lowered.as_text().count("dot_general")

    counts = [products(layer) for layer in range(LAYERS + 1)]
    assert counts[0] == 0
    assert counts[2] == 2 * counts[1] > 0


def test_embed_words(model: gpt1.OpenAIGPTLMHeadModel, tokenizer: gpt1.Tokenizer) -> None:
    """Of "pressing" the last token, and punctuation on its own."""
    texts = ["The press, pressing", "a"]
    words = [["The", "press", ",", "pressing"], ["a"]]
    options: dict[str, Any] = {"tokenizer": tokenizer}
    found = gpt1.embed(model, texts, pooling="word", **options)
    again = gpt1.embed(model, words, pooling="word", **options)
    every = gpt1.embed(model, texts, pooling="none", **options)
    tokens = tokenizer.tokenize(texts[0])
    ends = [i for i, token in enumerate(tokens) if token.endswith("</w>")]
    assert len(ends) == 4 < len(tokens)
    np.testing.assert_array_equal(found[0], every[0][ends])
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one, other)
    read = text_embeddings.tokenize(model.config, texts, tokenizer, words=True)
    assert [text.words for text in read] == [("The", "press", ",", "pressing"), ("a",)]


def test_words_have_no_special_tokens(model: gpt1.OpenAIGPTLMHeadModel, tmp_path: Path) -> None:
    bert = gpt1.Tokenizer.from_pretrained(write_bert(tmp_path))
    (read,) = text_embeddings.tokenize(model.config, ["helloing 你好"], bert, words=True)
    assert read.words == ("helloing", "你", "好")
    assert read.ends is not None
    assert read.ends.tolist() == [2, 3, 4]  # after [CLS] hello


def test_embed_of_no_texts_is_empty(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    assert gpt1.embed(model, []).shape == (0, E)
    assert gpt1.embed(model, [], pooling="none") == []


@pytest.mark.nightly
def test_embed_in_bfloat16_and_int8(
    model: gpt1.OpenAIGPTLMHeadModel, states: list[np.ndarray]
) -> None:
    half = small_model(gpt1.OpenAIGPTLMHeadModel, dtype=jnp.bfloat16, **SIZES)
    for other, limit in ((half, 0.05), (gpt1.quantize(model), 0.15)):
        found = gpt1.embed(other, IDS[:2], pooling="last", layer=1)
        assert found.dtype == np.float32
        assert difference(found, [states[i][1][-1] for i in range(2)]) < limit


@pytest.mark.parametrize(
    ("texts", "fields", "error", "message"),
    [
        ("the", {}, TypeError, "texts is a single string"),
        (["the"], {}, TypeError, "need a tokenizer; ids do without one"),
        ([[1], "the"], {}, TypeError, "all strings and words or all ids, but are mixed"),
        ([[1], []], {}, ValueError, "text 1 has no tokens, but must have 1 to n_positions = 16"),
        ([[1] * 17], {}, ValueError, "text 0 has 17 tokens, but must have 1 to n_positions = 16"),
        ([[1], [SIZE]], {}, ValueError, rf"text 1\[0\] is {SIZE}, but must be in"),
        ([[[1]]], {}, ValueError, r"text 0 has shape \(1, 1\), but must be \(T,\)"),
        ([[1]], {"layer": 3}, ValueError, r"layer .*3.* an integer in \[-3, 2\], n_layer being 2"),
        ([[1]], {"layer": -4}, ValueError, r"layer .*-4"),
        ([[1]], {"layer": True}, ValueError, "layer"),
        ([[1]], {"pooling": "max"}, ValueError, "pooling .*mean, last, none or word"),
        ([[1]], {"pooling": "word"}, ValueError, "pooling='word' needs texts, and not ids"),
        ([[1]], {"batch_tokens": 0}, ValueError, "batch_tokens"),
    ],
)
def test_embed_refuses(
    model: gpt1.OpenAIGPTLMHeadModel,
    texts: Any,
    fields: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        gpt1.embed(model, texts, **fields)


def test_embed_refuses_words_without_tokens(
    model: gpt1.OpenAIGPTLMHeadModel, tokenizer: gpt1.Tokenizer
) -> None:
    with pytest.raises(ValueError, match="text 0: the word '\\\\x00' has no tokens"):
        gpt1.embed(model, [["a", "\0"]], pooling="word", tokenizer=tokenizer)


def test_embed_names_a_parameter_that_is_not_finite() -> None:
    broken = small_model(gpt1.OpenAIGPTLMHeadModel, **SIZES)
    spoil(broken, "transformer.h.1.mlp.c_fc.bias")
    options: dict[str, Any] = {"batch_tokens": 64}
    assert np.isfinite(gpt1.embed(broken, IDS, layer=1, **options)).all()
    with pytest.raises(ValueError, match=r"states are not finite.*transformer\.h\.1\.mlp\.c_fc"):
        gpt1.embed(broken, IDS, **options)


def test_embed_equals_transformers() -> None:
    torch = pytest.importorskip("torch")
    from support.torch_reference import flax_model, torch_model

    theirs = torch_model("OpenAIGPTModel", 0, **SIZES)
    ours = flax_model(theirs)
    layers: dict[int, Any] = {0: "mean", 1: "none", 2: "mean"}
    found = {
        layer: gpt1.embed(ours, IDS, layer=layer, pooling=pooling)
        for layer, pooling in layers.items()
    }
    for i, ids in enumerate(IDS):
        with torch.no_grad():
            out = theirs(torch.tensor([ids]), output_hidden_states=True)
        for layer, pooling in layers.items():
            expected = out.hidden_states[layer][0].numpy()
            expected = expected.mean(axis=0) if pooling == "mean" else expected
            assert difference(found[layer][i], expected) < 1e-5


@pytest.mark.nightly
def test_embed_equals_transformers_at_full_size() -> None:
    torch = pytest.importorskip("torch")
    import transformers
    from support.torch_reference import flax_model

    torch.manual_seed(0)
    theirs = transformers.OpenAIGPTModel(transformers.OpenAIGPTConfig()).eval()
    texts = [np.random.default_rng(n).integers(0, 40478, n) for n in (6, 1, 40, 17)]
    found = gpt1.embed(flax_model(theirs), texts, layer=9, pooling="last")
    for ids, row in zip(texts, found, strict=True):
        with torch.no_grad():
            out = theirs(torch.tensor(ids)[None], output_hidden_states=True)
        assert difference(row, out.hidden_states[9][0, -1].numpy()) < 1e-5
