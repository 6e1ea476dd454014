"""Prompt-lookup decoding: guesses at the next tokens, from what the text holds already.

A text that quotes or repeats itself goes on as it did before. The model reads several guessed
tokens at once, and those that it would have chosen anyway are kept
(https://github.com/apoorvumang/prompt-lookup-decoding).
"""

import jax
import jax.numpy as jnp

from gpt1_jax.generation.processors import DecodeContext


def draft(context: DecodeContext, number: int) -> tuple[jax.Array, jax.Array]:
    """Guess that each text goes on as it did after the last token, and before it the same one.

    Where the last two tokens do not stand together earlier, the last one alone decides. Of several
    places the latest counts, and a guess that comes to the end goes on from there once more, as if
    the text had that period.

    Args:
        context: the texts.
        number: D, how many tokens to guess.

    Returns:
        (B, D) int32, and (B,) bool: whether the last token occurs earlier at all.
    """
    slots = jnp.arange(context.tokens.shape[1], dtype=jnp.int32)[None, :]
    earlier = context.filled() & (slots < context.length - 1)
    same = earlier & (context.tokens == context.before(jnp.int32(1))[:, None])
    before_too = context.shifted(jnp.int32(1)) == context.before(jnp.int32(2))[:, None]
    before_too = same & before_too & (slots > context.start[:, None])
    score = jnp.where(before_too, slots + slots.shape[1], jnp.where(same, slots, -1))
    place = jnp.argmax(score, axis=1).astype(jnp.int32)[:, None]
    period = context.length - 1 - place
    ahead = jnp.arange(number, dtype=jnp.int32)[None, :] % period
    return jnp.take_along_axis(context.tokens, place + 1 + ahead, axis=1), same.any(axis=1)
