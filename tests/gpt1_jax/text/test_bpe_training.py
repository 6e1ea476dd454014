"""Vocabularies learned from text: the layout of GPT-1's, greedy merges, and nothing unknown."""

import itertools
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gpt1_jax.text.bpe_training import train_tokenizer
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import END_OF_WORD

# Sennrich et al., arXiv:1508.07909, section 3.2.
SENNRICH = ["low " * 5, "lower " * 2, "newest\n" * 6, "widest " * 3]
FRAGMENTS = [
    *("the ", "The", "don't ", "a-b", "é", "e\u0301", "İ", "ß", "中文", "🙂", "#version: 0.2"),
    *("  ", "\t", "\r\n", "\u2028", "\x85", "\x1c", "\x00", "\ufeff", "</w>", "<pad>"),
]
PIECES = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(FRAGMENTS)).map("".join)).filter(
    lambda text: "<unk>" not in text
)


def random_texts(seed: int) -> list[str]:
    """Texts with many pairs of equal frequencies."""
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh ", k=120)) for _ in range(10)]


def merges_of(tokenizer: Tokenizer, folder: Path) -> list[str]:
    tokenizer.save_pretrained(folder)
    header, *lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert header == "#version: 0.2"
    return lines


def symbols_of(tokenizer: Tokenizer) -> list[str]:
    """The tokens in the order of their ids."""
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(tokenizer)))
    return sorted(vocabulary, key=vocabulary.__getitem__)


def test_train_tokenizer_orders_ids_like_gpt1(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(SENNRICH, 5)
    letters = sorted("lowernstid")
    merges = merges_of(tokenizer, tmp_path)
    assert merges[:3] == ["e s", "es t</w>", "l o"]  # 9, 9, and 7 times; the rest are ties
    assert symbols_of(tokenizer) == [
        "<unk>",
        *letters,
        *(letter + END_OF_WORD for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
    ]
    assert (tokenizer.unk_token, tokenizer.unk_token_id) == ("<unk>", 0)
    assert tokenizer.all_special_tokens == ["<unk>"]
    assert tokenizer.tokenize("Lowest!") == ["lo", "w", "est</w>", "<unk>"]


def apply(word: tuple[str, ...], pair: Sequence[str]) -> tuple[str, ...]:
    """A word with a pair joined, from left to right."""
    found: list[str] = []
    for symbol in word:
        # The last symbol found may be the result of this merge, which is no half of the pair.
        if found and [found[-1], symbol] == list(pair):
            found[-1] += symbol
        else:
            found.append(symbol)
    return tuple(found)


@settings(max_examples=30)
@given(st.lists(st.text("abc "), min_size=1), st.integers(1, 12))
def test_train_tokenizer_merges_most_frequent_pair(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], count: int
) -> None:
    words = Counter((*word[:-1], word[-1] + END_OF_WORD) for text in texts for word in text.split())
    if not words:
        with pytest.raises(ValueError, match=r"^the texts hold no letters to learn a voc"):
            train_tokenizer(texts, count)
        return
    merges = merges_of(train_tokenizer(texts, count), tmp_path_factory.mktemp("tokenizer"))
    for merge in [*merges, None]:
        pairs: Counter[tuple[str, ...]] = Counter()
        for word, number in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += number
        if merge is None:
            assert len(merges) == count or not pairs  # all there are, if they are fewer
        else:
            assert pairs[tuple(merge.split(" "))] == max(pairs.values())
            words = Counter({apply(word, merge.split(" ")): n for word, n in words.items()})


def test_train_tokenizer_is_deterministic() -> None:
    first, *others = (train_tokenizer(iter(random_texts(0)), 100).to_json() for _ in range(4))
    assert all(other == first for other in others)
    # Nor does it matter how they are cut, or in which order they come.
    words = [word for text in random_texts(0) for word in text.split(" ")]
    random.Random(1).shuffle(words)
    assert train_tokenizer(words, 100).to_json() == first
    assert train_tokenizer(random_texts(1), 100).to_json() != first


@given(st.lists(PIECES), st.integers(1, 10), st.data())
def test_train_tokenizer_covers_all_seen_letters(
    texts: list[str], merges: int, data: st.DataObject
) -> None:
    tokenizer = train_tokenizer(["x", *texts], merges)
    letters = [symbol for symbol in symbols_of(tokenizer) if len(symbol) == 1]
    for text in [*texts, data.draw(st.text(letters))]:
        assert tokenizer.unk_token_id not in tokenizer.encode(text)


def test_train_tokenizer_maps_unseen_letters_to_unk() -> None:
    tokenizer = train_tokenizer(["aa ab"], 3)
    assert tokenizer.tokenize("ab c ac") == ["ab</w>", "<unk>", "a", "<unk>"]


@pytest.mark.parametrize("merges", [1, 10, 60])
def test_train_tokenizer_learns_requested_merges(tmp_path: Path, merges: int) -> None:
    tokenizer = train_tokenizer(random_texts(0), merges)
    assert len(merges_of(tokenizer, tmp_path)) == merges
    # Two merges may result in the same token.
    assert len(tokenizer) <= 1 + 2 * 8 + merges
    assert len(tokenizer) > 8 + merges


@pytest.mark.parametrize("merges", [0, -3])
def test_train_tokenizer_rejects_non_positive_merges(merges: int) -> None:
    with pytest.raises(ValueError, match=f"^merges is {merges}, but must be at least 1$"):
        train_tokenizer(["a b"], merges)


@pytest.mark.parametrize("texts", [[], [""], [" \n", "\t\u3000\x00"]])
def test_train_tokenizer_rejects_texts_without_letters(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^the texts hold no letters to learn a vocabulary from$"):
        train_tokenizer(texts, 10)


def test_train_tokenizer_output_matches_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = [*random_texts(0), "Don't stop: it's naïve!", "中文 и русский", *SENNRICH]
    tokenizer = train_tokenizer(texts, 80)
    tokenizer.save_pretrained(tmp_path / "all")
    old = tmp_path / "old"  # the two files that GPT-1's tokenizer has always had
    old.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tmp_path / "all" / name, old)
    for folder in (tmp_path / "all", old):
        theirs = transformers.OpenAIGPTTokenizer.from_pretrained(folder)
        assert theirs.get_vocab() == tokenizer.get_vocab()
        for text in [*texts, "LOWEST of the unseen: q 🙂"]:
            assert theirs(text)["input_ids"] == tokenizer.encode(text)
