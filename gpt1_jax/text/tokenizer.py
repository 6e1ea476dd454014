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
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

import jax
import numpy as np
from numpy.typing import ArrayLike

from gpt1_jax.checks import INTEGER, at_least, check, is_integer, short, wrong
from gpt1_jax.demo import HubOptions, PushOptions, resolve
from gpt1_jax.text.decoding import checked_ids, warn_of_clean_up
from gpt1_jax.text.detokenize import detokenized
from gpt1_jax.text.encoding import (
    BatchEncoding,
    Input,
    Layout,
    Padding,
    Part,
    TensorType,
    Truncation,
    as_tensors,
    check_inputs,
    check_multiple,
    check_tensors,
    checked_texts,
    collated,
    columns,
    cut,
    encode_parts,
    encode_texts,
    make_template,
    padded,
    padding_strategy,
    read_inputs,
    sequences,
    truncation_strategy,
)
from gpt1_jax.text.original import OriginalText, check_installed
from gpt1_jax.text.tokenizer_files import (
    PIPELINE,
    SIDE,
    SPECIAL_TOKENS,
    Pipeline,
    is_gpt1,
    read_tokenizer,
    write_tokenizer,
)

if TYPE_CHECKING:  # importing it takes 50 ms, which `import gpt1_jax` need not pay
    import tokenizers
    from tokenizers import AddedToken

Side = Literal["left", "right"]
MAX_LENGTH = 2**31 - 1  # tokens: the library takes no number beyond every memory


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
    added to it, unless tokenizer.json has a template (a post-processor) that adds some, as that of
    a fine-tuned model has, or ``set_template`` set one. A text that spells ``<unk>`` out has that
    token with "huggingface"; with "original" it has the tokens of those five characters, as in
    OpenAI's code. Both pipelines find tokens that were added.

    Args:
        backend: the pipeline, vocabulary and added tokens included.
        special_tokens: names, such as "pad_token", and their tokens, all in the vocabulary.
        extra_special_tokens: special tokens without a name, all in the vocabulary.
        padding_side: where pads go; may be set. Generation needs "left".
        truncation_side: which end of a text that is too long is cut off; may be set.
        model_max_length: tokens the model takes, or None if not said; may be set.
        pipeline: "huggingface" or "original".
        n_positions: the model's, to cut and pad to while ``model_max_length`` is None.

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
        n_positions: int | None = None,
    ):
        self._backend = backend
        self.pipeline: Pipeline = _checked_pipeline(pipeline)
        if pipeline == "original" and not is_gpt1(backend):
            raise ValueError("the pipeline 'original' needs GPT-1's vocabulary; this is another")
        self._original = OriginalText(backend) if pipeline == "original" else None
        self._special = dict(special_tokens)
        self._extra = list(extra_special_tokens)
        self.padding_side: Side = _checked_side(padding_side, "padding_side")
        self.truncation_side: Side = _checked_side(truncation_side, "truncation_side")
        self.model_max_length = model_max_length
        self._n_positions = n_positions

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
        vocab_40000.bpe; added and special tokens from where transformers 5 reads them. Where none
        of these says ``model_max_length``, texts are cut and padded to the n_positions of a
        config.json in the folder.

        Other vocabularies than GPT-1's are read too: any tokenizer.json, as it is; a vocab.txt,
        as transformers' ``BertTokenizer`` reads it; and a vocab.json without merges, a list of
        whole words or an object with their ids, which text is split into at white space. A
        tokenizer.json whose model is of GPT-1's kind but whose pipeline is not GPT-1's is
        refused, unless tokenizer_config.json has a ``tokenizer_class`` of another kind.

        Args:
            path_or_hub_id: a folder, or the id of a model on the hub, whose weights are left there.
            pipeline: how text is prepared; by default as ``save_pretrained`` saved it, else
                "huggingface". "original" needs ftfy and spaCy, the extra "text".
            padding_side: where pads go; by default as saved, else "right".
            **hub: ``subfolder``, ``revision``, ``cache_dir``, ``local_files_only``, ``token``,
                ``force_download``.

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
        Of a vocabulary that is not GPT-1's, the first two alone.

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

    def push_to_hub(self, repo_id: str, **push: Unpack[PushOptions]) -> str:
        """Upload the tokenizer to the Hugging Face hub, as ``save_pretrained`` writes it.

        Args, result and errors are those of the models' ``push_to_hub``.
        """
        from gpt1_jax._conversion import conversion

        default: PushOptions = {"commit_message": "Upload tokenizer"}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return conversion.push_folder(folder, repo_id, **default | push)

    def to_json(self) -> str:
        """Return the whole pipeline, vocabulary and added tokens included, as in tokenizer.json."""
        return self._backend.to_str()

    @overload
    def encode(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        return_tensors: None = None,
        **options: Any,
    ) -> list[int]: ...

    @overload
    def encode(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        return_tensors: TensorType,
        **options: Any,
    ) -> Any: ...

    def encode(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        **options: Any,
    ) -> Any:
        """Return the ids of ``text``.

        Args:
            text: one text.
            text_pair: a second text, which the ids of go after the first one's.
            add_special_tokens: whether to add the special tokens of the tokenizer's template; most
                GPT-1s have none.
            **options: as for a call of the tokenizer.

        Raises:
            TypeError: not a string.
            ValueError: the text holds a lone surrogate, which is not a character, or for "original"
                a word for which spaCy takes too long: its characters times the signs at its ends
                are more than 10,000 squared, unless it is one sign, repeated; or more than 10,000
                combining marks in a row, unless they are equal.
        """
        added = add_special_tokens and self.num_special_tokens_to_add()
        if text_pair or options or added:
            options["add_special_tokens"] = add_special_tokens
            return self(text, text_pair, **options)["input_ids"]
        return self._encode([text])[0]

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a text that is to be continued.

        They are those of ``encode`` without the special tokens that the tokenizer's template adds
        after a text, such as BERT's ``[SEP]``, which would end it. Of an empty text the template's
        first token is left, if there is one.

        Raises:
            TypeError, ValueError: as ``encode``.
        """
        if not self.num_special_tokens_to_add():
            return self.encode(text)
        fields = self(text, return_special_tokens_mask=True)
        ids, added = fields["input_ids"], fields["special_tokens_mask"]
        own = [place for place, special in enumerate(added) if not special]
        return ids[: max(own, default=0) + 1]

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        """Yield the ids of a long text that comes in pieces, piece by piece.

        Joined they are the ids of the whole text, without the special tokens of a template: line
        breaks between pieces count. Memory is that of a piece. (ftfy repairs whole lines: of a line
        that is cut it sees the parts.)

        Args:
            pieces: each ends at white space, the last one wherever the text does.

        Raises:
            TypeError, ValueError: as ``encode``.
        """
        if self._original:
            yield from self._original.encode_pieces(checked_texts(pieces))
            return
        for piece in checked_texts(pieces):
            # Lines are encoded in parallel.
            yield [id_ for row in self._encode(piece.split("\n")) for id_ in row]

    def tokenize(
        self, text: str, pair: str | None = None, *, add_special_tokens: bool = False
    ) -> list[str]:
        """Return the tokens of ``text`` as the vocabulary spells them; see ``encode``."""
        if self._original:
            ids = self.encode(text, pair, add_special_tokens=add_special_tokens)
            return self.convert_ids_to_tokens(ids)
        # Not by way of the ids: an added token is spelled here as the text spells it.
        check_inputs([(text, pair) if pair else text])
        return self._backend.encode(
            text, pair or None, add_special_tokens=add_special_tokens
        ).tokens

    def decode(
        self,
        ids: ArrayLike,
        skip_special_tokens: bool = False,
        *,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Return the text of ``ids``: words and punctuation, separated by spaces.

        Args:
            ids: integers (T,): a list, a numpy or JAX array, or a single integer. Those beyond the
                tokenizer, which a model with a larger vocabulary may choose, are left out.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: has no effect, as in transformers, which warns of True
                likewise; ``detokenize`` closes punctuation up.

        Raises:
            ValueError: not integers, not one sequence, or a negative id.
        """
        warn_of_clean_up(clean_up_tokenization_spaces)
        return self._backend.decode(self._known(ids), skip_special_tokens=skip_special_tokens)

    def detokenize(self, ids: ArrayLike) -> str:
        """Return the text of ``ids`` as a reader expects it, without special tokens.

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
        self,
        sequences: Iterable[ArrayLike],
        skip_special_tokens: bool = False,
        *,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Return the texts of several sequences of ids; see ``decode``.

        Args:
            sequences: lists of integers, of any lengths, or an integer array (batch, T). A single
                sequence is a batch of one.
            skip_special_tokens: as for ``decode``.
            clean_up_tokenization_spaces: likewise.
        """
        warn_of_clean_up(clean_up_tokenization_spaces)
        rows = list(np.asarray(sequences) if isinstance(sequences, jax.Array) else sequences)
        if rows and np.ndim(rows[0]) == 0:
            rows = [rows]
        return self._backend.decode_batch(
            [self._known(row) for row in rows], skip_special_tokens=skip_special_tokens
        )

    def __call__(
        self,
        text: str | Sequence[Any],
        text_pair: str | Sequence[Any] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: Padding = False,
        truncation: Truncation | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_tensors: TensorType | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Encode a text, or a batch of texts, for the model.

        Args:
            text: one text or several; a tuple of two texts among several is a pair.
            text_pair: a second text for each, whose ids follow those of the first; an empty one
                for a single text is none.
            add_special_tokens: whether to add the special tokens of the tokenizer's template; most
                GPT-1s have none.
            padding: True or "longest" pads to the longest text, "max_length" to ``max_length``.
                Pads are ``pad_token_id``, or 0 while that is None (transformers raises then); the
                attention mask says which ids are pads.
            truncation: whether to cut texts to ``max_length``, special tokens included: True or
                "longest_first" cuts the longer text of a pair first, "only_first" and "only_second"
                one of them. By default they are cut if ``max_length`` is given and ``padding`` is
                False.
            max_length: tokens to pad or truncate to; by default ``model_max_length``, or, where
                that is None, the n_positions of the model in the tokenizer's folder.
            stride: tokens of a text that what was cut off from it repeats.
            is_split_into_words: whether a text is a list of words, each of them encoded alone.
            pad_to_multiple_of: with padding, pad on to a multiple of this number.
            padding_side: "left" or "right"; by default ``self.padding_side``.
            return_tensors: "np" or "jax" for int32 arrays (batch, T); None for lists. One text is a
                batch of one as an array, and a flat list as a list.
            return_token_type_ids: add ``token_type_ids``, by default 0 for a text and 1 for its
                pair. GPT-1 takes none.
            return_attention_mask: False leaves the attention mask out.
            return_overflowing_tokens: what is cut off from a text becomes rows after it;
                ``overflow_to_sample_mapping`` has the number of each row's text.
            return_special_tokens_mask: add ``special_tokens_mask``: 1 for special tokens that were
                added, and for pads.
            return_offsets_mapping: add ``offset_mapping``: for each id the first character of the
                text (or word) it stands for, and the one after the last; (0, 0) for a special token
                or a pad. Characters that ftfy rewrites, several into one or one into several, share
                their whole run.
            return_length: add ``length``, that of each row.
            verbose: warn where ``max_length`` is not used.

        Raises:
            TypeError: not strings.
            ValueError: what ``encode`` raises, no text, rows of unequal length as arrays, no length
                to pad or truncate to, a text that cannot be cut so, or an argument that is not one
                of the values above.
        """
        check_tensors(return_tensors)
        batched, inputs = read_inputs(text, text_pair, words=is_split_into_words)
        check_inputs(inputs, words=is_split_into_words)
        if not inputs:
            raise ValueError("there are no texts to make a batch of")
        pairs = any(isinstance(each, tuple) for each in inputs)
        added = self.num_special_tokens_to_add(pairs) if add_special_tokens else 0
        if truncation is None and max_length is not None and padding is False:
            truncation = True
        layout = Layout(
            self._truncation(truncation, max_length, stride, added),
            self._padding(padding, max_length, pad_to_multiple_of, padding_side),
        )
        if layout.truncation and layout.padding:
            check_multiple(pad_to_multiple_of, layout.truncation["max_length"])
        elif verbose and not layout.truncation:
            _warn_if_unused(padding, max_length)
        asked = {
            "input_ids": True,
            "token_type_ids": return_token_type_ids,
            "attention_mask": return_attention_mask is not False,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        names = [name for name, wanted in asked.items() if wanted]
        encodings, numbers = None, range(len(inputs))
        shaped = pairs or added or is_split_into_words or return_overflowing_tokens
        if not shaped and layout.is_plain and set(names) <= {"input_ids", "attention_mask"}:
            fields = self._plain_fields(inputs, names, layout)
        else:
            encodings = self._encodings(
                inputs, layout, names, words=is_split_into_words, special=add_special_tokens
            )
            if return_overflowing_tokens:
                rows = [[each, *each.overflowing] for each in encodings]
                numbers = [number for number, row in enumerate(rows) for _ in row]
                encodings = [each for row in rows for each in row]
            fields = columns(encodings, names)
        if return_overflowing_tokens:
            fields["overflow_to_sample_mapping"] = list(numbers)
        elif not batched and return_tensors is None:
            fields = {k: v[0] if isinstance(v[0], list) else v for k, v in fields.items()}
        right = "truncation=True" if padding == "max_length" else "padding=True"
        encoding = BatchEncoding(as_tensors(fields, return_tensors, f": pass {right}"))
        if is_split_into_words or return_offsets_mapping:
            encoding.encodings = encodings
        return encoding

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: Padding = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: TensorType | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad texts that are encoded already, as a data collator does.

        Args:
            encoded_inputs: the fields of one text or of several, or a list of the fields of each;
                ``input_ids`` among them.
            padding: as for a call of the tokenizer.
            max_length: likewise.
            pad_to_multiple_of: likewise.
            padding_side: likewise.
            return_attention_mask: False adds no attention mask, and leaves a given one as it is.
            return_tensors: "np" or "jax"; by default the arrays that were given, or lists.
            verbose: warn where ``max_length`` is not used.

        Returns:
            The same fields; ids, attention mask, token types and the mask of special tokens are
            padded, and others, such as labels, are left as they are.

        Raises:
            TypeError, ValueError: they are not encoded texts of one batch, or what a call raises.
        """
        check_tensors(return_tensors)
        fields, kind = collated(encoded_inputs)
        layout = self._padding(padding, max_length, pad_to_multiple_of, padding_side)
        if verbose:
            _warn_if_unused(padding, max_length)
        ids = fields["input_ids"]
        one = bool(ids) and not isinstance(ids[0], list)
        if one:
            fields = {name: [value] for name, value in fields.items()}
            ids = [ids]
        for name, rows in fields.items():
            if not isinstance(rows, list) or len(rows) != len(ids):
                raise ValueError(f"{name} must have a row for each of the {len(ids)} rows of ids")
        if return_attention_mask is not False and "attention_mask" not in fields:
            fields["attention_mask"] = [[1] * len(row) for row in ids]
        kept = ["attention_mask"] if return_attention_mask is False else []
        fields = padded(fields, layout, except_for=kept)
        if one:
            fields = {name: rows[0] for name, rows in fields.items()}
        return BatchEncoding(as_tensors(fields, return_tensors or kind))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens the template adds to a text, or to a pair of them."""
        return self._backend.num_special_tokens_to_add(pair)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Return the id of a token, or a list of the ids of several; unknown ones become <unk>."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self._backend.token_to_id(tokens)
        return self.unk_token_id if index is None else index

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Return the text of tokens in the vocabulary's spelling: what ``decode`` makes of ids."""
        if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
            raise TypeError(f"tokens must be a list of strings, not {short(tokens)}")
        return self._backend.decoder.decode(list(tokens))

    def convert_ids_to_tokens(self, ids: ArrayLike, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or a list of the tokens of several, as in the vocabulary.

        The token of an id beyond the tokenizer is None.

        Args:
            ids: an integer, or integers (T,).
            skip_special_tokens: leave out the tokens of ``all_special_ids`` among several.

        Raises:
            ValueError: as for ``decode``.
        """
        indices, size = checked_ids(ids).tolist(), len(self)
        if np.ndim(ids) == 0:
            return self._backend.id_to_token(indices[0]) if indices[0] < size else None
        skipped = self.all_special_ids if skip_special_tokens else ()
        return [
            self._backend.id_to_token(index) if index < size else None
            for index in indices
            if index not in skipped
        ]

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

    def set_template(self, single: str, pair: str = "$A $B:1") -> None:
        """Set the template: the special tokens that are added to a text, and to a pair of texts.

        ``encode`` and a call apply it unless ``add_special_tokens=False``, and ``save_pretrained``
        writes it into tokenizer.json, from which transformers applies it too.

        Args:
            single: tokens of the vocabulary and, once, $A in place of the text, separated by
                spaces: "[CLS] $A [SEP]". "$A" alone adds nothing.
            pair: likewise, with $B in place of the second text. ":1" after a token, $A or $B is
                its token type, by default 0.

        Raises:
            ValueError: a token is not in the vocabulary, or a text is missing or repeated; the
                template stays as it was.
        """
        self._backend.post_processor = make_template(self._backend, single, pair)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Number of tokens without the added ones; ``len(tokenizer)`` counts those too."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Return every token and its id, added ones included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def get_added_vocab(self) -> dict[str, int]:
        """Return the added tokens, special ones among them, and their ids, in order of the ids."""
        added = self._backend.get_added_tokens_decoder()
        return {token.content: id_ for id_, token in sorted(added.items())}

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

    def _encode(self, texts: Sequence[str], *, checked: bool = False) -> list[list[int]]:
        """Return the ids of texts, without special tokens."""
        if not checked:
            check_inputs(texts)
        if self._original:
            return self._original.encode(texts)
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _plain_fields(
        self, texts: Sequence[str], names: Sequence[str], layout: Layout
    ) -> dict[str, Any]:
        """Return the ids and the attention mask of texts that nothing is added to.

        That is what the library would return. But ids of the original pipeline, which come by
        chunks, need not go through it again (of 10,000 texts that takes as long as encoding them),
        and no objects are made but these lists.
        """
        rows = cut(self._encode(texts, checked=True), layout.truncation)
        fields = {"input_ids": rows}
        if "attention_mask" in names:
            fields["attention_mask"] = [[1] * len(row) for row in rows]
        return padded(fields, layout.padding)

    def _encodings(
        self,
        inputs: Sequence[Input],
        layout: Layout,
        names: Sequence[str],
        *,
        words: bool,
        special: bool,
    ) -> list[Any]:
        """What the library makes of texts and pairs, for the fields of these names."""
        offsets = "offset_mapping" in names
        if self._original is None:
            full = words or offsets or "token_type_ids" in names
            return encode_texts(
                self._backend, inputs, layout, words=words, special=special, full=full
            )
        texts = [each for item in inputs for each in sequences(item)]
        if words:
            parts = [self._words_part(each, offsets) for each in texts]
        elif offsets:
            parts = [Part(*self._original.encode_with_offsets(each)) for each in texts]
        else:
            parts = [Part(ids) for ids in self._original.encode(texts)]
        following = iter(parts)
        rows = [tuple(next(following) for _ in sequences(item)) for item in inputs]
        return encode_parts(self._backend, rows, layout, special=special)

    def _words_part(self, words: Sequence[str], offsets: bool) -> Part:
        """Return the ids of words with the original pipeline."""
        assert self._original is not None
        if offsets:
            found = [self._original.encode_with_offsets(word) for word in words]
        else:
            found = [(ids, [], []) for ids in self._original.encode(words)]
        return Part(
            ids=[id_ for ids, _, _ in found for id_ in ids],
            spans=[span for _, spans, _ in found for span in spans],
            words=[number for number, (ids, _, _) in enumerate(found) for _ in ids],
        )

    def _truncation(
        self, truncation: object, max_length: int | None, stride: int, added: int
    ) -> dict[str, Any] | None:
        """Return the library's arguments, None for no truncation; ``added`` special ones."""
        strategy = truncation_strategy(truncation)
        check("stride", stride, INTEGER, at_least(0))
        if strategy is None:
            return None
        length = self._length(f"truncation={truncation}", max_length)
        if length < added:
            raise ValueError(
                f"max_length is {length}, but must be at least {added}, the number of special "
                "tokens that the template adds"
            )
        return {
            "max_length": length,
            "stride": int(stride),
            "strategy": strategy,
            "direction": _checked_side(self.truncation_side, "truncation_side"),
        }

    def _padding(
        self,
        padding: object,
        max_length: int | None,
        pad_to_multiple_of: int | None,
        padding_side: Side | None,
    ) -> dict[str, Any] | None:
        """Return the library's arguments, None for no padding."""
        strategy = padding_strategy(padding)
        side = _checked_side(padding_side or self.padding_side, "padding_side")
        check_multiple(pad_to_multiple_of)
        if strategy == "do_not_pad":
            return None
        exact = strategy == "max_length"
        pad_id = self.pad_token_id or 0
        return {
            "direction": side,
            "pad_id": pad_id,
            "pad_token": self._backend.id_to_token(pad_id),
            "length": self._length("padding='max_length'", max_length) if exact else None,
            "pad_to_multiple_of": pad_to_multiple_of,
        }

    def _length(self, wanted_by: str, max_length: int | None) -> int:
        length = max_length
        if length is None:
            length = self._n_positions if self.model_max_length is None else self.model_max_length
        if length is None:
            raise ValueError(
                f"{wanted_by} needs max_length: neither model_max_length nor the model's "
                "n_positions is known"
            )
        if not is_integer(length) or not 1 <= length <= MAX_LENGTH:
            raise wrong("max_length", length, f"a positive integer, at most {MAX_LENGTH}")
        return int(length)

    def _known(self, ids: object) -> list[int]:
        """One sequence of ids, or a single id, as a list of those that are tokens."""
        values = checked_ids(ids)
        return values[values < len(self)].tolist()


def _warn_if_unused(padding: object, max_length: int | None) -> None:
    if max_length is not None and padding in (True, "longest"):
        warnings.warn(
            f"max_length = {max_length} is not used: pass truncation=True to cut longer texts, "
            "or padding='max_length' to pad to it",
            stacklevel=3,
        )


def _content(token: object) -> str:
    """Return the text of a token, a string or an AddedToken."""
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
