"""Looking into a model: its tree as torch prints it, text as tokens, tokens near each other."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from flax import nnx

from gpt1_jax.layers import TiedLinear
from gpt1_jax.model import OpenAIGPTModel
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel
from gpt1_jax.tokenizer_files import END_OF_WORD

if TYPE_CHECKING:
    from gpt1_jax.tokenizer import Tokenizer

SIGNS = {"+": 1.0, "-": -1.0}

# What torch prints of a layer, by Flax's names.
SHOWN = {
    nnx.Linear: ("in_features", "out_features", "use_bias"),
    TiedLinear: ("in_features", "out_features", "use_bias"),
    nnx.Embed: ("num_embeddings", "features"),
    nnx.LayerNorm: ("num_features", "epsilon"),
    nnx.Dropout: ("rate",),
}

# torch's order of the children. A model that was split and merged, as by loading, has lost it.
ORDER = (
    *("transformer", "tokens_embed", "positions_embed", "drop", "h"),
    *("attn", "c_attn", "c_fc", "c_proj", "act", "attn_dropout", "resid_dropout", "dropout"),
    *("ln_1", "mlp", "ln_2"),
    *("lm_head", "score", "multiple_choice_head"),
    *("summary", "activation", "first_dropout", "last_dropout"),
)


def tree(model: nnx.Module) -> str:
    """Return the modules of a model as torch prints them, with Flax's layers.

    Children stand in torch's order; equal neighbours in a list are written once, as
    ``(0-11): 12 x Block(``.
    """
    return "\n".join(_lines(model))


def _lines(module: Any) -> list[str]:
    """The lines of one module."""
    if not isinstance(module, nnx.Module):  # an activation
        return [f"{module.__name__}()"]
    name = type(module).__name__
    if type(module) in SHOWN:
        shown = ", ".join(f"{field}={getattr(module, field)}" for field in SHOWN[type(module)])
        return [f"{name}({shown})"]
    lines = [f"{name}("]
    for label, (first, *rest) in _children(module):
        lines += [f"  ({label}): {first}", *(f"  {line}" for line in rest)]
    return [*lines, ")"]


def _children(module: nnx.Module) -> Iterator[tuple[str, list[str]]]:
    """Yield the label and the lines of each child."""
    if not isinstance(module, nnx.List):
        children = {
            label: child
            for label, child in vars(module).items()
            if isinstance(child, nnx.Module) or callable(child)
        }
        known = [label for label in ORDER if label in children]
        for label in (*known, *(label for label in children if label not in ORDER)):
            yield label, _lines(children[label])
        return
    blocks = [_lines(child) for child in module]
    start = 0
    for end in range(1, len(blocks) + 1):
        if end == len(blocks) or blocks[end] != blocks[start]:
            first, *rest = blocks[start]
            if end - start > 1:
                yield f"{start}-{end - 1}", [f"{end - start} x {first}", *rest]
            else:
                yield str(start), blocks[start]
            start = end


def token_table(tokenizer: "Tokenizer", ids: Sequence[int], *, ids_first: bool = False) -> str:
    """Return one line for each id, aligned: its place, and the token -> the id, or the id -> it."""
    tokens = map(repr, tokenizer.convert_ids_to_tokens(list(ids)))
    rows = [
        (str(place), token, str(id_))
        for place, (token, id_) in enumerate(zip(tokens, ids, strict=True))
    ]
    place_width, token_width, id_width = (
        max((len(row[column]) for row in rows), default=0) for column in range(3)
    )
    lines = []
    for place, token, id_ in rows:
        token, id_ = f"{token:<{token_width}}", f"{id_:>{id_width}}"
        left, right = (id_, token.rstrip()) if ids_first else (token, id_)
        lines.append(f"{place:>{place_width}}  {left}  ->  {right}")
    return "\n".join(lines)


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


def nearest(
    model: OpenAIGPTPreTrainedModel, tokenizer: "Tokenizer", words: str, count: int = 10
) -> list[Neighbour]:
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
            them, a count below 1, or a tokenizer that knows more tokens than the model.
    """
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    terms = _terms(tokenizer, words)
    body: Any = model if isinstance(model, OpenAIGPTModel) else vars(model)["transformer"]
    # A table may have more rows than there are tokens.
    table = np.asarray(body.tokens_embed.embedding.get_value(), np.float32)[: len(tokenizer)]
    if len(table) < len(tokenizer):
        raise ValueError(f"the model knows {len(table)} tokens, but the tokenizer {len(tokenizer)}")
    lengths = np.linalg.norm(table, axis=-1, keepdims=True)
    tiny = np.finfo(table.dtype).tiny  # in place of a length of 0
    table = table / np.maximum(lengths, tiny)
    target = np.sum([sign * table[id_] for sign, id_ in terms], axis=0)
    cosines = table @ target / max(float(np.linalg.norm(target)), float(tiny))
    own = {id_ for _, id_ in terms}
    # A stable sort: of equal ones the lower id comes first.
    ids = np.argsort(-cosines, kind="stable")[: count + len(own)].tolist()
    ids = [id_ for id_ in ids if id_ not in own][:count]
    return [
        Neighbour(tokenizer.convert_ids_to_tokens(id_), id_, float(cosines[id_])) for id_ in ids
    ]


def _terms(tokenizer: "Tokenizer", words: str) -> list[tuple[float, int]]:
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


def _single_id(tokenizer: "Tokenizer", word: str) -> int:
    ids = tokenizer.encode(word)
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
