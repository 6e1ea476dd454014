"""Make golden.json: what torch gives for tiny models, for the machines that have no torch.

    python tests/golden/make.py

Weights come from numpy alone (``weights.py``), so that the file holds results and nothing else.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import conversion

sys.path.insert(0, str(Path(__file__).parent))

from weights import CONFIG, INPUTS, random_params


def results(architecture: str) -> dict[str, Any]:
    """Outputs, losses and gradients of one model, rounded to float32."""
    config = {**CONFIG, "architectures": [architecture]}
    model: Any = conversion.to_torch(config, random_params(architecture)).double().eval()
    inputs = {name: torch.tensor(value) for name, value in INPUTS[architecture].items()}
    out = model(**inputs, output_hidden_states=True, output_attentions=True)
    golden: dict[str, Any] = {
        "last_state": out.hidden_states[-1],
        "attention": out.attentions[-1],
    }
    for name in ("loss", "mc_loss", "logits", "mc_logits"):
        if name in out:
            golden[name] = out[name]
    if "loss" in out:
        (out.loss + out.get("mc_loss", 0)).backward()
        golden["gradient_norms"] = torch.stack(
            [p.grad.norm() for _, p in sorted(model.named_parameters()) if p.grad is not None]
        )
    return {name: value.detach().numpy().astype(np.float32) for name, value in golden.items()}


def greedy() -> list[int]:
    """Ten ids that transformers' greedy search adds to a prompt."""
    architecture = "OpenAIGPTLMHeadModel"
    config = {**CONFIG, "architectures": [architecture]}
    model: Any = conversion.to_torch(config, random_params(architecture)).eval()
    prompt = torch.tensor([[3, 1, 4]])
    return model.generate(prompt, max_new_tokens=10, do_sample=False)[0].tolist()


def main() -> None:
    """Write golden.json beside this script."""
    golden: dict[str, Any] = {
        "made_with": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "greedy": greedy(),
    }
    for architecture in conversion.ARCHITECTURES:
        golden[architecture] = {
            name: {"shape": value.shape, "values": [float(f"{x:.8g}") for x in value.ravel()]}
            for name, value in results(architecture).items()
        }
    path = Path(__file__).with_name("golden.json")
    path.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
