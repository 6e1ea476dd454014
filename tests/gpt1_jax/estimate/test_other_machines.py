"""Plans by the compilers of TPUs and of an H100, where they are installed (the extra "plan")."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

import gpt1_jax as gpt1
from gpt1_jax.estimate import plan
from gpt1_jax.estimate.launches import written_arrays
from gpt1_jax.estimate.targets import parse_target

pytestmark = pytest.mark.nightly
SMALL = gpt1.OpenAIGPTConfig(vocab_size=128, n_positions=128, n_embd=128, n_layer=2, n_head=4)
# GPT-1's own widths, since what the compiler merges depends on them, and sizes that no activation
# has where at most 160 tokens are read.
DISTINCT = gpt1.OpenAIGPTConfig(vocab_size=1003, n_positions=224, n_layer=2)


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a package in which it would be
        return False


tpu = pytest.mark.skipif(not installed("libtpu"), reason="libtpu is not installed")
cuda = pytest.mark.skipif(
    not installed("jax_cuda13_plugin"), reason="jax[cuda13-local] is not installed"
)
cudnn = pytest.mark.skipif(
    not installed("nvidia.cudnn"), reason="nvidia-cudnn-cu13 is not installed"
)


@tpu
def test_plan_tensor_forward_has_two_all_reduces_per_block() -> None:
    found = plan("v5e:2x2", "forward", SMALL, rows=2, length=128, mesh="tensor=4")
    counts = {each.kind: each.count for each in found.collectives}
    # And one for the rows of the table, which each device has a part of the vocabulary of.
    assert counts["all-reduce"] <= 2 * SMALL.n_layer + 1


@tpu
def test_plan_traffic_per_chip_is_constant_up_to_256_chips() -> None:
    few, many = (
        plan(name, "train", SMALL, rows=2, length=128, dtype="bfloat16", remat="none")
        for name in ("v5e:2x2", "v5e:16x16")
    )
    assert many.machine.devices == 256
    assert few.collectives
    assert [(each.kind, each.bytes) for each in few.collectives] == [
        (each.kind, each.bytes) for each in many.collectives
    ]
    assert few.memory == many.memory


@cuda
def test_plan_decode_for_h100_donates_cache() -> None:
    found = plan("h100", "decode", SMALL, rows=2, length=128, dtype="bfloat16")
    assert found.collectives == ()
    assert found.donated >= 2 * SMALL.n_layer * 2 * 128 * SMALL.n_embd * 2  # the cache
    assert found.bound is not None


# What a program starts on a device in bfloat16, with JAX 0.10.2. To measure it again, give
# `gpt1 plan h100 v5e:2x2 --dtype bfloat16 --length 128` a checkpoint of DISTINCT (`--model`) and
# these rows (`--decode-rows`, `--forward-rows`). Write smaller numbers down here.
LAUNCHES = {
    ("h100", "decode", 1): 36,
    ("h100", "decode", 32): 36,
    ("h100", "forward", 2): 31,
    ("v5e:2x2", "decode", 1): 196,
    ("v5e:2x2", "decode", 32): 178,
    ("v5e:2x2", "forward", 2): 99,
}


@pytest.mark.parametrize(
    ("machine", "program", "rows"),
    [pytest.param(*case, marks=cuda if case[0] == "h100" else tpu) for case in LAUNCHES],
)
def test_plan_launches_do_not_grow(machine: str, program: Any, rows: int) -> None:
    found = plan(machine, program, DISTINCT, rows=rows, length=128, dtype="bfloat16")
    assert found.launches is not None
    assert found.launches.total <= LAUNCHES[machine, program, rows]


# Prints a program as it is compiled for another machine.
PROGRAM = """
import json
import sys
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.sharding.mesh import make_mesh
from gpt1_jax.estimate.compilation import devices
from gpt1_jax.estimate.targets import parse_target
from gpt1_jax.estimate.programs import program

request = json.loads(sys.argv[1])
found = devices(parse_target(request.pop("machine")))
config = OpenAIGPTConfig.from_dict(request.pop("config"))
mesh = make_mesh(f"data={len(found)}", found)
chosen = program(request.pop("name"), config, mesh, dtype="bfloat16", remat="none", **request)
print(chosen.run.lower(*chosen.arguments).compile().as_text())
"""


def compiled_text(machine: str, config: gpt1.OpenAIGPTConfig, **request: Any) -> str:
    """Return the text of a program in bfloat16, compiled for a machine that is not here."""
    request |= {"machine": machine, "config": config.to_dict()}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(request)],
        env={**os.environ, **parse_target(machine).environment()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "machine", [pytest.param("h100", marks=cuda), pytest.param("v5e:2x2", marks=tpu)]
)
@pytest.mark.parametrize(
    ("name", "rows"), [("decode", 1), ("decode", 32), ("prefill", 2), ("forward", 2)]
)
def test_program_in_bfloat16_writes_no_float32_weights(machine: str, name: str, rows: int) -> None:
    """Weights in float32 would cost a decode step, which reads them once, three times its bytes."""
    text = compiled_text(machine, DISTINCT, name=name, rows=rows, length=80, attention="manual")
    E, inner, V = DISTINCT.n_embd, DISTINCT.n_inner, DISTINCT.vocab_size
    shapes = [(E, 3 * E), (E, E), (E, inner), (V, E), (DISTINCT.n_positions, E)]
    weights = {tuple(sorted(shape)) for shape in shapes}
    found = {
        sizes
        for dtype, sizes in written_arrays(text)
        if dtype == "f32" and tuple(sorted(size for size in sizes if size > 1)) in weights
    }
    assert found == set()


@cuda
@cudnn
@pytest.mark.parametrize("attention", ["cudnn", "xla"])
def test_program_with_cudnn_attention_compiles_for_h100(attention: str) -> None:
    text = compiled_text("h100", SMALL, name="forward", rows=2, length=128, attention=attention)
    assert ("cudnn$fmha" in text) == (attention == "cudnn")
