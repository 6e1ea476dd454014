"""Options, the share of the limit, and the file of results."""

import json
from pathlib import Path

import pytest
from support.small_models import small_config

from benchmarks.roofline import Roofline
from benchmarks.suite import Options, choose, open_suite, share, write_json


def test_roofline_counts_cached_tokens() -> None:
    """One token after three others, in two rows: two blocks of 12 E^2, and a table of 13 E."""
    work = Roofline.forward(small_config(), batch=2, queries=1, keys=4, head=True)
    weights = 2 * 12 * 64 + 13 * 8
    assert work.tokens == 2
    # Scores and mixing: every key costs 2 E products a block.
    assert work.flops == 2 * 2 * (weights + 2 * 2 * 8 * 4)
    # Keys and values of three tokens, in two rows and two blocks.
    assert work.weights == weights + 2 * 2 * 2 * 8 * 3


def test_share_uses_longer_of_reading_and_computing() -> None:
    limits = {"bytes": [100.0, 100.0], "float32": [10.0, 1000.0]}
    work = Roofline(tokens=1, flops=100.0, weights=50.0)
    # Reading takes 2 s, computing 0.1 s at the best speed that was measured.
    found = share(work, "float32", [20.0, 10.0], limits)
    assert (round(found.low, 6), round(found.high, 6)) == (0.125, 0.175)
    limits["float32"] = [10.0, 5.0]  # now it takes 10 s
    assert share(work, "float32", [20.0], limits).median == 0.5
    # int8 reads 50 bytes, and has no other limit.
    assert share(work, "int8", [1.0, 1.0], limits).median == 0.5


def test_open_suite_makes_checkpoint_without_torch() -> None:
    with open_suite("generate", Options(quick=True, peers=("gpt1-jax",), rounds=9)) as suite:
        assert (suite.folder / "model.safetensors").exists()
        assert suite.rounds == 2
        assert suite.ids(2, 3).shape == (2, 3)
        assert (suite.ids(2, 3) == suite.ids(2, 3)).all()
    assert not suite.folder.exists()


def test_choose_rejects_unavailable_platform() -> None:
    with pytest.raises(ValueError, match="tpu"):
        choose("tpu")


def test_write_json_keeps_old_file_on_failure(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"b": [1.5]})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"b": [1.5]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "new" / "a.json", {"b": object()})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"b": [1.5]}
