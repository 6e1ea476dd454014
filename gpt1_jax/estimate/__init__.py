"""What a model takes on machines that need not be here, as their own compilers tell it."""

from gpt1_jax.estimate.planning import Plan, plan

__all__ = ["Plan", "plan"]
