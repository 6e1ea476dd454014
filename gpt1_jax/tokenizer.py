"""GPT-1's text pipeline as transformers 5 runs it, on the ``tokenizers`` library.

Text is lower-cased, stripped of accents and control characters, and split at white space and around
punctuation; byte-pair merges then join the letters of each word, whose last piece ends in ``</w>``.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import jax
import numpy as np

import conversion
from conversion.atomic import replacing

if TYPE_CHECKING:  # importing it takes 50 ms, which `import gpt1_jax` need not pay
    import tokenizers
    from tokenizers import AddedToken

Side = Literal["left", "right"]
Padding = bool | Literal["longest", "max_length", "do_not_pad"]

SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Hugging Face's names for the vocabulary and the merges, and OpenAI's.
VOCABULARIES = (
    ("vocab.json", "merges.txt"),
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),
)
END_OF_WORD = "</w>"


@jax.tree_util.register_pytree_with_keys_class
class BatchEncoding(dict[str, Any]):
    """``input_ids`` and ``attention_mask`` of encoded texts: items, attributes, and a pytree.

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

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        """The values with their keys, sorted as those of a dict are: JAX calls this."""
        keys = tuple(sorted(self))
        return [(jax.tree_util.DictKey(key), self[key]) for key in keys], keys

    @classmethod
    def tree_unflatten(cls, keys: tuple[str, ...], values: Iterable[Any]) -> Self:
        """The inverse of flattening: JAX calls this."""
        return cls(zip(keys, values, strict=True))


class _SpecialToken:
    """A special token's text, None while unset; settable to any token of the vocabulary."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tokenizer: Tokenizer | None, owner: type | None = None) -> str | None:
        return None if tokenizer is None else tokenizer._special.get(self.name)

    def __set__(self, tokenizer: Tokenizer, token: str | None) -> None:
        tokenizer._name_special_token(self.name, token)


class _SpecialTokenId:
    """A special token's id, None while unset; settable to any id of the vocabulary."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    def __get__(self, tokenizer: Tokenizer | None, owner: type | None = None) -> int | None:
        token = None if tokenizer is None else tokenizer._special.get(self.name)
        return (
            None if tokenizer is None or token is None else tokenizer.convert_tokens_to_ids(token)
        )

    def __set__(self, tokenizer: Tokenizer, index: int | None) -> None:
        token = None if index is None else tokenizer.convert_ids_to_tokens(index)
        tokenizer._name_special_token(self.name, token)


class Tokenizer:
    """Text to GPT-1's ids and back; equal to transformers 5's ``OpenAIGPTTokenizer``.

    GPT-1 has an unknown token, ``<unk>`` with id 0, and no other special token. Text gets none
    added to it.

    Args:
        backend: the pipeline, vocabulary and added tokens included.
        special_tokens: names, such as "pad_token", and their tokens, all in the vocabulary.
        extra_special_tokens: special tokens without a name, all in the vocabulary.
        padding_side: where pads go. Generation needs "left".
        truncation_side: which end of a text that is too long is cut off.
        model_max_length: tokens the model takes, or None if not known.

    Attributes:
        padding_side: as the argument; may be set.
        truncation_side: as the argument; may be set.
        model_max_length: as the argument; may be set.
        bos_token: beginning-of-text token, None unless set. This and each of the following may be
            set, to a token that the vocabulary holds; ``add_special_tokens`` takes new ones too.
        eos_token: end-of-text token, None unless set.
        unk_token: what unknown characters become.
        sep_token: separator, None unless set.
        pad_token: padding, None unless set.
        cls_token: the token that a classifier reads, None unless set.
        mask_token: None unless set.
        bos_token_id: id of ``bos_token``, None while that is; the others likewise.
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
    ):
        self._backend = backend
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
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        force_download: bool = False,
        padding_side: Side | None = None,
    ) -> Self:
        """Load a tokenizer that transformers or ``save_pretrained`` saved, or OpenAI's own files.

        Reads tokenizer.json, else vocab.json and merges.txt, else encoder_bpe_40000.json and
        vocab_40000.bpe. Added and special tokens are read from where transformers 5 reads them:
        tokenizer_config.json if it lists added tokens, else from it, special_tokens_map.json,
        added_tokens.json and tokenizer.json together.

        Args:
            path_or_hub_id: a folder, or the name of a model on the Hugging Face hub.
            revision: branch, tag or commit on the hub.
            cache_dir: where downloads are kept; by default huggingface_hub's cache.
            local_files_only: use the cache only.
            token: of the hub, for private models.
            force_download: download again what the cache holds.
            padding_side: where pads go; by default as saved, else "right".

        Raises:
            FileNotFoundError: the folder, the hub's model or a file of it is missing.
            ValueError: a file is broken, or is another model's tokenizer.
        """
        folder = conversion.resolve(
            path_or_hub_id,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            force_download=force_download,
        )
        file, vocab, merges, saved = _read_bpe(folder)
        post_processor = _post_processor(saved, file) if saved else None
        settings = {**_baked_in(saved), **_read_settings(folder)}
        named, extra = _special_tokens(settings, folder)
        unk_token = named["unk_token"].content
        if unk_token not in vocab:
            raise ValueError(f"{file}: the vocabulary has no unknown token {unk_token!r}")

        backend = _pipeline(vocab, merges, unk_token)
        listed = _listed_tokens(folder, settings, saved, named, extra)
        _add_tokens(backend, listed, named, extra, folder)
        if post_processor is not None:
            backend.post_processor = post_processor
        sides: dict[str, Side] = {
            name: _checked_side(settings.get(name, "right"), f"{folder}: {name}")
            for name in ("padding_side", "truncation_side")
        }
        return cls(
            backend,
            special_tokens={name: token.content for name, token in named.items()},
            extra_special_tokens=[token.content for token in extra],
            padding_side=padding_side or sides["padding_side"],
            truncation_side=sides["truncation_side"],
            model_max_length=_sensible_length(settings.get("model_max_length")),
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer so that transformers and ``from_pretrained`` load it.

        Writes tokenizer.json, tokenizer_config.json, vocab.json and merges.txt: all, or none.

        Raises:
            OSError: the folder cannot be made or written.
        """
        model = json.loads(self._backend.to_str())["model"]
        merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
        settings = {
            "tokenizer_class": "OpenAIGPTTokenizer",
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            **self._special,
            # tokenizer.json holds them too; vocab.json and merges.txt do not.
            "added_tokens_decoder": {
                index: {
                    "content": token.content,
                    "lstrip": token.lstrip,
                    "normalized": token.normalized,
                    "rstrip": token.rstrip,
                    "single_word": token.single_word,
                    "special": token.special,
                }
                for index, token in sorted(self._backend.get_added_tokens_decoder().items())
            },
        }
        if self._extra:
            settings["extra_special_tokens"] = self._extra
        if self.model_max_length is not None:
            settings["model_max_length"] = self.model_max_length
        files = {
            "vocab.json": _json(dict(sorted(model["vocab"].items(), key=lambda item: item[1]))),
            "merges.txt": "\n".join(merges) + "\n",
            "tokenizer.json": self._backend.to_str(pretty=True),
            "tokenizer_config.json": _json(settings),
        }
        with replacing(Path(folder)) as temporary:
            for name, content in files.items():
                temporary(name).write_text(content, encoding="utf-8", newline="\n")

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``.

        Raises:
            TypeError: not a string.
            ValueError: the text holds a lone surrogate, which is no character.
        """
        return self._encode([text])[0]

    def decode(
        self,
        ids: Any,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """The text of ``ids``: words and punctuation, separated by spaces.

        Args:
            ids: integers (T,): a list, a numpy or JAX array, or a single integer.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: remove the spaces before ``. ? ! ,`` and contractions:
                "do n't go ." becomes "don't go.". transformers 5 ignores this request for a BPE
                tokenizer, unless it is made twice over; here it is done.

        Raises:
            ValueError: not integers, not one sequence, or an id out of range.
        """
        text = self._backend.decode(self._checked(ids), skip_special_tokens=skip_special_tokens)
        return _clean_up(text) if clean_up_tokenization_spaces else text

    def batch_decode(
        self,
        sequences: Any,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[str]:
        """The texts of several sequences of ids; see ``decode``.

        Args:
            sequences: lists of integers, of any lengths, or an integer array (batch, T). A single
                sequence is a batch of one.
            skip_special_tokens: as for ``decode``.
            clean_up_tokenization_spaces: as for ``decode``.
        """
        rows = list(np.asarray(sequences) if hasattr(sequences, "__array__") else sequences)
        if rows and np.ndim(rows[0]) == 0:
            rows = [rows]
        texts = self._backend.decode_batch(
            [self._checked(row) for row in rows], skip_special_tokens=skip_special_tokens
        )
        return [_clean_up(text) for text in texts] if clean_up_tokenization_spaces else texts

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: Padding = False,
        padding_side: Side | None = None,
        max_length: int | None = None,
        truncation: bool | None = None,
        return_tensors: Literal["np"] | None = None,
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

        Raises:
            TypeError: not strings.
            ValueError: no text, rows of unequal length with "np", no length to pad or truncate to,
                or an argument that is not one of the values above.
        """
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, Sequence):
            raise TypeError(f"text must be a string or a list of strings, not {_kind(text)}")
        if truncation is None:
            truncation = max_length is not None and padding is False
        limit = self._length("truncation=True", max_length) if truncation else None
        if not truncation and max_length is not None and padding in (True, "longest"):
            warnings.warn(
                f"max_length = {max_length} is not used: pass truncation=True to cut longer texts, "
                "or padding='max_length' to pad to it",
                stacklevel=2,
            )
        batch = self._batch(
            self._encode(texts, limit), padding, max_length, padding_side, return_tensors
        )
        if isinstance(text, str) and return_tensors is None:
            return BatchEncoding({name: rows[0] for name, rows in batch.items()})
        return batch

    def pad(
        self,
        ids: Iterable[Any],
        *,
        padding: Padding = True,
        padding_side: Side | None = None,
        max_length: int | None = None,
        return_tensors: Literal["np"] | None = None,
    ) -> BatchEncoding:
        """Sequences of ids, of any lengths, as a batch with its attention mask.

        Args:
            ids: sequences of integers, each a list, or a numpy or JAX array (T,).
            padding: as for a call, but True by default.
            padding_side: as for a call.
            max_length: the length of ``padding="max_length"``.
            return_tensors: as for a call.

        Raises:
            ValueError: as for a call and for ``decode``.
        """
        rows = list(ids)
        if any(np.ndim(row) == 0 for row in rows if not isinstance(row, list | tuple)):
            raise ValueError("ids must be a list of sequences; put a single one in a list")
        rows = [self._checked(row) for row in rows]
        return self._batch(rows, padding, max_length, padding_side, return_tensors)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of ``text`` as the vocabulary spells them; raises what ``encode`` raises."""
        # Not by way of the ids: an added token is spelled here as the text spells it.
        return self._encodings([text], self._backend.encode_batch)[0].tokens

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """The id of a token, or the ids of several; ``unk_token_id`` for one not known.

        Raises:
            ValueError: a token is not known, and there is no unknown token.
        """
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self._backend.token_to_id(tokens)
        if index is None and self.unk_token is not None:
            index = self._backend.token_to_id(self.unk_token)
        if index is None:
            raise ValueError(f"{tokens!r} is not in the vocabulary, and unk_token is not set")
        return index

    @overload
    def convert_ids_to_tokens(self, ids: int, *, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(
        self, ids: Any, *, skip_special_tokens: bool = False
    ) -> str | list[str]: ...
    def convert_ids_to_tokens(
        self, ids: Any, *, skip_special_tokens: bool = False
    ) -> str | list[str]:
        """The token of an id, or the tokens of several, as the vocabulary spells them.

        Args:
            ids: an integer, or integers (T,).
            skip_special_tokens: leave out the tokens of ``all_special_ids`` among several.

        Raises:
            ValueError: as for ``decode``.
        """
        indices = self._checked(ids)
        if np.ndim(ids) == 0:
            return str(self._backend.id_to_token(indices[0]))
        skipped = self.all_special_ids if skip_special_tokens else ()
        return [str(self._backend.id_to_token(i)) for i in indices if i not in skipped]

    def add_special_tokens(self, special_tokens: Mapping[str, Any]) -> int:
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
        wanted = dict(special_tokens)
        if "additional_special_tokens" in wanted:
            if "extra_special_tokens" in wanted:
                raise ValueError("give additional_special_tokens or extra_special_tokens, not both")
            wanted["extra_special_tokens"] = wanted.pop("additional_special_tokens")
        tokens = []
        for name, value in wanted.items():
            if name == "extra_special_tokens":
                if not isinstance(value, list | tuple):
                    raise ValueError(f"{name} is {value!r}, but must be a list of tokens")
                tokens.extend(value)
            elif name in SPECIAL_TOKENS:
                tokens.append(value)
            else:
                right = ", ".join((*SPECIAL_TOKENS, "extra_special_tokens"))
                raise ValueError(f"{name!r} names no special token; the names are {right}")
        _check_new_tokens(tokens)
        if "unk_token" in wanted:
            self._check_unk_token(_content(wanted["unk_token"]))

        grown = -len(self)
        self._backend.add_special_tokens(tokens)
        if extra := wanted.pop("extra_special_tokens", None):
            self._extra = [_content(token) for token in extra]
        self._special.update({name: _content(token) for name, token in wanted.items()})
        return grown + len(self)

    def add_tokens(
        self,
        tokens: str | AddedToken | Sequence[str | AddedToken],
        *,
        special_tokens: bool = False,
    ) -> int:
        """Append tokens to the vocabulary, except those that it holds.

        An ordinary added token is found in lower-cased text, whatever the case it was given in. A
        ``tokenizers.AddedToken`` can say otherwise.

        Args:
            tokens: one token or several.
            special_tokens: make them special, without a name: see ``add_special_tokens``.

        Returns:
            How many tokens the vocabulary grew by.

        Raises:
            ValueError: not tokens; nothing is added then.
        """
        several = list(tokens) if isinstance(tokens, list | tuple) else [tokens]
        _check_new_tokens(several)
        grown = -len(self)
        add = self._backend.add_special_tokens if special_tokens else self._backend.add_tokens
        add(several)
        return grown + len(self)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

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
        known = [name for name in SPECIAL_TOKENS if name in self._special]
        others = [name for name in self._special if name not in SPECIAL_TOKENS]
        return {name: self._special[name] for name in (*known, *others)}

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
        return f"Tokenizer({len(self)} tokens, padding_side={self.padding_side!r}, {special})"

    def _name_special_token(self, name: str, token: str | None) -> None:
        if name == "unk_token":
            self._check_unk_token(token)
        if token is None:
            self._special.pop(name, None)
        elif not isinstance(token, str) or self._backend.token_to_id(token) is None:
            raise ValueError(
                f"{name} cannot be {token!r}, which is not in the vocabulary; add_special_tokens "
                "takes new tokens"
            )
        else:
            self._special[name] = token

    def _check_unk_token(self, token: object) -> None:
        if token != self.unk_token:
            raise ValueError(
                f"unk_token cannot become {token!r}: the merges know it as {self.unk_token!r}"
            )

    def _encodings(self, texts: Sequence[str], encode_batch: Callable[..., list[Any]]) -> list[Any]:
        """``texts`` through the pipeline, without its post-processor."""
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                where = f"text {number}" if len(texts) > 1 else "the text"
                raise TypeError(f"{where} must be a string, not {_kind(text)}")
        try:
            return encode_batch(list(texts), add_special_tokens=False)
        except TypeError:  # what the library says of a string that it cannot have as UTF-8
            number = next(n for n, text in enumerate(texts) if not _is_unicode(text))
            where = f"text {number}" if len(texts) > 1 else "the text"
            raise ValueError(f"{where} holds a lone surrogate, which is no character") from None

    def _encode(self, texts: Sequence[str], limit: int | None = None) -> list[list[int]]:
        """The ids of each text, at most ``limit`` of them."""
        encodings = self._encodings(texts, self._backend.encode_batch_fast)
        # GPT-1 has no post-processor, but a tokenizer.json may bring one that adds tokens.
        added = self._backend.num_special_tokens_to_add(False)
        if limit is not None:
            if limit < added:
                raise ValueError(f"max_length is {limit}, but every text gets {added} tokens added")
            side = _checked_side(self.truncation_side, "truncation_side")
            for encoding in encodings:
                encoding.truncate(limit - added, direction=side)
        if added:
            encodings = [self._backend.post_process(encoding) for encoding in encodings]
        return [encoding.ids for encoding in encodings]

    def _batch(
        self,
        rows: list[list[int]],
        padding: Padding,
        max_length: int | None,
        padding_side: Side | None,
        return_tensors: Literal["np"] | None,
    ) -> BatchEncoding:
        side = _checked_side(padding_side or self.padding_side, "padding_side")
        if return_tensors not in (None, "np"):
            raise ValueError(
                f"return_tensors is {return_tensors!r}, but must be None or 'np': JAX takes numpy's"
            )
        if not rows:
            raise ValueError("there are no texts to make a batch of")
        T = 0
        if padding in (True, "longest"):
            T = max(len(row) for row in rows)
        elif padding == "max_length":
            T = self._length("padding='max_length'", max_length)
        elif padding not in (False, "do_not_pad"):
            right = "a bool, 'longest', 'max_length' or 'do_not_pad'"
            raise ValueError(f"padding is {padding!r}, but must be {right}")

        pad = self.pad_token_id or 0
        pads = [max(T - len(row), 0) for row in rows]
        masks = [[1] * len(row) for row in rows]
        if side == "left":
            ids = [[pad] * n + row for n, row in zip(pads, rows, strict=True)]
            masks = [[0] * n + mask for n, mask in zip(pads, masks, strict=True)]
        else:
            ids = [row + [pad] * n for n, row in zip(pads, rows, strict=True)]
            masks = [mask + [0] * n for n, mask in zip(pads, masks, strict=True)]
        if return_tensors is None:
            return BatchEncoding(input_ids=ids, attention_mask=masks)
        lengths = sorted({len(row) for row in ids})
        if len(lengths) > 1:
            raise ValueError(
                f"the texts have {lengths[0]} to {lengths[-1]} tokens, which make no array: pass "
                + ("truncation=True" if padding == "max_length" else "padding=True")
            )
        return BatchEncoding(
            input_ids=np.array(ids, np.int32), attention_mask=np.array(masks, np.int32)
        )

    def _length(self, wanted_by: str, max_length: int | None) -> int:
        length = self.model_max_length if max_length is None else max_length
        if length is None:
            raise ValueError(f"{wanted_by} needs max_length: model_max_length is not known")
        if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
            raise ValueError(f"max_length is {length!r}, but must be a positive integer")
        return int(length)

    def _checked(self, ids: Any) -> list[int]:
        """One sequence of ids, or a single id, as a list."""
        try:
            values = np.asarray(ids)
        except ValueError:
            raise ValueError("ids must be one sequence; batch_decode takes several") from None
        if values.ndim > 1:
            several = "one sequence; batch_decode takes several"
            raise ValueError(f"ids have shape {values.shape}, but must be {several}")
        if values.size and values.dtype.kind not in "iu":
            raise ValueError(f"ids have dtype {values.dtype}, but must be integers")
        outside = values[(values < 0) | (values >= len(self))]
        if outside.size:
            raise ValueError(f"id {outside.flat[0]} is out of range: ids are 0 to {len(self) - 1}")
        return values.reshape(-1).astype(int).tolist()


def _pipeline(
    vocab: dict[str, int], merges: list[tuple[str, str]], unk_token: str
) -> tokenizers.Tokenizer:
    """The pipeline of transformers 5 over a vocabulary and its merges."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    backend = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=unk_token,
            continuing_subword_prefix="",
            end_of_word_suffix=END_OF_WORD,
            fuse_unk=False,
        )
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return backend


def _read_bpe(
    folder: Path,
) -> tuple[Path, dict[str, int], list[tuple[str, str]], dict[str, Any]]:
    """The vocabulary's file, the vocabulary, the merges, and tokenizer.json ({} if not there)."""
    file = folder / "tokenizer.json"
    if file.is_file():
        saved = _read_object(file)
        model = _gpt1_model(saved, file)
        vocab = _checked_vocab(model.get("vocab"), file)
        merges = _checked_merges(enumerate(model["merges"]), vocab, f"{file}, merge")
        return file, vocab, merges, saved
    for names in VOCABULARIES:
        file, merges_file = (folder / name for name in names)
        if file.is_file() and merges_file.is_file():
            vocab = _checked_vocab(_read_object(file), file)
            # Not splitlines(), which also splits at characters that may stand in a merge.
            lines = _read_text(merges_file).removesuffix("\n").split("\n")
            numbered = (
                (number, line.removesuffix("\r"))
                for number, line in enumerate(lines, 1)
                if not line.startswith("#version")
            )
            return file, vocab, _checked_merges(numbered, vocab, f"{merges_file}, line"), {}
    for names in VOCABULARIES:
        missing = [name for name in names if not (folder / name).is_file()]
        if len(missing) == 1:
            found = next(name for name in names if name not in missing)
            raise FileNotFoundError(f"{folder} has {found}, but not {missing[0]}")
    pairs = ", nor ".join(" and ".join(names) for names in VOCABULARIES)
    raise FileNotFoundError(f"{folder} has no tokenizer: neither tokenizer.json, nor {pairs}")


def _gpt1_model(saved: dict[str, Any], file: Path) -> dict[str, Any]:
    """The model section of a tokenizer.json whose pipeline is GPT-1's."""
    model, normalizer, splitter = (
        part if isinstance(part := saved.get(name), dict) else {}
        for name in ("model", "normalizer", "pre_tokenizer")
    )
    for name, found, right in (
        ("model type", model.get("type", "BPE"), "BPE"),  # old files do not say it
        ("end_of_word_suffix", model.get("end_of_word_suffix"), END_OF_WORD),
        ("continuing_subword_prefix", model.get("continuing_subword_prefix") or None, None),
        ("normalizer", normalizer.get("type"), "BertNormalizer"),
        ("normalizer's lowercase", normalizer.get("lowercase"), True),
        ("pre_tokenizer", splitter.get("type"), "BertPreTokenizer"),
    ):
        if found != right:
            raise ValueError(f"{file} is not GPT-1's: {name} is {found!r}, but must be {right!r}")
    if not isinstance(model.get("merges"), list):
        raise ValueError(f"{file} has no list of merges")
    return model


def _checked_vocab(vocab: object, file: Path) -> dict[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise ValueError(f"{file}: the vocabulary must be an object that gives tokens their ids")
    owners: dict[int, str] = {}
    for token, index in vocab.items():
        if type(index) is not int:
            raise ValueError(f"{file}: the id of {token!r} is {index!r}, but must be an integer")
        if index in owners:
            raise ValueError(f"{file}: {owners[index]!r} and {token!r} have the same id {index}")
        owners[index] = token
    for index in range(len(vocab)):
        if index not in owners:
            right = f"its {len(vocab)} tokens must have the ids 0 to {len(vocab) - 1}"
            raise ValueError(f"{file}: no token has the id {index}, but {right}")
    return vocab


def _checked_merges(
    numbered: Iterable[tuple[int, object]], vocab: Mapping[str, int], where: str
) -> list[tuple[str, str]]:
    merges = []
    for number, merge in numbered:
        pieces = merge.split(" ") if isinstance(merge, str) else merge
        match pieces:
            case [str(left), str(right)] if left and right:
                pass
            case _:
                raise ValueError(
                    f"{where} {number}: {merge!r} is not two pieces with a space between"
                )
        for piece in (left, right, left + right):
            if piece not in vocab:
                raise ValueError(f"{where} {number}: {piece!r} is not in the vocabulary")
        if any(mark in left + right for mark in " \r\n"):
            raise ValueError(f"{where} {number}: {merge!r} holds a space or line break")
        merges.append((left, right))
    return merges


def _read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json and, unless that lists the added tokens, special_tokens_map.json."""
    file, legacy = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    settings = _read_object(file) if file.is_file() else {}
    extra = settings.get("extra_special_tokens") or settings.pop("additional_special_tokens", None)
    settings["extra_special_tokens"] = extra or []
    if "added_tokens_decoder" in settings or not legacy.is_file():
        return settings
    more = _read_object(legacy)
    extra = more.pop("extra_special_tokens", None) or []
    if isinstance(extra, list) and isinstance(settings["extra_special_tokens"], list):
        extra = settings["extra_special_tokens"] + extra
    settings["extra_special_tokens"] = extra or more.pop("additional_special_tokens", None) or []
    return settings | more


def _baked_in(saved: Mapping[str, Any]) -> dict[str, str]:
    """Settings that tokenizer.json holds if transformers wrote it after a padded or cut call."""
    pads, cuts = saved.get("padding") or {}, saved.get("truncation") or {}
    found = {
        "pad_token": pads.get("pad_token"),
        "padding_side": str(pads.get("direction", "right")).lower(),
        "truncation_side": str(cuts.get("direction", "right")).lower(),
    }
    return {name: value for name, value in found.items() if value is not None}


def _special_tokens(
    settings: Mapping[str, Any], folder: Path
) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """The special tokens with a name, transformers' names first, and those without."""
    extra = settings["extra_special_tokens"]
    candidates = {"unk_token": "<unk>", **settings, **(extra if isinstance(extra, dict) else {})}
    names = dict.fromkeys((*SPECIAL_TOKENS, *(n for n in candidates if n.endswith("_token"))))
    named = {
        name: _added_token(value, folder, special=True)
        for name in names
        if isinstance(value := candidates.get(name), str | dict)
    }
    if "unk_token" not in named:
        raise ValueError(f"{folder}: unk_token is {candidates['unk_token']!r}, but must be a token")
    if not isinstance(extra, list | dict):
        raise ValueError(f"{folder}: extra_special_tokens is {extra!r}, but must be a list")
    tokens = extra if isinstance(extra, list) else []
    unnamed = [_added_token(token, folder, special=True) for token in tokens]
    return named, list({token.content: token for token in unnamed}.values())


def _listed_tokens(
    folder: Path,
    settings: Mapping[str, Any],
    saved: Mapping[str, Any],
    named: Mapping[str, AddedToken],
    extra: Sequence[AddedToken],
) -> dict[int, AddedToken]:
    """The added tokens that the files list with their ids, from where transformers reads them."""
    if "added_tokens_decoder" in settings:
        decoder = settings["added_tokens_decoder"]
        if not isinstance(decoder, dict):
            raise ValueError(f"{folder}: added_tokens_decoder must be an object")
        found = list(decoder.items())
    else:
        file = folder / "added_tokens.json"
        special = {token.content for token in (*named.values(), *extra)}
        found = [
            (index, {"content": text, "special": text in special})
            for text, index in (_read_object(file) if file.is_file() else {}).items()
        ]
        for fields in saved.get("added_tokens") or []:
            found.append((fields.get("id") if isinstance(fields, dict) else None, fields))
    listed = {}
    for index, fields in found:
        if not str(index).isdecimal():
            raise ValueError(f"{folder}: the added token {fields!r} has the id {index!r}")
        listed[int(index)] = _added_token(fields, folder)
    return dict(sorted(listed.items()))


def _add_tokens(
    backend: tokenizers.Tokenizer,
    listed: Mapping[int, AddedToken],
    named: Mapping[str, AddedToken],
    extra: Sequence[AddedToken],
    folder: Path,
) -> None:
    """Add the listed tokens in the order of their ids, then the other special ones."""
    tokens = {token.content: token for token in listed.values()}
    for token in (*named.values(), *extra):
        tokens.setdefault(token.content, token)
    for token in named.values():
        tokens[token.content].special = True
    backend.add_tokens(list(tokens.values()))
    for index, token in listed.items():
        if (found := backend.token_to_id(token.content)) != index:
            raise ValueError(
                f"{folder}: the added token {token.content!r} should have the id {index}, but the "
                f"vocabulary and the added tokens before it make that {found}"
            )


def _added_token(value: object, folder: Path, *, special: bool = False) -> AddedToken:
    """A token as the files spell it: its text, or an object with the fields of an AddedToken."""
    from tokenizers import AddedToken

    fields: dict[str, Any] = {"content": value} if isinstance(value, str) else {}
    if isinstance(value, dict):
        flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
        fields = {name: value[name] for name in flags if name in value}
    if not isinstance(fields.get("content"), str) or not fields["content"]:
        raise ValueError(f"{folder}: {value!r} is not a token")
    fields["special"] = special or bool(fields.get("special"))
    return AddedToken(**fields)


def _post_processor(saved: Mapping[str, Any], file: Path) -> Any:
    """tokenizer.json's post-processor, which the library makes only as a part of a whole."""
    from tokenizers import Tokenizer

    # The pipeline is made anew, as transformers does it; this is the cheap way to the rest.
    rest = {**saved, "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    try:
        return Tokenizer.from_str(json.dumps(rest)).post_processor
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"{file} is not a tokenizer's: {error}") from None


def _check_new_tokens(tokens: Iterable[object]) -> None:
    from tokenizers import AddedToken

    for token in tokens:
        if not isinstance(token, str | AddedToken) or not _content(token):
            raise ValueError(f"{token!r} is not a token: it must be a string of some length")


def _content(token: str | AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def _checked_side(side: object, name: str) -> Side:
    if side == "left":
        return "left"
    if side == "right":
        return "right"
    raise ValueError(f"{name} is {side!r}, but must be 'left' or 'right'")


def _sensible_length(length: object) -> int | None:
    """model_max_length, which transformers saves as 1e30 where it is not known."""
    return int(length) if isinstance(length, int | float) and 1 <= length < 1e20 else None


def _clean_up(text: str) -> str:
    """The replacements of ``PreTrainedTokenizerBase.clean_up_tokenization``."""
    for mark in (" .", " ?", " !", " ,"):
        text = text.replace(mark, mark[1:])
    text = text.replace(" ' ", "'")
    for ending in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(ending, ending[1:])
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    return type(value).__name__


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from None


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return content


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
