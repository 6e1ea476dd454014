"""Text files as tokens: pieces, the cache on disk, blocks, and the order of their batches."""

import functools
import gzip
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any, NoReturn

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from support.small_tokenizer import SIZE, write_small

from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training.data import corpus
from gpt1_jax.training.data.corpus import PackedBlocks, find_texts, load_tokens, read_pieces

# What splits words for one side and not for the other, what is dropped, and a word that is long.
FRAGMENTS = [
    *(" ", "  ", "\n", "\r\n", "\r", "\t", "\xa0", "\u3000", "\u2028", "\x85", "\x1c", "\x0b"),
    *("\ufeff", "\x00", "\u0301", "\u200b", "e\u0301", "İ", "Σ", "中文", "🙂", "<unk>", "!?"),
    *("the", "The", "is", "pressing", "don't", "presspresspress" * 4),
]
TEXTS = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(FRAGMENTS)).map("".join))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts")


def write(folder: Path, *texts: str | bytes) -> list[Path]:
    paths = [folder / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return paths


def never(*args: Any) -> NoReturn:
    raise AssertionError("the text was read again")


@given(text=TEXTS, piece=st.integers(1, 30), mark=st.sampled_from(["", "\ufeff"]))
def test_read_pieces_joins_to_whole_file(folder: Path, text: str, piece: int, mark: str) -> None:
    [path] = write(folder, mark + text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "READ_CHARS", piece)
        pieces = list(read_pieces(path))
    assert "".join(pieces) == (mark + text).removeprefix("\ufeff")
    assert all(each.endswith((" ", "\n")) for each in pieces[:-1])
    assert all(pieces)


def test_read_pieces_prefers_line_boundaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "READ_CHARS", 8)
    [path] = write(tmp_path, "a b\nc d e\nf g h\n" * 5)
    pieces = list(read_pieces(path))
    assert len(pieces) > 5
    assert all(piece.endswith("\n") for piece in pieces)


@given(texts=st.lists(TEXTS, min_size=1, max_size=3), piece=st.integers(1, 30))
def test_load_tokens_matches_encoding_of_whole_texts(
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    texts: list[str],
    piece: int,
) -> None:
    rows = [tokenizer.encode(text.removeprefix("\ufeff")) for text in texts]
    paths = write(folder, *texts)
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "READ_CHARS", piece)
        if not all(rows):
            path = paths[[bool(row) for row in rows].index(False)]
            with pytest.raises(ValueError, match=rf"^{path} holds no text$"):
                load_tokens(paths, tokenizer, cache)
            return
        tokens = load_tokens(paths, tokenizer, cache)
    assert tokens.ids.tolist() == list(itertools.chain.from_iterable(rows))
    assert tokens.characters == sum(len(text.removeprefix("\ufeff")) for text in texts)
    assert tokens.files == tuple(map(str, paths))


def test_load_tokens_memory_maps_ids(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokens = load_tokens(write(tmp_path, "the thing"), tokenizer, tmp_path / "cache")
    assert isinstance(tokens.ids, np.memmap)
    assert not tokens.ids.flags.writeable


def test_load_tokens_counts_crlf_as_two_characters(tmp_path: Path, tokenizer: Tokenizer) -> None:
    paths = write(tmp_path, "the\r\nthe\n", "\ufeffthe\nthe\n")
    windows, unix = (load_tokens([path], tokenizer, tmp_path / "cache") for path in paths)
    assert windows.ids.tolist() == unix.ids.tolist()
    assert (windows.characters, unix.characters) == (9, 8)


def test_load_tokens_caches_by_content(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, cache = write(tmp_path, "the thing", "is pressing"), tmp_path / "deep" / "cache"
    first = load_tokens(paths, tokenizer, cache)
    monkeypatch.setattr(corpus, "read_pieces", never)
    renamed = [path.rename(path.with_suffix(".text")) for path in paths]
    again = load_tokens(renamed, tokenizer, cache)
    assert again.ids.tolist() == first.ids.tolist()
    assert again.characters == first.characters
    assert again.files == tuple(map(str, renamed))


def test_load_tokens_cache_depends_on_texts_and_tokenizer(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    cache = tmp_path / "cache"
    load = functools.partial(load_tokens, tokenizer=tokenizer, cache=cache)
    one, two = write(tmp_path, "the thing", "is pressing")
    there, back = load([one, two]), load([two, one])
    assert there.ids.tolist() == [*load([one]).ids, *load([two]).ids]
    assert back.ids.tolist() == [*load([two]).ids, *load([one]).ids]
    write(tmp_path, "the thang")  # the same length
    assert load([one]).ids.tolist() == tokenizer.encode("the thang")
    other = Tokenizer.from_pretrained(write_small(tmp_path / "other"))
    other.add_tokens("thang")
    assert load([one], tokenizer=other).ids.tolist() == [*tokenizer.encode("the"), SIZE]
    assert len(list(cache.iterdir())) == 2 * 6


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_load_tokens_failure_leaves_no_cache(
    tmp_path: Path,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    paths, cache = write(tmp_path, "the thing is"), tmp_path / "cache"

    def failing(path: Path) -> Any:
        yield "the thing "
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "read_pieces", failing)
        with pytest.raises(type(error)):
            load_tokens(paths, tokenizer, cache)
    assert not cache.exists()
    assert load_tokens(paths, tokenizer, cache).ids.tolist() == tokenizer.encode("the thing is")


def test_load_tokens_replaces_incomplete_cache(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Between the two files, the ids are there, but not what says that they are whole."""
    paths, cache = write(tmp_path, "the thing is"), tmp_path / "cache"
    expected = load_tokens(paths, tokenizer, cache).ids.tolist()
    [description] = cache.glob("*.json")
    description.unlink()
    description.with_suffix(".bin").write_bytes(b"half")
    (cache / ".0123abcd.tmp").mkdir()
    (cache / ".0123abcd.tmp" / description.name).write_bytes(b"{")
    assert load_tokens(paths, tokenizer, cache).ids.tolist() == expected


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \t\r\n \xe3\x80\x80\n", b"\0"])
def test_load_tokens_rejects_file_without_text(
    tmp_path: Path, tokenizer: Tokenizer, content: bytes
) -> None:
    paths, cache = write(tmp_path, b"the", content), tmp_path / "cache"
    with pytest.raises(ValueError, match=r"^.*1\.txt holds no text$"):
        load_tokens(paths, tokenizer, cache)
    assert not cache.exists()


@pytest.mark.parametrize("start", [0, 1, 8191, 8192, 20000])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("wrong", [b"\xff", b"\xe9 t", b"\xe4\xb8"])
def test_load_tokens_reports_first_invalid_utf8_byte(
    tmp_path: Path,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    start: int,
    mark: bytes,
    wrong: bytes,
) -> None:
    monkeypatch.setattr(corpus, "READ_CHARS", 6000)
    content = mark + (b"the \xe4\xb8\xad\n" * 3000)[: start // 8 * 8] + b"a" * (start % 8)
    ends = wrong == b"\xe4\xb8"  # in the middle of a character
    paths = write(tmp_path, content + wrong + (b"" if ends else b" the" * 3000))
    message = rf"^.*0\.txt is not UTF-8 from its byte {len(content)} on \(.*\)$"
    with pytest.raises(ValueError, match=message):
        load_tokens(paths, tokenizer, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_load_tokens_reports_missing_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        load_tokens([tmp_path / "nowhere.txt"], tokenizer, tmp_path / "cache")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        load_tokens([tmp_path], tokenizer, tmp_path / "cache")


def test_load_tokens_uses_smallest_id_dtype(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(write_small(tmp_path / "large"))
    tokenizer.add_tokens([f"w{number}" for number in range(2**16 - SIZE)])
    paths = write(tmp_path, f"the w0 w{2**16 - SIZE - 1}")
    fits = load_tokens(paths, tokenizer, tmp_path / "cache")
    tokenizer.add_tokens("thing")
    paths = write(tmp_path, f"the w0 w{2**16 - SIZE - 1} thing")
    larger = load_tokens(paths, tokenizer, tmp_path / "cache")
    assert (fits.ids.dtype, larger.ids.dtype) == (np.uint16, np.uint32)
    assert fits.ids.tolist()[1:] == [SIZE, 2**16 - 1]
    assert larger.ids.tolist()[1:] == [SIZE, 2**16 - 1, 2**16]


@given(st.integers(0, 60), st.integers(1, 12))
def test_packed_blocks_predict_each_token_once(N: int, T: int) -> None:
    ids = np.random.default_rng(N).permutation(N).astype(np.uint16)
    if N <= T:
        message = f"^a.txt, b.txt: {N} tokens are too few, since one block takes {T + 1} of them$"
        with pytest.raises(ValueError, match=message):
            PackedBlocks(ids, T, ("a.txt", "b.txt"))
        return
    blocks = PackedBlocks(ids, T)
    rows = [blocks[index] for index in range(len(blocks))]
    assert all(row.shape == (T + 1,) and row.dtype == np.int32 for row in rows)
    predicted = [int(token) for row in rows for token in row[1:]]
    assert predicted == ids[1 : 1 + len(predicted)].tolist()
    assert N - 1 - len(predicted) < T
    assert all(row[0] == before[-1] for before, row in itertools.pairwise(rows))


def write_json_lines(path: Path, texts: list[str]) -> Path:
    content = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.nightly
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=6))
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_read_pieces_joins_texts_of_json_lines(
    tmp_path_factory: pytest.TempPathFactory, name: str, texts: list[str]
) -> None:
    path = write_json_lines(tmp_path_factory.getbasetemp() / name, texts)
    expected = [text if text.endswith("\n") else f"{text}\n" for text in texts if text]
    for size in (1, 10, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(corpus, "READ_CHARS", size)
            pieces = list(read_pieces(path))
        assert "".join(pieces) == "".join(expected)
        assert all(len(piece) < size + 9 for piece in pieces)


def test_read_pieces_reports_records_without_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: 'text' is 3, but must be a string"):
        list(read_pieces(path))
    path.write_text('{"body": "a"}\n')
    with pytest.raises(ValueError, match=r"line 1: there is no column 'text'; the columns are 'b"):
        list(read_pieces(path))


def test_load_tokens_reads_the_texts_of_all_kinds(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = ["the thing is", "pressing"]
    (tmp_path / "a.txt").write_text("the thing is\npressing\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"the thing is\npressing\n"))
    (tmp_path / "c.json").write_text(json.dumps([{"text": line} for line in lines]))
    paths = [tmp_path / name for name in ("a.txt", "b.txt.gz", "c.json")]
    paths += [write_json_lines(tmp_path / name, lines) for name in ("d.jsonl", "e.jsonl.gz")]
    shutil.copy(tmp_path / "d.jsonl", tmp_path / "d.txt")  # whose JSON is the text
    found = [load_tokens([path], tokenizer, tmp_path / "cache") for path in paths]
    for each in found:
        np.testing.assert_array_equal(each.ids, tokenizer.encode("the thing is\npressing\n"))
        assert each.characters == 22
    whole = load_tokens([tmp_path / "d.txt"], tokenizer, tmp_path / "cache")
    assert len(whole.ids) > len(found[0].ids)


def test_find_texts_resolves_folders_and_patterns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["b.txt", "a/2.jsonl.gz", "a/1.TXT", "a/b/3.txt.gz", "c[1].txt"]
    for name in [*names, "a/notes.md", "a/.hidden.txt", "a/.git/x.txt", "a/info.json"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)

    def found(*paths: str) -> list[str]:
        return list(map(str, find_texts(paths)))

    assert found("b.txt", "a") == ["b.txt", "a/1.TXT", "a/2.jsonl.gz", "a/b/3.txt.gz"]
    assert found("*.txt") == ["b.txt", "c[1].txt"]
    assert found("c[1].txt", "nowhere.txt") == ["c[1].txt", "nowhere.txt"]
    assert found("**/*.gz") == ["a/2.jsonl.gz", "a/b/3.txt.gz"]
    assert found(f"{tmp_path}/?.txt") == [str(tmp_path / "b.txt")]
    assert found() == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"the folder empty has no file of the kinds \.txt"):
        find_texts(["empty"])
    with pytest.raises(FileNotFoundError, match=r"no file matches \*\.text"):
        find_texts(["*.text"])


@pytest.mark.parametrize(("count", "rows"), [(11, slice(None)), (3, slice(None)), (5, [2, 3])])
def test_batches_fill_last_one_of_an_epoch(count: int, rows: Any) -> None:
    from gpt1_jax.training.pretrain import batches

    found, ids = [], np.repeat(np.arange(1, 1 + count, dtype=np.uint16), 2)
    blocks = PackedBlocks(np.append(ids, np.uint16(0)), 2)
    every, own = (batches(blocks, 4, 0, each) for each in (slice(None), rows))
    for step in range(1, 1 + 2 * math.ceil(count / 4)):
        whole, part = next(every), next(own)
        assert {name: (each.shape, each.dtype) for name, each in whole.items()} == {
            "tokens": ((4, 3), np.int32),
            "weights": ((4, 2), np.float32),
        }
        for name, array in part.items():
            np.testing.assert_array_equal(array, whole[name][rows])
        real = min(4, count - len(found))
        np.testing.assert_array_equal(whole["weights"], np.arange(4)[:, None] < [real, real])
        assert not whole["tokens"][real:].any()
        found += whole["tokens"][:real, 0].tolist()
        if step % math.ceil(count / 4) == 0:
            assert sorted(found) == list(range(1, 1 + count))
            found.clear()


def test_load_tokens_keeps_line_breaks_in_original_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the pieces are cut; and the two pipelines do not share a file."""
    pytest.importorskip("spacy")
    original = Tokenizer.from_pretrained(write_small(tmp_path / "small"), pipeline="original")
    plain = Tokenizer.from_pretrained(tmp_path / "small")
    text = "the thing\n\nis pressing.\n  \nthe\nis"
    paths = write(tmp_path, text)
    assert load_tokens(paths, plain, tmp_path / "cache").ids.tolist() == plain.encode(text)
    for piece in (4, 12, 1000):
        monkeypatch.setattr(corpus, "READ_CHARS", piece)
        tokens = load_tokens(paths, original, tmp_path / f"cache-{piece}")
        assert tokens.ids.tolist() == original.encode(text)
    assert load_tokens(paths, original, tmp_path / "cache").ids.tolist() == original.encode(text)


def test_load_tokens_adds_no_special_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    fields = {"bos_token": "<s>", "add_bos_token": True}
    template = write_small(tmp_path / "template")
    (template / "tokenizer_config.json").write_text(json.dumps(fields))
    adds = Tokenizer.from_pretrained(template)
    assert len(adds.encode("the")) == 2
    paths = write(tmp_path, "the thing\nis", "pressing")
    found, expected = (
        load_tokens(paths, each, tmp_path / "cache").ids for each in (adds, tokenizer)
    )
    np.testing.assert_array_equal(found, expected)
