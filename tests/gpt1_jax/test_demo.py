"""The demo checkpoint: whole, small, and what every command takes where no model is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpt1_jax as gpt1
from gpt1_jax import demo
from gpt1_jax.training.data.corpus import load_tokens
from gpt1_jax.training.perplexity import text_measures

pytestmark = pytest.mark.optimized

SENTENCE = "the old man looked at her and"


@pytest.mark.smoke
def test_demo_is_a_small_hugging_face_checkpoint() -> None:
    files = {path.name: path.stat().st_size for path in demo.FOLDER.iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    assert sum(files.values()) <= 12e6
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained("demo")
    tokenizer = gpt1.Tokenizer.from_pretrained("demo")
    assert model.config == gpt1.OpenAIGPTConfig.from_pretrained(demo.FOLDER)
    assert len(tokenizer) == model.config.vocab_size
    assert 4 <= model.config.n_layer <= 6
    assert 128 <= model.config.n_embd <= 320


@pytest.mark.nightly
@pytest.mark.smoke
def test_demo_model_predicts_english() -> None:
    """It has learned words and what follows them: far likelier than in another order."""
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained("demo")
    tokenizer = gpt1.Tokenizer.from_pretrained("demo")
    ids = np.asarray([tokenizer.encode(f"{SENTENCE} said that he had never seen such a thing.")])
    shuffled = np.random.default_rng(0).permuted(ids, axis=1)
    apply, params = gpt1.functional(model)
    right, wrong = (float(apply(params, x, labels=x).loss) for x in (ids, shuffled))
    assert right < 5 < 7 < wrong
    text = tokenizer.decode(gpt1.generate(model, ids[:, :7], max_new_tokens=20)[0])
    assert text.startswith(SENTENCE.split()[0])
    assert "<unk>" not in text


def test_demo_resolve_prefers_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.resolve("demo") == demo.FOLDER
    (tmp_path / "demo").mkdir()
    assert demo.resolve("demo").resolve() == tmp_path / "demo"


@pytest.mark.smoke
def test_cli_generate_uses_demo_model_offline(tmp_path: Path) -> None:
    """In a process of its own that runs elsewhere and may not reach a hub."""
    command = [
        sys.executable,
        "-m",
        "gpt1_jax.cli",
        "generate",
        SENTENCE,
        "--output-format",
        "jsonl",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "--max-new-tokens", "8"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    printed = json.loads(done.stdout)
    assert printed["prompt"] == SENTENCE
    assert len(printed["new_ids"]) == 8


@pytest.mark.nightly
def test_demo_model_card_perplexity_is_reproduced(data_folder: Path, tmp_path: Path) -> None:
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained("demo")
    tokenizer = gpt1.Tokenizer.from_pretrained("demo")
    card = (demo.FOLDER / "README.md").read_text()
    for part in ("valid", "test"):
        text = load_tokens(sorted((data_folder / "books" / part).iterdir()), tokenizer, tmp_path)
        found = text_measures(model, text, stride=model.config.n_positions // 2)(model.params)
        assert f"{found['perplexity']:.1f} | {found['bits_per_character']:.3f}" in card
