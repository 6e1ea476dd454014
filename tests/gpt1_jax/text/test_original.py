"""The pipeline that GPT-1 was trained with, against its rules in a slow form, and known ids.

The slow form goes through a text rule by rule and merges a pair at a time, without ``tokenizers``.
"""

import importlib.util
import itertools
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support.small_tokenizer import MERGES, small_vocab, write_small

from gpt1_jax.text import original
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
            *("\u2019\u2029\xc3\xa9", "\u2029", "ﬁÃ¶"),
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


@given(TEXTS)
@settings(max_examples=60)
def test_original_pipeline_matches_reference(small: Tokenizer, text: str):
    ranks: Any = {tuple(merge.split(" ")): rank for rank, merge in enumerate(MERGES)}
    assert small.encode(text) == slowly(text, small_vocab(), ranks)


@given(TEXTS)
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
@example("\u2019\u2029\xc3\xa9")
@settings(max_examples=100)
def test_original_pipeline_offsets_are_sorted_and_in_range(small: Tokenizer, text: str):
    encoding = small(text, return_offsets_mapping=True)
    assert encoding.input_ids == small.encode(text)
    spans = encoding["offset_mapping"]
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    assert [end for _, end in spans] == sorted(end for _, end in spans)
    assert all(0 <= start < end <= len(text) for start, end in spans)


@given(TEXTS)
@settings(max_examples=100)
def test_original_pipeline_offsets_contain_the_characters_of_tokens(small: Tokenizer, text: str):
    alone = "".join(map(ftfy.fix_text, text))
    assume(alone == ftfy.fix_text(text))  # else not every character comes from one
    encoding = small(text, return_offsets_mapping=True)
    tokens = small.convert_ids_to_tokens(encoding.input_ids)
    for token, (start, end) in zip(tokens, encoding["offset_mapping"], strict=True):
        shown = "".join(map(ftfy.fix_text, text[start:end]))
        for plain, written in (("-", "\u2014\u2013\u2015"), ("...", "\u2026"), ("'", "\u00b4")):
            shown = re.sub(f"[{written}]", plain, shown)
        assert token == "<unk>" or token.removesuffix("</w>") in shown.lower()


def test_original_pipeline_offsets_never_run_backwards(small: Tokenizer):
    # The paragraph separator becomes a line break, between a curly quote and mojibake.
    encoding = small("\u2019\u2029\xc3\xa9", return_offsets_mapping=True)
    assert small.convert_ids_to_tokens(encoding.input_ids) == ["'</w>", "\n</w>", "<unk>"]
    assert encoding["offset_mapping"] == [(0, 1), (1, 2), (2, 4)]
    # White space that ftfy makes together with what stands beside it.
    text = "a&lt;&NewLine;&amp;b"
    encoding = small(text, return_offsets_mapping=True)
    assert encoding["offset_mapping"] == [(0, 1), (1, 5), (5, 14), (14, 19), (19, 20)]


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


@pytest.mark.nightly
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
    ("<unk>", "295 2530 290"),
]


@pytest.mark.parametrize(("text", "ids"), PUBLISHED)
def test_original_pipeline_reproduces_known_ids(real: Tokenizer, text: str, ids: str):
    assert real.encode(text) == [int(id_) for id_ in ids.split()]


def test_original_pipeline_reads_unk_as_characters(small: Tokenizer, tmp_path: Path):
    assert small.tokenize("<unk>") == ["<</w>", "u", "n", "k</w>", "></w>"]
    small.save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "<unk>", "sep_token": "<sep>"})
    assert tokenizer.encode("a<unk><sep>") == [
        *tokenizer.encode("a<unk>"),
        tokenizer.sep_token_id,
    ]
    assert 0 not in tokenizer.encode("a<unk><sep>")
    spans = tokenizer("<sep><unk>", return_offsets_mapping=True)["offset_mapping"]
    assert spans == [(0, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 10)]
    assert Tokenizer.from_pretrained(tmp_path, pipeline="huggingface").encode("<unk>") == [0]


@pytest.mark.nightly
def test_original_pipeline_reads_unk_of_wikitext_as_characters(real: Tokenizer, data_folder: Path):
    text = (data_folder / "wikitext2" / "test.txt").read_text(encoding="utf-8")
    ids = " ".join(map(str, real.encode(text)))
    assert ids.count("295 2530 290") == text.count("<unk>")


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
    assert tokenizer.tokenize("_start_The—thing is_pad_") == [
        *("_start_", "the</w>", "-</w>", "th", "ing</w>", "is</w>", "_pad_")
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
    need = r'needs spacy, which is not installed: pip install "gpt1-jax\[text\]"'
    with pytest.raises(ImportError, match=need):
        Tokenizer.from_pretrained(tmp_path, pipeline="original")
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"text_pipeline": 3}))
    with pytest.raises(ValueError, match="text_pipeline is 3"):
        Tokenizer.from_pretrained(tmp_path)


# Signs that spaCy takes off words at either end, some at one of them, some only from digits.
SIGNS = "!(-_<&'#=$%+:.@^`~\u20ac\u00b0\ufffd\U0001f642\u3002\u0301"
RUNS = st.tuples(
    st.one_of(
        st.sampled_from([*SIGNS, *" \n\ra1", "\u2019", "\u00c3"]), st.characters(codec="utf-8")
    ),
    st.one_of(st.integers(1, 6), st.integers(60, 70), st.integers(71, 400)),
).map(lambda run: run[0] * run[1])


@given(st.lists(st.one_of(RUNS, PARTS), min_size=1, max_size=4).map("".join))
@example("'" * 200)
@example("<" * 201 + "3")
@example("5" + "%" * 100 + "." * 100)
@settings(max_examples=150)
def test_original_pipeline_matches_reference_on_runs_of_one_character(small: Tokenizer, text: str):
    ranks: Any = {tuple(merge.split(" ")): rank for rank, merge in enumerate(MERGES)}
    expected = slowly(text, small_vocab(), ranks)
    assert small.encode(text) == expected
    assert small(text, return_offsets_mapping=True).input_ids == expected


CHUNKS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *(*SIGNS, "a", "A", "5", "'s", "US$", "C$", "km", "m²", "°C.", "http://", "a.com"),
                *sorted(rule for rule in BLANK.tokenizer.rules if not rule.isspace()),
            ]
        ),
        st.sampled_from([1, 1, 1, 2, 3, 17, 64, 99]),
    ),
    min_size=1,
    max_size=5,
).map(lambda parts: "".join("".join(part * times for part, times in parts).split()))


@given(CHUNKS)
@settings(max_examples=200)
def test_chunk_words_match_spacy(chunk: str):
    language = original._language()
    with language.memory_zone():
        words = [word for word, _ in original._chunk_words(language.tokenizer, chunk)]
    assert words == [word.text for word in BLANK(chunk)]


@pytest.mark.parametrize("run", [*" \n!(-_<&'.:#a1", "\u2019", "\ufffd", "\U0001f642", "\u0301"])
def test_original_pipeline_takes_linear_time_on_runs(small: Tokenizer, run: str):
    known = small.encode(run * 1000)
    begin = time.perf_counter()
    ids = small.encode(run * 64_000)
    assert time.perf_counter() - begin < 20  # it was minutes for signs; it is about 0.1 s
    edge = min(100, len(known) // 4)
    assert ids[:edge] == known[:edge]
    assert ids[len(ids) - edge :] == known[len(known) - edge :]
    assert set(ids) == set(known)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("\U0001f642\u00a9" * 6000, r"has 12000 characters .* from character 6 \('\U0001f642'\) "
         "on, 12000 of them .* at most 8333$"),
        ("&<" * 6000, r"has 12000 characters .* from character 6 \('&'\)"),
        ("x" + "'s" * 6000, r"has 12001 characters .* from character 6 \('x'\)"),
        ("US$" * 4000, r"has 12000 characters .* from character 6 \('U'\)"),
        ("a:" * 8000, r"has 16000 characters .* from character 6 .*, 8001 of them"),
        ("a" + "\u0301\u0327" * 6000, r"has 12000 combining marks in a row from character 7"),
    ],
)  # fmt: skip
def test_original_pipeline_refuses_long_runs_of_signs(small: Tokenizer, run: str, message: str):
    text = f"is \u201ca\n{run} the"
    for call in (
        lambda: small.encode(text),
        lambda: small(text, return_offsets_mapping=True),
        lambda: list(small.encode_pieces(["is ", text[3:]])),
    ):
        begin = time.perf_counter()
        with pytest.raises(ValueError, match=message):
            call()
        assert time.perf_counter() - begin < 10
    # As many signs in words of their own are fine, and so are letters.
    assert small.encode("& < " * 6000 + "a" * 20_000)
