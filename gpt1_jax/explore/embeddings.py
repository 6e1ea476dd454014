"""The embedding table: a token's row, tokens near each other, and ``h_0`` that it gives."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Column, Table
from rich.text import Text

from gpt1_jax.explore.display import Renderable, token_styles
from gpt1_jax.explore.forward_trace import pad_ids
from gpt1_jax.model import OpenAIGPTModel
from gpt1_jax.nn.int8 import QArray
from gpt1_jax.nn.layers import embedding_table
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel
from gpt1_jax.pure import functional, not_finite
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import END_OF_WORD

SIGNS = {"+": 1.0, "-": -1.0}


@dataclasses.dataclass(frozen=True, repr=False)
class TokenEmbedding:
    """A token's row of the embedding table.

    Attributes:
        token: as the vocabulary spells it.
        id: its id, which is the number of the row.
        values: (E,) float32.
    """

    token: str
    id: int
    values: np.ndarray

    def __repr__(self) -> str:
        head = f"{self.token!r}  id {self.id}  shape {self.values.shape}"
        length = np.linalg.norm(self.values)
        values = np.array2string(
            self.values, precision=4, suppress_small=True, max_line_width=80, threshold=16
        )
        return f"{head}  length {length:.4f}\n{values}"


def embedding(
    model: OpenAIGPTPreTrainedModel, tokenizer: Tokenizer, token: str | int
) -> TokenEmbedding:
    """Return the embedding of a token.

    Args:
        model: whose embedding table is looked at.
        tokenizer: the model's.
        token: a word that is a single token, a piece as the vocabulary spells it, or an id.

    Raises:
        ValueError: a word that is several tokens, or none; an id out of range; a tokenizer that
            knows more tokens than the model.
    """
    embeddings = _embeddings_of(model, tokenizer)
    id_ = _single_id(tokenizer, token) if isinstance(token, str) else operator.index(token)
    if not 0 <= id_ < len(tokenizer):
        raise ValueError(f"id {id_} is out of range: ids are 0 to {len(tokenizer) - 1}")
    return TokenEmbedding(tokenizer.convert_ids_to_tokens(id_), id_, embeddings[id_])


@dataclasses.dataclass(frozen=True, repr=False)
class EmbeddingCheck:
    """``h_0 = U W_e + W_p``, what goes into the first block, in two ways.

    Attributes:
        product: (T, E) float32: one-hot rows U (T, V) times the embedding table W_e (V, E), plus
            the first T rows of the table of positions W_p.
        look_up: (T, E) float32: rows looked up, as the model does it.
    """

    product: np.ndarray
    look_up: np.ndarray

    @property
    def difference(self) -> float:
        """The largest difference of the two: 0, since all but one of a product's terms are 0."""
        return float(np.max(np.abs(self.product - self.look_up)))

    def __repr__(self) -> str:
        return f"h_0 {self.look_up.shape}: U W_e + W_p and the look-up differ by {self.difference}"


def h_0(model: OpenAIGPTPreTrainedModel, ids: Sequence[int]) -> EmbeddingCheck:
    """Return the state before the first block, of one sequence, as the paper writes it and as
    the model computes it (Radford et al. 2018, equation 2).

    Args:
        model: any of the four, in float32.
        ids: (T,) token ids.

    Raises:
        ValueError: no ids, more than the model has positions, or one out of range.
    """
    body = _body(model)
    row = [operator.index(id_) for id_ in ids]
    if not row:
        raise ValueError("there are no ids: give one at least")
    apply, params = functional(body)
    padded = pad_ids(row, body.config.n_positions)
    look_up = apply(params, padded, output_hidden_states=True).hidden_states[0][0]
    tokens_embed = _table(body)  # W_e
    positions_embed = body.positions_embed.embedding.get_value()  # W_p
    U = jax.nn.one_hot(padded[0], len(tokens_embed), dtype=tokens_embed.dtype)
    # On GPU and TPU a product is coarser than float32 by default.
    product = jnp.matmul(U, tokens_embed, precision="highest") + positions_embed[: padded.size]
    return EmbeddingCheck(
        *(np.asarray(each, np.float32)[: len(row)] for each in (product, look_up))
    )


class Neighbour(NamedTuple):
    """A token whose embedding points in much the same direction.

    Attributes:
        token: as the vocabulary spells it.
        id: its id.
        cosine: of the angle between the embeddings, -1 to 1.
    """

    token: str
    id: int
    cosine: float


class Neighbours(Renderable, tuple[Neighbour, ...]):
    """Tokens, the nearest first: printed, or at the end of a notebook's cell, as a table."""

    __slots__ = ()

    def __rich__(self) -> Table:
        table = Table.grid(
            Column("cosine", justify="right"),
            "token",
            Column("id", justify="right"),
            padding=(0, 2),
        )
        table.show_header = True
        styles = token_styles([each.id for each in self], [""] * len(self))
        for (token, id_, cosine), style in zip(self, styles, strict=True):
            table.add_row(f"{cosine:6.3f}", Text.assemble((repr(token), style)), str(id_))
        return table


def nearest(
    model: OpenAIGPTPreTrainedModel, tokenizer: Tokenizer, words: str, count: int = 10
) -> Neighbours:
    """Return the tokens whose embeddings are nearest to a word's, or to a sum of words'.

    In "king - man + woman" each word counts with its embedding at length 1 (3CosAdd, Levy and
    Goldberg 2014). The words themselves are left out.

    Args:
        model: whose embedding table is looked at.
        tokenizer: the model's.
        words: a word, or words with + or - between them, all between spaces. A word must be a
            single token; a piece of a word is given as the vocabulary spells it ("ing</w>" ends
            one, "ing" does not), where that is not a word.
        count: how many.

    Returns:
        Up to ``count`` neighbours, the nearest first.

    Raises:
        ValueError: no word, a word that is several tokens or none, words without a sign between
            them, a count below 1, a tokenizer that knows more tokens than the model, or embeddings
            that are not finite.
    """
    count = operator.index(count)
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    terms = _terms(tokenizer, words)
    embeddings = _embeddings_of(model, tokenizer)
    lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    if not np.isfinite(lengths).all():
        raise not_finite("the embeddings", model.params)
    tiny = np.finfo(embeddings.dtype).tiny  # in place of a length of 0
    directions = embeddings / np.maximum(lengths, tiny)
    target = np.sum([sign * directions[id_] for sign, id_ in terms], axis=0)
    cosines = directions @ target / max(float(np.linalg.norm(target)), float(tiny))
    own = {id_ for _, id_ in terms}
    # A stable sort: of equal ones the lower id comes first.
    ids = np.argsort(-cosines, kind="stable")[: count + len(own)].tolist()
    ids = [id_ for id_ in ids if id_ not in own][:count]
    return Neighbours(
        Neighbour(tokenizer.convert_ids_to_tokens(id_), id_, float(cosines[id_])) for id_ in ids
    )


def _body(model: OpenAIGPTPreTrainedModel) -> OpenAIGPTModel:
    return model if isinstance(model, OpenAIGPTModel) else vars(model)["transformer"]


def _table(body: OpenAIGPTModel) -> jax.Array:
    """The embeddings (V, E)."""
    table = embedding_table(body.tokens_embed)
    if isinstance(table, QArray):
        return table.dequantize().astype(body.tokens_embed.dtype)
    return table


def _embeddings_of(model: OpenAIGPTPreTrainedModel, tokenizer: Tokenizer) -> np.ndarray:
    """The embeddings (V, E) of the tokenizer's tokens."""
    # A table may have more rows than there are tokens.
    embeddings = np.asarray(_table(_body(model)), np.float32)
    if len(embeddings) < len(tokenizer):
        raise ValueError(
            f"the model knows {len(embeddings)} tokens, but the tokenizer {len(tokenizer)}"
        )
    return embeddings[: len(tokenizer)]


def _terms(tokenizer: Tokenizer, words: str) -> list[tuple[float, int]]:
    """The signs and ids of the words."""
    parts = words.split()
    if not parts:
        raise ValueError("give a word, or words with + or - between them")
    if len(parts) > 1 and parts[0] not in SIGNS:
        parts = ["+", *parts]
    if len(parts) == 1:
        return [(1.0, _single_id(tokenizer, parts[0]))]
    terms = []
    for place in range(0, len(parts), 2):
        sign, word = parts[place], "".join(parts[place + 1 : place + 2])
        if sign not in SIGNS or not word or word in SIGNS:
            raise ValueError(f"{words!r} must be words with + or - between them, all with spaces")
        terms.append((SIGNS[sign], _single_id(tokenizer, word)))
    return terms


def _single_id(tokenizer: Tokenizer, word: str) -> int:
    ids = tokenizer.encode(word, add_special_tokens=False)
    unknown = tokenizer.unk_token_id
    if len(ids) == 1 and (ids[0] != unknown or word == tokenizer.unk_token):
        return ids[0]
    vocabulary = tokenizer.get_vocab()
    if word in vocabulary:
        return vocabulary[word]
    pieces = " ".join(map(repr, tokenizer.convert_ids_to_tokens(ids)))
    raise ValueError(
        f"{word!r} is not a single token but {pieces or 'none'}; a piece is given as spelled here, "
        f"such as 'ing{END_OF_WORD}'"
    )
