"""Make generation.json: ids that transformers generates with a full-size model, and check ours.

    python tests/golden/make_generation.py [--check]

Fifty random prompts of 1 to 200 tokens, greedily and with beams, with and without each setting.
transformers, which has no cache, takes a good while. Then, or with --check alone, this package
continues every prompt alone and in ragged batches of eight; the test suite repeats a part of that.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import gpt1_jax as gpt1

sys.path.insert(0, str(Path(__file__).parent))

from compare_ids import compare

FILE = Path(__file__).with_name("generation.json")
PROMPTS, LONGEST, BATCH = 50, 200, 8
EOS = 40477
# Which settings a search is tried with. A random model repeats the last token; "first" stands for
# the last tokens of all prompts, so that every text has to go elsewhere.
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition_penalty": {"repetition_penalty": 100.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": "first"},
    "suppress_tokens": {"suppress_tokens": "first"},
    "min_new_tokens": {"eos_token_id": "first", "min_new_tokens": 2},
    "forced_bos_token_id": {"forced_bos_token_id": 3001},
    "forced_eos_token_id": {"forced_eos_token_id": EOS},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 4},
    "beams": {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2},
}


def random_model() -> Any:
    """The model whose ids these are: Hugging Face's own initialisation."""
    torch.manual_seed(0)
    return transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig()).eval()


def fill_in(settings: dict[str, Any], first: list[int]) -> dict[str, Any]:
    """Put these tokens in the place of "first"."""
    values = {name: first if value == "first" else value for name, value in settings.items()}
    if "bad_words_ids" in values:
        values["bad_words_ids"] = [[token] for token in first]
    return {"pad_token_id": 0, **values}


def reference(model: Any, prompt: list[int], settings: dict[str, Any]) -> list[list[int]]:
    """The new ids, a list for each returned text, the padding included."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=False, **settings
    )
    return out[:, len(prompt) :].tolist()


def make() -> None:
    """Write generation.json."""
    rng = np.random.default_rng(1)
    prompts = [
        rng.integers(EOS, size=rng.integers(1, LONGEST + 1)).tolist() for _ in range(PROMPTS)
    ]
    model = random_model()
    first = sorted({prompt[-1] for prompt in prompts})
    cases = []
    for search, lengths in SEARCHES.items():
        for name, chosen in SETTINGS.items():
            settings = {**lengths, **fill_in(chosen, first)}
            new = [reference(model, prompt, settings) for prompt in prompts]
            cases.append({"name": f"{search}-{name}", "settings": settings, "new": new})
            print(cases[-1]["name"], flush=True)
    made_with = f"torch {torch.__version__}, transformers {transformers.__version__}"
    golden = {"made_with": made_with, "prompts": prompts, "cases": cases}
    FILE.write_text(json.dumps(golden) + "\n")


def check() -> None:
    """Continue every prompt alone and in batches; raise where an id differs."""
    golden = json.loads(FILE.read_text())
    with tempfile.TemporaryDirectory() as folder:
        random_model().save_pretrained(folder)
        model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder)
    for case in golden["cases"]:
        for size in (1, BATCH):
            compare(model, golden, case, range(PROMPTS), size)
        print(f"{case['name']}: equal, alone and in batches of {BATCH}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    if not sys.argv[1:]:
        make()
    check()
