"""The model of the lm-evaluation-harness, against the harness's own ``hf`` on the same checkpoint.

The demo gets an end token for that, without which ``hf`` cannot run a GPT-1.
"""

import functools
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import gpt1_jax as gpt1
from benchmarks import lm_eval as suite
from benchmarks.lm_eval import END
from gpt1_jax.demo import FOLDER as DEMO

pytest.importorskip("lm_eval")
GPT1LM: Any = importlib.import_module("gpt1_jax.lm_eval").GPT1LM
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

Run = Callable[..., tuple[int, str, str]]
BEGINNINGS = (
    "The old man looked at her and",
    "It was a dark night, and the wind",
    "There was no one in the house but",
    "She opened the letter and",
    "In the morning they",
)


class Request:
    """What the harness asks."""

    def __init__(self, *args: Any):
        self.args = args


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with an end token."""
    folder = tmp_path_factory.mktemp("checkpoint")
    suite.write_checkpoint(folder, DEMO, folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    return GPT1LM(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    pytest.importorskip("accelerate")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    return huggingface.HFLM(str(folder), device="cpu", batch_size=1)


def test_contexts_are_read_as_hf_reads_them(ours: Any, theirs: Any) -> None:
    """Spaces at the border, no context, the prefix token itself, and more than the window."""
    long = " ".join(BEGINNINGS) + " "
    requests = [
        Request("The old man ", "looked"),
        Request("The old man", " looked at her."),
        Request("", "The old man"),
        Request("", END + " the old man"),
        Request(END + "she", " sat down"),
        Request(long * 20, " sat down"),
        Request("and", " " + long * 5),
    ]
    found, expected = (model.loglikelihood(requests) for model in (ours, theirs))
    assert suite.difference(found, expected) <= 1e-4


def test_rolling_windows_equal_hf(ours: Any, theirs: Any) -> None:
    texts = [" ".join(BEGINNINGS) * n for n in (1, 12, 31)]
    requests = [Request(text) for text in texts]
    tokens = [len(ours.tok_encode(text)) for text in texts]
    assert tokens[0] < ours.max_length < tokens[1] < 2 * ours.max_length < tokens[2]
    found, expected = (model.loglikelihood_rolling(requests) for model in (ours, theirs))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_ends_of_texts_equal_hf(ours: Any, theirs: Any) -> None:
    """Stop strings of any kind, an end that a prompt begins, and a prompt that is cut."""
    requests = [
        Request(BEGINNINGS[0], {"until": until, "max_gen_toks": 10})
        for until in (",", ["the", "\n\n", "e r"], [], " ", ["Not lower case"], [END])
    ]
    requests.append(Request("the old man looked", {"until": "man looked at", "max_tokens": 5}))
    requests.append(Request(" ".join(BEGINNINGS) * 20, {"max_gen_toks": 8, "temperature": 0.0}))
    assert ours.generate_until(requests) == theirs.generate_until(requests)


def test_without_a_prefix_token_the_first_token_is_not_scored() -> None:
    with pytest.warns(UserWarning, match="the first token of a text without a context is not"):
        bare = GPT1LM("demo")
    score = gpt1.score(bare.model, ["the old man"], tokenizer=bare.tokenizer)[0]
    request = Request("", "the old man")
    assert bare.loglikelihood([request])[0][0] == pytest.approx(score.sum)
    assert bare.loglikelihood_rolling([Request("the old man")])[0] == pytest.approx(score.sum)
    with pytest.raises(ValueError, match=r"has 0 tokens to score.*prefix_token_id="):
        bare.loglikelihood([Request("", "man")])
    given = GPT1LM("demo", prefix_token_id=5)
    expected = gpt1.score(given.model, ["the old man"], tokenizer=given.tokenizer, bos_token_id=5)
    assert given.loglikelihood([request])[0][0] == pytest.approx(expected[0].sum)


def test_end_token_ends_a_text(ours: Any) -> None:
    """Without it in the checkpoint's settings too: the tokenizer's is enough."""
    request = Request(BEGINNINGS[0], {"max_gen_toks": 10})
    (text,) = ours.generate_until([request])
    chosen = ours.tokenizer.encode(text)[3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours.tokenizer, "eos_token", ours.tokenizer.convert_ids_to_tokens(chosen))
        patch.setattr(ours.model, "generation_config", gpt1.GenerationConfig())
        (shorter,) = ours.generate_until([request])
    assert shorter
    assert text.startswith(shorter)
    assert len(shorter.split()) < len(text.split())


def test_draws_follow_numpys_seed(ours: Any) -> None:
    settings = {"max_gen_toks": 6, "do_sample": True, "temperature": 2.0}
    requests = [Request(BEGINNINGS[0], settings)] * 3
    found = []
    for seed in (1, 1, 2):
        np.random.seed(seed)  # as the harness does
        found.append(ours.generate_until(requests))
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) == 3


def test_batches_and_dtypes_change_no_more_than_rounding(folder: Path, ours: Any) -> None:
    requests = [Request(text, " the old man") for text in BEGINNINGS]
    options: Any
    expected = [log_prob for log_prob, _ in ours.loglikelihood(requests)]
    for options, tolerance in (
        ({"batch_size": "2"}, 1e-6),
        ({"batch_size": "auto:4", "max_batch_size": 1, "device": "cuda:0"}, 1e-6),
        ({"dtype": "bfloat16"}, 0.02),
        ({"quantize": "int8"}, 0.02),
    ):
        model = GPT1LM(str(folder), **options)
        found = [log_prob for log_prob, _ in model.loglikelihood(requests)]
        np.testing.assert_allclose(found, expected, rtol=tolerance)
    assert model.get_model_info()["model_dtype"] == "float32"


def test_wrong_arguments_are_errors(folder: Path, ours: Any) -> None:
    options: Any
    for options, message in (
        ({"pretraned": "x"}, "no model argument 'pretraned'; the arguments are pretrained, "),
        ({"batch_size": "many"}, "batch_size is 'many', but must be a positive integer"),
        ({"max_length": 257}, r"max_length is 257, but must be an integer in \[1, 256\]"),
        ({"prefix_token_id": 5000}, r"prefix_token_id is 5000, but must be an integer in"),
        ({"dtype": "int4"}, "int4"),
    ):
        with pytest.raises(ValueError, match=message):
            GPT1LM(str(folder), **options)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        GPT1LM(str(folder / "nowhere"))
    with pytest.raises(ValueError, match="needs a tokenizer beside it"):
        GPT1LM(ours.model)
    with pytest.raises(ValueError, match=r"'ld' after 'wor' has 0 tokens to score.*end with words"):
        ours.loglikelihood([Request("wor", "ld")])
    with pytest.raises(ValueError, match="max_gen_toks is 256, but must be less than 256"):
        ours.generate_until([Request("the", {})])
    with pytest.raises(ValueError, match=r"generation_kwargs are .*takes no beams"):
        ours.generate_until([Request("the", {"max_gen_toks": 4, "beams": 2})])


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a task that needs no network, and no list of the harness's own thousands."""
    datasets = importlib.import_module("datasets")
    tasks = importlib.import_module("lm_eval.tasks")

    without = functools.partial(tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(tasks, "TaskManager", without)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows, file = tmp_path / "rows.jsonl", tmp_path / "task.yaml"
    rows.write_text(
        "".join(json.dumps({"text": f"{text} that was all ."}) + "\n" for text in BEGINNINGS)
    )
    file.write_text(f"task: sentences\n{suite.TASK % rows}{suite.LAMBADA}")
    return file


def test_cli_evaluates_tasks_that_lie_here(
    run: Run, folder: Path, task: Path, tmp_path: Path
) -> None:
    status, out, err = run(
        *("lm-eval", "--model", folder, "--tasks", task, "--limit", "2", "--batch_size", "2"),
        *("--output_path", tmp_path / "out", "--log_samples"),
    )
    assert status == 0, err
    assert re.search(r"\|sentences\|.*acc .*perplexity", out, re.DOTALL)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())["config"]
    assert (found["model"], found["batch_size"]) == ("gpt1", "2")
    assert found["model_args"] == {"pretrained": str(folder)}


def test_cli_wrong_input_is_one_line(run: Run, task: Path, tmp_path: Path) -> None:
    status, _, err = run("lm-eval", "--tasks", "no_such_task")
    assert (status, err.splitlines()[-1]) == (2, "gpt1: Tasks not found: no_such_task")
    status, _, err = run("lm-eval", "--model", tmp_path / "nowhere", "--tasks", task)
    assert status == 2
    assert re.match(r"gpt1: .*nowhere", err.splitlines()[-1])
    status, out, _ = run("lm-eval", "--help")
    assert status == 0
    assert "--model is a checkpoint" in out
    assert "--num_fewshot" in out


def test_special_tokens_of_a_template_are_added_as_asked_for(ours: Any) -> None:
    template = json.loads(ours.tokenizer.to_json())
    template["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": END, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {END: {"id": END, "ids": [ours.eot_token_id], "tokens": [END]}},
    }
    backend = tokenizers.Tokenizer.from_str(json.dumps(template))
    tokenizer = gpt1.Tokenizer(backend, special_tokens={"eos_token": END, "unk_token": "<unk>"})
    plain = ours.tok_encode("the old man")
    model = GPT1LM(ours.model, tokenizer=tokenizer)
    assert model.tok_encode("the old man") == [ours.eot_token_id, *plain]
    assert model.tok_encode("the old man", add_special_tokens=False) == plain
    assert model.tok_encode(END + "the old man") == [ours.eot_token_id, *plain]
    model = GPT1LM(ours.model, tokenizer=tokenizer, add_bos_token=False)
    assert model.tok_encode("the old man") == plain
