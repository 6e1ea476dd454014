"""The run-time checker of shape annotations, for pytest's ``--jaxtyping-packages``.

    python -m pytest --jaxtyping-packages=PACKAGES,shape_checker.check_shapes FILES

Functions that have no shape annotated are left alone: what a user passes is checked by the package
itself, and the fields of a pytree may hold anything while JAX flattens and unflattens it.
"""

from collections.abc import Callable
from typing import TypeVar

from beartype import beartype

Function = TypeVar("Function", bound=Callable[..., object])


def check_shapes(function: Function) -> Function:
    """Have a function check its arguments and its result, if shapes are annotated."""
    annotations = getattr(function, "__annotations__", {})
    has_shapes = any("jaxtyping." in str(annotation) for annotation in annotations.values())
    return beartype(function) if has_shapes else function
