"""Folders of GPT-1s with each kind of vocabulary, which all have the same number of tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import tokenizers
from support.small_tokenizer import SIZE, write_small
from tokenizers import decoders, models, pre_tokenizers

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[speaker1]", "[speaker2]", *"你好世界、"]
BERT += ["hello", "##ing", "cafe", "Café", "HELLO", "the", "press"]
WORDS = ["<unk>", "the", "press", "hello"]


def write_bert(folder: Path, **settings: object) -> Path:
    tokens = BERT + [f"unused{i}" for i in range(len(BERT), SIZE)]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_unigram(folder: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json of another kind, with a token for the end of a text."""
    pieces = ["<unk>", "</s>", "▁", "▁the", "▁press", *"abcdefghijklmnopqrstuvwxyz,."]
    pieces += [f"unused{i}" for i in range(len(pieces), SIZE)]
    scores = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def write_words(folder: Path, *, as_list: bool = True) -> Path:
    words = WORDS + [f"unused{i}" for i in range(len(WORDS), SIZE)]
    content = words if as_list else {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(content))
    return folder


# Of each layout what writes its tokenizer.
LAYOUTS: dict[str, Callable[[Path], object]] = {
    "gpt1": write_small,
    "bert": write_bert,
    "any": write_unigram,
    "words": write_words,
    "none": lambda folder: None,
}
