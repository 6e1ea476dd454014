"""Options of a call of the tokenizer: the original pipeline, lengths, threads and errors."""

import json
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.small_tokenizer import SIZE, write_small

import gpt1_jax as gpt1
from gpt1_jax.text.tokenizer import Tokenizer

# Of these words, both pipelines make the same tokens.
WORDS = ["the", "thing", "is", "pressing", "x", ".", "<s>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a template: a token before and after each text."""
    path = write_small(tmp_path_factory.mktemp("template"))
    fields = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "padding_side": "left"}
    fields |= {"add_bos_token": True, "add_eos_token": True}
    (path / "tokenizer_config.json").write_text(json.dumps(fields))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    """One that no test changes."""
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("plain")))


OPTIONS: dict[str, list[Any]] = {
    "add_special_tokens": [True, False],
    "padding": [True, "max_length"],
    "truncation": [True, "only_first"],
    "max_length": [9, 11],
    "stride": [0, 1],
    "pad_to_multiple_of": [None, 1],
    "return_token_type_ids": [True],
    "return_attention_mask": [False],
    "return_overflowing_tokens": [True],
    "return_special_tokens_mask": [True],
    "return_offsets_mapping": [True],
    "return_length": [True],
}


def test_original_pipeline_takes_the_same_options(folder: Path, tokenizer: Tokenizer):
    pytest.importorskip("spacy")
    original = Tokenizer.from_pretrained(folder, pipeline="original")
    original.model_max_length = 12
    same = Tokenizer.from_pretrained(folder)
    same.model_max_length = 12
    draw = random.Random(0)
    for _ in range(60):
        options = {name: draw.choice(OPTIONS[name]) for name in OPTIONS if draw.random() < 0.5}
        if "max_length" in options:
            options.setdefault("truncation", True)
        split = draw.random() < 0.3
        texts: list[Any] = [draw.choices(WORDS, k=draw.randrange(2, 9)) for _ in range(3)]
        texts = texts if split else list(map(" ".join, texts))
        pairs = draw.choice([None, list(reversed(texts))])
        if options.get("truncation") == "only_first":
            pairs = None
        found, expected = (
            each(texts, pairs, is_split_into_words=split, **options) for each in (original, same)
        )
        assert found == expected, options
        if split:
            for i in range(len(found.input_ids)):
                assert found.word_ids(i) == expected.word_ids(i)
                assert found.tokens(i) == expected.tokens(i)
                assert found.sequence_ids(i) == expected.sequence_ids(i)
    assert original.encode("the thing", "is") == tokenizer.encode("the thing", "is")
    assert original.tokenize("is", add_special_tokens=True) == ["<s>", "is</w>", "</s>"]


def test_original_pipeline_keeps_offsets_with_a_template(folder: Path):
    pytest.importorskip("spacy")
    original = Tokenizer.from_pretrained(folder, pipeline="original")
    text = "the \u201cthing\u201d"
    found = original(text, return_offsets_mapping=True, padding="max_length", max_length=9)
    written = [text[slice(*span)] for span in found["offset_mapping"]]
    assert written == ["", "", "", "the", "\u201c", "th", "ing", "\u201d", ""]
    assert found.word_ids() == [None, None, None, 0, 1, 2, 2, 3, None]


@pytest.mark.difference("lengths of texts")
def test_truncation_takes_the_length_of_the_model(folder: Path, tmp_path: Path):
    config = gpt1.OpenAIGPTConfig(vocab_size=SIZE, n_positions=5, n_layer=1, n_embd=8, n_head=2)
    config.save_pretrained(tmp_path)
    write_small(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length is None
    ids = loaded.encode("the thing is pressing")
    assert loaded("the thing is pressing", truncation=True).input_ids == ids[:5]
    assert loaded("is", padding="max_length").attention_mask == [1, 0, 0, 0, 0]
    loaded.save_pretrained(tmp_path / "saved")
    assert "model_max_length" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()
    # What the tokenizer itself says comes first.
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 3}))
    assert Tokenizer.from_pretrained(tmp_path)("the thing is", truncation=True).input_ids == ids[:3]
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text("{")  # which loading the model refuses
    with pytest.raises(ValueError, match="truncation=True needs max_length: neither"):
        Tokenizer.from_pretrained(tmp_path)("is", truncation=True)


def test_threads_share_a_tokenizer_with_different_options(tokenizer: Tokenizer):
    texts = ["the thing is pressing the thing"] * 200

    def shape(length: int) -> tuple[int, ...]:
        side: Any = "left" if length % 2 else "right"
        batch = tokenizer(
            texts,
            texts,
            truncation=True,
            max_length=length,
            padding="max_length",
            padding_side=side,
            return_tensors="np",
        )
        return batch.input_ids.shape

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shape, range(5, 45))) == [(200, length) for length in range(5, 45)]
    assert len(tokenizer.encode("the thing")) == 5


@pytest.mark.difference("arrays of tokens")
def test_tokenizer_call_returns_jax_arrays(tokenizer: Tokenizer):
    batch = tokenizer(["the thing", "is"], padding=True, return_tensors="jax")
    assert isinstance(batch.input_ids, jax.Array)
    same = tokenizer(["the thing", "is"], padding=True, return_tensors="np")
    np.testing.assert_array_equal(batch.input_ids, same.input_ids)
    assert tokenizer.encode("is", return_tensors="jax").shape == (1, 3)
    padded = tokenizer.pad([{"input_ids": jax.numpy.arange(2)}, {"input_ids": [5]}])
    assert isinstance(padded.input_ids, jax.Array)


def test_batch_encoding_has_its_fields_as_attributes(tokenizer: Tokenizer):
    encoding = tokenizer("is", return_length=True, return_attention_mask=False)
    assert encoding.length == [3]
    with pytest.raises(AttributeError, match="no 'attention_mask'; it has input_ids, length"):
        _ = encoding.attention_mask
    with pytest.raises(ValueError, match=r"need is_split_into_words=True or return_offsets_mapp"):
        encoding.word_ids()
    split = tokenizer(["the", "thing"], is_split_into_words=True)
    copy = pickle.loads(pickle.dumps(split))
    assert copy == split
    assert copy.word_ids() == split.word_ids() == [None, 0, 1, 1, None]


@pytest.mark.difference("options of the tokenizer")
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("a", 3), {}, "text_pair must be a string or a list of strings, not int"),
        ((["a"], "b"), {}, "text_pair must be a list, as text is one, not str"),
        ((["a", "b"], ["c"]), {}, "there are 2 texts, but 1 in text_pair"),
        ((["a", ("b", "c", "d")],), {}, "text 1 must be a string, not list"),
        ((["a", ("b", 3)],), {}, "text 1 must be a string, not int"),
        ((["a", ("b", "\ud800")],), {}, "text 1 holds a lone surrogate"),
        ((3,), {"is_split_into_words": True}, "text must be a list of words, or a list of such"),
        ((["a", ["b"]],), {"is_split_into_words": True}, "the text must be a string, not list"),
        (([["a"], "b"],), {"is_split_into_words": True}, "text 1 must be a list of words, not str"),
        (("a",), {"truncation": "shortest"}, "truncation is 'shortest', but must be a bool, None"),
        (("a",), {"stride": -1}, "stride is -1, but must be at least 0"),
        (("a",), {"max_length": 1}, "max_length is 1, but must be at least 2, the number of spec"),
        (("a",), {"max_length": 2**40}, "max_length is 1099511627776, but must be a positive"),
        (("a",), {"padding": True, "pad_to_multiple_of": 0}, "pad_to_multiple_of is 0, but must"),
        (
            ("a",),
            {"padding": True, "truncation": True, "max_length": 5, "pad_to_multiple_of": 2},
            "max_length is 5, but with truncation must be a multiple of pad_to_multiple_of, 2",
        ),
        (
            ("a b c d e",),
            {"truncation": "only_second", "max_length": 4},
            "truncation='only_second' to max_length=4: .*Second sequence not provided",
        ),
        (
            ("a", "b c d e f"),
            {"truncation": "only_first", "max_length": 6},
            "truncation='only_first' to max_length=6: .*too short",
        ),
        (
            ("a b c d e",),
            {"max_length": 4, "stride": 3, "return_overflowing_tokens": True},
            "truncation='longest_first' to max_length=4: tokenizer stride set to 3",
        ),
        (("a",), {"return_tensors": "pt"}, "return_tensors is 'pt', but must be None, 'np' or"),
        (("a",), {"text_target": "b"}, "unexpected keyword argument 'text_target'"),
    ],
)
def test_tokenizer_call_refuses_what_it_cannot_do(
    tokenizer: Tokenizer, arguments: tuple[Any, ...], options: dict[str, Any], message: str
):
    with pytest.raises((TypeError, ValueError), match=message):
        tokenizer(*arguments, **options)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (3, {}, "encoded_inputs must be a dict, or a list of dicts, not int"),
        ([[1, 2]], {}, "encoded_inputs must be a dict, or a list of dicts"),
        ({"labels": [1]}, {}, r"encoded_inputs has \['labels'\], but must have input_ids"),
        ([{"input_ids": [1], "a": 1}, {"input_ids": [1]}], {}, "the encoded input 1 has no 'a'"),
        ({"input_ids": [[1], [2]], "labels": [3]}, {}, "labels must have a row for each of the 2"),
        ({"input_ids": [[1]]}, {"padding": "widest"}, "padding is 'widest'"),
        ({"input_ids": [[1]]}, {"padding": "max_length"}, "padding='max_length' needs max_length"),
        (
            {"input_ids": [[1], [2, 3]], "labels": [[1], [2, 3]]},
            {"return_tensors": "np"},
            "the rows of labels differ in length, so they make no array",
        ),
    ],
)
def test_pad_refuses_what_is_not_a_batch(
    tokenizer: Tokenizer, given: Any, options: dict[str, Any], message: str
):
    with pytest.raises((TypeError, ValueError), match=message):
        tokenizer.pad(given, **options)


def test_pad_warns_of_a_length_that_is_not_used(tokenizer: Tokenizer):
    with pytest.warns(UserWarning, match="max_length = 5 is not used"):
        tokenizer.pad({"input_ids": [[1]]}, max_length=5)
    assert tokenizer.pad({"input_ids": [[1]]}, max_length=5, verbose=False).input_ids == [[1]]


def test_tokenizer_without_a_template_adds_nothing(plain: Tokenizer):
    assert plain.num_special_tokens_to_add() == plain.num_special_tokens_to_add(pair=True) == 0
    ids = plain.encode("the"), plain.encode("is")
    assert plain.encode("the", "is") == [*ids[0], *ids[1]]
    types = plain("the", "is", return_token_type_ids=True)["token_type_ids"]
    assert types == [0] * len(ids[0]) + [1] * len(ids[1])


def test_convert_tokens_to_string_refuses_other_things(plain: Tokenizer):
    for given in ("the", [None], [3]):
        with pytest.raises(TypeError, match="tokens must be a list of strings, not"):
            plain.convert_tokens_to_string(given)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("pipeline", ["huggingface", "original"])
def test_set_template_is_applied_and_saved(pipeline: Any, tmp_path: Path):
    if pipeline == "original":
        pytest.importorskip("spacy")
    tokenizer = Tokenizer.from_pretrained(write_small(tmp_path / "small"), pipeline=pipeline)
    (the,), (is_,) = tokenizer.encode("the"), tokenizer.encode("is")
    tokenizer.add_special_tokens({"extra_special_tokens": ["[a]", "[b]"]})
    a, b = tokenizer.convert_tokens_to_ids(["[a]", "[b]"])
    tokenizer.set_template("[a] $A [b]", "[a] $A [b] $B:1 [b]:1")
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = Tokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.pipeline == pipeline
    for each in (tokenizer, loaded):
        assert each.encode("the") == [a, the, b]
        assert each.encode("the", add_special_tokens=False) == [the]
        pair = each("the", "is", return_token_type_ids=True)
        assert pair.input_ids == [a, the, b, is_, b]
        assert pair.token_type_ids == [0, 0, 0, 1, 1]
        assert each("the is the", truncation=True, max_length=4).input_ids == [a, the, is_, b]
        assert each.encode_prompt("the") == [a, the]
        assert list(each.encode_pieces(["the"])) == [[the]]
    loaded.set_template("$A")
    loaded.save_pretrained(tmp_path / "plain")
    assert Tokenizer.from_pretrained(tmp_path / "plain").encode("the", "is") == [the, is_]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (("[a]",), r"single is '\[a\]', but must be special tokens and \$A once, separated by sp"),
        (("$A $A",), r"single is '\$A \$A', but must be special tokens and \$A once"),
        (("$A", "$A"), r"pair is '\$A', but must be special tokens and \$A once and \$B once"),
        (("$A [x]",), r"single is '\$A \[x\]', but '\[x\]' is not in the vocabulary; add_special"),
        (("$A a:b",), r"single is '\$A a:b', but 'a:b' is not in the vocabulary"),
        (("$A:x",), r"single is '\$A:x', but must be"),
        ((["$A"],), r"single is \['\$A'\], but must be a string with \$A"),
    ],
)
def test_set_template_rejects_bad_templates(folder: Path, template: Any, message: str):
    tokenizer = Tokenizer.from_pretrained(folder)
    before = tokenizer.encode("the")
    with pytest.raises(ValueError, match=message):
        tokenizer.set_template(*template)
    assert tokenizer.encode("the") == before
