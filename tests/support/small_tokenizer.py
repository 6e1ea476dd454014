"""A byte-pair vocabulary in the layout of GPT-1's, small enough to read."""

import json
from pathlib import Path

SYMBOLS = "abcdefghijklmnopqrstuvwxyz.,!?'\"-<>_[]/0123456789"
MERGES = ["t h", "th e</w>", "i s</w>", "i n", "in g</w>", "p r", "e s", "pr es"]
# <unk>, symbols, symbols that end a word, results of merges, newline.
TOKENS = [
    "<unk>",
    *SYMBOLS,
    *(symbol + "</w>" for symbol in SYMBOLS),
    *(merge.replace(" ", "") for merge in MERGES),
    "\n</w>",
]
SIZE = len(TOKENS)


def small_vocab() -> dict[str, int]:
    """Tokens and their ids."""
    return {token: index for index, token in enumerate(TOKENS)}


def write_small(folder: Path, names: tuple[str, str] = ("vocab.json", "merges.txt")) -> Path:
    """The files of the vocabulary and the merges in ``folder``, which is made."""
    folder.mkdir(exist_ok=True)
    (folder / names[0]).write_text(json.dumps(small_vocab()))
    (folder / names[1]).write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    return folder
