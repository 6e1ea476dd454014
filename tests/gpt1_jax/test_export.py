"""Exported programs: what a process without this package makes of them, and what is refused."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.small_models import MODELS, difference, random_ids, small_model

import conversion
import gpt1_jax as gpt1
from gpt1_jax.export import PLATFORMS, export_decode, export_forward, export_model

LM = gpt1.OpenAIGPTLMHeadModel
DOUBLE = gpt1.OpenAIGPTDoubleHeadsModel
CLASSIFICATION = gpt1.OpenAIGPTForSequenceClassification
PAGE = Path(__file__).parents[2] / "docs" / "export.md"
ROWS, LENGTHS = (1, 2, 5), (1, 5, 8)

# Reads folders of programs with inputs in them, and writes beside these what comes out.
CALL = """
import sys

for folder in sys.argv[1:]:
    weights = load_file(f"{folder}/model.safetensors")
    forward = load(f"{folder}/forward.jax")
    given, outputs = np.load(f"{folder}/given.npz"), {}
    for i in sorted({name.partition(" ")[0] for name in given}):
        inputs = [given[f"{i} {n}"] for n in range(3) if f"{i} {n}" in given]
        for name, array in forward(weights, *inputs).items():
            outputs[f"{i} {name}"] = array
    np.savez(f"{folder}/outputs.npz", **outputs)
"""
ALONE = """
assert not {"gpt1_jax", "conversion", "flax"} & {name.partition(".")[0] for name in sys.modules}
"""


def printed(name: str) -> str:
    """The program that the page prints under a comment of this name."""
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def child(program: str, folder: Path, *arguments: object, **variables: str) -> str:
    """Run a program in a folder, with another process's Python: what it prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shapes(cls: Any) -> list[tuple[int, int]]:
    """Every number of rows with every length for the language model, once each for the others."""
    return (
        list(itertools.product(ROWS, LENGTHS))
        if cls is LM
        else list(zip(ROWS, LENGTHS, strict=True))
    )


def inputs_of(cls: Any, rows: int, tokens: int) -> list[np.ndarray]:
    """Ids with padding on the right, by which a classification finds the end of a row."""
    shape = (rows, 3, tokens) if cls is DOUBLE else (rows, tokens)
    lengths = np.random.default_rng(tokens).integers(1, tokens + 1, shape[:-1])
    mask = (np.arange(tokens) < lengths[..., None]).astype(np.int32)
    ids = np.where(mask, np.maximum(random_ids(*shape), 1), 0)
    return [ids, mask, lengths - 1] if cls is DOUBLE else [ids, mask]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs for each of the models, and what a process without this package gets."""
    root = tmp_path_factory.mktemp("models")
    for cls in MODELS:
        folder = root / cls.__name__
        export_model(small_model(cls, n_layer=1, pad_token_id=0), folder)
        given: Any = {
            f"{i} {n}": array
            for i, shape in enumerate(shapes(cls))
            for n, array in enumerate(inputs_of(cls, *shape))
        }
        np.savez(folder / "given.npz", **given)
    export_model(LM.from_pretrained("demo"), root / "exported")
    child(printed("loader") + CALL + ALONE, root, *(cls.__name__ for cls in MODELS))
    return root


@pytest.mark.nightly
@pytest.mark.parametrize("cls", MODELS)
def test_export_model_runs_without_this_package(cls: Any, exported: Path) -> None:
    """One program for all numbers of rows and tokens."""
    apply, params = gpt1.functional(small_model(cls, n_layer=1, pad_token_id=0))
    outputs = np.load(exported / cls.__name__ / "outputs.npz")
    for i, shape in enumerate(shapes(cls)):
        ids, mask, *places = inputs_of(cls, *shape)
        more = {"mc_token_ids": places[0]} if places else {}
        out: Any = apply(params, ids, mask, **more)
        names = [name for name, array in vars(out).items() if array is not None]
        assert sorted(names) == sorted(
            key.removeprefix(f"{i} ") for key in outputs if key.startswith(f"{i} ")
        )
        for name in names:
            # Measured: 1.3e-7; at full size 0.
            assert difference(outputs[f"{i} {name}"], out[name]) <= 1e-6


@pytest.mark.nightly
@pytest.mark.parametrize("x64", ["0", "1"])
def test_export_decode_loop_of_the_page_matches_generate(x64: str, exported: Path) -> None:
    program = printed("loader") + printed("decoding")
    show = "print(logits.shape, *ids[0])\nimport sys\n"
    *shape, ids = child(program + show + ALONE, exported, JAX_ENABLE_X64=x64).partition(") ")
    model = LM.from_pretrained("demo")
    prompt = [481, 544, 246]
    assert shape[0] == f"(1, 3, {model.config.vocab_size}"
    expected = gpt1.generate(model, [prompt], max_new_tokens=20)[0]
    assert list(map(int, ids.split())) == expected.tolist()


# What the loader is given, and what comes of it.
ARGUMENTS = """
ones = np.ones_like(input_ids)
for mask in (ones, ones.astype(bool), ones.astype(">f4"), ones.tolist(), jax.numpy.ones((1, 3))):
    assert (forward(weights, input_ids.astype(">i8"), mask)["logits"] == logits).all()
for mask in (ones * 255, ones * 0.5, ones * np.nan, ones - 1e9, [[1, 2**32 + 1, 1]]):
    try:
        forward(weights, input_ids, mask)
    except ValueError as error:
        assert f"attention_mask holds {np.max(mask)}, but must hold 1" in str(error), error
    else:
        raise AssertionError(mask)
for wrong in (-1, 2**31 - 1, 2**32, 2**63):
    ids = np.where([[False, True, False]], np.uint64(wrong % 2**64), input_ids.astype(np.uint64))
    assert np.isnan(forward(weights, ids, ones)["logits"]).any(), wrong
try:
    forward(weights, input_ids * 1.0, ones)
except TypeError as error:
    assert "Cannot cast" in str(error)
else:
    raise AssertionError("ids of floats")
"""


@pytest.mark.parametrize("x64", ["0", "1"])
def test_export_loader_of_the_page_casts_integers_and_refuses_other_masks(
    x64: str, exported: Path
) -> None:
    child(printed("loader") + ARGUMENTS + "import sys\n" + ALONE, exported, JAX_ENABLE_X64=x64)


@pytest.mark.parametrize("program", ["forward", "decode"])
def test_export_returns_nan_in_the_row_of_another_mask(program: str) -> None:
    model = small_model(LM, n_layer=1)
    ids, mask = random_ids(2, 4), np.asarray([[0, 1, 2, 1], [0, 1, 1, 1]], np.int32)
    if program == "forward":
        out = export_forward(model, ["cpu"]).call(saved(model), ids, mask)
    else:
        cache: Any = vars(gpt1.Cache.empty(model.config, batch=2, length=4))
        out = export_decode(model, ["cpu"]).call(saved(model), ids, mask, cache)
    assert np.isnan(out["logits"][0]).all()
    assert np.isfinite(out["logits"][1]).all()


def test_export_decode_handles_padding_and_chunks() -> None:
    """Rows of unequal length in pieces of 3, 1 and 2 tokens, against the whole at once."""
    model = small_model(LM)
    apply, params = gpt1.functional(model)
    weights = saved(model)
    program = export_decode(model, ["cpu"])
    ids, mask = random_ids(2, 6), np.ones((2, 6), np.int32)
    mask[0, :2] = 0
    cache: Any = vars(gpt1.Cache.empty(model.config, batch=2, length=7))
    whole = apply(params, ids, mask, positions_from_mask=True).logits
    for start, end in ((0, 3), (3, 4), (4, 6)):
        out = program.call(weights, ids[:, start:end], mask[:, start:end], cache)
        cache = out["cache"]
        assert difference(out["logits"], whole[:, end - 1]) <= 1e-6


def saved(model: Any) -> dict[str, Any]:
    """The tensors of a model's checkpoint: the names and the order of dimensions are torch's."""
    rows = conversion.param_specs(model.config.to_dict(), type(model).__name__)
    leaves = {row.torch: row.path for row in rows}

    def at(path: tuple[str, ...]) -> np.ndarray:
        node = model.params
        for key in path:
            node = node[key]
        return np.asarray(node)

    return {row.torch: row.to_torch(at(leaves[row.torch])) for row in rows}


@pytest.mark.parametrize("tied", [True, False])
def test_export_model_weights_are_a_checkpoint(tied: bool, tmp_path: Path) -> None:
    """Transformers' names, and for an untied head its order of dimensions."""
    model = small_model(LM, n_layer=1, tie_word_embeddings=tied)
    export_model(model, tmp_path)
    again = LM.from_pretrained(tmp_path)
    ids, mask = inputs_of(LM, 2, 5)
    np.testing.assert_array_equal(again(ids, mask).logits, model(ids, mask).logits)
    program = jax.export.deserialize(bytearray((tmp_path / "forward.jax").read_bytes()))
    out = program.call(load_file(tmp_path / "model.safetensors"), ids, mask)
    assert difference(out["logits"], model(ids, mask).logits) <= 1e-6


@pytest.mark.nightly
@pytest.mark.parametrize("tied", [True, False])
def test_export_model_of_int8_weights(tied: bool, tmp_path: Path) -> None:
    model = gpt1.quantize(small_model(LM, n_layer=1, tie_word_embeddings=tied))
    export_model(model, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    program = jax.export.deserialize(bytearray((tmp_path / "forward.jax").read_bytes()))
    weights = load_file(tmp_path / "model.int8.safetensors")
    for rows in (1, 2):
        ids, mask = inputs_of(LM, rows, 5)
        out = program.call(weights, ids, mask)
        assert difference(out["logits"], model(ids, mask).logits) <= 1e-5


def test_export_targets_all_or_chosen_platforms() -> None:
    model = small_model(LM, n_layer=1)
    for export in (export_forward, export_decode):
        assert export(model).platforms == PLATFORMS == ("cpu", "cuda", "tpu")
        assert export(model, ["tpu"]).platforms == ("tpu",)


@pytest.mark.nightly
def test_export_forward_matches_model_in_bfloat16() -> None:
    """The program computes as the model does, from weights in the dtype that it has them in."""
    model = small_model(LM, n_layer=1, dtype=jnp.bfloat16)
    ids, mask = inputs_of(LM, 2, 5)
    out = export_forward(model, ["cpu"]).call(saved(model), ids, mask)
    assert out["logits"].dtype == np.float32
    assert difference(out["logits"], model(ids, mask).logits) <= 2e-2


@pytest.mark.nightly
def test_export_readme_loader_reads_weights_in_bfloat16(exported: Path, tmp_path: Path) -> None:
    model = small_model(LM, n_layer=1, param_dtype="bfloat16")
    export_model(model, tmp_path / "exported", platforms=["cpu"])
    program = printed("loader").replace("[[481, 544, 246]]", "[[1, 2, 3]]")
    printed_ids = child(program + "print(logits.argmax(-1).tolist())", tmp_path)
    expected = gpt1.functional(model)[0](model.params, [[1, 2, 3]]).logits
    assert json.loads(printed_ids) == expected.argmax(-1).tolist()


def test_export_forward_classifier_without_pad_takes_one_row() -> None:
    model = small_model(CLASSIFICATION, n_layer=1)
    program, weights = export_forward(model, ["cpu"]), saved(model)
    ids = random_ids(1, 4)
    out = program.call(weights, ids, np.ones_like(ids))
    assert difference(out["logits"], model(ids).logits) <= 1e-6
    with pytest.raises(ValueError, match=r"args\[1\]"):
        program.call(weights, random_ids(2, 4), np.ones((2, 4), np.int32))


def test_export_forward_returns_nan_for_invalid_ids() -> None:
    model = small_model(LM, n_layer=1)
    program, weights = export_forward(model, ["cpu"]), saved(model)
    for wrong in (-1, model.config.vocab_size):
        ids = np.array([[1, wrong, 3]], np.int32)
        assert np.isnan(program.call(weights, ids, np.ones_like(ids))["logits"]).any()


def test_export_forward_rejects_too_many_tokens() -> None:
    """JAX's error; its cause says what was expected."""
    model = small_model(LM, n_layer=1)
    program = jax.export.deserialize(export_forward(model, ["cpu"]).serialize())
    ids = random_ids(1, 9)
    with pytest.raises(ValueError, match="shapes") as error:
        program.call(saved(model), ids, np.ones_like(ids))
    assert "constraint tokens <= 8" in str(error.value.__cause__)


@pytest.mark.parametrize(("rows", "tokens", "name"), [(0, 4, "batch"), (2, 0, "tokens")])
def test_export_forward_rejects_no_rows_and_no_tokens(rows: int, tokens: int, name: str) -> None:
    model = small_model(LM, n_layer=1)
    ids = np.ones((rows, tokens), np.int32)
    with pytest.raises(ValueError, match=f"Expected value >= 1 for dimension variable '{name}'"):
        export_forward(model, ["cpu"]).call(saved(model), ids, ids)


@pytest.mark.nightly
def test_export_forward_has_a_gradient_only_where_it_is_saved_with_one() -> None:
    model, ids = small_model(LM, n_layer=1), random_ids(2, 4)
    apply, params = gpt1.functional(model)
    expected = jax.grad(lambda params: apply(params, ids).logits.sum())(params)

    def gradient(**kwargs: int) -> Any:
        written = export_forward(model, ["cpu"]).serialize(**kwargs)
        program = jax.export.deserialize(written)

        def total(weights: Any) -> jax.Array:
            return program.call(weights, ids, np.ones_like(ids))["logits"].sum()

        return jax.grad(total)(jax.tree.map(jnp.asarray, saved(model)))

    with pytest.raises(ValueError, match="No VJP is available"):
        gradient()
    found = gradient(vjp_order=1)["transformer.tokens_embed.weight"]
    assert difference(found, expected["transformer"]["tokens_embed"]["embedding"]) < 1e-5


def test_export_forward_refuses_vmap() -> None:
    model, ids = small_model(LM, n_layer=1), random_ids(2, 1, 4)
    program, weights = export_forward(model, ["cpu"]), saved(model)
    with pytest.raises(NotImplementedError, match="Batching rule for 'call_exported'"):
        jax.vmap(lambda ids: program.call(weights, ids, ids))(ids)


Run = Callable[..., tuple[int, str, str]]


def test_export_model_keeps_the_settings_of_generation(tmp_path: Path) -> None:
    held = b'{"temperature": 0.7, "custom": 1}'
    small_model(gpt1.OpenAIGPTLMHeadModel).save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "generation_config.json").write_bytes(held)
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "own")
    for name, companions in (("a", None), ("b", tmp_path / "own")):
        export_model(model, tmp_path / name, platforms=["cpu"], companions=companions)
        assert (tmp_path / name / "generation_config.json").read_bytes() == held


def test_cli_export_writes_programs_and_checkpoint(run: Run, tmp_path: Path) -> None:
    model = small_model(DOUBLE, n_layer=1)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "vocab.json").write_text("{}")
    target = tmp_path / "exported"
    export_model(small_model(LM, n_layer=1), target, platforms=["cpu"])  # with a decode.jax
    status, out, err = run("export", tmp_path / "model", target, "--text", "--platforms", "cpu")
    assert (status, err) == (0, "")
    assert out == f"{target}: OpenAIGPTDoubleHeadsModel for cpu\n"
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "forward.jax",
        "forward.mlir",
        "model.safetensors",
        "vocab.json",
    ]
    text = (target / "forward.mlir").read_text()
    assert "module @jit_forward" in text
    assert "stablehlo.dot_general" in text


def test_cli_export_rejects_bad_input(run: Run, tmp_path: Path) -> None:
    small_model(LM, n_layer=1).save_pretrained(tmp_path / "model")
    status, _, err = run("export", tmp_path / "absent", tmp_path / "target")
    assert status == 2
    assert err.startswith(f"gpt1: there is no folder '{tmp_path / 'absent'}'")
    status, _, err = run("export", tmp_path / "model", tmp_path / "target", "--platforms", "rocm")
    assert status == 2
    assert "'rocm'" in err
    file = tmp_path / "file"
    file.write_text("")
    status, _, err = run("export", tmp_path / "model", file)
    assert status == 2
    assert err == f"gpt1: cannot write to {file}: it is a file, not a folder\n"
    assert file.read_text() == ""
    assert not (tmp_path / "target").exists()


def test_export_forward_rejects_cudnn_attention() -> None:
    model = small_model(LM, n_layer=1)
    model.attention = "cudnn"  # as a model on a GPU has it
    with pytest.raises(ValueError, match="attention is 'cudnn', which no program for other"):
        export_forward(model)


@pytest.mark.parametrize("platforms", [[], ["cpu", "gpu"]])
def test_export_model_rejects_invalid_platforms(platforms: list[str], tmp_path: Path) -> None:
    right = "must be some of cpu, cuda, tpu"
    with pytest.raises(ValueError, match=f"platforms (has 'gpu'|is empty), but {right}"):
        export_model(small_model(LM, n_layer=1), tmp_path / "target", platforms=platforms)
    assert not (tmp_path / "target").exists()
