"""Many prompts, on a tiny model: what is measured and recorded, not its times."""

import numpy as np
import pytest
from support.small_models import small_config

from benchmarks import prompts as suite
from benchmarks.peers import OURS
from benchmarks.suite import Options


def test_mixed_prompts_have_every_length_up_to_half_of_the_model() -> None:
    config = small_config(n_positions=16)
    found = suite.mixed_prompts(config, 200)
    assert {len(prompt) for prompt in found} == set(range(1, 9))
    # Evenly by the logarithm: half of them up to the root of the longest.
    assert 0.4 < np.mean([len(prompt) < 3 for prompt in found]) < 0.6
    assert all(prompt.max() < config.vocab_size for prompt in found)


@pytest.mark.nightly
def test_prompts_records_what_each_way_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(quick=True, rounds=2)
    (case,) = suite.prompts(options, count=9, new_tokens=3, batch_sizes=(2, 3))["cases"]
    assert case["case"]["prompts"] == 8  # in a quick run
    assert case["case"]["new"] == 3
    names = ["batch 2", "batch 3", "the default, 8, in calls of 8 tokens"]
    names += ["mixed lengths"]
    assert list(case["seconds"]) == names
    assert list(case["command"]) == ["the command, first run", "the command, second run"]
    # Two batches of each size, and 8 prompts.
    assert list(case["tokens"].values()) == [12, 18, 48, 24]
    assert "of the best" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        (Options(quick=True), {"count": 0}, "count is 0, but must be at least 1"),
        (Options(quick=True), {"batch_sizes": (4, 0)}, "batch_sizes is 0, but"),
        (Options(quick=True), {"new_tokens": 33}, "new_tokens is 33, but must be at most 32"),
        (Options(peers=(OURS,)), {}, "alone: leave out --peers"),
        (Options(model="demo"), {"full_size": True}, "either --model or --full-size"),  # type: ignore[arg-type]
    ],
)
def test_prompts_rejects_bad_input(options: Options, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite.prompts(options, **fields)
