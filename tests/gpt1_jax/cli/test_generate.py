"""``gpt1 generate`` on folders with each kind of vocabulary, and with none."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.scripted_model import scripted_model
from support.small_models import small_model
from support.small_tokenizer import SIZE, write_small
from support.vocabularies import LAYOUTS

import gpt1_jax as gpt1
from gpt1_jax.text.tokenizer_files import has_tokenizer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=SIZE, n_positions=32)


@pytest.fixture(params=LAYOUTS)
def folder(
    request: pytest.FixtureRequest, model: gpt1.OpenAIGPTLMHeadModel, tmp_path: Path
) -> Path:
    folder = tmp_path / request.param
    model.save_pretrained(folder)
    LAYOUTS[request.param](folder)
    return folder


@pytest.mark.nightly
def test_every_layout_is_generated_from_scored_and_saved_again(
    run: Run, folder: Path, model: gpt1.OpenAIGPTLMHeadModel
) -> None:
    tokenizer = None if folder.name == "none" else gpt1.Tokenizer.from_pretrained(folder)
    tokenized = tokenizer is not None
    assert has_tokenizer(folder) is tokenized
    prompt, ids = "the press", [3, 4]
    saved, converted = (folder.parent / name for name in ("saved", "converted"))
    gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder).save_pretrained(saved)
    if tokenizer is not None:
        tokenizer.save_pretrained(saved)
        ids = tokenizer.encode_prompt(prompt)
    assert run("convert", folder, converted)[0] == 0
    prompts = folder.parent / "prompts.jsonl"
    given = {"prompt": prompt} if tokenized else {"ids": ids}
    prompts.write_text(json.dumps(given) + "\n")
    scores = []
    expected = np.asarray(gpt1.generate(model, [ids], max_new_tokens=6))[0].tolist()
    for each in (folder, saved, converted):
        flags = ["--prompts", prompts, "--model", each, "--max-new-tokens", 6]
        status, out, err = run("generate", *flags, "--output-format", "jsonl")
        assert (status, err) == (0, "")
        found = json.loads(out)
        assert found["ids"] == expected
        assert ("text" in found) is ("prompt" in found) is tokenized
        text = run("generate", *flags)[1]
        printed = (
            " ".join(map(str, expected)) if tokenizer is None else tokenizer.detokenize(expected)
        )
        assert text == printed + "\n"
        scored = folder.parent / "scored.jsonl"
        scored.write_text(json.dumps({"text": prompt} if tokenized else {"ids": ids}) + "\n")
        status, out, _ = run("score", scored, "--model", each)
        assert status == 0
        scores.append(json.loads(out)["log_probs"])
    assert scores[0] == scores[1] == scores[2]
    assert len(scores[0]) == (len(tokenizer.encode(prompt)) if tokenizer is not None else len(ids))


def test_saved_layouts_load_in_transformers(folder: Path, model: gpt1.OpenAIGPTLMHeadModel) -> None:
    transformers = pytest.importorskip("transformers")
    saved = folder.parent / "saved"
    model.save_pretrained(saved)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved)
    assert theirs.num_parameters() > 0
    if folder.name != "none":
        ours = gpt1.Tokenizer.from_pretrained(folder)
        ours.save_pretrained(saved)
        tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
        assert tokenizer.encode("hello the press") == ours.encode("hello the press")
        # Token types of zeros would be embedded.
        assert tokenizer("hello").keys() == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("folder", ["none"], indirect=True)
def test_texts_without_a_tokenizer_are_one_clear_line(run: Run, folder: Path) -> None:
    status, out, err = run("generate", "the press", "--model", folder)
    assert (status, out) == (2, "")
    assert err.startswith(f"gpt1: {folder} has no tokenizer: neither tokenizer.json, nor")
    assert err.endswith("without one, give token ids in place of texts\n")
    prompts = folder.parent / "prompts.jsonl"
    prompts.write_text('{"ids": [3]}\n')
    flags = ["--prompts", prompts, "--model", folder]
    status, _, err = run("generate", *flags, "--pipeline", "original")
    assert (status, err) == (2, f"gpt1: --pipeline has no effect: {folder} has no tokenizer\n")
    status, _, err = run("generate", *flags, "--stop-strings", "x")
    assert status == 2
    assert "stop_strings is ('x',), which needs a tokenizer" in err


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
def test_stop_strings_need_a_vocabulary_with_ends_of_words(run: Run, folder: Path) -> None:
    status, _, err = run("generate", "hello", "--model", folder, "--stop-strings", "x")
    assert status == 2
    assert "stop_strings needs a vocabulary like GPT-1's" in err


WRITTEN = """he is , " i don't , " . it's the e"""
READ = """he is, "i don't,". it's the"""
DECODED = """he is , " i don ' t , " . it ' s the"""


def test_text_is_printed_for_a_reader_and_kept_in_jsonl(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal and elsewhere alike; of several texts a terminal shows each when it is done."""
    folder = write_small(tmp_path / "scripted")
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)
    script = tokenizer.encode(WRITTEN)
    scripted_model(script).save_pretrained(folder)
    prompts = ["he", "he is ,"]
    flags = ["--model", folder, "--max-length", len(script) - 1]
    jsonl = ["--output-format", "jsonl"]
    assert run("generate", prompts[0], *flags) == (0, f"{READ}\n", "")
    _, out, _ = run("generate", *prompts, *flags, *jsonl)
    assert [json.loads(line)["text"] for line in out.splitlines()] == [DECODED] * 2
    assert run("generate", *prompts, *flags) == (0, f"{READ}\n{READ}\n", "")
    flags = ["--model", folder, "--max-new-tokens", 1, "--batch-size", 1]
    short, long = "he is\n", 'he is, "\n'
    assert run("generate", *prompts, *flags) == (0, short + long, "")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("generate", prompts[0], *flags) == (0, short, "")
    # The longer prompts are continued first.
    assert run("generate", *prompts, *flags) == (0, f"{long}\n{short}", "")
    # Those of one batch are done together.
    assert run("generate", *prompts, *flags[:-2]) == (0, f"{short}\n{long}", "")
    assert run("generate", *prompts, *flags, "--print-ids")[1].count("\n\n") == 0
    _, out, _ = run("generate", *prompts, *flags, *jsonl)
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == prompts
