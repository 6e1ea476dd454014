"""The pipeline that GPT-1 was trained with, against its rules in a slow form, and known ids.

The slow form goes through a text rule by rule and merges a pair at a time, without ``tokenizers``.
"""

import importlib.util
import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.small_tokenizer import MERGES, small_vocab, write_small

from gpt1_jax.text.tokenizer import Tokenizer

ftfy = pytest.importorskip("ftfy")
spacy = pytest.importorskip("spacy")

BLANK = spacy.blank("en")

# Parts of which texts are made: what the rules are about, and anything.
PARTS = st.one_of(
    st.sampled_from(
        [
            *("\u201c", "\u201d", "\u2018", "\u2019", '"', "'", "`", "\u00b4"),  # quotes
            *("\u2014", "\u2013", "\u2015", "\u2026", "..."),  # dashes, ellipsis
            *("don't", "I'm", "he's", "o'clock", "can't", "Mr.", "U.S.", "e.g.", ":-)", "n't"),
            *("12345", "3.14", "1,000", "50%", "$5", "the", "Pressing", "THE", "naïve", "é"),
            *("â€œ", "schÃ¶n", "&amp;", "ﬁ", "\uff11\uff12"),
            *(" ", "  ", "\t", "\n", "\r\n", " \n ", "\n\n\n", "\u3000", "\u2028", "\x85", "\x00"),
            *("🙂", "中文", "\u200b", "-", "--", "~", "!!", ";", "?", "+", ",", "(", ")", "\\"),
            *("/", "*", "[", "]", "{", "}", "|", "_", "<unk>", "x" * 300, "the" * 50),
        ]
    ),
    st.sampled_from(sorted(BLANK.tokenizer.rules)),
    st.sampled_from(["\u206c\u292d\u1ab2\u1a18", "e\u0301", "a\u0328\u0301", "\u0301"]),  # marks
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
TEXTS = st.lists(PARTS, max_size=30).map("".join)


def slowly(text: str, vocab: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    """The ids of a text without added tokens, by the rules one after another."""
    text = ftfy.fix_text(text)
    for dash in "\u2014\u2013\u2015":
        text = text.replace(dash, "-")
    text = text.replace("\u2026", "...").replace("\u00b4", "'")
    for sign in '-~!";?+,)(\\/*[]}{|_':
        text = re.sub(f"({re.escape(sign)}+)", r" \1 ", text)
    text = re.sub(r"\s*\n\s*", " \n ", text)
    text = re.sub(r"[^\S\n]+", " ", text).strip()
    ids = []
    # spaCy 3 looks for smileys over spaces too, which the spaCy of GPT-1's time did not.
    words = [word for chunk in text.split(" ") for word in BLANK(chunk)]
    for word in words:
        if word.is_space:
            ids.append(vocab["\n</w>"])
            continue
        *pieces, last = word.text.lower()
        pieces.append(last + "</w>")
        while pairs := [pair for pair in itertools.pairwise(pieces) if pair in ranks]:
            best = min(pairs, key=ranks.__getitem__)
            at = 0
            while at + 1 < len(pieces):
                if (pieces[at], pieces[at + 1]) == best:
                    pieces[at : at + 2] = ["".join(best)]
                at += 1
        ids += [vocab.get(piece, 0) for piece in pieces]
    return ids


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = write_small(tmp_path_factory.mktemp("tokenizer") / "small")
    return Tokenizer.from_pretrained(folder, pipeline="original")


@pytest.fixture(scope="module")
def real(data_folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(data_folder / "gpt1_bpe", pipeline="original")


@pytest.fixture(scope="module")
def real_rules(data_folder: Path) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    vocab = json.loads((data_folder / "gpt1_bpe" / "vocab.json").read_bytes())
    merges = (data_folder / "gpt1_bpe" / "merges.txt").read_text(encoding="utf-8").split("\n")
    pairs = [line.partition(" ") for line in merges[1:] if line]
    return vocab, {(left, right): rank for rank, (left, _, right) in enumerate(pairs)}


@given(TEXTS.filter(lambda text: "<unk>" not in text))
@settings(max_examples=60)
def test_original_pipeline_matches_reference(small: Tokenizer, text: str):
    ranks: Any = {tuple(merge.split(" ")): rank for rank, merge in enumerate(MERGES)}
    assert small.encode(text) == slowly(text, small_vocab(), ranks)


@given(TEXTS.filter(lambda text: "<unk>" not in text))
@settings(max_examples=60)
def test_original_pipeline_matches_reference_with_gpt1_vocab(
    real: Tokenizer, real_rules: Any, text: str
):
    assert real.encode(text) == slowly(text, *real_rules)


@given(st.lists(TEXTS, max_size=4))
@settings(max_examples=40)
def test_original_pipeline_batch_matches_single_texts(small: Tokenizer, texts: list[str]):
    if texts:
        assert small(texts).input_ids == [small.encode(text) for text in texts]


@given(TEXTS)
@settings(max_examples=100)
def test_original_pipeline_offsets_are_sorted_and_in_range(small: Tokenizer, text: str):
    encoding = small(text, return_offsets_mapping=True)
    assert encoding.input_ids == small.encode(text)
    spans = encoding["offset_mapping"]
    assert spans == sorted(spans)
    assert all(0 <= start < end <= len(text) for start, end in spans)


def test_original_pipeline_offsets_refer_to_unfixed_text(small: Tokenizer, tmp_path: Path):
    small.save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "_pad_"})
    text = "“The\u2014thing…” \n\nisn't_pad_ schÃ¶n İs"
    encoding = tokenizer(text, return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(encoding.input_ids)
    shown = [text[slice(*span)] for span in encoding["offset_mapping"]]
    assert list(zip(tokens, shown, strict=True)) == [
        *[
            ('"</w>', "“"),
            ("the</w>", "The"),
            ("-</w>", "\u2014"),
            ("th", "th"),
            ("ing</w>", "ing"),
        ],
        *[(".", "…"), (".", "…"), (".</w>", "…"), ('"</w>', "”"), ("\n</w>", " \n\n")],
        *[("is</w>", "is"), ("n", "n"), ("'", "'"), ("t</w>", "t"), ("_pad_", "_pad_")],
        *[("s", "s"), ("c", "c"), ("h", "h"), ("<unk>", "Ã¶"), ("n</w>", "n")],
        *[("i", "İ"), ("<unk>", "İ"), ("s</w>", "s")],
    ]
    batch = tokenizer([text, "the"], padding=True, return_tensors="np", return_offsets_mapping=True)
    assert batch["offset_mapping"].shape == (2, 23, 2)
    assert batch["offset_mapping"][1].tolist() == [[0, 3], *[[0, 0]] * 22]


@given(st.lists(TEXTS, max_size=4))
@example(["<p>", "&amp;"])
@example(["&amp;", "<p>", "&amp;"])
@settings(max_examples=60)
def test_encode_pieces_matches_encode(small: Tokenizer, lines: list[str]):
    pieces = [line + "\n" for line in lines]
    joined = [id_ for ids in small.encode_pieces(pieces) for id_ in ids]
    assert joined == small.encode("".join(pieces))


def test_original_pipeline_encodes_very_long_lines(small: Tokenizer):
    text = "&amp; " + ("a" * 19 + " ") * 50_000 + "&amp; <"
    encoding = small(text, return_offsets_mapping=True)
    assert encoding.input_ids == small.encode(text)


def test_original_pipeline_is_thread_safe(small: Tokenizer, tmp_path: Path):
    small.save_pretrained(tmp_path)
    other = Tokenizer.from_pretrained(tmp_path)
    texts = [f"it's word{number} \u201cthe {number}th\u201d don't" for number in range(300)]
    expected = [Tokenizer.from_pretrained(tmp_path).encode(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for tokenizer in (small, other):
            assert list(pool.map(tokenizer.encode, texts)) == expected


def test_original_pipeline_cache_is_bounded(small: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gpt1_jax.text.original._REMEMBERED", 10)
    pieces = ["the thing is ", "12345 67890 12 ", "the is"]
    ids = [id_ for ids in small.encode_pieces(pieces) for id_ in ids]
    assert ids == small.encode("".join(pieces))
    known = small._original
    assert known is not None
    small.encode("the")
    small.encode("a")
    assert list(known._ids) == ["the", "a"]


@given(TEXTS)
@settings(max_examples=60)
def test_original_pipeline_encodes_decoded_text(small: Tokenizer, text: str):
    ids = small.encode(text)
    assert all(0 <= id_ < len(small) for id_ in ids)
    assert isinstance(small.detokenize(ids), str)
    small.encode(small.decode(ids))


PUBLISHED = [
    (
        "I decided to rent a movie when friends came over last night. After looking through "
        "selections we decided on comedy.",
        "249 1925 485 6231 246 4121 669 1662 939 715 1009 995 239 861 1081 822 37700 606 1925 504 "
        "20267 239",
    ),
    ("line one\nline two\n\nline three", "1584 566 40477 1584 867 40477 1584 1203"),
    ('Hello, World! It\'s a "test".', "3570 240 1276 267 507 535 246 244 2345 244 239"),
]


@pytest.mark.parametrize(("text", "ids"), PUBLISHED)
def test_original_pipeline_reproduces_known_ids(real: Tokenizer, text: str, ids: str):
    assert real.encode(text) == [int(id_) for id_ in ids.split()]


@pytest.mark.nightly
def test_original_pipeline_finds_no_unk_in_lambada(real: Tokenizer, data_folder: Path):
    lines = (data_folder / "lambada" / "lambada_test.jsonl").read_text(encoding="utf-8")
    rows = real([json.loads(line)["text"] for line in lines.splitlines()]).input_ids
    assert sum(map(len, rows)) == 397_719
    assert not any(0 in row for row in rows)


@pytest.mark.nightly
def test_repeated_encode_and_decode_converges(real: Tokenizer, data_folder: Path):
    lines = (data_folder / "lambada" / "lambada_test.jsonl").read_text(encoding="utf-8")
    ids = real([json.loads(line)["text"] for line in lines.splitlines()[::10]]).input_ids
    # spaCy knows some words by their capitals ("Mr.", but not "mr.") and by what they are attached
    # to ("I'm", but not "i 'm"): decoded text, in lower case and spaced, splits them once more.
    turns = [ids]
    for _ in range(3):
        turns.append([real.encode(real.decode(row)) for row in turns[-1]])
    assert turns[3] == turns[2]
    assert sum(map(list.__eq__, turns[0], turns[1])) > 0.7 * len(ids)


def test_original_pipeline_keeps_added_tokens_verbatim(small: Tokenizer, tmp_path: Path):
    small.save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "_pad_", "extra_special_tokens": ["_start_"]})
    assert tokenizer.tokenize("_start_The—thing<unk>is_pad_") == [
        *("_start_", "the</w>", "-</w>", "th", "ing</w>", "<unk>", "is</w>", "_pad_")
    ]
    assert tokenizer.detokenize(tokenizer.encode("_start_The thing.")) == "the thing."
    # Nothing of a former text or a neighbour is left over.
    assert tokenizer(["_start_", "the"]).input_ids == [
        tokenizer.encode("_start_"),
        tokenizer.encode("the"),
    ]


def test_save_pretrained_stores_the_pipeline(small: Tokenizer, tmp_path: Path):
    small.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.pipeline == "original"
    assert again.encode("it—is\nthe") == small.encode("it—is\nthe")
    other = Tokenizer.from_pretrained(tmp_path, pipeline="huggingface")
    assert other.pipeline == "huggingface"
    assert other.encode("it—is\nthe") != small.encode("it—is\nthe")


def test_pipeline_reports_invalid_settings_and_text(
    small: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small.save_pretrained(tmp_path)
    wrong: Any = "openai"
    with pytest.raises(ValueError, match=r"'openai', but must be 'huggingface' or 'original'"):
        Tokenizer.from_pretrained(tmp_path, pipeline=wrong)
    with pytest.raises(ValueError, match="lone surrogate"):
        small.encode("a\ud800")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "spacy" else find(name)
    )
    with pytest.raises(ImportError, match=r'needs spacy: pip install "gpt1-jax\[text\]"'):
        Tokenizer.from_pretrained(tmp_path, pipeline="original")
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"text_pipeline": 3}))
    with pytest.raises(ValueError, match="text_pipeline is 3"):
        Tokenizer.from_pretrained(tmp_path)
