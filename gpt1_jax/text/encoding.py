"""Encoding with Hugging Face's options: pairs, special tokens, truncation, padding, and the result.

The ``tokenizers`` library does the work. Its truncation and padding are settings of a tokenizer;
here a call sets them on a copy of its own, made in microseconds because the vocabulary is shared,
so that threads may use one tokenizer with different options.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

import jax
import numpy as np

from gpt1_jax.checks import is_integer, wrong
from gpt1_jax.text.offsets import Span

if TYPE_CHECKING:  # importing it takes 50 ms, which `import gpt1_jax` need not pay
    import tokenizers
    from tokenizers import Encoding

Value = TypeVar("Value")
Padding = bool | Literal["longest", "max_length", "do_not_pad"]
Truncation = bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"]
TensorType = Literal["np", "jax"]

# A text; or words of a text; and pairs of either.
Input = Any
# The names of what a call returns, and the library's.
COLUMNS = {
    "input_ids": "ids",
    "token_type_ids": "type_ids",
    "attention_mask": "attention_mask",
    "special_tokens_mask": "special_tokens_mask",
    "offset_mapping": "offsets",
}
# What stands at a pad; other fields, labels for one, are not padded.
PADS = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}


@jax.tree_util.register_pytree_with_keys_class
class BatchEncoding(dict[str, Any]):
    """What a call of a tokenizer returns: its fields as items, as attributes, and as a pytree.

    Each is a list for one text, a list of lists for several, or an int32 array (batch, T).
    ``model(**encoding)`` takes ``input_ids`` and ``attention_mask`` as arrays.

    Attributes:
        input_ids: the ids, special tokens and pads included.
        attention_mask: 1 for a token, 0 for a pad.
        encodings: a text's tokens, words and sequences; None unless the call asked for offsets or
            gave words.
    """

    input_ids: Any
    attention_mask: Any
    encodings: Sequence[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            fields = ", ".join(self)
            raise AttributeError(f"the encoding has no {name!r}; it has {fields}") from None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Return a text's tokens, special ones and pads included; see ``word_ids`` for errors."""
        return self._encoding(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return the number of each token's word; None for special tokens and pads.

        Args:
            batch_index: which text.

        Raises:
            ValueError: the call gave no words and asked for no offsets.
        """
        return self._encoding(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 for tokens of the text, 1 for those of the pair, None for others; see ``word_ids``."""
        return self._encoding(batch_index).sequence_ids

    def _encoding(self, index: int) -> Any:
        if self.encodings is None:
            needed = "is_split_into_words=True or return_offsets_mapping=True"
            raise ValueError(f"tokens, word_ids and sequence_ids need {needed} in the call")
        return self.encodings[index]

    def tree_flatten_with_keys(
        self,
    ) -> tuple[list[tuple[object, object]], tuple[str, ...]]:
        """Return the values with their keys, sorted as those of a dict are: JAX calls this."""
        keys = tuple(sorted(self))
        return [(jax.tree_util.DictKey(key), self[key]) for key in keys], keys

    @classmethod
    def tree_unflatten(cls, keys: tuple[str, ...], values: Iterable[object]) -> Self:
        """Return the encoding of flattened values: JAX calls this."""
        return cls(zip(keys, values, strict=True))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a batch is cut and padded: the library's arguments for either, None for neither."""

    truncation: Mapping[str, Any] | None = None
    padding: Mapping[str, Any] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether a text is cut at one end, if at all, so that ``cut`` does it."""
        wanted = self.truncation
        return not wanted or (wanted["strategy"] != "only_second" and not wanted["stride"])

    def set_on(self, backend: tokenizers.Tokenizer) -> None:
        """Set both on a tokenizer that nobody else uses."""
        if self.truncation:
            backend.enable_truncation(**self.truncation)
        if self.padding:
            backend.enable_padding(**self.padding)


def padding_strategy(padding: object) -> Literal["longest", "max_length", "do_not_pad"]:
    """Return the name of a padding.

    Raises:
        ValueError: it is none.
    """
    if isinstance(padding, bool):
        return "longest" if padding else "do_not_pad"
    for name in ("longest", "max_length", "do_not_pad"):
        if padding == name:
            return name
    raise wrong("padding", padding, "a bool, 'longest', 'max_length' or 'do_not_pad'")


def truncation_strategy(truncation: object) -> str | None:
    """Return the name of a truncation, None for none.

    Raises:
        ValueError: it is none of the names.
    """
    if isinstance(truncation, bool | None):
        return "longest_first" if truncation else None
    names = ("longest_first", "only_first", "only_second", "do_not_truncate")
    if truncation not in names:
        raise wrong("truncation", truncation, f"a bool, None or one of {', '.join(names)}")
    return None if truncation == "do_not_truncate" else str(truncation)


def check_tensors(return_tensors: object) -> None:
    """Raise a ValueError where arrays of another library are asked for."""
    if return_tensors not in (None, "np", "jax"):
        raise wrong("return_tensors", return_tensors, "None, 'np' or 'jax'")


def check_multiple(pad_to_multiple_of: object, max_length: int | None = None) -> None:
    """Check ``pad_to_multiple_of``, also against the length that texts are cut to.

    Raises:
        ValueError: it is not a positive integer, or the length not a multiple of it.
    """
    if pad_to_multiple_of is None:
        return
    if not is_integer(pad_to_multiple_of) or pad_to_multiple_of < 1:
        raise wrong("pad_to_multiple_of", pad_to_multiple_of, "a positive integer")
    if max_length is not None and max_length % pad_to_multiple_of:
        raise ValueError(
            f"max_length is {max_length}, but with truncation must be a multiple of "
            f"pad_to_multiple_of, {pad_to_multiple_of}"
        )


def read_inputs(text: Input, text_pair: Input, *, words: bool) -> tuple[bool, list[Input]]:
    """Return whether there are several texts, and each text, or a tuple of it and its pair.

    Args:
        text: as for ``Tokenizer.__call__``.
        text_pair: likewise.
        words: whether texts are lists of words.

    Raises:
        TypeError: texts are not lists of strings.
        ValueError: there are other numbers of pairs than of texts.
    """
    for name, value in (("text", text), ("text_pair", text_pair)):
        if not isinstance(value, Sequence) and not (value is None and name == "text_pair"):
            right = "a list of words, or a list of such lists" if words else "a string or a list"
            right += "" if words else " of strings"
            raise TypeError(f"{name} must be {right}, not {type(value).__name__}")
    if words:
        batched = bool(text) and isinstance(text[0], list | tuple)
    else:
        batched = not isinstance(text, str)
    if not batched:
        text = list(text) if words else text  # not to be taken for a pair
        # transformers too takes an empty pair for none.
        return False, [(text, text_pair) if text_pair else text]
    if text_pair is None:
        return True, [_read_item(each, words=words) for each in text]
    if isinstance(text_pair, str):
        raise TypeError("text_pair must be a list, as text is one, not str")
    if len(text) != len(text_pair):
        raise ValueError(f"there are {len(text)} texts, but {len(text_pair)} in text_pair")
    return True, list(zip(text, text_pair, strict=True))


def _read_item(value: Any, *, words: bool) -> Input:
    """One of several texts: a tuple if it is a pair, and of words a list."""
    if not isinstance(value, list | tuple):
        return value
    if len(value) == 2 and not (words and any(isinstance(part, str) for part in value)):
        return tuple(value)
    return list(value)


def sequences(item: Input) -> tuple[Input, ...]:
    """Return the text, or the text and its pair."""
    return item if isinstance(item, tuple) else (item,)


def check_inputs(inputs: Sequence[Input], *, words: bool = False) -> None:
    """Check that texts and pairs of them are strings, or with ``words`` lists of strings.

    Raises:
        TypeError: one is not.
        ValueError: one holds a lone surrogate.
    """
    for number, item in enumerate(inputs):
        number = number if len(inputs) > 1 else None
        for part in sequences(item):
            if not words:
                _check_text(part, number)
            elif not isinstance(part, list | tuple):
                kind = type(part).__name__
                raise TypeError(f"{_name(number)} must be a list of words, not {kind}")
            else:
                for word in part:
                    _check_text(word, number)


def checked_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts that come one by one; raises what ``check_inputs`` does."""
    for number, text in enumerate(texts):
        _check_text(text, number)
        yield text


def _check_text(text: object, number: int | None) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{_name(number)} must be a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        where = _name(number)
        raise ValueError(f"{where} holds a lone surrogate, which is not a character") from None


def _name(number: int | None) -> str:
    return "the text" if number is None else f"text {number}"


def encode_texts(
    backend: tokenizers.Tokenizer,
    inputs: Sequence[Input],
    layout: Layout,
    *,
    words: bool,
    special: bool,
    full: bool,
) -> list[Encoding]:
    """Encode texts with the pipeline of a tokenizer, which stays as it is.

    Args:
        backend: the tokenizer.
        inputs: what ``read_inputs`` returned, checked.
        layout: how to cut and pad.
        words: whether texts are lists of words.
        special: whether to apply the tokenizer's template.
        full: whether offsets, tokens and types are needed, which take time.

    Raises:
        ValueError: a text cannot be cut so.
    """
    if layout.truncation or layout.padding:
        backend = _copied(backend)
    return _run(backend, inputs, layout, words=words, special=special, full=full)


class Part(NamedTuple):
    """A text's ids, and for each its offsets and the number of its word, where these are known."""

    ids: Sequence[int]
    spans: Sequence[Span] = ()
    words: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class PartsEncoding:
    """What the library made of ids, with the offsets and words that these came with."""

    encoding: Encoding
    parts: tuple[Part, ...]
    backend: tokenizers.Tokenizer

    @property
    def ids(self) -> list[int]:
        """Special tokens and pads included, as in all that follows."""
        return self.encoding.ids

    @property
    def type_ids(self) -> list[int]:
        """As the template says."""
        return self.encoding.type_ids

    @property
    def attention_mask(self) -> list[int]:
        """1 for a token, 0 for a pad."""
        return self.encoding.attention_mask

    @property
    def special_tokens_mask(self) -> list[int]:
        """1 for a special token that was added, or a pad."""
        return self.encoding.special_tokens_mask

    @property
    def sequence_ids(self) -> list[int | None]:
        """0 for the text, 1 for its pair."""
        return self.encoding.sequence_ids

    @property
    def tokens(self) -> list[str | None]:
        """As the vocabulary spells them."""
        return [self.backend.id_to_token(id_) for id_ in self.encoding.ids]

    @property
    def offsets(self) -> list[Span]:
        """Of each id in its text."""
        spans = [part.spans for part in self.parts]
        return [(0, 0) if at is None else spans[at[0]][at[1]] for at in self._places()]

    @property
    def word_ids(self) -> list[int | None]:
        """Of each id, the number of its word."""
        words = [part.words for part in self.parts]
        return [None if at is None else words[at[0]][at[1]] for at in self._places()]

    @property
    def overflowing(self) -> list[PartsEncoding]:
        """What was cut off."""
        return [dataclasses.replace(self, encoding=each) for each in self.encoding.overflowing]

    def _places(self) -> Iterator[tuple[int, int] | None]:
        """Each id's sequence and its place there; None for special tokens and pads."""
        found = self.encoding
        for sequence, place in zip(found.sequence_ids, found.word_ids, strict=True):
            yield None if sequence is None or place is None else (sequence, place)


def encode_parts(
    backend: tokenizers.Tokenizer,
    rows: Sequence[tuple[Part, ...]],
    layout: Layout,
    *,
    special: bool,
) -> list[PartsEncoding]:
    """Apply a tokenizer's template, truncation and padding to ids that were found without it.

    Args:
        backend: the tokenizer.
        rows: of each text, its ids, and those of its pair.
        layout: how to cut and pad.
        special: whether to apply the template.

    Raises:
        ValueError: a text cannot be cut so.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    # To a vocabulary of the ids' numerals, the library encodes a line of them as these ids.
    numerals = {id_: str(id_) for row in rows for part in row for id_ in part.ids}
    vocabulary = {numeral: id_ for id_, numeral in numerals.items()}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own.post_processor = backend.post_processor or plain_template()
    lines = [[" ".join([numerals[id_] for id_ in part.ids]) for part in row] for row in rows]
    inputs = [line[0] if len(line) == 1 else line for line in lines]
    encodings = _run(own, inputs, layout, words=False, special=special, full=True)
    return [PartsEncoding(*each, backend) for each in zip(encodings, rows, strict=True)]


def make_template(backend: tokenizers.Tokenizer, single: str, pair: str) -> Any:
    """Return the library's form of a template; see ``Tokenizer.set_template``."""
    from tokenizers import processors

    ids = {}
    for name, given, texts in (("single", single, ["$A"]), ("pair", pair, ["$A", "$B"])):
        if not isinstance(given, str):
            raise wrong(name, given, f"a string with {' and '.join(texts)}")
        # As the library reads them: a token type may follow each token and each text.
        pieces = [re.sub(r"(?<=.):[0-9]+$", "", piece) for piece in given.split()]
        if sorted(piece for piece in pieces if piece.startswith("$")) != texts:
            right = " and ".join(f"{text} once" for text in texts)
            raise wrong(name, given, f"special tokens and {right}, separated by spaces")
        for token in pieces:
            if token.startswith("$"):
                continue
            ids[token] = backend.token_to_id(token)
            if ids[token] is None:
                raise ValueError(
                    f"{name} is {given!r}, but {token!r} is not in the vocabulary; "
                    "add_special_tokens takes new tokens"
                )
    try:
        return processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=list(ids.items())
        )
    except ValueError as error:  # a token with a colon, say, which the library cannot spell
        raise ValueError(f"single is {single!r} and pair {pair!r}: {error}") from None


def plain_template() -> Any:
    """Return the template that adds no token: what transformers gives a tokenizer that has none."""
    from tokenizers import processors

    return processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])


def _copied(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return a copy with another template, which shares the vocabulary and so takes no time."""
    from tokenizers import Tokenizer

    copy = Tokenizer(backend.model)
    copy.normalizer, copy.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    # Without one, the library lists what is cut off a pair in another order than with one.
    copy.post_processor = backend.post_processor or plain_template()
    copy.add_tokens([token for _, token in sorted(backend.get_added_tokens_decoder().items())])
    return copy


def _run(
    backend: tokenizers.Tokenizer,
    inputs: Sequence[Input],
    layout: Layout,
    *,
    words: bool,
    special: bool,
    full: bool,
) -> list[Encoding]:
    """Encode with a tokenizer, which stays as it is unless there is a layout to set on it."""
    encode = backend.encode_batch if full else backend.encode_batch_fast
    try:
        layout.set_on(backend)
        return encode(inputs, is_pretokenized=words, add_special_tokens=special)
    except BaseException as error:
        # The library raises no narrower class than Exception; of a stride that is too long for a
        # text, it panics, which is no Exception.
        if not layout.truncation or isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        strategy, length = (layout.truncation[name] for name in ("strategy", "max_length"))
        message = str(error).partition(" (note")[0].strip(", ")
        raise ValueError(f"truncation={strategy!r} to max_length={length}: {message}") from None


def columns(encodings: Sequence[Any], names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the fields that are asked for, a row for each encoding."""
    fields = {}
    for name in names:
        if name == "length":
            fields[name] = [len(each) for each in fields["input_ids"]]
        else:
            fields[name] = [getattr(each, COLUMNS[name]) for each in encodings]
    return fields


def cut(rows: list[list[Value]], truncation: Mapping[str, Any] | None) -> list[list[Value]]:
    """Cut the rows of single texts to a length.

    Args:
        rows: their ids.
        truncation: the library's arguments; None cuts nothing.
    """
    if truncation is None:
        return rows
    length = truncation["max_length"]
    kept = slice(-length, None) if truncation["direction"] == "left" else slice(length)
    return [row[kept] for row in rows]


def padded(
    fields: Mapping[str, list[list[Any]]],
    padding: Mapping[str, Any] | None,
    except_for: Collection[str] = (),
) -> dict[str, list[list[Any]]]:
    """Pad the rows of the fields that have pads.

    Args:
        fields: the ids and what belongs to them.
        padding: the library's arguments; None pads nothing.
        except_for: names of fields to leave as they are.
    """
    if padding is None:
        return dict(fields)
    multiple = padding["pad_to_multiple_of"] or 1
    longest = max(map(len, fields["input_ids"]), default=0)
    T = longest if padding["length"] is None else padding["length"]
    T += -T % multiple
    pads = {name: pad for name, pad in PADS.items() if name not in except_for}
    pads["input_ids"] = padding["pad_id"]
    left = padding["direction"] == "left"
    return {
        name: [_padded(row, pads[name], T, left=left) for row in rows] if name in pads else rows
        for name, rows in fields.items()
    }


def _padded(row: list[Value], pad: Value, length: int, *, left: bool) -> list[Value]:
    pads = [pad] * (length - len(row))
    return pads + row if left else row + pads


def as_tensors(
    fields: Mapping[str, Any], kind: TensorType | None, advice: str = ""
) -> dict[str, Any]:
    """Make arrays of lists: int32, or float32.

    Args:
        fields: numbers, lists of them, or lists of lists.
        kind: whose arrays; None leaves lists.
        advice: for rows of unequal lengths, the end of the error.

    Raises:
        ValueError: the rows of a field differ in length.
    """
    if kind is None:
        return dict(fields)
    arrays = {}
    for name, value in fields.items():
        rows = [row for row in value if isinstance(row, list | tuple)]
        if len(set(map(len, rows))) > 1:
            raise ValueError(f"the rows of {name} differ in length, so they make no array{advice}")
        if name in COLUMNS:
            array = np.array(value, np.int32)
        else:
            array = np.asarray(value)
            if array.dtype.kind in "iuf":
                array = np.array(value, np.float32 if array.dtype.kind == "f" else np.int32)
        if name == "offset_mapping":  # of a batch of empty texts too
            array = array.reshape(len(value), -1, 2)
        arrays[name] = jax.numpy.asarray(array) if kind == "jax" else array
    return arrays


def collated(encoded_inputs: Any) -> tuple[dict[str, Any], TensorType | None]:
    """Return the fields of what ``Tokenizer.pad`` is given, as lists, and whose arrays they were.

    Raises:
        TypeError, ValueError: they are not encoded texts.
    """
    if isinstance(encoded_inputs, list | tuple) and encoded_inputs:
        rows: Any = encoded_inputs
        if not all(isinstance(row, Mapping) for row in rows):
            raise TypeError("encoded_inputs must be a dict, or a list of dicts")
        for number, row in enumerate(rows):
            for name in rows[0]:
                if name not in row:
                    raise ValueError(f"the encoded input {number} has no {name!r}, as others have")
        encoded_inputs = {name: [row[name] for row in rows] for name in rows[0]}
    if not isinstance(encoded_inputs, Mapping):
        found = type(encoded_inputs).__name__
        raise TypeError(f"encoded_inputs must be a dict, or a list of dicts, not {found}")
    if "input_ids" not in encoded_inputs:
        raise ValueError(f"encoded_inputs has {list(encoded_inputs)}, but must have input_ids")
    ids = encoded_inputs["input_ids"]
    first = ids[0] if isinstance(ids, list | tuple) and ids else ids
    kind: TensorType | None = None
    if isinstance(first, jax.Array):
        kind = "jax"
    elif isinstance(first, np.ndarray):
        kind = "np"
    return {name: _listed(value) for name, value in encoded_inputs.items()}, kind


def _listed(value: Any) -> Any:
    """Lists and Python's numbers in place of arrays and theirs."""
    if isinstance(value, list | tuple):
        return [_listed(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value
