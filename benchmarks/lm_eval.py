"""The lm-evaluation-harness's requests: this package's model against the harness's own ``hf``."""

import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from flax import nnx

import gpt1_jax as gpt1
from benchmarks.machine import environment
from benchmarks.quiet import quiet
from benchmarks.suite import show_seconds, write_json
from benchmarks.tasks import Rows, data_folder, read_copa, write_rows
from benchmarks.timing import Seconds, clock, interleave

OURS, THEIRS = "gpt1-jax", "hf"
END = "<|endoftext|>"
BATCHES = (1, 8)  # of theirs
TASK = """dataset_path: json
dataset_kwargs: {data_files: {validation: %s}}
validation_split: validation
num_fewshot: 0
"""
LAMBADA = """output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
COPA = """output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_target: label
doc_to_choice: "{{[choice0, choice1]}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
SENTENCES = """output_type: generate_until
doc_to_text: "{{text.split(' ')[:12]|join(' ')}}"
doc_to_target: "{{text.split(' ')[12]}}"
generation_kwargs: {until: ["\\n\\n", ".", "!", "?", " said"], max_gen_toks: 16, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def lm_eval(
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    count: int = 40,
    rounds: int = 3,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> dict[str, Any]:
    """Answer the requests of three local tasks, after a check that all answers are equal.

    The tasks are LAMBADA's last words, COPA's choices, and sentences to be finished, as the harness
    reads tasks. The harness's model `hf` needs accelerate, torch and transformers.

    Args:
        data: the folder of public data; by default $GPT1_DATA, or ../shared/data.
        model: a checkpoint with a tokenizer; by default random weights of full size. It gets an end
            token, without which `hf` cannot run it.
        count: rows of each task.
        rounds: how often each runs.
        out: write what was measured to this file.

    Returns:
        What is written to the file: for each task the seconds of every round by name, those of the
        first run of this package, which compiles, and the largest difference of log-likelihoods.

    Raises:
        ValueError: answers differ, or fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but must be at least 1")
    data = data_folder(data)
    record: dict[str, Any] = {"suite": "lm-eval", "environment": environment(), "cases": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_checkpoint(folder / "model", model, data)
        tasks = write_tasks(folder, data, count)
        for name in tasks:
            with quiet():
                requests = read_requests(folder, name)
            case = _race(folder / "model", requests, rounds)
            record["cases"].append({"case": {"task": name, "requests": len(requests)}, **case})
            title = f"{name}, {len(requests)} requests; largest difference {case['difference']:.1e}"
            note = f", the first time {case['first']:.1f} s"
            show_seconds(title, case["seconds"], {OURS: note})
            if out is not None:
                write_json(out, record)
    return record


def write_checkpoint(folder: Path, model: Path | None, data: Path) -> None:
    """Save a checkpoint with an end token: a given one, or random weights of full size."""
    tokenizer = gpt1.Tokenizer.from_pretrained(model or data / "gpt1_bpe")
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": END})
    if model is None:
        config = gpt1.OpenAIGPTConfig(vocab_size=len(tokenizer))
        language_model = gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0))
    else:
        language_model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(model)
        language_model.resize_token_embeddings(len(tokenizer))
    settings = gpt1.GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    language_model.generation_config = settings
    language_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_tasks(folder: Path, data: Path, count: int) -> tuple[str, ...]:
    """Write files of the tasks, ``count`` rows each, into a folder, and return the tasks' names."""
    file = data / "lambada" / "lambada_test.jsonl"
    passages = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:count]]
    tasks: dict[str, tuple[str, Rows]] = {
        "local_lambada": (LAMBADA, passages),
        "local_copa": (COPA, read_copa(data)[0][:count]),
        "local_sentences": (SENTENCES, passages),
    }
    for name, (task, rows) in tasks.items():
        write_rows(folder / f"{name}.jsonl", rows)
        head = f"task: {name}\n" + TASK % json.dumps(str(folder / f"{name}.jsonl"))
        (folder / f"{name}.yaml").write_text(head + task)
    return tuple(tasks)


def read_requests(folder: Path, name: str) -> Sequence[Any]:
    """Return the requests of a task whose files lie in the folder; nothing is downloaded."""
    from datasets import config
    from lm_eval.tasks import TaskManager

    config.HF_HUB_OFFLINE = True
    config.HF_DATASETS_CACHE = folder / "cache"
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    task = manager.load([name])["tasks"][name]
    task.build_all_requests()
    return task.instances


def answer(model: Any, requests: Sequence[Any]) -> list[Any]:
    """Return a model's answers to requests of one kind."""
    return getattr(model, requests[0].request_type)(requests, disable_tqdm=True)


def difference(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Return the largest difference of log-likelihoods; 0 for texts.

    Raises:
        ValueError: texts or greedy choices differ.
    """
    largest = 0.0
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if not isinstance(a, str):
            largest = max(largest, abs(a[0] - b[0]))
            a, b = a[1], b[1]
        if a != b:
            raise ValueError(f"the answers to request {number} differ: {a!r} and {b!r}")
    return largest


def _race(folder: Path, requests: Sequence[Any], rounds: int) -> dict[str, Any]:
    from lm_eval.api.registry import get_model

    importlib.import_module("gpt1_jax.lm_eval")  # registers the model
    given = {"pretrained": str(folder)}
    ours = get_model("gpt1").create_from_arg_obj(given)
    start = clock()
    found = answer(ours, requests)
    first = clock() - start
    runs: dict[str, Any] = {OURS: lambda: answer(ours, requests)}
    largest = 0.0
    for size in BATCHES:
        with quiet():
            options = {"device": "cpu", "batch_size": size}
            theirs = get_model("hf").create_from_arg_obj(given, options)
            expected = answer(theirs, requests)
        largest = max(largest, difference(found, expected))
        name = f"{THEIRS}, batch {size}"
        runs[name] = lambda theirs=theirs: answer(theirs, requests)
    with quiet():
        seconds: dict[str, Seconds] = interleave(runs, rounds)
    return {"seconds": seconds, "first": first, "difference": largest}
