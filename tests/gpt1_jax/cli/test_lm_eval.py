"""``gpt1 lm-eval`` up to the harness, which need not be installed."""

import importlib
import sys
from collections.abc import Callable

import pytest

from gpt1_jax.cli.lm_eval import _for_harness

Run = Callable[..., tuple[int, str, str]]
DEMO = ["--model_args", '{"pretrained": "demo"}']


def test_arguments_are_passed_on() -> None:
    ours = ["run", "--model", "gpt1"]
    auto = ["--batch_size", "auto"]
    rest = ["--tasks", "lambada_openai", "copa", "--model_args", "dtype=bfloat16"]
    assert _for_harness(rest) == [*ours, *auto, *DEMO, *rest]
    assert _for_harness(["run", *rest]) == [*ours, *auto, *DEMO, *rest]
    folder = ["--model_args", '{"pretrained": "a folder, b=c"}']
    assert _for_harness([*rest, "--model", "a folder, b=c"]) == [*ours, *auto, *folder, *rest]
    assert _for_harness(["-M", "x", "-t", "copa"])[-3:] == ['{"pretrained": "x"}', "-t", "copa"]
    config = ["--config", "run.yaml"]
    assert _for_harness(config) == [*ours, *config]
    assert _for_harness([*config, "--model", "demo"]) == [*ours, *config, *DEMO]
    assert _for_harness(["ls", "tasks"]) == ["ls", "tasks"]


def test_missing_harness_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "gpt1_jax.lm_eval", raising=False)
    status, out, err = run("lm-eval", "--tasks", "copa")
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("gpt1: the command lm-eval needs lm_eval, which is not installed: ")
    assert err.endswith('pip install "gpt1-jax[lm-eval]"\n')
    with pytest.raises(ImportError, match="pip install"):
        importlib.import_module("gpt1_jax.lm_eval")
