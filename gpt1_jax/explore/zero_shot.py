"""What a language model knows of tasks that it was not trained for: the paper's four heuristics.

Radford et al., "Improving Language Understanding by Generative Pre-Training" (2018), section 5,
where they follow the tasks through pre-training. Each is a comparison of ``gpt1.score``'s means.
What OpenAI's weights reach was not measured here.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from gpt1_jax.scoring import LanguageModel, score
from gpt1_jax.text.tokenizer import Tokenizer


def acceptability(
    model: LanguageModel, tokenizer: Tokenizer, sentences: Sequence[str]
) -> Float[np.ndarray, "N"]:
    """Return the mean log-probability of each sentence's tokens, as for CoLA.

    The first token has no probability and does not count. A sentence is acceptable above a
    threshold, which is to be found on labelled sentences.

    Args:
        model: a language model.
        tokenizer: the model's.
        sentences: N of at least two tokens; NaN where there is one.
    """
    return np.asarray([each.mean for each in score(model, sentences, tokenizer=tokenizer)])


def sentiment(
    model: LanguageModel,
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    *,
    suffix: str = "very",
    words: tuple[str, str] = ("positive", "negative"),
) -> Float[np.ndarray, "N"]:
    """Return how much likelier than "negative" is "positive" after each sentence, as for SST-2.

    Args:
        model: a language model.
        tokenizer: the model's.
        sentences: N.
        suffix: appended to each sentence.
        words: to compare.

    Returns:
        The logarithm of the ratio of their probabilities; above 0 the first word is the likelier.
    """
    contexts = [f"{sentence} {suffix}" for sentence in sentences]
    means = _means(model, tokenizer, [[(each, f" {word}") for word in words] for each in contexts])
    return np.asarray([first - second for first, second in means]).reshape(-1)


def best_answers(
    model: LanguageModel,
    tokenizer: Tokenizer,
    contexts: Sequence[str],
    answers: Sequence[Sequence[str]],
) -> Int[np.ndarray, "N"]:
    """Return the number of the likeliest answer to each question, as for RACE.

    Args:
        model: a language model.
        tokenizer: the model's.
        contexts: N documents, each with its question.
        answers: to each question. They are compared by the mean log-probability of their tokens.

    Raises:
        ValueError: there are not as many lists of answers as contexts, one is empty, or an answer
            has no probability: it is a single token, and its context is empty.
    """
    if len(contexts) != len(answers):
        raise ValueError(f"there are {len(contexts)} contexts, but {len(answers)} lists of answers")
    pairs = zip(contexts, answers, strict=True)
    groups = [[(context, f" {each}") for each in own] for context, own in pairs]
    return _best("answers", _means(model, tokenizer, groups))


def best_referents(
    model: LanguageModel,
    tokenizer: Tokenizer,
    sentences: Sequence[tuple[str, Sequence[str], str]],
) -> Int[np.ndarray, "N"]:
    """Return the number of what each pronoun most likely stands for, as for DPRD (Winograd).

    Args:
        model: a language model.
        tokenizer: the model's.
        sentences: N: what stands before the pronoun, the nouns to put in its place, and the rest of
            the sentence, by the mean log-probability of whose tokens they are compared.
    """
    groups = [
        [(f"{before} {noun}", f" {rest}") for noun in nouns] for before, nouns, rest in sentences
    ]
    return _best("nouns", _means(model, tokenizer, groups))


def _best(what: str, means: Sequence[np.ndarray]) -> Int[np.ndarray, "N"]:
    for number, row in enumerate(means):
        if not len(row):
            raise ValueError(f"{what} {number} are empty, but must be at least one")
        if np.isnan(row).any():  # which argmax would take for the greatest
            raise ValueError(
                f"{what} {number} cannot be compared: number {np.isnan(row).argmax()} is a single "
                "token without a context, which has no probability"
            )
    return np.asarray([row.argmax() for row in means], np.int64)


def _means(
    model: LanguageModel, tokenizer: Tokenizer, groups: Sequence[Sequence[tuple[str, str]]]
) -> list[np.ndarray]:
    """Return the mean log-probability of each text after its context, group by group."""
    contexts, texts = [[pair[i] for group in groups for pair in group] for i in (0, 1)]
    means = np.asarray([each.mean for each in score(model, texts, contexts, tokenizer=tokenizer)])
    return np.split(means, np.cumsum(list(map(len, groups)), dtype=int))[:-1]
