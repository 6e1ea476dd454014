"""GPT-1's tokenizer, on the ``tokenizers`` library, with either of two pipelines before the merges.

As transformers 5 runs it ("huggingface"), text is lower-cased, stripped of accents and control
characters, and split at white space and around punctuation. As GPT-1 was trained ("original"),
``original.py`` makes the words. Byte-pair merges then join the letters of each word, whose
last piece ends in ``</w>``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

import jax
import numpy as np
from numpy.typing import ArrayLike

from gpt1_jax.checks import check, is_integer, wrong
from gpt1_jax.demo import HubOptions, resolve
from gpt1_jax.text.detokenize import detokenized
from gpt1_jax.text.original import OriginalText, check_installed
from gpt1_jax.text.tokenizer_files import (
    PIPELINE,
    SIDE,
    SPECIAL_TOKENS,
    Pipeline,
    read_tokenizer,
    write_tokenizer,
)

if TYPE_CHECKING:  # importing it takes 50 ms, which `import gpt1_jax` need not pay
    import tokenizers
    from tokenizers import AddedToken

Value = TypeVar("Value")
Side = Literal["left", "right"]
Padding = bool | Literal["longest", "max_length", "do_not_pad"]


@jax.tree_util.register_pytree_with_keys_class
class BatchEncoding(dict[str, Any]):
    """``input_ids`` and ``attention_mask`` of encoded texts: items, attributes, and a pytree.

    ``offset_mapping`` is there too where it was asked for.

    Each is a list of ints for one text, a list of such lists for several, or with
    ``return_tensors="np"`` an int32 array (batch, T). ``model(**encoding)`` takes the arrays.
    """

    @property
    def input_ids(self) -> Any:
        """The ids, pads included."""
        return self["input_ids"]

    @property
    def attention_mask(self) -> Any:
        """1 for a token, 0 for a pad; of the same shape as the ids."""
        return self["attention_mask"]

    def tree_flatten_with_keys(
        self,
    ) -> tuple[list[tuple[object, object]], tuple[str, ...]]:
        """The values with their keys, sorted as those of a dict are: JAX calls this."""
        keys = tuple(sorted(self))
        return [(jax.tree_util.DictKey(key), self[key]) for key in keys], keys

    @classmethod
    def tree_unflatten(cls, keys: tuple[str, ...], values: Iterable[object]) -> Self:
        """The inverse of flattening: JAX calls this."""
        return cls(zip(keys, values, strict=True))


class _SpecialToken:
    """A special token's text, None while unset; settable to any token of the vocabulary."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tokenizer: Tokenizer | None, owner: type | None = None) -> str | None:
        return None if tokenizer is None else tokenizer._special.get(self.name)

    def __set__(self, tokenizer: Tokenizer, token: str | None) -> None:
        if self.name == "unk_token":
            tokenizer._check_unk_token(token)
        if token is None:
            tokenizer._special.pop(self.name, None)
        elif not isinstance(token, str) or tokenizer._backend.token_to_id(token) is None:
            raise ValueError(
                f"{self.name} cannot be {token!r}, which is not in the vocabulary; "
                "add_special_tokens takes new tokens"
            )
        else:
            tokenizer._special[self.name] = token


class _SpecialTokenId:
    """A special token's id, None while unset."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    def __get__(self, tokenizer: Tokenizer | None, owner: type | None = None) -> int | None:
        token = None if tokenizer is None else tokenizer._special.get(self.name)
        return None if tokenizer is None or token is None else tokenizer._backend.token_to_id(token)

    def __set__(self, tokenizer: Tokenizer, index: int | None) -> None:
        raise AttributeError(f"{self.name}_id follows {self.name}: set that")


class Tokenizer:
    """Text to GPT-1's ids and back.

    With the pipeline "huggingface" it equals transformers 5's ``OpenAIGPTTokenizer``. With
    "original" it prepares text as GPT-1's training did: curly quotes, dashes and ellipses are
    known, contractions are words, and a line break is a token.

    GPT-1 has an unknown token, ``<unk>`` with id 0, and no other special token. Text gets none
    added to it. A text that spells ``<unk>`` out has that token with "huggingface"; with "original"
    it has the tokens of those five characters, as in OpenAI's code. Both pipelines find tokens that
    were added.

    Args:
        backend: the pipeline, vocabulary and added tokens included.
        special_tokens: names, such as "pad_token", and their tokens, all in the vocabulary.
        extra_special_tokens: special tokens without a name, all in the vocabulary.
        padding_side: where pads go; may be set. Generation needs "left".
        truncation_side: which end of a text that is too long is cut off; may be set.
        model_max_length: tokens the model takes, or None if not known; may be set.
        pipeline: "huggingface" or "original".

    Attributes:
        pipeline: as given.
        unk_token: what unknown characters become; it cannot be another.
        pad_token: None unless set, as are ``bos_token``, ``eos_token``, ``sep_token``,
            ``cls_token`` and ``mask_token``. Each may be set to a token that the vocabulary holds;
            ``add_special_tokens`` takes new ones too.
        pad_token_id: the id of ``pad_token``, None while that is; the others likewise.
    """

    bos_token, bos_token_id = _SpecialToken(), _SpecialTokenId()
    eos_token, eos_token_id = _SpecialToken(), _SpecialTokenId()
    unk_token, unk_token_id = _SpecialToken(), _SpecialTokenId()
    sep_token, sep_token_id = _SpecialToken(), _SpecialTokenId()
    pad_token, pad_token_id = _SpecialToken(), _SpecialTokenId()
    cls_token, cls_token_id = _SpecialToken(), _SpecialTokenId()
    mask_token, mask_token_id = _SpecialToken(), _SpecialTokenId()

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        extra_special_tokens: Sequence[str] = (),
        padding_side: Side = "right",
        truncation_side: Side = "right",
        model_max_length: int | None = None,
        pipeline: Pipeline = "huggingface",
    ):
        self._backend = backend
        self.pipeline: Pipeline = _checked_pipeline(pipeline)
        self._original = OriginalText(backend) if pipeline == "original" else None
        self._special = dict(special_tokens)
        self._extra = list(extra_special_tokens)
        self.padding_side: Side = _checked_side(padding_side, "padding_side")
        self.truncation_side: Side = _checked_side(truncation_side, "truncation_side")
        self.model_max_length = model_max_length

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        *,
        pipeline: Pipeline | None = None,
        padding_side: Side | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Load a tokenizer that transformers or ``save_pretrained`` saved, or OpenAI's own files.

        Reads tokenizer.json, else vocab.json and merges.txt, else encoder_bpe_40000.json and
        vocab_40000.bpe; added and special tokens from where transformers 5 reads them.

        Args:
            path_or_hub_id: a folder, or the id of a model on the hub, whose weights are left there.
            pipeline: how text is prepared; by default as ``save_pretrained`` saved it, else
                "huggingface". "original" needs ftfy and spaCy, the extra "text".
            padding_side: where pads go; by default as saved, else "right".
            **hub: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, ``force_download``.

        Raises:
            FileNotFoundError: the folder, the hub's model or a file of it is missing.
            ImportError: ftfy or spaCy is missing.
            ValueError: a file is broken, or is another model's tokenizer, or there is no such
                pipeline.
        """
        if pipeline is not None:
            _checked_pipeline(pipeline)
        fields = read_tokenizer(resolve(path_or_hub_id, weights=False, **hub))
        if pipeline is not None:
            fields["pipeline"] = pipeline
        if padding_side is not None:
            fields["padding_side"] = padding_side
        return cls(**fields)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer so that transformers and ``from_pretrained`` load it.

        transformers has its own pipeline alone; ``from_pretrained`` reads which one it was.

        Writes tokenizer.json, tokenizer_config.json, vocab.json and merges.txt: all, or none.

        Raises:
            OSError: the folder cannot be made or written.
        """
        settings: dict[str, object] = {
            "tokenizer_class": "OpenAIGPTTokenizer",
            "text_pipeline": self.pipeline,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            **self._special,
        }
        if self._extra:
            settings["extra_special_tokens"] = self._extra
        if self.model_max_length is not None:
            settings["model_max_length"] = self.model_max_length
        write_tokenizer(folder, self._backend, settings)

    def to_json(self) -> str:
        """The whole pipeline, vocabulary and added tokens included, as tokenizer.json holds it."""
        return self._backend.to_str()

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``.

        Raises:
            TypeError: not a string.
            ValueError: the text holds a lone surrogate, which is no character; or, with "original",
                a word for which spaCy takes too long: its characters times the signs at its ends
                are more than 10,000 squared, unless it is one sign, repeated; or more than 10,000
                combining marks in a row, unless they are equal.
        """
        return self._encode([text])[0]

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        """Yield the ids of a long text that comes in pieces, piece by piece.

        Joined they are the ids of the whole text: line breaks between pieces count. Memory is
        that of a piece. (ftfy repairs whole lines: of a line that is cut it sees the parts.)

        Args:
            pieces: each ends at white space, the last one wherever the text does.

        Raises:
            TypeError, ValueError: as ``encode``.
        """
        if self._original:
            yield from self._original.encode_pieces(self._checked_texts(pieces))
            return
        for piece in self._checked_texts(pieces):
            # Lines are encoded in parallel.
            yield [id_ for row in self._encode(piece.split("\n")) for id_ in row]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of ``text`` as the vocabulary spells them; raises what ``encode`` raises."""
        if self._original:
            return self.convert_ids_to_tokens(self.encode(text))
        # Not by way of the ids: an added token is spelled here as the text spells it.
        (text,) = self._checked_texts([text])
        return self._backend.encode(text, add_special_tokens=False).tokens

    def decode(self, ids: ArrayLike, *, skip_special_tokens: bool = False) -> str:
        """The text of ``ids``: words and punctuation, separated by spaces.

        Args:
            ids: integers (T,): a list, a numpy or JAX array, or a single integer.
            skip_special_tokens: leave special tokens out.

        Raises:
            ValueError: not integers, not one sequence, or an id out of range.
        """
        return self._backend.decode(self._checked(ids), skip_special_tokens=skip_special_tokens)

    def detokenize(self, ids: ArrayLike) -> str:
        """The text of ``ids`` as a reader expects it, without special tokens.

        Punctuation closes up to its words and contractions are whole, lines end where they did.
        What the ids do not tell stays as ``decode`` has it: the case, whether a hyphen or a slash
        stood between words, and which single quotes are apostrophes.

        Args:
            ids: as for ``decode``.

        Raises:
            ValueError: as for ``decode``.
        """
        return detokenized(self.decode(ids, skip_special_tokens=True))

    def batch_decode(
        self, sequences: Iterable[ArrayLike], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """The texts of several sequences of ids; see ``decode``.

        Args:
            sequences: lists of integers, of any lengths, or an integer array (batch, T). A single
                sequence is a batch of one.
            skip_special_tokens: as for ``decode``.
        """
        rows = list(np.asarray(sequences) if isinstance(sequences, jax.Array) else sequences)
        if rows and np.ndim(rows[0]) == 0:
            rows = [rows]
        return self._backend.decode_batch(
            [self._checked(row) for row in rows], skip_special_tokens=skip_special_tokens
        )

    def __call__(  # noqa: PLR0915 (Hugging Face's arguments, one after another)
        self,
        text: str | Sequence[str],
        *,
        padding: Padding = False,
        padding_side: Side | None = None,
        max_length: int | None = None,
        truncation: bool | None = None,
        return_tensors: Literal["np"] | None = None,
        return_offsets_mapping: bool = False,
    ) -> BatchEncoding:
        """Encode a text, or a batch of texts, for the model.

        Args:
            text: one text or several.
            padding: True or "longest" pads to the longest text, "max_length" to ``max_length``.
                Pads are ``pad_token_id``, or 0 while that is None (transformers raises then); the
                attention mask says which ids are pads.
            padding_side: "left" or "right"; by default ``self.padding_side``.
            max_length: tokens to pad or truncate to; by default ``model_max_length``.
            truncation: whether to cut texts to ``max_length``. By default they are cut if
                ``max_length`` is given and ``padding`` is False.
            return_tensors: "np" for int32 arrays (batch, T), which JAX takes as they are; None for
                lists. One text is a batch of one as an array, and a flat list as a list.
            return_offsets_mapping: add ``offset_mapping``: for each id the first character of the
                text it stands for, and the one after the last; (0, 0) for a pad. Characters that
                ftfy rewrites, several into one or one into several, share their whole run.

        Raises:
            TypeError: not strings.
            ValueError: what ``encode`` raises, no text, rows of unequal length with "np", no length
                to pad or truncate to, or an argument that is not one of the values above.
        """
        if not isinstance(text, Sequence):
            kind = type(text).__name__
            raise TypeError(f"text must be a string or a list of strings, not {kind}")
        if return_tensors not in (None, "np"):  # JAX takes numpy's
            raise ValueError(f"return_tensors is {return_tensors!r}, but must be None or 'np'")
        one = isinstance(text, str)
        texts = [text] if one else text
        if return_offsets_mapping:
            rows, offsets = self._encode_with_offsets(texts)
        else:
            rows, offsets = self._encode(texts), None
        if not rows:
            raise ValueError("there are no texts to make a batch of")
        if truncation or (truncation is None and max_length is not None and padding is False):
            limit = self._length("truncation=True", max_length)
            left = _checked_side(self.truncation_side, "truncation_side") == "left"
            kept = slice(-limit, None) if left else slice(limit)
            rows = [row[kept] for row in rows]
            offsets = offsets and [spans[kept] for spans in offsets]
        elif max_length is not None and padding in (True, "longest"):
            warnings.warn(
                f"max_length = {max_length} is not used: pass truncation=True to cut longer texts, "
                "or padding='max_length' to pad to it",
                stacklevel=2,
            )

        T = 0
        if padding in (True, "longest"):
            T = max(len(row) for row in rows)
        elif padding == "max_length":
            T = self._length("padding='max_length'", max_length)
        elif padding not in (False, "do_not_pad"):
            right = "a bool, 'longest', 'max_length' or 'do_not_pad'"
            raise ValueError(f"padding is {padding!r}, but must be {right}")
        left = _checked_side(padding_side or self.padding_side, "padding_side") == "left"
        fields: dict[str, Sequence[Sequence[object]]] = {
            "input_ids": [_padded(row, self.pad_token_id or 0, T, left) for row in rows],
            "attention_mask": [_padded([1] * len(row), 0, T, left) for row in rows],
        }
        if offsets is not None:
            fields["offset_mapping"] = [_padded(spans, (0, 0), T, left) for spans in offsets]

        if return_tensors is None:
            return BatchEncoding(
                {name: field[0] if one else field for name, field in fields.items()}
            )
        lengths = {len(row) for row in fields["input_ids"]}
        if len(lengths) > 1:
            right = "truncation=True" if padding == "max_length" else "padding=True"
            raise ValueError(f"the texts differ in length, so they make no array: pass {right}")
        arrays = {name: np.array(field, np.int32) for name, field in fields.items()}
        if offsets is not None:  # a batch of empty texts has offsets too
            arrays["offset_mapping"] = arrays["offset_mapping"].reshape(len(rows), -1, 2)
        return BatchEncoding(arrays)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, an int, or a list of the ids of several; unknown ones become <unk>."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self._backend.token_to_id(tokens)
        return self.unk_token_id if index is None else index

    def convert_ids_to_tokens(self, ids: ArrayLike, *, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or a list of the tokens of several, as the vocabulary spells them.

        Args:
            ids: an integer, or integers (T,).
            skip_special_tokens: leave out the tokens of ``all_special_ids`` among several.

        Raises:
            ValueError: as for ``decode``.
        """
        indices = self._checked(ids)
        if np.ndim(ids) == 0:
            return self._backend.id_to_token(indices[0])
        skipped = self.all_special_ids if skip_special_tokens else ()
        return [self._backend.id_to_token(index) for index in indices if index not in skipped]

    def add_special_tokens(self, special_tokens: Mapping[str, object]) -> int:
        """Name special tokens, and append those that are new to the vocabulary.

        A special token is found in text as it is written, before lower-casing, and is left out by
        ``skip_special_tokens``. Resize the model's embedding to ``len(tokenizer)`` afterwards.

        Args:
            special_tokens: names and tokens, as ``{"pad_token": "<pad>"}``, each a string or a
                ``tokenizers.AddedToken``; "extra_special_tokens" (or "additional_special_tokens")
                is a list of them, and replaces the former list.

        Returns:
            How many tokens the vocabulary grew by.

        Raises:
            ValueError: a name or token that is none; nothing is added then.
        """
        tokens, named, extra = [], {}, self._extra
        for name, value in special_tokens.items():
            if name in ("extra_special_tokens", "additional_special_tokens"):
                if not isinstance(value, list | tuple):
                    raise ValueError(f"{name} is {value!r}, but must be a list of tokens")
                tokens += value
                extra = [_content(token) for token in value] or extra
            elif name in SPECIAL_TOKENS:
                tokens.append(value)
                named[name] = _content(value)
            else:
                right = ", ".join((*SPECIAL_TOKENS, "extra_special_tokens"))
                raise ValueError(f"{name!r} names no special token; the names are {right}")
        if "unk_token" in named:
            self._check_unk_token(named["unk_token"])

        grown = -len(self)
        self._backend.add_special_tokens(tokens)
        self._special |= named
        self._extra = extra
        return grown + len(self)

    def add_tokens(
        self,
        tokens: str | AddedToken | Sequence[str | AddedToken],
        *,
        special_tokens: bool = False,
    ) -> int:
        """Append tokens to the vocabulary, except those that it holds.

        Args:
            tokens: one token or several. A string is found in text whatever its case; a
                ``tokenizers.AddedToken`` can say otherwise.
            special_tokens: make them special, without a name: see ``add_special_tokens``.

        Returns:
            How many tokens the vocabulary grew by.

        Raises:
            ValueError: not tokens; nothing is added then.
        """
        several = list(tokens) if isinstance(tokens, list | tuple) else [tokens]
        for token in several:
            _content(token)
        grown = -len(self)
        add = self._backend.add_special_tokens if special_tokens else self._backend.add_tokens
        add(several)
        return grown + len(self)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Number of tokens without the added ones; ``len(tokenizer)`` counts those too."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id, added ones included."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The names that are set, and their tokens."""
        return {name: self._special[name] for name in SPECIAL_TOKENS if name in self._special}

    @property
    def extra_special_tokens(self) -> list[str]:
        """The special tokens without a name."""
        return list(self._extra)

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, with and without a name, each once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of ``all_special_tokens``."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def __repr__(self) -> str:
        special = ", ".join(f"{name}={token!r}" for name, token in self.special_tokens_map.items())
        return (
            f"Tokenizer({len(self)} tokens, pipeline={self.pipeline!r}, "
            f"padding_side={self.padding_side!r}, {special})"
        )

    def _check_unk_token(self, token: object) -> None:
        if token != self.unk_token:
            raise ValueError(
                f"unk_token cannot become {token!r}: the merges know it as {self.unk_token!r}"
            )

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        checked = list(self._checked_texts(texts))
        if self._original:
            return self._original.encode(checked)
        encodings = self._backend.encode_batch_fast(checked, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _encode_with_offsets(
        self, texts: Sequence[str]
    ) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        checked = list(self._checked_texts(texts))
        if self._original:
            pairs = [self._original.encode_with_offsets(text) for text in checked]
            return [ids for ids, _ in pairs], [offsets for _, offsets in pairs]
        encodings = self._backend.encode_batch(checked, add_special_tokens=False)
        return [each.ids for each in encodings], [each.offsets for each in encodings]

    def _checked_texts(self, texts: Iterable[str]) -> Iterator[str]:
        several = not isinstance(texts, Sequence) or len(texts) > 1
        for number, text in enumerate(texts):
            where = f"text {number}" if several else "the text"
            if not isinstance(text, str):
                raise TypeError(f"{where} must be a string, not {type(text).__name__}")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{where} holds a lone surrogate, which is no character") from None
            yield text

    def _length(self, wanted_by: str, max_length: int | None) -> int:
        length = self.model_max_length if max_length is None else max_length
        if length is None:
            raise ValueError(f"{wanted_by} needs max_length: model_max_length is not known")
        if not is_integer(length) or length < 1:
            raise wrong("max_length", length, "a positive integer")
        return int(length)

    def _checked(self, ids: object) -> list[int]:
        """One sequence of ids, or a single id, as a list."""
        values = np.asarray(ids)
        if values.ndim > 1:
            several = "one sequence; batch_decode takes several"
            raise ValueError(f"ids have shape {values.shape}, but must be {several}")
        if values.size and values.dtype.kind not in "iu":
            raise ValueError(f"ids have dtype {values.dtype}, but must be integers")
        outside = values[(values < 0) | (values >= len(self))]
        if outside.size:
            raise ValueError(f"id {outside.flat[0]} is out of range: ids are 0 to {len(self) - 1}")
        return values.reshape(-1).astype(int).tolist()


def _padded(row: list[Value], pad: Value, length: int, left: bool) -> list[Value]:
    pads = [pad] * (length - len(row))
    return pads + row if left else row + pads


def _content(token: object) -> str:
    """The text of a token, a string or an AddedToken."""
    content = getattr(token, "content", token)
    if not isinstance(content, str) or not content:
        raise ValueError(f"{token!r} is not a token: it must be a string of some length")
    return content


def _checked_side(side: Side, name: str) -> Side:
    check(name, side, SIDE)
    return side


def _checked_pipeline(pipeline: Pipeline) -> Pipeline:
    check("pipeline", pipeline, PIPELINE)
    if pipeline == "original":
        check_installed()
    return pipeline
