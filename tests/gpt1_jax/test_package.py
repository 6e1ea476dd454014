"""The package as a whole: what importing it loads."""

import subprocess
import sys


def test_package_import_loads_no_heavy_dependencies() -> None:
    heavy = ["torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "tyro"]
    code = f"import sys, gpt1_jax; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
