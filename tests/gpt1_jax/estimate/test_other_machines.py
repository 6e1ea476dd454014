"""Plans by the compilers of TPUs and of an H100, where they are installed (the extra "plan")."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

import gpt1_jax as gpt1
from gpt1_jax.estimate import plan
from gpt1_jax.estimate.targets import parse_target

pytestmark = pytest.mark.nightly
SMALL = gpt1.OpenAIGPTConfig(vocab_size=128, n_positions=128, n_embd=128, n_layer=2, n_head=4)


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


# Whether cuDNN's attention is in a program that is compiled for an H100.
PROGRAM = """
import json
import sys
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.sharding.mesh import make_mesh
from gpt1_jax.estimate.compilation import devices
from gpt1_jax.estimate.targets import parse_target
from gpt1_jax.estimate.programs import program

found = devices(parse_target("h100"))
sizes = dict(rows=2, length=128, dtype="bfloat16", remat="none", attention=sys.argv[1])
config = OpenAIGPTConfig.from_dict(json.loads(sys.argv[2]))
chosen = program("forward", config, make_mesh("data=1", found), **sizes)
print("cudnn$fmha" in chosen.run.lower(*chosen.arguments).compile().as_text())
"""


@cuda
@cudnn
@pytest.mark.parametrize("attention", ["cudnn", "xla"])
def test_program_with_cudnn_attention_compiles_for_h100(attention: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, attention, json.dumps(SMALL.to_dict())],
        env={**os.environ, **parse_target("h100").environment()},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(attention == "cudnn"), done.stderr
