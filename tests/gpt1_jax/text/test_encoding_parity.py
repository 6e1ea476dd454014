"""A call of the tokenizer and ``pad`` against transformers: equal for any options."""

import copy
import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_tokenizer import write_small

from gpt1_jax.demo import DEMO, resolve
from gpt1_jax.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

WORDS = [
    "The",
    "old",
    "man",
    "looked,",
    "CASE's",
    "don't",
    "naïve",
    "é",
    "中",
    "<pad>",
    "<s>",
    "\n",
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CALLS = 250  # drawn for each folder
OPTIONS: dict[str, list[Any]] = {
    "add_special_tokens": [True, False],
    "padding": [True, False, "longest", "max_length", "do_not_pad"],
    "truncation": [True, False, "longest_first", "only_first", "only_second", "do_not_truncate"],
    "max_length": [4, 5, 6, 8, 12, 20],
    "stride": [0, 1, 2],
    "pad_to_multiple_of": [None, 1, 2, 4],
    "padding_side": ["left", "right", None],
    "return_token_type_ids": [True, False, None],
    "return_attention_mask": [True, False, None],
    "return_overflowing_tokens": [True, False],
    "return_special_tokens_mask": [True, False],
    "return_offsets_mapping": [True, False],
    "return_length": [True, False],
}


def with_settings(source: Path, folder: Path, **fields: object) -> Path:
    """The vocabulary of a tokenizer, with other settings and without tokenizer.json."""
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(source / name, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def with_template(source: Path, tmp_path: Path) -> Path:
    """A tokenizer whose tokenizer.json, from transformers, puts each text between two tokens."""
    settings = with_settings(
        source, tmp_path / "settings", **SPECIAL, add_bos_token=True, add_eos_token=True
    )
    transformers.OpenAIGPTTokenizer.from_pretrained(settings).save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture(scope="module", params=["small", "demo", "real"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "small":
        return write_small(tmp_path_factory.mktemp("small"))
    if request.param == "demo":
        return resolve(DEMO, weights=False)
    return request.getfixturevalue("data_folder") / "gpt1_bpe"


def drawn_texts(draw: random.Random, make: Any) -> tuple[Any, ...]:
    """A text or several, with or without pairs, as the positional arguments of a call."""
    pairs, rows = draw.choice(["none", "text_pair", "tuples"]), draw.randrange(4)
    if not rows:
        return (make(), make()) if pairs == "text_pair" else (make(),)
    if pairs == "tuples":
        return ([(make(), make()) if draw.random() < 0.6 else make() for _ in range(rows)],)
    texts = [make() for _ in range(rows)]
    return (texts, [make() for _ in range(rows)]) if pairs == "text_pair" else (texts,)


def drawn_call(draw: random.Random) -> tuple[tuple[Any, ...], dict[str, Any]]:
    words = draw.random() < 0.3
    options = {name: draw.choice(OPTIONS[name]) for name in OPTIONS if draw.random() < 0.4}
    if words:
        options["is_split_into_words"] = True

    def make() -> Any:
        chosen = draw.choices(WORDS, k=draw.choice([0, 1, 2, 5, 9]))
        return chosen if words else " ".join(chosen)

    return drawn_texts(draw, make), options


def result(tokenizer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What a call returns, with the tokens, words and sequences; None where it fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_length that is not used
            encoding = tokenizer(*arguments, **options)
    except BaseException:  # transformers' library panics
        return None
    found = dict(encoding)
    if options.get("is_split_into_words") or options.get("return_offsets_mapping"):
        for i in range(len(encoding.encodings)):
            found[f"encoding {i}"] = (
                encoding.tokens(i),
                encoding.word_ids(i),
                encoding.sequence_ids(i),
            )
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("template", [False, True])
def test_tokenizer_call_matches_transformers_for_any_options(
    source: Path, tmp_path: Path, template: bool
):
    folder = tmp_path / "plain"
    if template:
        folder = with_template(source, tmp_path)
    else:
        with_settings(source, folder, **SPECIAL)
    ours = Tokenizer.from_pretrained(folder)
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(folder) if template else theirs
    ours.model_max_length = theirs.model_max_length = fast.model_max_length = 7
    draw = random.Random(0)
    equal = 0
    for _ in range(CALLS):
        arguments, options = drawn_call(draw)
        for tokenizer in (ours, theirs, fast):
            tokenizer.truncation_side = "left" if len(arguments) == 1 else "right"
        found, expected, other = (
            result(tokenizer, arguments, options) for tokenizer in (ours, theirs, fast)
        )
        if expected is None:
            # So is a max_length that is not a multiple of pad_to_multiple_of, and a pair to cut
            # that is missing or too short.
            assert found is None, (arguments, options)
            continue
        # Of words, PreTrainedTokenizerFast numbers them as given too.
        assert found == expected, (arguments, options)
        assert list(found) == list(expected)
        assert {name: other[name] for name in found} == found, (arguments, options)
        equal += 1
    assert equal > 0.8 * CALLS


@pytest.mark.parametrize("tensors", ["np", "jax"])
def test_tokenizer_call_returns_the_arrays_of_transformers(source: Path, tensors: Any):
    ours = Tokenizer.from_pretrained(source)
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(source)
    for tokenizer in (ours, theirs):
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    options: dict[str, Any] = {
        **dict.fromkeys(("padding", "return_offsets_mapping", "return_length"), True),
        **{"max_length": 6, "truncation": True, "stride": 2, "return_overflowing_tokens": True},
    }
    texts = ["The old man looked at her, then smiled", "don't"]
    for given in (texts, texts[0]):
        found = ours(given, **options, return_tensors=tensors)
        expected = theirs(given, **options, return_tensors="np")
        assert found.keys() == expected.keys()
        for name, array in found.items():
            assert array.dtype == np.int32
            assert isinstance(array, np.ndarray) == (tensors == "np")
            np.testing.assert_array_equal(array, expected[name])


PADDED: dict[str, Any] = {
    "rows": [{"input_ids": [5, 6, 7], "labels": 1}, {"input_ids": [8], "labels": 0}],
    "columns": {"input_ids": [[5, 6, 7], [8]], "token_type_ids": [[0, 0, 1], [1]]},
    "masks": {
        "input_ids": [[5, 6], []],
        "attention_mask": [[1, 0], []],
        "special_tokens_mask": [[1, 0], []],
    },
    "one": {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 0]},
    "arrays": [{"input_ids": np.arange(3)}, {"input_ids": np.arange(3)}],
    "lists of labels": {"input_ids": [[5, 6, 7], [8]], "labels": [[5, 6], [8, 9]]},
}


@pytest.mark.parametrize("given", PADDED)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": False},
        {"padding": "max_length"},
        {"padding": "max_length", "max_length": 2, "pad_to_multiple_of": 4},
        {"pad_to_multiple_of": 4, "padding_side": "left"},
        {"return_attention_mask": False},
        {"return_attention_mask": True, "return_tensors": "np"},
    ],
)
def test_pad_matches_transformers(tmp_path: Path, given: str, options: dict[str, Any]):
    folder = with_settings(write_small(tmp_path / "small"), tmp_path / "own", pad_token="<pad>")
    ours = Tokenizer.from_pretrained(folder)
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(folder)
    ours.model_max_length = theirs.model_max_length = 6
    # transformers changes what it is given.
    found, expected = (
        tokenizer.pad(copy.deepcopy(PADDED[given]), **options) for tokenizer in (ours, theirs)
    )
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert isinstance(value, np.ndarray) == isinstance(expected[name], np.ndarray)
        np.testing.assert_equal(value, expected[name])


def test_pad_serves_a_data_collator_of_transformers(tmp_path: Path):
    folder = with_settings(write_small(tmp_path / "small"), tmp_path / "own", pad_token="<pad>")
    rows = [{"input_ids": [5, 6, 7], "label": 1}, {"input_ids": [8], "label": 0}]
    found, expected = (
        transformers.DataCollatorWithPadding(
            tokenizer.from_pretrained(folder), return_tensors="np", pad_to_multiple_of=2
        )(rows)
        for tokenizer in (Tokenizer, transformers.OpenAIGPTTokenizer)
    )
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.nightly
def test_template_is_read_applied_and_saved(source: Path, tmp_path: Path):
    folder = with_template(source, tmp_path)
    ours = Tokenizer.from_pretrained(folder)
    for name in ("saved", "again"):
        ours.save_pretrained(tmp_path / name)
        ours = Tokenizer.from_pretrained(tmp_path / name)
    written = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("saved", "again")]
    assert written[0] == written[1]
    assert (
        json.loads(written[0])["post_processor"]
        == (json.loads((folder / "tokenizer.json").read_bytes())["post_processor"])
    )
    begin, end = ours.bos_token_id, ours.eos_token_id
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("the man", ""):
        plain = ours.encode(text, add_special_tokens=False)
        assert ours.encode(text) == theirs.encode(text) == [begin, *plain, end]
        assert ours.encode(text, "a") == theirs.encode(text, "a")
        assert ours.tokenize(text) == theirs.tokenize(text)
        with_specials = ours.tokenize(text, "a", add_special_tokens=True)
        assert with_specials == theirs.tokenize(text, "a", add_special_tokens=True)
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)
    assert list(ours.encode_pieces(["the ", "man"])) == [
        ours.encode(text, add_special_tokens=False) for text in ("the", "man")
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {**SPECIAL, "add_bos_token": True},
        {**SPECIAL, "add_eos_token": True},
        {**SPECIAL, "eos_token": "<s>", "add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {**SPECIAL, "add_bos_token": False},
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_from_pretrained_reads_add_bos_token_as_transformers_does(
    tmp_path: Path, fields: dict[str, Any], whole: bool
):
    folder = with_settings(write_small(tmp_path / "small"), tmp_path / "own", **fields)
    if whole:  # tokenizer.json says what is added, and it says nothing
        Tokenizer.from_pretrained(tmp_path / "small").save_pretrained(tmp_path / "saved")
        shutil.copy(tmp_path / "saved" / "tokenizer.json", folder)
    ours = Tokenizer.from_pretrained(folder)
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(folder)
    for pair in (None, "a"):
        assert ours.encode("the", pair) == theirs.encode("the", pair)


def test_decode_leaves_out_ids_beyond_the_tokenizer_as_transformers_does(source: Path):
    ours = Tokenizer.from_pretrained(source)
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(source)
    size = len(ours)
    rows = [[*ours.encode("the old"), size, *ours.encode("man"), size + 40, 2**31], [size], [size]]
    for row in rows:
        assert ours.decode(row) == ours.decode(np.array(row)) == theirs.decode(row)
        assert ours.convert_ids_to_tokens(row) == theirs.convert_ids_to_tokens(row)
    assert ours.convert_ids_to_tokens(rows[0])[-1] is None
    assert ours.convert_ids_to_tokens(size) is theirs.convert_ids_to_tokens(size) is None
    assert ours.batch_decode(rows) == theirs.batch_decode(rows) == ["the old man", "", ""]
    assert ours.detokenize(rows[0]) == "the old man"


@pytest.mark.nightly
def test_added_vocabulary_and_strings_of_tokens_match_transformers(source: Path):
    ours = Tokenizer.from_pretrained(source)
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(source)
    for tokenizer in (ours, theirs):
        tokenizer.add_special_tokens(SPECIAL)
        tokenizer.add_tokens(["New York"])
    assert list(ours.get_added_vocab().items()) == list(theirs.get_added_vocab().items())
    tokens = ours.tokenize("The old man's <pad>New York")
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
