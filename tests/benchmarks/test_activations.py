"""The race of activation patching: its record on a tiny model, and a child that ends."""

import json
from pathlib import Path

import pytest

from benchmarks.activations import HOOKS, TASKS, TOLERANCE, activations
from benchmarks.peers import OURS, lens
from benchmarks.suite import Options


@pytest.mark.nightly
def test_activations_records_both_tasks(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "activations.json"
    record = activations(Options(quick=True, out=out))
    assert record == json.loads(out.read_text())
    assert [case["case"]["task"] for case in record["cases"]] == list(TASKS)
    for case in record["cases"]:
        assert case["seconds"].keys() == case["errors"].keys() == {OURS, HOOKS}
        assert case["errors"][HOOKS] <= TOLERANCE


def test_activations_refuses_other_peers_and_memory() -> None:
    with pytest.raises(ValueError, match="'onnxruntime' is no peer in activations; the peer is"):
        activations(Options(quick=True, peers=("onnxruntime",)))
    with pytest.raises(ValueError, match="activations measures no memory"):
        activations(Options(quick=True, memory=True))


def test_lens_names_a_python_that_ends(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    with (
        pytest.raises(ValueError, match=rf"^{python} has ended with status 3$"),
        lens.start(python, tmp_path, 1),
    ):
        pass
