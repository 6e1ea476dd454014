"""JSON files that are damaged at random: read, or refused by an error that a user can read."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.mutations import mutate_bytes, mutate_json, read_or_refuse
from support.small_tokenizer import write_small

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.generation_config import GenerationConfig
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training import log, run_folder
from gpt1_jax.training.lora.adapters import _read_config as read_adapter_config
from gpt1_jax.training.task_file import read_task

DAMAGES = 100  # of each file; some thousands were tried by hand
RUN = {"texts": ["a"], "steps": 3, "learning_rate": 1e-3, "mesh": {"data": 2}}
FILES: dict[str, Any] = {
    "config.json": {
        **{"model_type": "openai-gpt", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 20},
        **{"n_positions": 8, "eos_token_id": [3, 4], "id2label": {"0": "a", "1": "b", "2": "c"}},
        **{"layer_norm_epsilon": 1e-5, "summary_type": "cls_index", "task_specific_params": None},
    },
    "generation_config.json": {
        **{"max_new_tokens": 5, "do_sample": True, "temperature": 0.5, "top_k": 3},
        **{"suppress_tokens": [1, 2], "bad_words_ids": [[1, 2], [3]], "eos_token_id": [4]},
    },
    "run.json": RUN,
    "log.jsonl": {"step": 1, "loss": 0.5, "lr": 1e-3},
    "task.json": {
        **{"name": "classification", "classes": ["a", "b"], "choices": 0, "max_tokens": 8},
        "columns": {"text": "text", "label": "label"},
    },
    "adapter_config.json": {
        **{"peft_type": "LORA", "r": 2, "lora_alpha": 4.0, "target_modules": ["c_attn"]},
        **{"modules_to_save": ["score"], "use_rslora": False, "task_type": "SEQ_CLS"},
    },
}


def read_config(folder: Path) -> None:
    config = OpenAIGPTConfig.from_pretrained(folder)
    json.dumps(config.to_dict())
    hash(config)


def read_generation_config(folder: Path) -> None:
    settings = GenerationConfig.from_pretrained(folder)
    json.dumps(settings.to_dict())
    hash(settings)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[Path], Any]]:
    tokenizer = Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("tokenizer")))
    return {
        "config.json": read_config,
        "generation_config.json": read_generation_config,
        "run.json": lambda folder: run_folder.check(folder, RUN),
        "log.jsonl": lambda folder: log.read_log(folder / "log.jsonl"),
        "task.json": lambda folder: read_task(folder, tokenizer, 16),
        "adapter_config.json": lambda folder: read_adapter_config(folder / "adapter_config.json"),
    }


@pytest.mark.parametrize("name", FILES)
def test_damaged_json_is_read_or_refused(
    readers: dict[str, Callable[[Path], Any]], tmp_path: Path, name: str
) -> None:
    whole = json.dumps(FILES[name]).encode() + b"\n"
    (tmp_path / name).write_bytes(whole)
    readers[name](tmp_path)
    for seed in range(DAMAGES):
        rng = random.Random(f"{name} {seed}")
        damaged = (
            mutate_json(rng, whole) + b"\n" if rng.random() < 0.8 else mutate_bytes(rng, whole)
        )
        (tmp_path / name).write_bytes(damaged)
        read_or_refuse(lambda: readers[name](tmp_path))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"step": ' + b"1" * 4_301 + b"}", b'{"step": 1, "step": 1}']
)
def test_json_that_python_cannot_read_or_reads_oddly_is_refused(
    readers: dict[str, Callable[[Path], Any]], tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content + b"\n")
    with pytest.raises(ValueError, match=name) as error:
        readers[name](tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)
