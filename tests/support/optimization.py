"""XLA's optimisation, off for tests of behaviour: it takes most of a small compilation."""

import jax


def set_optimization(on: bool) -> None:
    """Compile all later programs with XLA's optimisation, or without it.

    The flag is not part of the key by which ``jax.jit`` finds a compiled program. All programs are
    therefore dropped when optimisation comes back: a parity test must not run what a test of
    behaviour compiled.
    """
    if on and jax.config.values["jax_disable_most_optimizations"]:
        jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", not on)
