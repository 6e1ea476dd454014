"""minicons, which scores texts with Hugging Face's model in torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import hugging_face
from benchmarks.timing import clock

BATCH_SIZES = (1, 4, 16)
TRIED = 16  # texts


def score(folder: Path) -> Callable[[Sequence[str]], list[np.ndarray]]:
    """Return the function from texts to log-probabilities of their tokens, without the first.

    It takes texts in the order given, in the batch size that scores the first texts fastest.
    """
    from minicons import scorer
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    # Without a pad token minicons would add one, and with it a row to the embedding.
    tokenizer.pad_token = tokenizer.unk_token
    model: Any = scorer.IncrementalLMScorer(hugging_face.load(folder), tokenizer=tokenizer)

    def batches(texts: Sequence[str], size: int) -> list[np.ndarray]:
        found = []
        for begin in range(0, len(texts), size):
            for tokens in model.token_score(list(texts[begin : begin + size])):
                found.append(np.asarray([log_prob for _, log_prob in tokens[1:]], np.float32))
        return found

    fastest: dict[int, int] = {}  # by the number of texts

    def run(texts: Sequence[str]) -> list[np.ndarray]:
        if not texts:
            return []
        if len(texts) not in fastest:
            fastest[len(texts)] = min(BATCH_SIZES, key=lambda size: _seconds(batches, texts, size))
        return batches(texts, fastest[len(texts)])

    return run


def _seconds(batches: Callable[..., object], texts: Sequence[str], size: int) -> float:
    begin = clock()
    batches(texts[:TRIED], size)
    return clock() - begin
