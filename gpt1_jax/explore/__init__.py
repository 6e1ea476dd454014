"""Looking into a model: its tree, its tokens and their embeddings, and what it makes of a text.

Tables and texts are plain when printed, and coloured at the end of a notebook's cell.
"""

from gpt1_jax.explore.embeddings import (
    EmbeddingCheck,
    Neighbour,
    Neighbours,
    TokenEmbedding,
    embedding,
    h_0,
    nearest,
)
from gpt1_jax.explore.forward_trace import (
    ForwardTrace,
    LogitLens,
    NextTokens,
    Surprisal,
    logit_lens,
    next_tokens,
    surprisal,
    trace_forward,
)
from gpt1_jax.explore.module_tree import tree
from gpt1_jax.explore.pictures import draw_attention, draw_logit_lens, draw_next_tokens
from gpt1_jax.explore.tokens import TokenTable, token_table

__all__ = [
    "EmbeddingCheck",
    "ForwardTrace",
    "LogitLens",
    "Neighbour",
    "Neighbours",
    "NextTokens",
    "Surprisal",
    "TokenEmbedding",
    "TokenTable",
    "draw_attention",
    "draw_logit_lens",
    "draw_next_tokens",
    "embedding",
    "h_0",
    "logit_lens",
    "nearest",
    "next_tokens",
    "surprisal",
    "token_table",
    "trace_forward",
    "tree",
]
