"""How prompts are laid out before they are read."""

import numpy as np
import pytest

from gpt1_jax.generation.prompts import align, chunk, pieces


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, 32), (2, 32), (3, 16), (4, 16), (5, 8), (8, 8), (64, 8), (1000, 8)]
)
def test_chunk_has_about_64_tokens_of_all_rows(rows: int, expected: int) -> None:
    assert chunk(rows) == expected


@pytest.mark.parametrize(
    ("rows", "longest", "width"),
    [(1, 1, 1), (1, 2, 33), (1, 34, 65), (4, 2, 17), (4, 17, 17), (8, 9, 9), (8, 10, 17)],
)
def test_align_pads_on_the_left_to_whole_pieces(rows: int, longest: int, width: int) -> None:
    prompts = [np.full(longest, 7, np.int32), *[np.array([8], np.int32)] * (rows - 1)]
    tokens, start = align(prompts)
    assert tokens.shape == (rows, width)
    assert pieces(longest - 1, rows) == width - 1
    np.testing.assert_array_equal(tokens[0], [0] * (width - longest) + [7] * longest)
    np.testing.assert_array_equal(start, [width - longest, *[width - 1] * (rows - 1)])
