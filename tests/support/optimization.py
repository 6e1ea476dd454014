"""XLA's optimisation, on for tests of accuracy: it takes most of a small compilation."""

import jax


def set_optimization(on: bool) -> None:
    """Compile all later programs with XLA's optimisation, or without it.

    The flag alone is not part of the key by which ``jax.jit`` finds a compiled program: a parity
    test would run what a test of behaviour compiled. The profile version is part of it, and XLA
    ignores it on a CPU, so the programs of both kinds are kept apart.
    """
    jax.config.update("jax_disable_most_optimizations", not on)
    jax.config.update("jax_xla_profile_version", int(not on))
