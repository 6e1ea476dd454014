"""Plain text as training data: files, a cache of their tokens on disk, and packed blocks."""

import dataclasses
import glob
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gpt1_jax._conversion import files, json_file
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training.data.records import SUFFIXES, kind_of, open_bytes, read_records

READ_CHARS = 2**20  # characters that are read and encoded at once
TEXT = "text"  # the column of a file of records
IN_FOLDERS = (".txt", ".jsonl", ".parquet", ".arrow")


@dataclasses.dataclass(frozen=True)
class TokenizedText:
    """A text as ids, mapped into memory from a file.

    Attributes:
        ids: (N,) uint16, or uint32 for a large vocabulary.
        characters: of the text: Unicode code points, line ends included.
        files: where the text came from.
    """

    ids: np.ndarray
    characters: int
    files: tuple[str, ...]


def find_texts(paths: Sequence[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """Return the files that paths stand for, in the order of the paths and of their names.

    A folder stands for all files below it that end in .txt, .jsonl, .parquet or .arrow, or in one
    of these and .gz, but for hidden ones. A path with ``*``, ``?`` or ``[...]`` that is no file is
    a pattern, in which ``**`` stands for any folders. Any other path is returned as it is.

    Raises:
        FileNotFoundError: a folder or a pattern stands for no file.
    """
    found: list[str | os.PathLike[str]] = []
    for path in paths:
        if Path(path).is_dir():
            inside = (each.relative_to(path) for each in Path(path).rglob("*") if each.is_file())
            names = sorted(
                each
                for each in inside
                if kind_of(each) in IN_FOLDERS
                and not any(part.startswith(".") for part in each.parts)
            )
            some = [Path(path, name) for name in names]
            kinds = ", ".join(IN_FOLDERS)
            nothing = f"the folder {path} has no file of the kinds {kinds}, gzipped ones included"
        elif glob.has_magic(str(path)) and not Path(path).exists():
            some = [Path(each) for each in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 (absolute patterns too)
            some = [each for each in some if each.is_file()]
            nothing = f"no file matches {path}"
        else:
            found.append(path)
            continue
        if not some:
            raise FileNotFoundError(nothing)
        found += some
    return found


def read_pieces(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a UTF-8 file in pieces of about a million characters, cut at white space.

    Joined they are the file, line ends as they are, but for a byte order mark. Of a file of
    records, .jsonl or another that ``records.read_records`` reads, they are the texts in the
    column "text", each of which ends a line. Either may be gzipped, with .gz after its name.

    Raises:
        OSError: the file cannot be read.
        ImportError: see ``records.read_records``.
        ValueError: it is not UTF-8, or a record is wrong; names the file and where.
    """
    if kind_of(Path(path)) in SUFFIXES:
        yield from _record_pieces(Path(path))
        return
    rest = ""
    with (
        open_bytes(Path(path)) as content,
        io.TextIOWrapper(content, encoding="utf-8-sig", newline="\n") as file,
    ):
        while True:
            try:
                new = file.read(READ_CHARS)
            except UnicodeDecodeError as error:
                # What could not be decoded is the end of what was read so far.
                byte = content.tell() - len(error.object) + error.start
                raise ValueError(
                    f"{path} is not UTF-8 from its byte {byte} on ({error.reason})"
                ) from None
            if not new:
                break
            rest += new
            # A word is never cut, and a line only if it is longer than a piece.
            cut = (rest.rfind("\n") + 1) or (rest.rfind(" ") + 1)
            if cut:
                yield rest[:cut]
                rest = rest[cut:]
    if rest:
        yield rest


def _record_pieces(path: Path) -> Iterator[str]:
    piece, length = [], 0
    for place, record in read_records(path, [TEXT]):
        text = record[TEXT]
        if not isinstance(text, str):
            given = json_file.short(text)
            raise ValueError(f"{place}: {TEXT!r} is {given}, but must be a string")
        if not text:
            continue
        piece.append(text if text.endswith("\n") else f"{text}\n")
        length += len(piece[-1])
        if length >= READ_CHARS:
            yield "".join(piece)
            piece, length = [], 0
    if piece:
        yield "".join(piece)


def load_tokens(
    paths: Sequence[str | os.PathLike[str]], tokenizer: Tokenizer, cache: Path
) -> TokenizedText:
    """Return the tokens of text files, one after another; encoded once, then kept in a file.

    The file's name comes from the texts and the tokenizer, so that a change of either makes a new
    file, and the order of the files counts.

    Args:
        paths: UTF-8 text files, or files of records with a column "text", see ``read_pieces``.
        tokenizer: which splits at white space, as GPT-1's does.
        cache: the folder of such files, made if need be.

    Raises:
        OSError: a text cannot be read, or the cache not written.
        ValueError: a text is not UTF-8 or holds no tokens; names the file.
    """
    digest = hashlib.sha256((tokenizer.pipeline + tokenizer.to_json()).encode())
    for path in paths:
        if kind_of(Path(path)) in SUFFIXES:
            digest.update(b"records")  # of the same bytes in a .txt file other text is read
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    name = f"tokens-{digest.hexdigest()[:16]}"
    description = cache / f"{name}.json"
    if not description.is_file():
        _encode(paths, tokenizer, cache, name)
    fields = json.loads(description.read_text(encoding="utf-8"))
    ids = np.memmap(cache / f"{name}.bin", fields["dtype"], mode="r", shape=(fields["tokens"],))
    return TokenizedText(ids, fields["characters"], tuple(map(str, paths)))


def _encode(
    paths: Sequence[str | os.PathLike[str]], tokenizer: Tokenizer, cache: Path, name: str
) -> None:
    from tqdm import tqdm

    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    characters = 0
    tokens = dict.fromkeys(map(str, paths), 0)
    size = sum(Path(path).stat().st_size for path in paths)
    # One text, so that line breaks between files count. As many pieces come out as go in.
    pieces = ((str(path), piece) for path in paths for piece in read_pieces(path))
    pieces, read = itertools.tee(pieces)
    encoded = tokenizer.encode_pieces(piece for _, piece in read)
    with (
        files.atomic_write(cache) as new,
        new(f"{name}.bin").open("wb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc="reading text", disable=None) as bar,
    ):
        for (path, piece), ids in zip(pieces, encoded, strict=True):
            file.write(np.asarray(ids, dtype).tobytes())
            tokens[path] += len(ids)
            characters += len(piece)
            bar.update(len(piece.encode()))
        for path, count in tokens.items():
            if not count:
                raise ValueError(f"{path} holds no text")
        fields = {
            "tokens": sum(tokens.values()),
            "characters": characters,
            "dtype": np.dtype(dtype).name,
        }
        new(f"{name}.json").write_text(json.dumps(fields) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class PackedBlocks:
    """A text cut into blocks of T tokens to predict, each from those before it in the block.

    A block holds one more token than it predicts, its predecessor's last one: so all tokens but
    the very first are predicted, each once. What is left at the end is no block.

    Attributes:
        ids: (N,) of the text.
        length: T.
        files: where the text came from, to name it in the error.

    Raises:
        ValueError: the text is shorter than one block.
    """

    ids: np.ndarray
    length: int
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.ids) <= self.length:
            text = ", ".join(self.files) or "the text"
            raise ValueError(
                f"{text}: {len(self.ids)} tokens are too few, since one block takes "
                f"{self.length + 1} of them"
            )

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.length

    def __getitem__(self, index: int) -> np.ndarray:
        """(T + 1,) int32."""
        start = int(index) * self.length
        return np.asarray(self.ids[start : start + self.length + 1], np.int32)
