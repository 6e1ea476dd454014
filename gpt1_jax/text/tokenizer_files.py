"""The files of a tokenizer: those of transformers, old and new, and OpenAI's own.

``tokenizers`` reads vocabulary and merges. Added tokens and settings are found where transformers 5
looks for them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from gpt1_jax.checks import BOOL, Rule, check, short, wrong
from gpt1_jax.text.other_vocabularies import (
    OtherVocabulary,
    bert_template,
    check_ids,
    read_any,
    read_bert,
    read_words,
    words_of,
)

if TYPE_CHECKING:  # importing it takes 50 ms, which `import gpt1_jax` need not pay
    import tokenizers
    from tokenizers import AddedToken, models

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
_SETTINGS = "tokenizer_config.json"
_ANY_CLASS = "PreTrainedTokenizerFast"  # transformers' name for a tokenizer.json of any kind
Pipeline = Literal["huggingface", "original"]
PIPELINES = get_args(Pipeline)
PIPELINE = Rule(" or ".join(map(repr, PIPELINES)), lambda name: name in PIPELINES)
SIDE = Rule("'left' or 'right'", lambda side: side in ("left", "right"))
# The template that transformers gives a tokenizer without one; it adds nothing.
_PLAIN_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# As special tokens are spelled: of GPT-1's merges, none makes such a token.
_MARKER = re.compile(r"<.+>|\[.+\]|_.+_")


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has a vocabulary: whether there is a tokenizer to be read."""
    names = ("tokenizer.json", "vocab.txt", *(name for pair in VOCABULARIES for name in pair))
    return any((folder / name).is_file() for name in names)


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """Return ``Tokenizer``'s arguments, from tokenizer.json or a vocabulary and its merges, if any.

    Raises:
        FileNotFoundError: none of them is there.
        ValueError: a file is broken, or is another model's tokenizer.
    """
    settings = _read_settings(folder)
    found = _read_model(folder, settings)
    settings = {**found.defaults, **settings}
    named = {
        name: _added_token(settings[name], folder, special=True)
        for name in SPECIAL_TOKENS
        if settings.get(name) is not None
    }
    extra = [_added_token(token, folder, special=True) for token in settings["extra"]]
    special = [*named.values(), *extra]
    listed = _listed_tokens(folder, settings, found.added, {token.content for token in special})
    if isinstance(found, OtherVocabulary):
        backend = found.backend
    else:
        backend = _gpt1_pipeline(found, named)
        _check_merges(found, {token.content for token in [*special, *listed.values()]})
    # In the order of their ids; the special tokens that are not listed come last.
    tokens = {token.content: token for _, token in sorted(listed.items())}
    for token in special:
        tokens.setdefault(token.content, token)
    for token in named.values():
        tokens[token.content].special = True
    backend.add_tokens(list(tokens.values()))
    for index, token in listed.items():
        if (made := backend.token_to_id(token.content)) != index:
            raise ValueError(
                f"{folder}: the added token {short(token.content)} should have the id "
                f"{short(index)}, but the vocabulary and the added tokens before it make that "
                f"{made}"
            )
    if found.file.name != "tokenizer.json":
        # transformers too reads add_bos_token and add_eos_token only where that file is missing.
        bert = found.file.name == "vocab.txt"
        template = bert_template(backend, named) if bert else _template_of(settings, backend, named)
        backend.post_processor = template
    elif not isinstance(found, OtherVocabulary):
        backend.post_processor = found.template
    _check_template(backend, found.file)
    return {
        "backend": backend,
        "special_tokens": {name: token.content for name, token in named.items()},
        "extra_special_tokens": list(dict.fromkeys(token.content for token in extra)),
        "n_positions": _n_positions(folder),
        **_checked_settings(settings, folder),
    }


def _checked_settings(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the arguments of ``Tokenizer`` that the settings have as they are."""
    sides = {name: settings.get(name, "right") for name in ("padding_side", "truncation_side")}
    for name, side in sides.items():
        check(f"{folder}: {name}", side, SIDE)
    text_pipeline = settings.get("text_pipeline", PIPELINES[0])
    check(f"{folder}: text_pipeline", text_pipeline, PIPELINE)
    length = settings.get("model_max_length")
    if isinstance(length, bool) or not isinstance(length, int | float | None):
        raise wrong(f"{folder}: model_max_length", length, "a number")
    if length is None or not 1 <= length < 1e20:
        length = None  # not known; transformers saves 1e30 then
    length = None if length is None else int(length)
    return {"model_max_length": length, "pipeline": text_pipeline, **sides}


def write_tokenizer(
    folder: str | os.PathLike[str], backend: tokenizers.Tokenizer, settings: Mapping[str, object]
) -> None:
    """Write tokenizer.json, tokenizer_config.json, vocab.json and merges.txt: all, or none.

    Of a vocabulary that is not GPT-1's, write the first two alone.

    Args:
        folder: made if it does not exist.
        backend: the pipeline, vocabulary and added tokens included.
        settings: the fields of tokenizer_config.json.

    Raises:
        OSError: the folder cannot be made or written.
    """
    whole = backend.to_str(pretty=True)
    content = json.loads(whole)
    # tokenizer.json holds them too; vocab.json and merges.txt do not.
    added = {token.pop("id"): token for token in content["added_tokens"]}
    if is_gpt1(backend):
        merges = (" ".join(pair) for pair in content["model"]["merges"])
        contents = {
            "vocab.json": _json(content["model"]["vocab"]),
            "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        }
    else:
        contents = {}
        # Zeros as token types, which BERT ignores, would change what a GPT-1 computes.
        inputs = ["input_ids", "attention_mask"]
        settings = {**settings, "tokenizer_class": _ANY_CLASS, "model_input_names": inputs}
    contents["tokenizer.json"] = whole
    contents[_SETTINGS] = _json({**settings, "added_tokens_decoder": added})
    from gpt1_jax._conversion import files

    with files.atomic_write(folder) as temporary:
        for name, text in contents.items():
            temporary(name).write_text(text, encoding="utf-8", newline="\n")


class _Model(NamedTuple):
    """A vocabulary and the merges over it.

    Attributes:
        file: of the vocabulary.
        merges_file: of the merges; the same, where it is tokenizer.json.
        model: both, as the library has read them.
        vocabulary: the tokens with their ids.
        merged: what the merges make.
        added: the tokens that tokenizer.json adds, by their ids.
        template: what tokenizer.json adds special tokens to a text with, None if it does not.
    """

    file: Path
    merges_file: Path
    model: models.BPE
    vocabulary: dict[str, int]
    merged: set[str]
    added: dict[int, AddedToken]
    template: Any = None
    defaults: Mapping[str, str] = MappingProxyType({"unk_token": "<unk>"})


def _read_model(folder: Path, settings: Mapping[str, object]) -> _Model | OtherVocabulary:
    """Read tokenizer.json, else the vocabulary and the merges, else another vocabulary."""
    if (file := folder / "tokenizer.json").is_file():
        return _read_whole(file, settings)
    for names in VOCABULARIES:
        file, merges = (folder / name for name in names)
        if file.is_file() and merges.is_file():
            return _read_pair(file, merges)
    if (file := folder / "vocab.txt").is_file():
        return read_bert(file, settings)
    if (file := folder / "vocab.json").is_file():
        from gpt1_jax._conversion import json_file

        vocabulary = words_of(json_file.read_json(file), file)
        # A byte-pair vocabulary is of no use without its merges.
        if not _has_ends_of_words(vocabulary):
            return read_words(vocabulary, file, settings)
    for names in VOCABULARIES:
        missing = [name for name in names if not (folder / name).is_file()]
        if len(missing) == 1:
            found = next(name for name in names if name not in missing)
            raise FileNotFoundError(f"{folder} has {found}, but not {missing[0]}")
    pairs = ", nor ".join(" and ".join(names) for names in VOCABULARIES)
    raise FileNotFoundError(
        f"{folder} has no tokenizer: neither tokenizer.json, nor {pairs}, nor vocab.txt; without "
        "one, give token ids in place of texts"
    )


def _read_whole(file: Path, settings: Mapping[str, object]) -> _Model | OtherVocabulary:
    """Read a tokenizer.json, GPT-1's or another.

    Where no tokenizer_class says which, a model of GPT-1's kind has to have GPT-1's whole pipeline:
    a damaged one would change the ids of a text unnoticed.
    """
    from tokenizers import Tokenizer

    from gpt1_jax._conversion import json_file

    content = json_file.read_json(file)  # of keys that stand twice the library takes the last
    cls = settings.get("tokenizer_class")
    gpt1 = isinstance(cls, str) and cls.startswith("OpenAIGPT")
    if gpt1:
        _check_prefix(content, file)
    try:
        saved = Tokenizer.from_file(str(file))
    except BaseException as error:
        # A panic of the library is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{file} is not a tokenizer's: {json_file.first_line(error)}") from None
    if not (gpt1 or is_gpt1(saved)) and (
        cls is not None or not _has_ends_of_words(saved.get_vocab(with_added_tokens=False))
    ):
        return read_any(saved, file)
    try:
        model, fields = _gpt1_model(saved, file), content["model"]
    except ValueError as error:
        hint = f"; tokenizer_class {_ANY_CLASS!r} in {_SETTINGS} would take it as it is"
        raise ValueError(f"{error}{'' if gpt1 else hint}") from None
    # Old versions wrote a merge as one string.
    merged = {"".join(one.split(" ") if isinstance(one, str) else one) for one in fields["merges"]}
    added = saved.get_added_tokens_decoder()
    plain = content.get("post_processor") == _PLAIN_TEMPLATE
    template = None if plain else saved.post_processor
    return _Model(file, file, model, fields["vocab"], merged, added, template)


def _has_ends_of_words(vocabulary: object) -> bool:
    """Return whether a vocabulary has tokens that end words, as GPT-1's does."""
    tokens = vocabulary if isinstance(vocabulary, dict | list) else ()
    return any(str(token).endswith(END_OF_WORD) for token in tokens)


def _read_pair(file: Path, merges: Path) -> _Model:
    """Read GPT-1's vocabulary and its merges."""
    from tokenizers import models

    from gpt1_jax._conversion import json_file

    vocabulary = json_file.read_json(file)
    content = merges.read_bytes()
    if not content.strip() and not _has_ends_of_words(vocabulary):
        raise ValueError(
            f"{merges} is empty, but must contain the merges of {file.name}; a vocabulary of "
            "whole words has no such file"
        )
    try:
        model = models.BPE.from_file(
            str(file), str(merges), continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD
        )
    except Exception as error:  # the library raises no narrower class
        raise ValueError(
            f"{file} and {merges.name} are broken: {json_file.first_line(error)}"
        ) from None
    # As the library parts lines and words: other white space is a part of a token.
    lines = content.decode().replace("\r\n", "\n").split("\n")
    merged = {line.replace(" ", "") for line in lines if not line.startswith("#version")}
    return _Model(file, merges, model, vocabulary, merged, {})


def is_gpt1(backend: tokenizers.Tokenizer) -> bool:
    """Return whether a pipeline is GPT-1's, and not another vocabulary's."""
    try:
        _gpt1_model(backend, Path())
    except ValueError:
        return False
    model: Any = backend.model
    return not model.continuing_subword_prefix


def _gpt1_model(saved: tokenizers.Tokenizer, file: Path) -> models.BPE:
    """Return the merges of a tokenizer.json whose pipeline is GPT-1's."""
    model: Any = saved.model
    normalizer = saved.normalizer
    for name, found, right in (
        ("model", type(model).__name__, "BPE"),
        ("end_of_word_suffix", getattr(model, "end_of_word_suffix", None), END_OF_WORD),
        ("normalizer", type(normalizer).__name__, "BertNormalizer"),
        ("normalizer's lowercase", getattr(normalizer, "lowercase", None), True),
        ("pre_tokenizer", type(saved.pre_tokenizer).__name__, "BertPreTokenizer"),
    ):
        if found != right:
            raise ValueError(f"{file} is not GPT-1's: {name} is {found!r}, but must be {right!r}")
    return model


def _check_prefix(content: object, file: Path) -> None:
    """Check what the library, instead of raising an error, panics about."""
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        return
    prefix = model.get("continuing_subword_prefix")
    if prefix not in (None, ""):
        raise ValueError(
            f"{file} is not GPT-1's: continuing_subword_prefix is {short(prefix)}, but must be ''"
        )


def _gpt1_pipeline(found: _Model, named: Mapping[str, AddedToken]) -> tokenizers.Tokenizer:
    """GPT-1's pipeline around its model, whose unknown token and ids are checked."""
    unk_token = named["unk_token"].content if "unk_token" in named else None
    if unk_token is None or found.model.token_to_id(unk_token) is None:
        raise ValueError(f"{found.file}: the vocabulary has no unknown token {short(unk_token)}")
    backend = pipeline(found.model, unk_token)
    check_ids(found.vocabulary, found.file)
    return backend


def pipeline(model: models.BPE, unk_token: str) -> tokenizers.Tokenizer:
    """Return the pipeline of transformers 5 around a vocabulary and its merges."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    model.unk_token, model.fuse_unk, model.dropout = unk_token, False, None
    model.byte_fallback = model.ignore_merges = False
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return backend


def _template_of(
    settings: Mapping[str, object], backend: tokenizers.Tokenizer, named: Mapping[str, AddedToken]
) -> Any:
    """Return the template of add_bos_token and add_eos_token, None without them or their tokens."""
    from tokenizers import processors

    begin, end = (
        [named[f"{name}_token"].content]
        if settings.get(f"add_{name}_token") and f"{name}_token" in named
        else []
        for name in ("bos", "eos")
    )
    if not begin + end:
        return None
    first, second = (
        [f"{piece}:{kind}" for piece in (*begin, sequence, *end)]
        for kind, sequence in enumerate(("$A", "$B"))
    )
    ids = [(token, backend.token_to_id(token)) for token in dict.fromkeys(begin + end)]
    return processors.TemplateProcessing(single=first, pair=first + second, special_tokens=ids)


def _check_template(backend: tokenizers.Tokenizer, file: Path) -> None:
    """Check that the special tokens of the template are those of the vocabulary.

    Raises:
        ValueError: one has another id there.
    """
    for pair in (None, ""):
        encoding = backend.encode("", pair)
        for token, id_ in zip(encoding.tokens, encoding.ids, strict=True):
            if backend.token_to_id(token) != id_:
                raise ValueError(
                    f"{file}: the post_processor adds the token {short(token)} with the id {id_}, "
                    f"but in the vocabulary its id is {backend.token_to_id(token)}"
                )


def _n_positions(folder: Path) -> int | None:
    """Return the positions of the model in the folder; None if there is none that can be read."""
    from gpt1_jax._conversion import config_file, layout

    try:
        return layout.sizes(config_file.read_config(folder)).n_positions
    except (OSError, ValueError):  # reading the model says what is wrong
        return None


def _check_merges(found: _Model, added: Collection[str]) -> None:
    """Check that the merges make every token of more than one symbol, added tokens aside.

    Where a file of merges is cut short, words fall apart into tokens that the model has never seen
    in their place.
    """
    lacking = [
        token
        for token in found.vocabulary
        if token not in found.merged
        and token not in added
        and len(token.removesuffix(END_OF_WORD)) > 1
        and not _MARKER.fullmatch(token)
    ]
    if lacking:
        first = min(lacking, key=lambda token: found.vocabulary[token])
        raise ValueError(
            f"{found.merges_file} has no merge that makes the token {short(first)}; tokens of the "
            f"vocabulary without a merge: {len(lacking)}. Every token of more than "
            f"one symbol needs one, unless it is an added token"
        )


def _read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json and, unless that lists the added tokens, special_tokens_map.json.

    Under "extra" are the special tokens without a name, of both files.
    """
    settings = _read_object(folder / _SETTINGS)
    extra = list(_extra(settings, folder))
    if "added_tokens_decoder" not in settings:
        legacy = _read_object(folder / "special_tokens_map.json")
        extra += _extra(legacy, folder)
        settings |= legacy
    return settings | {"extra": extra}


def _extra(fields: Mapping[str, object], folder: Path) -> Iterable[object]:
    extra = fields.get("extra_special_tokens") or fields.get("additional_special_tokens") or []
    if not isinstance(extra, list | dict):
        raise wrong(f"{folder}: extra_special_tokens", extra, "a list")
    return extra.values() if isinstance(extra, dict) else extra


def _listed_tokens(
    folder: Path, settings: Mapping[str, object], saved: Mapping[int, AddedToken], special: set[str]
) -> dict[int, AddedToken]:
    """Return the added tokens that the files list with ids, from where transformers reads them."""
    if "added_tokens_decoder" not in settings:
        added = _read_object(folder / "added_tokens.json").items()
        fields = ((index, {"content": text, "special": text in special}) for text, index in added)
        return {**_by_id(fields, folder), **saved}
    decoder = settings["added_tokens_decoder"]
    if not isinstance(decoder, dict):
        raise ValueError(f"{folder}: added_tokens_decoder must be an object")
    return _by_id(decoder.items(), folder)


def _by_id(found: Iterable[tuple[object, object]], folder: Path) -> dict[int, AddedToken]:
    listed = {}
    for index, fields in found:
        # An id of added_tokens.json is a number, a key of added_tokens_decoder a string.
        if not re.fullmatch("[0-9]{1,10}", str(index)):
            raise ValueError(
                f"{folder}: the added token {short(fields)} has the id {short(index)}, which "
                f"must be a number from 0 on"
            )
        listed[int(str(index))] = _added_token(fields, folder)
    return listed


def _added_token(value: object, folder: Path, *, special: bool = False) -> AddedToken:
    """Return a token from its form in the files: a text, or an object with AddedToken's fields."""
    from tokenizers import AddedToken

    fields: dict[str, Any] = {"content": value} if isinstance(value, str) else {}
    if isinstance(value, dict):
        fields = {name: value[name] for name in ("content", *_FLAGS) if name in value}
    if not isinstance(fields.get("content"), str) or not fields["content"]:
        raise ValueError(
            f"{folder}: {short(value)} is not a token; it must be a text, or an object with one "
            f"as its content"
        )
    for name in _FLAGS:
        place = f"{folder}: {name} of the token {short(fields['content'])}"
        check(place, fields.get(name, False), BOOL)
    fields["special"] = special or fields.get("special", False)
    return AddedToken(**fields)


def _read_object(file: Path) -> dict[str, object]:
    """Return the JSON object in a file; an empty one if there is no file."""
    from gpt1_jax._conversion import json_file

    content = json_file.read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return content


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
