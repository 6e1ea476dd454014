"""Vocabularies that are not GPT-1's: BERT's vocab.txt, whole words, and any tokenizer.json.

The pipelines are those of the ``tokenizers`` library and of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt1_jax.checks import BOOL, check, short

if TYPE_CHECKING:  # importing it takes 50 ms, which `import gpt1_jax` need not pay
    import tokenizers
    from tokenizers import AddedToken

_BERT = {f"{name.lower()}_token": f"[{name}]" for name in ("UNK", "SEP", "PAD", "CLS", "MASK")}


class OtherVocabulary(NamedTuple):
    """A vocabulary that is not GPT-1's, in its pipeline.

    Attributes:
        file: that it was read from.
        backend: the pipeline.
        added: the tokens that tokenizer.json adds, by their ids.
        defaults: the special tokens, unless the settings name others.
    """

    file: Path
    backend: tokenizers.Tokenizer
    added: dict[int, AddedToken]
    defaults: dict[str, str]


def read_any(saved: tokenizers.Tokenizer, file: Path) -> OtherVocabulary:
    """Take the pipeline of a tokenizer.json as it is, but for padding and truncation.

    A call of the tokenizer says how it pads and truncates.
    """
    saved.no_padding()
    saved.no_truncation()
    model: Any = saved.model
    unknown: str | None = getattr(model, "unk_token", None)
    added = saved.get_added_tokens_decoder()
    if unknown is None or saved.token_to_id(unknown) is None:
        return OtherVocabulary(file, saved, added, {})
    return OtherVocabulary(file, saved, added, {"unk_token": unknown})


def read_bert(file: Path, settings: Mapping[str, object]) -> OtherVocabulary:
    """Read a vocab.txt, one token a line, into the pipeline of transformers' ``BertTokenizer``.

    Of BERT's special tokens, those that the file lacks stay unset.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    flags: dict[str, Any] = {"do_lower_case": True, "tokenize_chinese_chars": True}
    flags["strip_accents"] = None  # as do_lower_case
    flags |= {name: settings[name] for name in flags if settings.get(name) is not None}
    for name, flag in flags.items():
        if flag is not None:
            check(f"{file.parent}: {name}", flag, BOOL)
    try:
        lines = file.read_bytes().decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: byte {error.start + 1} is not UTF-8") from None
    vocabulary = words_of(lines, file)
    unknown = _unknown(vocabulary, file, settings.get("unk_token", _BERT["unk_token"]))
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=flags["tokenize_chinese_chars"],
        strip_accents=flags["strip_accents"],
        lowercase=flags["do_lower_case"],
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    known = {name: token for name, token in _BERT.items() if token in vocabulary}
    return OtherVocabulary(file, backend, {}, known)


def bert_template(backend: tokenizers.Tokenizer, named: Mapping[str, AddedToken]) -> Any:
    """Return the template [CLS] text [SEP], or None where one of the two is unset."""
    from tokenizers import processors

    if not {"cls_token", "sep_token"} <= named.keys():
        return None
    first, last = named["cls_token"].content, named["sep_token"].content
    single = [f"{first}:0", "$A:0", f"{last}:0"]
    return processors.TemplateProcessing(
        single=single,
        pair=[*single, "$B:1", f"{last}:1"],
        special_tokens=[(token, backend.token_to_id(token)) for token in {first, last}],
    )


def read_words(
    vocabulary: dict[str, int], file: Path, settings: Mapping[str, object]
) -> OtherVocabulary:
    """Make a pipeline of whole words, which are split at white space and not changed."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    unknown = _unknown(vocabulary, file, settings.get("unk_token", "<unk>"))
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return OtherVocabulary(file, backend, {}, {"unk_token": unknown})


def words_of(content: object, file: Path) -> dict[str, int]:
    """Return the ids of tokens that are given as a list, or as an object with their ids.

    Raises:
        ValueError: it is neither, a token is repeated, or the ids are not 0, 1, 2 and so on.
    """
    vocabulary: dict[Any, Any] = {}
    if isinstance(content, dict):
        vocabulary = content
    elif isinstance(content, list) and all(isinstance(word, str) for word in content):
        for index, word in enumerate(content):
            if vocabulary.setdefault(word, index) != index:
                raise ValueError(f"{file} contains the token {short(word)} more than once")
    if not vocabulary:
        raise ValueError(f"{file} must contain tokens: a list of them, or an object with their ids")
    check_ids(vocabulary, file)
    return vocabulary


def check_ids(vocabulary: Mapping[str, object], file: Path) -> None:
    """Check that the ids of a vocabulary are 0, 1, 2 and so on."""
    size = len(vocabulary)
    ids = {index for index in vocabulary.values() if type(index) is int}
    for index in range(size):
        if index not in ids:
            right = f"its {size} tokens must have the ids 0 to {size - 1}"
            raise ValueError(f"{file}: no token has the id {index}, but {right}")


def _unknown(vocabulary: Mapping[str, int], file: Path, token: object) -> str:
    """Return the unknown token of a setting, if the vocabulary has it."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or content not in vocabulary:
        raise ValueError(f"{file}: the vocabulary has no unknown token {short(content)}")
    return content
