"""``python -m gpt1_jax.cli``: the ``gpt1`` command."""

from gpt1_jax.cli import program

program()
