"""The checker of shape annotations finds what is wrong, and leaves other functions alone."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped
from shape_checker import check_shapes


@jaxtyped(typechecker=check_shapes)
def transpose(x: Float[Array, "T E"]) -> Float[Array, "E T"]:
    return x.T if x.shape[0] != 3 else x


@jaxtyped(typechecker=check_shapes)
def unannotated(x: jax.Array) -> jax.Array:
    return x


def test_check_shapes_accepts_annotated_shapes() -> None:
    assert transpose(jnp.zeros((4, 2))).shape == (2, 4)


@pytest.mark.parametrize("shape", [(4,), (4, 2, 2), (3, 2)])
def test_check_shapes_rejects_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(TypeCheckError):
        transpose(jnp.zeros(shape))


def test_check_shapes_ignores_functions_without_shapes() -> None:
    assert unannotated("no array") == "no array"  # pyright: ignore[reportArgumentType]
