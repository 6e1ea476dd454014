"""The command as a user runs it: its main function, on a tiny checkpoint with a tiny tokenizer."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import conversion
import gpt1_jax as gpt1
from gpt1_jax import cli

VOCABULARY = ["<unk>", *"abcdefghij", *(f"{c}</w>" for c in "abcdefghij"), "ab", "abc</w>"]
MERGES = ["a b", "ab c</w>"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    config = gpt1.OpenAIGPTConfig(
        vocab_size=len(VOCABULARY), n_positions=32, n_layer=3, n_embd=8, n_head=2
    )
    gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0)).save_pretrained(path)
    vocabulary = {token: id_ for id_, token in enumerate(VOCABULARY)}
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``gpt1`` with arguments: exit status, standard output, standard error."""

    def gpt1_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gpt1", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return gpt1_command


def test_generate(run: Run, folder: Path) -> None:
    prompts = ["abc a", "j"]
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder)
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)
    ids = gpt1.generate(model, [tokenizer.encode(p) for p in prompts], max_new_tokens=5)
    status, out, err = run("generate", *prompts, "--model", folder, "--max-new-tokens", 5, "--ids")
    assert (status, err) == (0, "")
    assert out.splitlines() == [" ".join(map(str, row)) for row in ids]
    assert ids[0][0] == VOCABULARY.index("abc</w>")
    status, out, _ = run("generate", "--model", folder, "abc a", "--max-new-tokens", 5)
    assert status == 0
    assert out == tokenizer.decode(ids[0]) + "\n"
    assert out.startswith("abc a")


def test_generate_samples(run: Run, folder: Path) -> None:
    sample = ["generate", "a", "--model", folder, "--do-sample", "--temperature", 2, "--ids"]
    sample += ["--max-new-tokens", 9]
    texts = [run(*sample, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert len(texts[0].split()) == 10
    assert texts[0] == texts[1] != texts[2]


def test_convert_there_and_back(run: Run, folder: Path, tmp_path: Path) -> None:
    there, back, half = tmp_path / "openai", tmp_path / "huggingface", tmp_path / "half"
    assert run("convert", folder, there, "--format", "openai")[0] == 0
    assert (there / "params_9.npy").is_file()
    assert run("convert", there, back)[0] == 0
    assert (back / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (back / "merges.txt").read_bytes() == (folder / "merges.txt").read_bytes()
    status, out, _ = run("convert", folder, half, "--dtype", "bfloat16")
    assert (status, out) == (0, f"{half}: OpenAIGPTLMHeadModel in huggingface format\n")
    _, params = conversion.read(half)
    assert params["transformer"]["h"]["0"]["ln_1"]["scale"].dtype == conversion.DTYPES["bfloat16"]


def test_tree(run: Run, folder: Path) -> None:
    status, out, _ = run("tree", folder)
    assert status == 0
    assert out.startswith("OpenAIGPTLMHeadModel(\n  (transformer): OpenAIGPTModel(\n")
    assert "    (h): List(\n      (0-2): 3 x Block(\n" in out
    assert out.splitlines()[-1] == "3,056 parameters"


def test_tokens_both_ways(run: Run, folder: Path) -> None:
    status, out, _ = run("tokens", "abc j", "--model", folder)
    assert status == 0
    assert out.splitlines() == ["0  'abc</w>'  ->  22", "1  'j</w>'    ->  20"]
    status, out, _ = run("tokens", "--ids", "22", "20,1", "--model", folder)
    assert status == 0
    assert out.splitlines()[:3] == ["0  22  ->  'abc</w>'", "1  20  ->  'j</w>'", "2   1  ->  'a'"]
    assert len(out.splitlines()) == 4  # three tokens, and the text


def test_verify(run: Run, folder: Path) -> None:
    status, out, _ = run("verify", folder)
    assert status == 0
    assert "ok       layout: OpenAIGPTLMHeadModel, 3,056 parameters" in out
    assert "not run  published outputs: this is not the published GPT-1" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--model", "FOLDER"], "give at least one prompt"),
        (["generate", "", "--model", "FOLDER"], "the prompt '' is empty"),
        (["generate", "a", "--model", "./nowhere"], "no folder './nowhere'"),
        (["generate", "a", "--model", "FOLDER", "--max-new-tokens", "99"], "n_positions = 32"),
        (["generate", "a", "--model", "FOLDER", "--temperature", "0.5"], "unless do_sample"),
        (["generate", "a", "--model", "FOLDER", "--dtype", "int8"], "int8"),
        (["generate", "a", "--model", "FOLDER", "--no-such-option"], "no-such-option"),
        (["generate", "a"], "model"),
        (["convert", "FOLDER", "FOLDER/config.json"], "config.json"),
        (["convert", "FOLDER", "/proc/nowhere/x"], "/proc/nowhere"),
        (["convert", "FOLDER", "TARGET", "--max-shard-size", "big"], "max_shard_size is 'big'"),
        (["convert", "FOLDER", "TARGET", "--format", "openai", "--pickle"], "do not go with"),
        (["tree", "EMPTY"], "has no config.json"),
        (["tokens", "a", "--model", "EMPTY"], "tokenizer.json"),
        (["tokens", "--ids", "x", "--model", "FOLDER"], "'x' is not a token id"),
        (["tokens", "--ids", "99", "--model", "FOLDER"], "99"),
        (["verify", "EMPTY"], "holds no weights"),
        (["no-such-command"], "no-such-command"),
    ],
)
def test_wrong_input_is_one_message_and_status_2(
    run: Run, folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"FOLDER": folder, "EMPTY": empty, "TARGET": tmp_path / "target"}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    status, out, err = run(*arguments)
    assert status == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "target").exists()


def test_an_unknown_hub_id_without_network(folder: Path) -> None:
    command = [sys.executable, "-c", "from gpt1_jax.cli import main; main()"]
    done = subprocess.run(
        [*command, "generate", "a", "--model", "nobody/no-such-model"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "'nobody/no-such-model'" in done.stderr


def test_ids_of_the_command_are_integers(run: Run, folder: Path) -> None:
    _, out, _ = run("generate", "a", "--model", folder, "--max-new-tokens", 1, "--ids")
    assert np.array(out.split(), np.int64).shape == (2,)
