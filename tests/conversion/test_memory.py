"""What reading the full-size model costs, measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import conversion

MEASURE = """
import sys
from pathlib import Path
import huggingface_hub, ml_dtypes, numpy, safetensors.numpy
import conversion

folder, kind = sys.argv[1:]
leaf = lambda array: array
if kind == "jax":
    import jax.numpy as jnp
    leaf = jnp.asarray
    leaf(numpy.zeros(3))

def memory(field):
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * 1024

Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
start = memory("VmRSS")
config, params = conversion.read(folder, leaf=leaf)
print(memory("VmHWM") - start)
"""


def write_full_size(folder: Path, format: str) -> int:
    """A random model of GPT-1's size; how many bytes its weights have."""
    import numpy as np

    config = {"architectures": ["OpenAIGPTLMHeadModel"]}
    random, params = np.random.default_rng(0), {}
    for row in conversion.param_specs(config, "OpenAIGPTLMHeadModel"):
        node = params
        for key in row.path[:-1]:
            node = node.setdefault(key, {})
        node[row.path[-1]] = random.standard_normal(row.shape, np.float32)
    conversion.write(folder, config, params, format=format)  # pyright: ignore
    return 4 * 116_534_784


@pytest.mark.nightly
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("format", ["huggingface", "openai"])
def test_read_peak_memory_is_about_one_copy(tmp_path, format, record_property):
    size = write_full_size(tmp_path / "full", format)
    root = Path(conversion.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    peaks = {}
    for kind in ("numpy", "jax"):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "full"), kind]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks[kind] = int(done.stdout) / size
    record_property("peak over the file's size", json.dumps(peaks))
    assert all(0.9 < peak < 1.3 for peak in peaks.values()), peaks
