"""The tokenizer against transformers' OpenAIGPTTokenizer: equal ids, texts, masks and files."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_tokenizer import SIZE, write_small
from tokenizers import AddedToken

from gpt1_jax.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

SPECIAL = {"pad_token": "<pad>", "cls_token": "_Classify_", "extra_special_tokens": ["_start_"]}
ORDINARY = ["New York", "naïve", AddedToken("CASE", normalized=False, single_word=True)]
TEXT = (
    "The <pad> is<PAD>pressing NEW YORK's naive _start_the _Start_ CASE case CASEs "
    "<unk> _Classify_ é naïve thing <a> <b> <A>."
)
# What the normaliser, the splitter and the added tokens treat in different ways.
FRAGMENTS = [
    *("", " ", "  ", "\n", "\t", "\r", "\xa0", "\u3000", "\u200b", "\x00", "\x1f", "\ufeff"),
    *("\u2028", "\ufffd", "é", "e\u0301", "\u0301", "ß", "İ", "ǅ", "ﬁ", "中文", "한국", "🙂"),
    *("\u2018", "\u2019", "\u201c", "\u201d", "\u2026", "\u2014", "\u2013", "\xb4", "\u200d"),
    *("the", "The", "don't", "mr.", "$1.50", "</w>", "the</w>", "<unk>", "<UNK>", "<pad>"),
    *("<PAD>", "<pad", "_start_", "_Start_", "_Classify_", "New York", "new york", "NEW  YORK"),
    *("naïve", "naive", "CASE", "case", "xCASE"),
]
TEXTS = st.one_of(
    st.text(max_size=60), st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
)


def load_reference(folder: Path) -> Any:
    return transformers.OpenAIGPTTokenizer.from_pretrained(folder)


def load_pair(folder: Path) -> tuple[Tokenizer, Any]:
    return Tokenizer.from_pretrained(folder), load_reference(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module", params=["small", "real"])
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param == "small":
        return request.getfixturevalue("small")
    return request.getfixturevalue("data_folder") / "gpt1_bpe"


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Tokenizer, Any]:
    """As loaded; no test changes it."""
    return load_pair(folder)


@pytest.fixture(scope="module")
def grown(folder: Path) -> tuple[Tokenizer, Any]:
    """With added tokens; no test changes it."""
    ours, theirs = load_pair(folder)
    assert ours.add_special_tokens(SPECIAL) == theirs.add_special_tokens(SPECIAL) == 3
    assert ours.add_tokens(ORDINARY) == theirs.add_tokens(ORDINARY) == 3
    return ours, theirs


def assert_equal(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    """Equal vocabularies, special tokens and settings; equal ids, tokens and texts."""
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.extra_special_tokens == theirs.extra_special_tokens
    assert (ours.pad_token, ours.pad_token_id) == (theirs.pad_token, theirs.pad_token_id)
    assert (ours.padding_side, ours.truncation_side) == (
        theirs.padding_side,
        theirs.truncation_side,
    )
    if ours.model_max_length is None:
        assert theirs.model_max_length > 1e20
    else:
        assert ours.model_max_length == theirs.model_max_length
    assert_same_texts(ours, theirs, texts)


def assert_same_texts(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    encoded, expected = (
        tokenizer(texts, return_offsets_mapping=True) for tokenizer in (ours, theirs)
    )
    ids = encoded.input_ids
    assert ids == ours(texts).input_ids
    assert encoded["offset_mapping"] == expected["offset_mapping"]
    assert ids == expected["input_ids"]
    assert encoded.attention_mask == expected["attention_mask"]
    for skip in (False, True):
        decoded = ours.batch_decode(ids, skip_special_tokens=skip)
        assert decoded == theirs.batch_decode(ids, skip_special_tokens=skip)


def real_texts(data_folder: Path) -> list[str]:
    books = sorted((data_folder / "books").glob("*/*.txt"))
    pick = random.Random(0)
    texts = []
    for book in pick.sample(books, 8):
        texts += pick.sample(book.read_text(encoding="utf-8").split("\n\n"), 150)
    lambada = (data_folder / "lambada" / "lambada_test.jsonl").read_text(encoding="utf-8")
    texts += [json.loads(line)["text"] for line in pick.sample(lambada.splitlines(), 1000)]
    wikitext = (data_folder / "wikitext2" / "test.txt").read_text(encoding="utf-8")
    return texts + pick.sample(wikitext.split("\n"), 1000)


@pytest.mark.nightly
def test_tokenizer_matches_transformers_on_real_text(
    grown: tuple[Tokenizer, Any], data_folder: Path
):
    texts = real_texts(data_folder)
    assert len(texts) > 3000
    assert_equal(*grown, texts)
    for text in texts[::100]:
        assert grown[0].tokenize(text) == grown[1].tokenize(text)
        assert grown[0].encode(text) == grown[1].encode(text)


@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_encode_and_decode_match_transformers_on_any_text(grown: tuple[Tokenizer, Any], text: str):
    ours, theirs = grown
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip)


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_decode_matches_transformers_on_any_ids(
    grown: tuple[Tokenizer, Any], seed: int, length: int
):
    ours, theirs = grown
    draw = np.random.default_rng(seed).integers
    ids = np.where(draw(4, size=length), draw(len(ours), size=length), len(ours) - 1 - draw(6))
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids.tolist(), skip)
        assert ours.convert_ids_to_tokens(ids, skip_special_tokens=skip) == (
            theirs.convert_ids_to_tokens(ids.tolist(), skip_special_tokens=skip)
        )


@pytest.mark.parametrize("texts", ["the thing", ["the thing is pressing", "", "is<pad>"], ["is"]])
@pytest.mark.parametrize("tensors", [None, "np"])
@pytest.mark.parametrize("side", ["left", "right", None])
@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": True},
        {"padding": "longest", "truncation": True, "max_length": 2},
        {"padding": "max_length", "max_length": 7},
        {"padding": "max_length", "max_length": 3, "truncation": True},
    ],
)
def test_padding_matches_transformers(
    grown: tuple[Tokenizer, Any], texts: Any, tensors: Any, side: Any, arguments: dict[str, Any]
):
    ours, theirs = (
        tokenizer(texts, **arguments, padding_side=side, return_tensors=tensors)
        for tokenizer in grown
    )
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if tensors:
            assert value.dtype == np.int32
            np.testing.assert_array_equal(value, theirs[name], strict=False)
            assert value.shape == theirs[name].shape
        else:
            assert value == theirs[name]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_length": 2},
        {"max_length": 2, "truncation": True},
        {"max_length": 2, "truncation": False},
        {"max_length": 2, "padding": "max_length"},
        {"max_length": 2, "padding": "do_not_pad"},
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_matches_transformers(small: Path, arguments: dict[str, Any], side: Any):
    ours, theirs = load_pair(small)
    ours.truncation_side = theirs.truncation_side = side
    for tokenizer in (ours, theirs):
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    for texts in ("the thing is pressing", ["the thing is", "is"]):
        assert dict(ours(texts, **arguments)) == dict(theirs(texts, **arguments))


def test_from_pretrained_matches_transformers(pair: tuple[Tokenizer, Any]):
    assert_equal(*pair, [TEXT, *FRAGMENTS, " ".join(FRAGMENTS)])
    assert pair[0].convert_tokens_to_ids(["the</w>", "?!"]) == (
        pair[1].convert_tokens_to_ids(["the</w>", "?!"])
    )


def test_added_tokens_match_transformers(grown: tuple[Tokenizer, Any]):
    assert_equal(*grown, [TEXT, *FRAGMENTS, " ".join(FRAGMENTS)])


def test_add_special_tokens_replaces_extra_tokens(small: Path):
    ours, theirs = load_pair(small)
    for tokenizer in (ours, theirs):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>"]})
        tokenizer.add_special_tokens({"extra_special_tokens": ["<c>"], "eos_token": "the"})
        tokenizer.add_special_tokens({"additional_special_tokens": []})
        tokenizer.pad_token = tokenizer.eos_token
    assert_equal(ours, theirs, [TEXT, "<a><b> <c> the other"])


def test_add_tokens_does_not_count_known_tokens(small: Path):
    # transformers says 1 although the vocabulary does not grow; its documentation says otherwise.
    ours, theirs = load_pair(small)
    assert (ours.add_tokens(["th"]), theirs.add_tokens(["th"])) == (0, 1)
    assert_equal(ours, theirs, ["the thing ath"])


@pytest.mark.nightly
@pytest.mark.parametrize("load", ["OpenAIGPTTokenizer", "AutoTokenizer"])
@pytest.mark.parametrize("files", ["all", "vocab"])
def test_save_pretrained_is_readable_by_transformers(
    grown: tuple[Tokenizer, Any], tmp_path: Path, load: str, files: str
):
    ours, _ = grown
    ours.save_pretrained(tmp_path)
    if files == "vocab":
        (tmp_path / "tokenizer.json").unlink()
    theirs = getattr(transformers, load).from_pretrained(tmp_path)
    assert type(theirs) is transformers.OpenAIGPTTokenizer
    assert_equal(ours, theirs, [TEXT, *FRAGMENTS])
    assert_equal(Tokenizer.from_pretrained(tmp_path), theirs, [TEXT, *FRAGMENTS])


def test_save_pretrained_keeps_settings(small: Path, tmp_path: Path):
    ours = Tokenizer.from_pretrained(small, padding_side="left")
    ours.truncation_side = "left"
    ours.model_max_length = 512
    ours.save_pretrained(tmp_path)
    assert_equal(ours, load_reference(tmp_path), [TEXT])
    assert_equal(*load_pair(tmp_path), [TEXT])


def test_from_pretrained_reads_transformers_files(small: Path, tmp_path: Path):
    theirs = load_reference(small)
    theirs.add_special_tokens(SPECIAL)
    theirs.add_tokens(ORDINARY)
    theirs.save_pretrained(tmp_path)
    ours, theirs = load_pair(tmp_path)
    assert_equal(ours, theirs, [TEXT, *FRAGMENTS])
    # A file without its configuration.
    (tmp_path / "tokenizer_config.json").unlink()
    ours, theirs = load_pair(tmp_path)
    assert_equal(ours, theirs, [TEXT, *FRAGMENTS])


def test_from_pretrained_ignores_saved_call_settings(small: Path, tmp_path: Path):
    # tokenizer.json then holds the padding and the truncation of the last call.
    theirs = load_reference(small)
    theirs.add_special_tokens(SPECIAL)
    theirs(["the"], padding=True, padding_side="left", truncation=True, max_length=5)
    theirs.save_pretrained(tmp_path)
    assert_same_texts(Tokenizer.from_pretrained(tmp_path), load_reference(small), ["the thing is"])


def token(content: str, **flags: bool) -> dict[str, Any]:
    defaults = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": content, **defaults, **flags}


# Files as transformers 4 and earlier wrote them, and as people write them.
LAYOUTS: dict[str, dict[str, Any]] = {
    "added_tokens_decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "0": token("<unk>", special=True),
                str(SIZE + 1): token("New York", normalized=True, special=False),
                str(SIZE): token("<pad>", special=False),
            },
            "pad_token": "<pad>",
            "additional_special_tokens": ["<a>"],
            "bos_token": None,
            "model_max_length": 512,
            "clean_up_tokenization_spaces": True,
            "tokenizer_class": "OpenAIGPTTokenizer",
        },
        # Not read, since the configuration lists the added tokens.
        "special_tokens_map.json": {"pad_token": "<b>"},
        "added_tokens.json": {"<b>": SIZE},
    },
    "typed tokens": {
        "tokenizer_config.json": {
            "unk_token": {"__type": "AddedToken", **token("<unk>", normalized=True)},
            "pad_token": {"__type": "AddedToken", **token("<pad>", normalized=True, lstrip=True)},
            "padding_side": "left",
        },
    },
    "special_tokens_map": {
        "tokenizer_config.json": {"pad_token": "<b>", "model_max_length": 10**30},
        "special_tokens_map.json": {
            "unk_token": token("<unk>"),
            "pad_token": token("<pad>", rstrip=True),
            "cls_token": "_Classify_",
            "additional_special_tokens": ["_start_", "<a>"],
        },
    },
    "added_tokens": {
        "added_tokens.json": {"<a>": SIZE + 1, "New York": SIZE, "<pad>": SIZE + 2},
        "special_tokens_map.json": {"pad_token": "<pad>", "eos_token": "<b>"},
    },
    "extra special tokens": {
        "tokenizer_config.json": {"extra_special_tokens": ["<a>"], "eos_token": "<b>"},
        "special_tokens_map.json": {"extra_special_tokens": ["_start_", "<a>"]},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("whole", [False, True])
def test_from_pretrained_reads_other_file_layouts(tmp_path: Path, layout: str, whole: bool):
    write_small(tmp_path)
    if whole:  # an old tokenizer.json: no model type, merges as strings
        Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
        (tmp_path / "tokenizer_config.json").unlink()
        rewrite(tmp_path / "tokenizer.json", old_format)
    for name, content in LAYOUTS[layout].items():
        (tmp_path / name).write_text(json.dumps(content))
    assert_equal(*load_pair(tmp_path), [TEXT, *FRAGMENTS])


def old_format(content: dict[str, Any]) -> None:
    del content["model"]["type"]
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
