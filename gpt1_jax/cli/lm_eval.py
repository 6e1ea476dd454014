"""The command ``gpt1 lm-eval``."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from gpt1_jax.cli.compilation_cache import enable_compilation_cache
from gpt1_jax.cli.help import command_help
from gpt1_jax.demo import DEMO


def lm_eval(arguments: Sequence[str]) -> None:
    """Evaluate a model on tasks of the lm-evaluation-harness.

    --model is a checkpoint with a tokenizer: a folder or a Hugging Face Hub id; by default the
    bundled demo model. All other flags are the harness's own, which are described below.
    --batch_size is auto by default. --model_args has the arguments of gpt1_jax.lm_eval.GPT1LM:
    dtype=bfloat16, quantize=int8, prefix_token_id=40477, pipeline=original and others. The
    harness's commands ls and validate work too: gpt1 lm-eval ls tasks. Needs the extra "lm-eval".
    """
    arguments = list(arguments) or ["--help"]
    if {"-h", "--help"} & set(arguments):
        print(command_help(lm_eval, "gpt1 lm-eval", []), end="\n\n", flush=True)
    importlib.import_module("gpt1_jax.lm_eval")  # registers the model, or says what is missing
    harness = importlib.import_module("lm_eval.__main__")

    enable_compilation_cache()
    before, sys.argv = sys.argv, ["lm-eval", *_for_harness(arguments)]
    try:
        harness.cli_evaluate()
    finally:
        sys.argv = before


def _for_harness(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of the harness's command, whose --model is the kind of model."""
    name, *others = arguments
    if name in ("ls", "validate"):
        return [name, *others]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", "-M")
    parser.add_argument("--config", "-C")
    given, others = parser.parse_known_args(others if name == "run" else arguments)
    ours = ["--model", "gpt1"]
    if given.config is None:  # whose batch_size and model_args come first
        given.model = DEMO if given.model is None else given.model
        ours += ["--batch_size", "auto"]
    else:
        ours += ["--config", given.config]
    if given.model is not None:
        ours += ["--model_args", json.dumps({"pretrained": given.model})]
    return ["run", *ours, *others]
