"""The package ``conversion``, or one error that says which other module hides it.

It reads and writes weights, and ``import gpt1_jax`` does without it: the modules that come with the
models import it where they read or write.
"""

import conversion

if not hasattr(conversion, "named_architecture"):
    place = getattr(conversion, "__file__", None) or ", ".join(conversion.__path__)
    raise ImportError(
        f"{place} hides the package 'conversion' that gpt1-jax reads and writes weights with: "
        "rename it, or run from another folder"
    )

from conversion import (
    config_file,
    extras,
    files,
    huggingface,
    json_file,
    layout,
    locks,
    match,
    tree,
)

__all__ = [
    "config_file",
    "conversion",
    "extras",
    "files",
    "huggingface",
    "json_file",
    "layout",
    "locks",
    "match",
    "tree",
]
