"""Generated ids against those that generation.json holds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

import gpt1_jax as gpt1


def compare(
    model: gpt1.OpenAIGPTLMHeadModel,
    golden: dict[str, Any],
    case: dict[str, Any],
    numbers: Sequence[int],
    size: int,
) -> None:
    """Continue these of the prompts, ``size`` at a time; assert that every id is transformers'."""
    for begin in range(0, len(numbers), size):
        batch = numbers[begin : begin + size]
        prompts = [golden["prompts"][number] for number in batch]
        out = gpt1.generate(model, prompts, **case["settings"])
        each = len(out) // len(batch)
        for i, number in enumerate(batch):
            for j, expected in enumerate(case["new"][number]):
                ours = np.asarray(out[each * i + j])[len(prompts[i]) :]
                where = f"{case['name']}, prompt {number}, text {j}, batch of {size}"
                # Padding after the end is as wide as the batch.
                shared = min(len(ours), len(expected))
                np.testing.assert_array_equal(ours[:shared], expected[:shared], where)
                assert not ours[shared:].any(), where
                assert not any(expected[shared:]), where
