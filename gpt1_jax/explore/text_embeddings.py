"""Embed texts: the states of a layer for many texts, in few compiled programs for any lengths.

Texts of like lengths share a batch, padded on the right, where causal attention never looks. Of the
states, those of layers beyond the chosen one are never computed.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from gpt1_jax.checks import INTEGER, Rule, at_least, check, is_integer, wrong
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.nn.validation import check_ids, host_array
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel, Params
from gpt1_jax.pure import ModelStructure, merge, not_finite, split
from gpt1_jax.scoring import batch_shapes
from gpt1_jax.sharding.mesh import batch_shardings, mesh_of, shard
from gpt1_jax.text.tokenizer import Tokenizer

Pooling = Literal["mean", "last", "none", "word"]
POOLING = Rule("mean, last, none or word", lambda pooling: pooling in get_args(Pooling))
Text = str | Sequence[str] | Sequence[int] | np.ndarray


class Tokens(NamedTuple):
    """A text as it is read.

    Attributes:
        ids: (T,) int32.
        ends: for each word the place of its last token; None where words are not asked for.
        words: the words, likewise.
    """

    ids: np.ndarray
    ends: np.ndarray | None = None
    words: tuple[str, ...] | None = None


def embed(
    model: OpenAIGPTPreTrainedModel,
    texts: Sequence[Text],
    *,
    layer: int = -1,
    pooling: Pooling = "mean",
    tokenizer: Tokenizer | None = None,
    batch_tokens: int = 4096,
) -> Any:
    """Return the states of a layer for many texts.

    In float32 the numbers do not depend on the other texts, but for rounding.

    Args:
        model: any of the models in any precision, on one device or on a mesh.
        texts: strings, lists of words, or token ids (T,) integer, of any lengths up to the model's
            positions; all strings and words, or all ids.
        layer: 0 for the sum of the embeddings, n for the output of block n; negative numbers count
            from the last. It is the number among transformers' ``hidden_states``.
        pooling: "mean" for the mean state of a text's tokens, special tokens of the tokenizer's
            template included; "last" for the last token's state; "none" for the states of all
            tokens; or "word" for the state of each word's last token. The words of a string are
            what the tokenizer splits it into before it looks for tokens, so punctuation marks are
            words of their own.
        tokenizer: the model's tokenizer, which strings and words need.
        batch_tokens: the most tokens that are computed at once, padding included.

    Returns:
        (n, E) float32; with "none" a list of (T, E), and with "word" of (words, E).

    Raises:
        TypeError: ``texts`` is a single string, texts and ids are mixed, or there is no tokenizer.
        ValueError: a text has no tokens or more than n_positions, a given word has no tokens, ids
            are out of range, the layer does not exist, or the model computes NaN.
    """
    tokens = tokenize(model.config, texts, tokenizer, words=pooling == "word")
    batches = embed_batches(model, tokens, layer=layer, pooling=pooling, batch_tokens=batch_tokens)
    rows = dict(batches)
    ordered = [rows[i] for i in range(len(rows))]
    if pooling in ("none", "word"):
        return ordered
    return np.stack(ordered) if ordered else np.zeros((0, model.config.n_embd), np.float32)


def tokenize(
    config: OpenAIGPTConfig,
    texts: Sequence[Text],
    tokenizer: Tokenizer | None = None,
    *,
    words: bool = False,
) -> list[Tokens]:
    """Return the tokens of texts as ``embed`` takes them, checked; with their words if asked for.

    Errors are those of ``embed``.
    """
    if isinstance(texts, str):
        raise TypeError("texts is a single string, but must be a list of texts")
    texts = list(texts)
    are_ids = {not _is_text(text) for text in texts}
    if len(are_ids) > 1:
        raise TypeError("texts must be all strings and words or all ids, but are mixed")
    if are_ids == {True}:
        if words:
            raise ValueError("pooling='word' needs texts, and not ids")
        found = []
        for number, text in enumerate(texts):
            ids = host_array(f"text {number}", text)
            if ids.ndim != 1:
                raise ValueError(f"text {number} has shape {ids.shape}, but must be (T,)")
            found.append(Tokens(ids))
    else:
        found = [
            _tokens_of(f"text {number}", text, tokenizer, words)
            for number, text in enumerate(texts)
        ]
    for number, text in enumerate(found):
        if not 0 < len(text.ids) <= config.n_positions:
            raise ValueError(
                f"text {number} has {len(text.ids) or 'no'} tokens, but must have 1 to n_positions "
                f"= {config.n_positions}"
            )
        check_ids(f"text {number}", text.ids, config.vocab_size, "vocab_size")
    return [text._replace(ids=text.ids.astype(np.int32)) for text in found]


def _is_text(text: object) -> bool:
    if isinstance(text, str):
        return True
    return isinstance(text, list | tuple) and any(isinstance(word, str) for word in text)


def _tokens_of(place: str, text: Any, tokenizer: Tokenizer | None, words: bool) -> Tokens:
    """Return the tokens of a string or of a list of words."""
    if tokenizer is None:
        raise TypeError("texts are strings, which need a tokenizer; ids do without one")
    given = not isinstance(text, str)
    if not given and not words:
        return Tokens(np.asarray(tokenizer.encode(text), np.int32))
    encoding = tokenizer([text], is_split_into_words=given, return_offsets_mapping=True)
    ids, spans = (encoding[name][0] for name in ("input_ids", "offset_mapping"))
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for i, number in enumerate(encoding.word_ids(0)):
        if number is not None:  # not a special token of the tokenizer's template
            starts.setdefault(number, spans[i][0])
            ends[number] = i
    if given:
        for number, word in enumerate(text):
            if number not in ends:
                raise ValueError(f"{place}: the word {word!r} has no tokens")
        names = tuple(text)
    else:
        names = tuple(text[start : spans[ends[n]][1]] for n, start in starts.items())
    return Tokens(np.asarray(ids, np.int32), np.asarray(list(ends.values()), np.int32), names)


def embed_batches(
    model: OpenAIGPTPreTrainedModel,
    texts: Sequence[Tokens],
    *,
    layer: int = -1,
    pooling: Pooling = "mean",
    batch_tokens: int = 4096,
) -> Iterator[tuple[int, np.ndarray]]:
    """Return an iterator over the number and the embedding of each text, as batches are done.

    Args:
        model: see ``embed``.
        texts: that ``tokenize`` returned.
        layer: see ``embed``, as the others.
        pooling: likewise.
        batch_tokens: likewise.

    Raises:
        ValueError: see ``embed``; all but NaN is raised at the call.
    """
    n_layer, n_positions = model.config.n_layer, model.config.n_positions
    if not is_integer(layer) or not -n_layer - 1 <= layer <= n_layer:
        right = f"an integer in [{-n_layer - 1}, {n_layer}], n_layer being {n_layer}"
        raise wrong("layer", layer, right)
    check("pooling", pooling, POOLING)
    check("batch_tokens", batch_tokens, INTEGER, at_least(1))
    layer %= n_layer + 1
    # The longest first: if memory does not suffice for them, that shows at once.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids), reverse=True)

    def embedded() -> Iterator[tuple[int, np.ndarray]]:
        structure, params = split(model)
        mesh = mesh_of(params)
        lengths, following = [len(texts[i].ids) for i in order], iter(order)
        pool = "none" if pooling == "word" else pooling
        for shape in batch_shapes(lengths, n_positions, batch_tokens, mesh):
            batch = list(itertools.islice(following, shape[0]))
            inputs = ids, sizes = np.zeros(shape, np.int32), np.ones(shape[0], np.int32)
            for row, i in enumerate(batch):
                sizes[row] = len(texts[i].ids)
                ids[row, : sizes[row]] = texts[i].ids
            inputs = inputs if mesh is None else shard(inputs, batch_shardings(mesh, inputs))
            states = np.asarray(_states(structure, params, *inputs, layer, pool))
            for row, i in enumerate(batch):
                found = states[row]
                if pooling == "none":
                    found = found[: sizes[row]]
                elif pooling == "word":
                    found = found[texts[i].ends]
                if not np.isfinite(found).all():
                    raise not_finite("the states", params)
                yield i, found

    return embedded()


@functools.partial(jax.jit, static_argnames=("structure", "layer", "pooling"))
def _states(
    structure: ModelStructure[Any],
    params: Params,
    ids: Int32[Array, "R L"],
    lengths: Int32[Array, "R"],
    layer: int,
    pooling: Literal["mean", "last", "none"],
) -> Float[Array, "R ... E"]:
    """Return the states of a layer, pooled: (R, E), or (R, L, E) with "none".

    Args:
        structure: of the model.
        params: of the model.
        ids: padded on the right.
        lengths: of the texts.
        layer: in [0, n_layer].
        pooling: see ``embed``.
    """
    model = merge(structure, params)
    body = getattr(model, "transformer", model)
    body.h = nnx.List(list(body.h)[:layer])  # of the merged model: a value of this trace alone
    states = body.forward(ids).last_hidden_state.astype(jnp.float32)
    if pooling == "none":
        return states
    if pooling == "last":
        return jnp.take_along_axis(states, (lengths - 1)[:, None, None], axis=1)[:, 0]
    is_text = jnp.arange(ids.shape[1], dtype=jnp.int32)[None, :] < lengths[:, None]
    total = jnp.where(is_text[:, :, None], states, 0).sum(axis=1)
    return total / lengths[:, None].astype(jnp.float32)
