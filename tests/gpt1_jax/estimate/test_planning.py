"""Plans for simulated CPU devices: their numbers by hand, tables, and wrong input."""

import dataclasses
import importlib.util
import json
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

import gpt1_jax as gpt1
from gpt1_jax.estimate import Plan, compilation, plan
from gpt1_jax.estimate.launches import Launches
from gpt1_jax.estimate.table import describe, markdown
from gpt1_jax.estimate.targets import CHIPS, Target, chip_of, parse_target

Run = Callable[..., tuple[int, str, str]]
SMALL = gpt1.OpenAIGPTConfig(vocab_size=120, n_positions=16, n_embd=16, n_layer=2, n_head=4)
SHALLOW = dataclasses.replace(SMALL, n_layer=1)  # a training step takes long to compile


def size(config: gpt1.OpenAIGPTConfig) -> int:
    """Bytes of a model's parameters in float32."""
    E, inner = config.n_embd, config.n_inner
    block = 4 * E * E + 4 * E + 2 * E * inner + inner + E + 4 * E
    return 4 * (config.n_layer * block + (config.vocab_size + config.n_positions) * E)


@pytest.fixture(scope="module")
def trained() -> Any:
    return plan("cpu:4", "train", SHALLOW, rows=2, length=16, mesh="data=4", remat="none")


@pytest.mark.nightly
def test_plan_training_counts_state_and_all_reduces(trained: Any) -> None:
    """The state, three times the parameters, goes in and is donated; gradients are added up."""
    parameters = size(SHALLOW)
    ids = 2 * 17 * 4
    assert trained.arguments == pytest.approx(3 * parameters + ids, abs=100)
    assert trained.donated == pytest.approx(3 * parameters, abs=100)
    assert trained.tokens == 4 * 2 * 16
    assert trained.memory < 20 * parameters
    exchanged = [each for each in trained.collectives if each.kind == "all-reduce"]
    # All gradients, that of the tied table twice (as the input's and as the head's), and the loss.
    table = 4 * SHALLOW.vocab_size * SHALLOW.n_embd
    assert sum(each.bytes for each in exchanged) == pytest.approx(parameters + table, abs=100)
    assert {each.kind for each in trained.collectives} == {"all-reduce"}
    assert trained.fits
    assert trained.times == {}
    assert trained.bound is None


@pytest.mark.nightly
def test_plan_data_parallel_traffic_is_constant_per_device(trained: Any) -> None:
    two = plan("cpu:2", "train", SHALLOW, rows=2, length=16, remat="none")
    four = sum(each.bytes for each in trained.collectives)
    assert sum(each.bytes for each in two.collectives) == four


@pytest.mark.nightly
def test_plan_tensor_forward_has_two_all_reduces_per_block() -> None:
    found = plan("cpu:4", "forward", SMALL, rows=2, length=8, mesh="tensor=4")
    counts = {each.kind: each.count for each in found.collectives}
    # And one for the rows of the table, which each device has a part of the vocabulary of.
    assert counts["all-reduce"] <= 2 * SMALL.n_layer + 1
    assert found.arguments < size(SMALL)
    E, V = SMALL.n_embd, SMALL.vocab_size
    block = 4 * E * E + 2 * E * SMALL.n_inner + 2 * E * 8
    products = 2 * 2 * 8 * (SMALL.n_layer * block + E * V)
    assert found.flops * 4 >= products


@pytest.mark.nightly
def test_plan_decode_step_donates_cache() -> None:
    found = plan("cpu", "decode", SMALL, rows=3, length=16, dtype="bfloat16")
    cache = 2 * SMALL.n_layer * 3 * 16 * SMALL.n_embd * 2
    assert found.tokens == 3
    assert found.donated >= cache
    mask, columns = 3 * 16 * 4, 3 * 3 * 17 * 4  # tokens, scores and log-probabilities
    counts = 3 * (4 + 4 + 1) + 4 * 4  # of each row: start, length, done; and of all rows
    settings = SMALL.vocab_size + 4  # end tokens and padding
    assert found.arguments == size(SMALL) / 2 + cache + mask + columns + counts + settings
    assert found.launches is not None
    # At least the products: four a block, two of its attention, and the logits'.
    assert found.launches.total >= 6 * SMALL.n_layer + 1
    assert found.to_dict()["launches"]["fusions"] == found.launches.fusions


def test_measure_reports_lack_of_memory_as_plan_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def lower(*_: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room for 9 GB\nand more")

    program = types.SimpleNamespace(run=types.SimpleNamespace(lower=lower), arguments=())
    monkeypatch.setattr(compilation, "devices", lambda target: jax.devices()[:1])
    monkeypatch.setattr(compilation, "program", lambda *_, **__: program)
    request = {"machine": "cpu", "mesh": None, "config": SMALL.to_dict(), "program": "train"}
    request |= {"rows": 2, "length": 16, "dtype": "float32", "remat": "none", "attention": "manual"}
    answer = compilation.measure(request)
    found = Plan(Target("cpu", "cpu", 1), "train", None, 2, 16, "float32", **answer)
    assert found.oom_message == "RESOURCE_EXHAUSTED: no room for 9 GB"
    assert found.launches is None
    assert not found.fits


def test_plan_reports_roofline_times_and_memory_fit(trained: Any) -> None:
    four = Target("v5e:2x2", "tpu", 4)
    sizes = {
        "arguments": int(819e9 / 4),
        "outputs": int(819e9 / 2),
        "donated": int(819e9 / 4),
    }
    there = dataclasses.replace(trained, machine=four, flops=197e12, **sizes)
    wire = sum(each.wire for each in there.collectives)
    assert there.times == {"compute": 1.0, "memory": 0.5, "interconnect": wire / 200e9}
    assert there.bound == ("compute", 1.0)
    lines = describe(there)
    assert "at least  1000.0 ms, by compute" in lines
    counted = dataclasses.replace(there, launches=Launches(fusions=3, copies=1, bytes=2000))
    assert "launches  4 (3 fusions, 1 copy); 2 kB read and written" in describe(counted)
    assert "launches" not in describe(dataclasses.replace(there, launches=None))
    small = dataclasses.replace(trained, machine=four)
    assert "DOES NOT FIT" not in describe(small)
    large = dataclasses.replace(small, temporaries=17_000_000_000)
    assert not large.fits
    assert "DOES NOT FIT" in describe(large)
    too_large = dataclasses.replace(there, oom_message="RESOURCE_EXHAUSTED: too much")
    assert not too_large.fits
    assert "does not fit, says its compiler: RESOURCE_EXHAUSTED" in describe(too_large)
    header, line, *rows = markdown([small, large, too_large]).splitlines()
    columns = header.count("|")
    assert [row.count("|") for row in (line, *rows[:3])] == [columns] * 4
    assert "does not fit" in rows[2]
    assert CHIPS["v5e"].source in rows[-1]


@pytest.mark.nightly
def test_cli_plan_writes_json_and_table(run: Run, tmp_path: Path) -> None:
    files = ["--out", tmp_path / "plan.json", "--table", tmp_path / "plan.md"]
    SMALL.save_pretrained(tmp_path / "model")
    sizes = ["--length", 8, "--prefill-rows", 2]
    sizes += ["--forward-rows", 0, "--decode-rows", 0, "--train-rows", 0]
    arguments = ["cpu", "--model", tmp_path / "model", *sizes, "--dtype", "float32", *files]
    status, out, err = run("plan", *arguments)
    assert (status, err) == (0, "")
    assert out.startswith("prefill, 2 x 8 for each part, float32, data=1, on cpu\n")
    (record,) = json.loads((tmp_path / "plan.json").read_text())
    assert record["program"] == "prefill"
    assert record["memory"] == (
        record["arguments"] + record["outputs"] - record["donated"] + record["temporaries"]
    )
    assert "| cpu | data=1 | prefill 2 x 8 | float32 |" in (tmp_path / "plan.md").read_text()


@pytest.mark.parametrize(
    ("kind", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12),
        ("TPU v5 lite", 819e9),
        ("TPU v5", 2765e9),
        ("TPU v6 lite", 1638e9),
        ("cpu", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_chip_of_knows_devices_by_their_kind(kind: str, bandwidth: float | None) -> None:
    chip = chip_of(kind)
    assert (chip and chip.bandwidth) == bandwidth


@pytest.mark.parametrize(
    ("name", "devices"), [("v5e:4x4", 16), ("v5p:2x2x2", 8), ("h100", 1), ("cpu", 1), ("cpu:8", 8)]
)
def test_target_parses_name_and_device_count(name: str, devices: int) -> None:
    found = parse_target(name)
    assert found.devices == devices
    assert math.isfinite(found.chip.memory)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["v9:2x2"], "there is no machine 'v9:2x2'; there are v5e:2x2"),
        (["v5e"], "'v5e' is not a slice of v5e: give its shape, as in v5e:2x2"),
        (["v5p:2x2"], "as in v5p:2x2x2"),
        (["cpu", "--forward-rows", "-1"], "rows must be at least 0"),
        (["cpu:4", "--mesh", "data=3"], "is for 3 devices, but there are 4"),
        (["cpu:8", "--mesh", "tensor=8"], "n_head = 12 attention heads cannot be split"),
        (["cpu", "--length", "513"], "length is 513, but must be 1 to 512"),
        (["cpu:2", "cpu:4", "--mesh", "data=2"], "is for 2 devices, but there are 4"),
        (["cpu", "--timeout", "0.01"], "took more than 0.01 s"),
        (["cpu", "--timeout", "nan"], "timeout is nan, but must be a number of seconds above 0"),
        (["cpu", "--out", "."], ". is a folder, but must be a file"),
        (["cpu", "--out", "a", "--table", "a"], "--out and --table are both a, but must be two"),
        (["cpu", "--attention", "cudnn"], "cudnn needs the machine h100 and --dtype bf"),
    ],
)
def test_cli_plan_rejects_bad_input(run: Run, arguments: list[str], message: str) -> None:
    status, out, err = run("plan", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_cli_plan_reports_missing_compiler(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    status, _, err = run("plan", "v5e:2x2")
    assert status == 2
    assert 'needs libtpu, which is not installed: pip install "gpt1-jax[plan]"' in err
