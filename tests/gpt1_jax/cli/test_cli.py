"""The command as a user runs it: its main function, on a tiny checkpoint with a tiny tokenizer."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from support.small_models import spoil

import conversion
import gpt1_jax as gpt1
from gpt1_jax.cli import generate as generate_command
from gpt1_jax.generation.streaming import stream_detokenized
from gpt1_jax.generation_config import DEFAULTS, RETURNED

VOCABULARY = ["<unk>", *"abcdefghij", *(f"{c}</w>" for c in "abcdefghij"), "ab", "abc</w>"]
MERGES = ["a b", "ab c</w>"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    config = gpt1.OpenAIGPTConfig(
        vocab_size=len(VOCABULARY), n_positions=32, n_layer=1, n_embd=8, n_head=2
    )
    gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0)).save_pretrained(path)
    vocabulary = {token: id_ for id_, token in enumerate(VOCABULARY)}
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return path


def test_cli_generate_prints_text_or_ids(run: Run, folder: Path) -> None:
    prompts = ["abc a", "j"]
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder)
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)
    ids = gpt1.generate(model, [tokenizer.encode(p) for p in prompts], max_new_tokens=5)
    status, out, err = run(
        "generate", *prompts, "--model", folder, "--max-new-tokens", 5, "--print-ids"
    )
    assert (status, err) == (0, "")
    assert out.splitlines() == [" ".join(map(str, row)) for row in ids]
    assert ids[0][0] == VOCABULARY.index("abc</w>")
    status, out, _ = run("generate", "--model", folder, "abc a", "--max-new-tokens", 5)
    assert status == 0
    assert out == tokenizer.detokenize(ids[0]) + "\n"
    assert out.startswith("abc a")


@pytest.mark.nightly
@pytest.mark.parametrize("flags", [[], ["--num-beams", 2], ["--output-format", "jsonl"]])
def test_cli_names_a_parameter_that_is_not_finite(
    run: Run, folder: Path, tmp_path: Path, flags: list[Any]
) -> None:
    spoiled = shutil.copytree(folder, tmp_path / "spoiled")
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder)
    spoil(model, "transformer.h.0.attn.c_attn.bias")
    model.save_pretrained(spoiled)
    text = tmp_path / "text.txt"
    text.write_text("abc abc")
    message = (
        "gpt1: the logits are not finite, because the parameter transformer.h.0.attn.c_attn.bias "
        "holds NaN or inf\n"
    )
    generate = ["generate", "a", "--max-new-tokens", 5]
    commands = generate, ["evaluate", text], ["surprisal", "abc a"]
    for command in commands if not flags else commands[:1]:
        assert run(*command, "--model", spoiled, *flags) == (2, "", message)


def test_cli_generate_samples_by_seed(run: Run, folder: Path) -> None:
    sample = ["generate", "a", "--model", folder, "--do-sample", "--temperature", 2, "--print-ids"]
    sample += ["--max-new-tokens", 9]
    texts = [run(*sample, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert len(texts[0].split()) == 10
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.nightly
def test_cli_generate_continues_many_prompts(run: Run, folder: Path, tmp_path: Path) -> None:
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder)
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)
    lines = ["abc a", "", '{"prompt": "j", "name": "third"}', "abc abc abc abc a", "b"]
    lines += ['{"ids": [22, 20]}']
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(lines))
    prompts = ["c", "abc a", "j", "abc abc abc abc a", "b", "abc j"]
    draw: dict[str, Any] = {"max_new_tokens": 4, "do_sample": True, "num_return_sequences": 2}
    flags = ["--max-new-tokens", 4, "--do-sample", "--num-return-sequences", 2, "--seed", 5]
    arguments = ["generate", "c", "--prompts", file, "--model", folder, *flags]
    status, out, err = run(*arguments, "--batch-size", 4, "--output-format", "jsonl")
    assert (status, err) == (0, "")
    objects = [json.loads(line) for line in out.splitlines()]
    assert [found["prompt"] for found in objects] == [p for p in prompts for _ in range(2)]
    assert [found["index"] for found in objects] == [0, 1] * len(prompts)
    assert [found.get("name") for found in objects] == [None] * 4 + ["third"] * 2 + [None] * 6
    for i, prompt in enumerate(prompts):
        ids = tokenizer.encode(prompt)
        expected = gpt1.generate(model, [ids], seed=5 + 2 * i, return_dict_in_generate=True, **draw)
        for j, found in enumerate(objects[2 * i : 2 * i + 2]):
            assert found["ids"] == expected.sequences[j].tolist()
            assert found["new_ids"] == found["ids"][len(ids) :]
            assert found["text"] == tokenizer.decode(found["ids"])
            assert "score" not in found
            np.testing.assert_allclose(
                found["transition_scores"], expected.transition_scores[j], atol=1e-5
            )
            np.testing.assert_allclose(found["log_probs"], expected.log_probs[j], atol=1e-5)
    for batch_size in (1, 100):
        _, out, _ = run(*arguments, "--batch-size", batch_size, "--print-ids")
        assert [line.split() for line in out.splitlines()] == [
            list(map(str, found["ids"])) for found in objects
        ]
    _, out, _ = run(*arguments)
    assert out.splitlines() == [tokenizer.detokenize(found["ids"]) for found in objects]


def test_cli_generate_supports_beam_search(run: Run, folder: Path) -> None:
    fields: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4}
    flags = ["--num-beams", 3, "--num-return-sequences", 2, "--max-new-tokens", 4]
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder)
    _, out, _ = run("generate", "abc", "--model", folder, *flags, "--output-format", "jsonl")
    expected = gpt1.generate(model, [[22]], return_dict_in_generate=True, **fields)
    objects = [json.loads(line) for line in out.splitlines()]
    assert [found["ids"] for found in objects] == expected.sequences.tolist()
    scores: Any = expected.sequences_scores
    np.testing.assert_allclose([found["score"] for found in objects], scores, atol=1e-5)


def test_cli_generate_passes_every_setting(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SeenError(ValueError):
        pass

    def seen(model: object, prompts: object, settings: object, **_: object) -> None:
        found.append(settings)
        raise SeenError("seen")

    found: list[object] = []
    monkeypatch.setattr(generate_command, "generate_batches", seen)
    common: dict[str, Any] = {
        "max_new_tokens": 9,
        "max_length": 12,
        "min_new_tokens": 2,
        "min_length": 4,
        "eos_token_id": (4, 5),
        "forced_eos_token_id": (6, 7),
        "pad_token_id": 3,
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "seed": 11,
        "num_return_sequences": 2,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": ((1, 2), (3,)),
        "suppress_tokens": (8, 9),
        "forced_bos_token_id": 10,
    }
    beams: dict[str, Any] = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"}
    alone: dict[str, Any] = {"stop_strings": ("a b", ","), "sliding_window": 16}
    guessed: dict[str, Any] = {"prompt_lookup_num_tokens": 4}
    for fields in (common | beams, common | alone, common | guessed):
        arguments: list[object] = ["generate", "--model", folder]
        for name, value in fields.items():
            flag = "--" + name.replace("_", "-")
            if name == "stop_strings":
                arguments += [word for stop in value for word in (flag, stop)]
            elif name == "bad_words_ids":
                arguments += [flag, "1,2", flag, "3"]
            elif isinstance(value, tuple):
                arguments += [flag, ",".join(map(str, value))]
            else:
                arguments += [flag] if value is True else [flag, value]
        status, _, err = run(*arguments, "a")
        assert (status, err) == (2, "gpt1: seen\n")
        assert found.pop() == gpt1.GenerationConfig(**fields)
    assert (common | beams | alone | guessed).keys() == DEFAULTS.keys() - set(RETURNED)
    arguments = ["generate", "a", "--model", folder, "--max-new-tokens", 9]
    run(*arguments, "--eos-token-id", "None", "--no-do-sample", "--early-stopping", "False")
    assert found.pop() == gpt1.GenerationConfig(max_new_tokens=9, eos_token_id=())


@pytest.mark.nightly
def test_cli_generate_streams_on_a_terminal(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["generate", "abc a", "--model", folder, "--max-new-tokens", 9]
    texts = [
        run(*arguments, *more)[1] for more in ([], ["--do-sample", "--seed", 3], ["--print-ids"])
    ]
    streamed = []

    def spy(*values: Any, **fields: Any) -> Iterator[str]:
        for piece in stream_detokenized(*values, **fields):
            streamed.append(piece)
            yield piece

    monkeypatch.setattr(generate_command, "stream_detokenized", spy)
    assert (run(*arguments)[1], streamed) == (texts[0], [])  # not a terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(*arguments) == (0, texts[0], "")
    assert "".join(streamed) + "\n" == texts[0]
    assert len(streamed) > 1
    assert run(*arguments, "--do-sample", "--seed", 3) == (0, texts[1], "")
    streamed.clear()
    assert run(*arguments, "--print-ids")[1] == texts[2]
    assert run(*arguments, "--output-format", "jsonl")[0] == 0
    first, between, second = run("generate", "b", *arguments[1:])[1].splitlines()
    assert (first[0], between, second) == ("b", "", texts[0].rstrip("\n"))
    assert len(run(*arguments, "--num-beams", 2)[1].splitlines()) == 1
    assert streamed == []


PROMPT = "j"  # continued by letters, three such ids, and letters
BEYOND = (
    f"the model has {len(VOCABULARY) + 30} ids, and the tokenizer tokens for the first "
    f"{len(VOCABULARY)}: decoded text leaves the others out"
)


@pytest.fixture(scope="module")
def larger(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose model has 30 ids more than its tokenizer, and chooses some of these."""
    path = shutil.copytree(folder, tmp_path_factory.mktemp("larger") / "checkpoint")
    V, T, E = len(VOCABULARY) + 30, 32, 8
    config = gpt1.OpenAIGPTConfig(vocab_size=V, n_positions=T, n_layer=1, n_embd=E, n_head=2)
    model = gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0))
    params: Any = model.params
    draw = np.random.default_rng(2).normal
    for name, rows in (("tokens_embed", V), ("positions_embed", T)):
        params["transformer"][name]["embedding"] = draw(size=(rows, E)).astype(np.float32)
    model.load_params(params)
    model.save_pretrained(path)
    return path


@pytest.mark.nightly
@pytest.mark.parametrize("flags", [[], ["--stop-strings", "cccccc"], ["--output-format", "jsonl"]])
@pytest.mark.parametrize("terminal", [False, True])
def test_cli_generate_leaves_out_ids_beyond_the_tokenizer(
    run: Run, larger: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], terminal: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.OpenAIGPTTokenizer.from_pretrained(larger)
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(larger)
    ids = gpt1.generate(model, [tokenizer.encode(PROMPT)], max_new_tokens=9)[0].tolist()
    text = tokenizer.decode(ids)
    assert sum(id_ >= len(VOCABULARY) for id_ in ids) == 3
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    with pytest.warns(UserWarning, match=BEYOND) as warned:
        status, out, _ = run("generate", PROMPT, "--model", larger, "--max-new-tokens", 9, *flags)
    assert (status, len(warned)) == (0, 1)
    if "jsonl" in flags:
        found = json.loads(out)
        assert (found["ids"], found["text"]) == (ids, text)
    else:
        assert out == gpt1.Tokenizer.from_pretrained(larger).detokenize(ids) + "\n"


@pytest.mark.nightly
def test_cli_prints_a_warning_in_one_line(larger: Path) -> None:
    command = [sys.executable, "-m", "gpt1_jax.cli", "generate", "a", "--model", str(larger)]
    command += ["--max-new-tokens", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == f"gpt1: {BEYOND}\n"


def test_cli_generate_ends_the_line_when_interrupted(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Iterator[str]:
        yield "abc a one"
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_command, "stream_detokenized", interrupted)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    arguments = ["generate", "abc a", "--model", folder, "--max-new-tokens", 9]
    assert run(*arguments) == (130, "abc a one\n", "")


def test_cli_generate_shows_progress_on_a_terminal(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["generate", "a", "b", "c", "--model", folder, "--max-new-tokens", 2]
    _, out, err = run(*arguments, "--batch-size", 2)
    assert err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, shown, err = run(*arguments, "--batch-size", 2)
    assert shown == out
    assert "3/3" in err
    _, shown, err = run(*arguments)
    assert (shown, err) == (out, "")


def test_cli_convert_round_trip_is_exact(run: Run, folder: Path, tmp_path: Path) -> None:
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


@pytest.mark.nightly
def test_cli_convert_quantizes(run: Run, folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "int8"
    status, out, _ = run("convert", folder, there, "--quantize", "int8")
    assert (status, out) == (0, f"{there}: OpenAIGPTLMHeadModel in huggingface format\n")
    assert (there / "model.int8.safetensors").is_file()
    assert not (there / "model.safetensors").exists()
    assert (there / "merges.txt").read_bytes() == (folder / "merges.txt").read_bytes()
    generated = run("generate", "abc j", "--model", there, "--max-new-tokens", 3)
    assert generated == run(
        "generate", "abc j", "--model", folder, "--max-new-tokens", 3, "--quantize", "int8"
    )
    half = tmp_path / "half"
    assert run("convert", there, half, "--dtype", "bfloat16")[0] == 0
    _, params = conversion.read(half)
    layer = params["transformer"]["h"]["0"]["attn"]["c_attn"]
    dtypes = {name: leaf.dtype.name for name, leaf in layer.items()}
    assert dtypes == {"qvalue": "int8", "scale": "float32", "bias": "bfloat16"}
    status, out, _ = run("verify", there)
    assert status == 0
    assert out.splitlines()[-1].endswith("torch: transformers does not read int8 weights")
    for arguments in (
        ["convert", there, tmp_path / "a", "--format", "openai"],
        ["convert", there, tmp_path / "c", "--quantize", "int8"],
        ["generate", "abc", "--model", there, "--quantize", "int8"],
    ):
        status, _, err = run(*arguments)
        assert status == 2
        assert "int8" in err


def test_cli_tree_prints_the_model(run: Run, folder: Path) -> None:
    status, out, _ = run("tree", folder)
    assert status == 0
    assert out.startswith("OpenAIGPTLMHeadModel(\n  (transformer): OpenAIGPTModel(\n")
    assert "    (h): ModuleList(\n      (0): Block(\n" in out
    assert out.splitlines()[-1] == "1,312 parameters"
    assert run("tree", "--model", folder) == (0, out, "")
    status, flax, _ = run("tree", folder, "--flax")
    assert status == 0
    assert "(lm_head): TiedHead(in_features=" in flax
    assert len(flax.splitlines()) == len(out.splitlines())


def test_cli_tokens_encodes_and_decodes(run: Run, folder: Path) -> None:
    status, out, _ = run("tokens", "abc j", "--model", folder)
    assert status == 0
    assert out.splitlines() == ["0  'abc</w>'  ->  22", "1  'j</w>'    ->  20"]
    status, out, _ = run("tokens", "--ids", "22", "20,1", "--model", folder)
    assert status == 0
    assert out.splitlines()[:3] == ["0  22  ->  'abc</w>'", "1  20  ->  'j</w>'", "2   1  ->  'a'"]
    assert len(out.splitlines()) == 4  # three tokens, and the text


def test_cli_tokens_accepts_id_ranges(run: Run, folder: Path) -> None:
    """As Python's ranges: the end is not shown."""
    status, out, _ = run("tokens", "--ids", "1-4,20", "22", "--model", folder)
    assert status == 0
    assert [line.split()[1] for line in out.splitlines()[:5]] == ["1", "2", "3", "20", "22"]


def test_cli_nearest_solves_an_analogy(run: Run) -> None:
    """Of the model that comes along."""
    status, out, _ = run("nearest", "king - man + woman", "--count", "3")
    assert status == 0
    assert run("nearest", "king", "-", "man", "+", "woman", "--count", "3") == (0, out, "")
    header, *lines = out.splitlines()
    assert header.split() == ["cosine", "token", "id"]
    tokens = [line.split()[1] for line in lines]
    assert len(tokens) == 3
    assert "'queen</w>'" in tokens


def test_cli_tokens_supports_both_pipelines(run: Run, folder: Path) -> None:
    """A line break is a token of the original one alone; this vocabulary does not know it."""
    pytest.importorskip("spacy")
    for pipeline, ids in {"huggingface": ["22", "20"], "original": ["22", "0", "20"]}.items():
        status, out, _ = run("tokens", "abc\nj", "--model", folder, "--pipeline", pipeline)
        assert status == 0
        assert [line.split("->")[1].split()[0] for line in out.splitlines()] == ids


def test_cli_verify_reports_each_check(run: Run, folder: Path) -> None:
    status, out, _ = run("verify", folder)
    assert status == 0
    assert "ok       layout: OpenAIGPTLMHeadModel, 1,312 parameters" in out
    assert "not run  published outputs: this is not the published GPT-1" in out


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--model", "FOLDER"], "give at least one prompt"),
        (["generate", "", "--model", "FOLDER"], "the prompt '' is empty"),
        (["generate", "--prompts", "./nowhere", "--model", "FOLDER"], "directory: 'nowhere'"),
        (["generate", "--prompts", "EMPTY", "--model", "FOLDER"], "Is a directory"),
        (
            ["generate", "--prompts", "PROMPTS", "--model", "FOLDER"],
            "prompts.txt, line 2: the id 99",
        ),
        (
            ["generate", "--prompts", "GOOD", "--model", "FOLDER", "--max-new-tokens", "29"],
            "good.txt, line 2: a prompt of 5 tokens",
        ),
        (
            [
                "generate",
                "--prompts",
                "GOOD",
                "--model",
                "FOLDER",
                "--max-new-tokens",
                "2",
                "--output-format",
                "jsonl",
            ],
            "good.txt, line 2: the output has its own ['score', 'text']",
        ),
        (
            ["generate", "a", "--model", "FOLDER", "--output-format", "jsonl", "--print-ids"],
            "--print-ids has no effect",
        ),
        (["generate", "a", "--model", "FOLDER", "--batch-size", "0"], "batch_size is 0"),
        (["generate", "a", "--model", "FOLDER", "--eos-token-id", "1,x"], "--eos-token-id"),
        (["generate", "a", "--model", "FOLDER", "--stop-strings", ""], "stop_strings is ('',)"),
        (
            ["generate", "a", "--model", "FOLDER", "--length-penalty", "2"],
            "without num_beams",
        ),
        (["generate", "a", "--model", "./nowhere"], "no folder './nowhere'"),
        (["generate", "a", "--model", "FOLDER", "--max-new-tokens", "99"], "n_positions = 32"),
        (["generate", "a b j", "--model", "FOLDER", "--max-new-tokens", "99"], "'a b j': a pr"),
        (["generate", "a", "--model", "FOLDER", "--temperature", "0.5"], "without do_sample"),
        (["generate", "a", "--model", "FOLDER", "--dtype", "int8"], "int8"),
        (["generate", "a", "--model", "FOLDER", "--no-such-option"], "no-such-option"),
        (["convert", "FOLDER", "FOLDER/config.json"], "config.json"),
        (["convert", "FOLDER", "/proc/nowhere/x"], "/proc/nowhere"),
        (["convert", "FOLDER", ""], "an empty path was given; '.' is the working folder"),
        (["export", "FOLDER", ""], "an empty path was given"),
        (["picture", "attention", "a", "--model", "FOLDER", "--out", ""], "an empty path was giv"),
        (["plan", "cpu", "--table", ""], "an empty path was given"),
        (["pretrain", "PROMPTS", "--out", ""], "an empty path was given"),
        (["pretrain", "", "--out", "TARGET"], "parse for arguments: ['']"),
        (["convert", "FOLDER", "LINK"], "link is a link to"),
        (["convert", "FOLDER", "LINK/deep"], "link is a link to"),
        (["pretrain", "PROMPTS", "--out", "LINK"], "link is a link to"),
        (["picture", "attention", "a", "--model", "FOLDER", "--out", "LINK/a.png"], "is a link to"),
        (["convert", "FOLDER", "TARGET", "--max-shard-size", "big"], "max_shard_size is 'big'"),
        (["convert", "FOLDER", "TARGET", "--format", "openai", "--pickle"], "cannot be combined"),
        (["convert", "FOLDER", "TARGET", "--quantize", "int8", "--pickle"], "cannot be combined"),
        (["tree", "EMPTY"], "has no config.json"),
        (["tree"], "give one checkpoint, as an argument or with --model"),
        (["verify", "FOLDER", "--model", "FOLDER"], "give one checkpoint, as an argument or with"),
        (["tokens", "a", "--model", "EMPTY"], "tokenizer.json"),
        (["tokens", "--ids", "x", "--model", "FOLDER"], "'x' is not a token id"),
        (["tokens", "--ids", "3-99", "--model", "FOLDER"], "the range 3-99 is out of range"),
        (["tokens", "--ids", "0-99999999999", "--model", "FOLDER"], "is out of range"),
        (["tokens", "--ids", "5-5", "--model", "FOLDER"], "the range 5-5 is empty"),
        (["tokens", "--ids", "1-b", "--model", "FOLDER"], "'1-b' is not a token id, nor a range"),
        (["nearest", "bj", "--model", "FOLDER"], "'bj' is not a single token but 'b' 'j</w>'"),
        (["nearest", "j", "--model", "FOLDER", "--count", "0"], "count is 0"),
        (["verify", "EMPTY"], "holds no weights"),
        (["no-such-command"], "no-such-command"),
    ],
)
def test_cli_reports_bad_input_with_status_2(
    run: Run, folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    prompts, good = tmp_path / "prompts.txt", tmp_path / "good.txt"
    prompts.write_text('a\n{"ids": [1, 99]}\n')
    good.write_text('a\n{"ids": [1, 2, 3, 4, 5], "score": 1, "text": ""}\n')
    places = {"FOLDER": folder, "EMPTY": empty, "TARGET": tmp_path / "target"}
    places |= {"PROMPTS": prompts, "GOOD": good, "LINK": tmp_path / "link"}
    places["LINK"].symlink_to(tmp_path / "gone")
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    status, out, err = run(*arguments)
    assert status == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "gone").exists()


def test_cli_expands_the_home_folder(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run("convert", str(folder), "~/out")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.nightly
def test_cli_generate_reports_unknown_hub_id_offline(folder: Path) -> None:
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


def test_cli_generate_prints_integer_ids(run: Run, folder: Path) -> None:
    _, out, _ = run("generate", "a", "--model", folder, "--max-new-tokens", 1, "--print-ids")
    assert np.array(out.split(), np.int64).shape == (2,)


def test_cli_generate_writes_non_finite_scores_as_null(run: Run, folder: Path) -> None:
    """A text that has used up the vocabulary: JSON knows no NaN."""
    status, out, _ = run(
        *("generate", "--model", folder, "--output-format", "jsonl", "a"),
        *("--no-repeat-ngram-size", 1, "--max-new-tokens", 31),
    )

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = json.loads(out, parse_constant=refuse)
    assert status == 0
    assert len(set(text["ids"])) == len(VOCABULARY)
    assert text["transition_scores"][-1] is None
    assert None not in text["log_probs"]


@pytest.mark.parametrize(
    "error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")]
)
def test_cli_generate_reports_out_of_memory(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(generate_command, "generate_batches", fail)
    status, out, err = run("generate", "--model", folder, "a", "--max-new-tokens", 4)
    assert (status, out) == (2, "")
    assert err.startswith("gpt1: out of memory: use smaller batches")
    assert err.count("\n") == 1


def test_cli_generate_rejects_classification_model(run: Run, folder: Path, tmp_path: Path) -> None:
    config = gpt1.OpenAIGPTConfig.from_pretrained(folder)
    gpt1.OpenAIGPTForSequenceClassification(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    status, out, err = run("generate", "a", "--model", tmp_path)
    assert (status, out) == (2, "")
    assert "is a classifier (OpenAIGPTForSequenceClassification): expected" in err
    assert err.count("\n") == 1
