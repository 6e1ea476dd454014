import errno
import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from conversion import (
    ARCHITECTURES,
    huggingface,
    read,
    read_config,
    write,
)
from conversion import files as conversion_files
from conversion.match import DTYPES

BASE, LM_HEAD, DOUBLE_HEADS, CLASSIFICATION = ARCHITECTURES


@pytest.mark.smoke
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard_size", ["5GB", "1KB"])
@pytest.mark.parametrize("tied", [True, False])
def test_write_then_read_is_bit_exact(
    checkpoint, tmp_path, identical, architecture, dtype, shard_size, tied
):
    made = checkpoint(architecture, dtype, tie_word_embeddings=tied)
    write(tmp_path, made.config, made.params, max_shard_size=shard_size)
    config, params = read(tmp_path)
    assert identical(params, made.params)
    assert config == made.config | {"dtype": dtype}

    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == "1KB")
    saved = {name: array for file in files for name, array in load_file(file).items()}
    assert identical(saved, made.tensors)  # transformers' own names
    for file in files:
        with safe_open(file, framework="np") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_read_passes_each_leaf_once_largest_first(checkpoint, tmp_path):
    made = checkpoint(CLASSIFICATION)
    seen: list[np.ndarray] = []

    def leaf(array):
        seen.append(array)
        return len(seen)

    _, params = read(made.save(tmp_path / "a"), leaf=leaf)
    sizes = [array.nbytes for array in seen]
    assert sizes == sorted(sizes, reverse=True)
    assert all(array.flags.c_contiguous for array in seen)
    assert len(seen) == len(made.tensors)
    assert seen[params["score"]["kernel"] - 1].shape == (12, 3)


@pytest.mark.parametrize("positioned", [True, False])
def test_read_fills_aligned_memory(checkpoint, tmp_path, identical, monkeypatch, positioned):
    if not positioned:  # as on Windows
        monkeypatch.delattr(os, "preadv")
    made = checkpoint(LM_HEAD, "bfloat16")
    found = huggingface.open_weights(made.save(tmp_path / "a") / "model.safetensors")
    arrays = {one.name: one.load() for one in found}
    assert identical(arrays, made.tensors)
    assert all(array.ctypes.data % 64 == 0 for array in arrays.values())
    assert all(array.flags.writeable for array in arrays.values())


def test_read_goes_on_with_the_file_that_was_opened(checkpoint, tmp_path, identical):
    made, other = checkpoint(LM_HEAD), checkpoint(LM_HEAD, n_embd=24)
    file = made.save(tmp_path / "a") / "model.safetensors"
    found = huggingface.open_weights(file)
    (other.save(tmp_path / "b") / "model.safetensors").replace(file)
    assert identical({one.name: one.load() for one in found}, made.tensors)


def test_read_reports_file_that_is_cut_short_meanwhile(checkpoint, tmp_path):
    file = checkpoint(LM_HEAD).save(tmp_path / "a") / "model.safetensors"
    found = huggingface.open_weights(file)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"model\.safetensors was cut short while it was read$"):
        [one.load() for one in found]


def test_write_keeps_inf_and_nan_bits(checkpoint, tmp_path):
    made = checkpoint(BASE, "bfloat16")
    bits = np.arange(20 * 12, dtype=np.uint16).reshape(20, 12) + np.uint16(0x7F70)  # inf and NaNs
    made.params["tokens_embed"]["embedding"] = bits.view(ml_dtypes.bfloat16)
    write(tmp_path, made.config, made.params)
    found = read(tmp_path)[1]["tokens_embed"]["embedding"]
    assert np.array_equal(found.view(np.uint16), bits)


def test_write_handles_non_contiguous_leaves(checkpoint, tmp_path, identical):
    made, wanted = checkpoint(LM_HEAD), checkpoint(LM_HEAD)
    kernel = made.params["transformer"]["h"]["0"]["mlp"]["c_fc"]["kernel"]
    made.params["transformer"]["h"]["0"]["mlp"]["c_fc"]["kernel"] = np.asfortranarray(kernel)
    made.params["transformer"]["positions_embed"]["embedding"] = np.repeat(
        made.params["transformer"]["positions_embed"]["embedding"], 2, axis=1
    )[:, ::2]
    write(tmp_path, made.config, made.params)
    assert identical(read(tmp_path)[1], wanted.params)


def test_write_keeps_config_fields(checkpoint, tmp_path):
    made = checkpoint(LM_HEAD, torch_dtype="float16", task_specific_params={"a": {"b": [1]}})
    write(tmp_path, made.config, made.params)
    written = json.loads((tmp_path / "config.json").read_text())
    expected = made.config | {"dtype": "float32"}
    del expected["torch_dtype"]
    assert written == expected


def test_write_records_common_dtype_of_mixed_params(checkpoint, tmp_path, identical):
    made = checkpoint(LM_HEAD, "bfloat16")
    scale = made.params["transformer"]["h"]["0"]["ln_1"]["scale"]
    made.params["transformer"]["h"]["0"]["ln_1"]["scale"] = scale.astype(np.float16)
    write(tmp_path, made.config, made.params)
    config, params = read(tmp_path)
    assert config["dtype"] == "float32"
    assert identical(params, made.params)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("named", [None, [], ["GPT2Model"], "OpenAIGPTModel"])
def test_read_infers_architecture_from_tensor_names(
    checkpoint, tmp_path, identical, architecture, named
):
    made = checkpoint(architecture)
    made.config["architectures"] = named
    config, params = read(made.save(tmp_path / "a"))
    assert config["architectures"] == [architecture]
    assert identical(params, made.params)


def test_read_prefers_architecture_in_config(checkpoint, tmp_path, identical):
    made = checkpoint(BASE)
    made.config["architectures"] = [LM_HEAD]  # as the published checkpoint has it
    config, params = read(made.save(tmp_path / "a"))
    assert config["architectures"] == [LM_HEAD]
    assert identical(params, {"transformer": made.params})


def test_read_and_write_reject_unknown_architecture(checkpoint, tmp_path):
    made = checkpoint(BASE)
    with pytest.raises(ValueError, match="'GPT2Model'; it must be one of OpenAIGPTModel, "):
        read(made.save(tmp_path / "a"), architecture="GPT2Model")
    del made.config["architectures"]
    with pytest.raises(ValueError, match="architectures is None; it must be a list with one of"):
        write(tmp_path / "b", made.config, made.params)
    assert not (tmp_path / "b").exists()


def test_read_prefers_whole_weights_over_shards(checkpoint, tmp_path, identical):
    made, other = checkpoint(BASE), checkpoint(BASE)
    other.params["tokens_embed"]["embedding"][:] = 1
    write(tmp_path, other.config, other.params, max_shard_size="1KB")
    made.save(tmp_path)
    assert identical(read(tmp_path)[1], made.params)


# What is wrong with a folder.


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    return checkpoint(LM_HEAD).save(tmp_path / "a")


@pytest.fixture
def shards(checkpoint, tmp_path) -> Path:
    made = checkpoint(LM_HEAD)
    write(tmp_path / "a", made.config, made.params, max_shard_size="4KB")
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is not a whole safetensors file"),
        (lambda data: data[:-1], "is not a whole safetensors file"),
        (lambda data: data[:100], "is not a whole safetensors file"),
        (lambda data: b"\xff" * 8 + data[8:], "is not a whole safetensors file"),
        (
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "it is a pointer of git-lfs, run `git lfs pull`",
        ),
    ],
)
def test_read_reports_damaged_safetensors(folder, damage, message):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole") as error:
        read(folder)
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"n_layer": 1, "n_layer": 2}', "has the key 'n_layer' more than once"),
        ("\xff", "is not JSON"),
        ("[]", "must hold a JSON object, not list"),
        ('{"model_type": "gpt2"}', "is of the model_type 'gpt2'; only 'openai-gpt' can be read"),
        ('{"n_layer": 0}', "n_layer is 0; it must be a positive integer"),
        ('{"n_layer": "2"}', "n_layer is '2'; it must be a positive integer"),
        ('{"n_embd": 12, "n_head": 5}', "n_embd must be a multiple of n_head"),
        (
            '{"architectures": ["OpenAIGPTForSequenceClassification"], "num_labels": -1}',
            "num_labels is -1; it must be a positive integer",
        ),
    ],
)
def test_read_reports_invalid_config(folder, text, message):
    path = folder / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json") as error:
        read(folder)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_read_names_file_that_contradicts_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 1}))
    with pytest.raises(ValueError, match=r"does not fit") as error:
        read(folder)
    first, *lines = str(error.value).splitlines()
    assert first == (
        f"{folder / 'model.safetensors'} does not fit OpenAIGPTLMHeadModel: "
        f"config.json says n_layer 1, the weights show 2"
    )
    assert len(lines) == 12


def test_read_reports_missing_files(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        read(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"holds no weights; looked for model.safetensors, "
    ):
        read(folder)


def test_read_names_unsupported_dtypes(checkpoint, tmp_path):
    made = checkpoint(LM_HEAD)
    made.tensors["transformer.h.0.ln_1.weight"] = np.ones(12, np.float64)
    made.tensors["transformer.h.1.ln_1.weight"] = np.ones(12, np.int64)
    made.tensors["transformer.h.1.ln_2.weight"] = np.ones(12, np.uint64)
    with pytest.raises(ValueError, match=r"does not fit") as error:
        read(made.save(tmp_path / "a"))
    assert "transformer.h.0.ln_1.weight is float64, expected float32" in str(error.value)
    assert "transformer.h.1.ln_1.weight is int64, expected float32" in str(error.value)
    assert "transformer.h.1.ln_2.weight is U64, expected float32" in str(error.value)


def test_read_reports_missing_shard(shards):
    gone = sorted(shards.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {gone.name}, which .*index.json names"):
        read(shards)


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_read_reports_wrong_index_entries(shards):
    name = "transformer.h.0.ln_1.bias"

    def elsewhere(places):
        places[name] = next(file for file in places.values() if file != places[name])
        places["invented"] = places[name]
        del places["transformer.h.1.ln_1.bias"]

    change_index(shards, elsewhere)
    with pytest.raises(ValueError, match=r"says that") as error:
        read(shards)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert f"says that {name} is in " in lines[0]
    assert "says that invented is in " in lines[1]
    assert "does not name transformer.h.1.ln_1.bias, which is in " in lines[2]


@pytest.mark.parametrize("file", ["model.safetensors.index.json", "config.json", "\0", "x" * 300])
def test_read_rejects_index_of_other_files(shards, file):
    change_index(shards, lambda places: places.update(stray=file))
    with pytest.raises(
        ValueError, match=r"index\.json names '.*', which is not a \.safetensors or"
    ):
        read(shards)


def test_read_names_an_absent_shard_of_any_length(shards):
    change_index(shards, lambda places: places.update(stray="x" * 10_000 + ".safetensors"))
    with pytest.raises(FileNotFoundError, match=r"lacks x{400} \.\.\., which .*index\.json names"):
        read(shards)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/model.safetensors", "b/c", ""])
def test_read_rejects_index_paths_outside_folder(shards, file):
    change_index(shards, lambda places: places.update(stray=file))
    with pytest.raises(ValueError, match="names files outside its own folder"):
        read(shards)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}'])
def test_read_rejects_malformed_index(shards, text):
    (shards / "model.safetensors.index.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"model.safetensors.index.json (is not JSON|has no weight_map)"
    ):
        read(shards)


def test_read_reports_tensor_in_two_shards(shards):
    first, second = sorted(shards.glob("*.safetensors"))[:2]
    tensors, more = load_file(first), load_file(second)
    name = next(iter(tensors))
    save_file(more | {name: tensors[name]}, second)
    with pytest.raises(ValueError, match=r"does not fit") as error:
        read(shards)
    line = f"  * duplicate   {name}: {name} in {first.name} and {name} in {second.name}"
    assert str(error.value).splitlines()[1:] == [line]


# Writing, whole or not at all.


@pytest.fixture
def old(checkpoint, tmp_path) -> Path:
    """A folder with files of its own and weights in shards."""
    made = checkpoint(LM_HEAD, "float16")
    write(tmp_path / "old", made.config, made.params, max_shard_size="4KB")
    (tmp_path / "old" / "vocab.json").write_text("{}")
    (tmp_path / "old" / "model-card-of-mine.safetensors").write_text("not weights")
    return tmp_path / "old"


def test_write_removes_old_weights(checkpoint, old, identical):
    for stale in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "params_10.npy"):
        (old / stale).write_text("old")
    made = checkpoint(CLASSIFICATION)
    write(old, made.config, made.params)
    assert sorted(path.name for path in old.iterdir()) == [
        "config.json",
        "model-card-of-mine.safetensors",
        "model.safetensors",
        "vocab.json",
    ]
    assert identical(read(old)[1], made.params)
    write(old, made.config, made.params, max_shard_size="4KB")
    assert not (old / "model.safetensors").exists()
    assert identical(read(old)[1], made.params)


def refuse(*args, **kwargs):
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_write_restores_folder_if_any_step_fails(
    checkpoint, old, tmp_path, contents, monkeypatch, call, persistent, links
):
    made = checkpoint(LM_HEAD)
    before, real, calls = contents(old), getattr(os, call), []
    fails = range(0)

    def failing(*args):
        calls.append(args)
        if len(calls) - 1 in fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    if not links:  # a file system without them
        monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, call, failing)
    shutil.copytree(old, tmp_path / "whole")
    write(tmp_path / "whole", made.config, made.params, max_shard_size="3KB")
    steps = len(list((tmp_path / "whole").glob("model-0*"))) + 2  # the index and the config
    steps += 2 * (call == "fsync")  # the list of changes, and the folder that it is in
    assert len(calls) == steps + (call == "fsync")  # and, at the end, the folder
    for step in range(steps):
        fails = range(step, 1000) if persistent else range(step, step + 1)
        calls.clear()
        with pytest.raises(OSError, match=r"cannot write to .*old: No space left") as error:
            write(old, made.config, made.params, max_shard_size="3KB")
        assert error.value.errno == errno.ENOSPC
        assert contents(old) == before


def test_write_restores_folder_if_removal_fails(checkpoint, old, contents, monkeypatch):
    before, real = contents(old), Path.unlink
    stuck = sorted(old.glob("model-0*"))[1]

    def unlink(self, **kwargs):
        return refuse() if self == stuck else real(self, **kwargs)

    monkeypatch.setattr(Path, "unlink", unlink)
    made = checkpoint(LM_HEAD)
    with pytest.raises(PermissionError, match=r"cannot write to .*old: Operation not permitted"):
        write(old, made.config, made.params)
    assert contents(old) == before


def test_write_restores_folder_if_saver_fails(checkpoint, old, contents, monkeypatch):
    before = contents(old)
    made = checkpoint(LM_HEAD)
    real, calls = huggingface._save_safetensors, []

    def failing(arrays, path):
        real(arrays, path)
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(huggingface, "_save_safetensors", failing)
    with pytest.raises(KeyboardInterrupt):
        write(old, made.config, made.params, max_shard_size="3KB")
    assert contents(old) == before
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        write(old / "new" / "deep", made.config, made.params, max_shard_size="3KB")
    assert contents(old) == before


def test_write_works_without_hard_links(checkpoint, old, identical, monkeypatch):
    monkeypatch.setattr(os, "link", refuse)
    made = checkpoint(LM_HEAD)
    write(old, made.config, made.params)
    assert identical(read(old)[1], made.params)
    assert not [path for path in old.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_write_modes_follow_the_umask(checkpoint, tmp_path, mask):
    made = checkpoint(LM_HEAD)
    before = os.umask(mask)
    try:
        write(tmp_path / "a", made.config, made.params)
    finally:
        os.umask(before)
    for path in (tmp_path / "a").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_write_replaces_symlinks(checkpoint, old, tmp_path):
    # The hub's cache is made of links to files that other snapshots share.
    blob = tmp_path / "blob"
    blob.write_text("shared")
    (old / "model.safetensors").symlink_to(blob)
    made = checkpoint(LM_HEAD)
    write(old, made.config, made.params)
    assert blob.read_text() == "shared"
    assert not (old / "model.safetensors").is_symlink()


def test_write_rejects_unwritable_targets(checkpoint, tmp_path, monkeypatch):
    made = checkpoint(LM_HEAD)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"cannot write to .*file: it is a file"):
        write(tmp_path / "file", made.config, made.params)
    with pytest.raises(OSError, match=r"cannot write to .*file/sub: Not a directory"):
        write(tmp_path / "file" / "sub", made.config, made.params)
    assert (tmp_path / "file").read_text() == "mine"

    (tmp_path / "b" / "config.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"cannot write to .*b: config.json is a folder"):
        write(tmp_path / "b", made.config, made.params)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["config.json"]

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(PermissionError, match=r"cannot write to .*locked: Operation not permitted"):
        write(tmp_path / "locked", made.config, made.params)
    assert not (tmp_path / "locked").exists()


def test_write_rejects_invalid_arguments(checkpoint, tmp_path):
    made = checkpoint(LM_HEAD)
    for size in ("5 elephants", "GB", None):
        with pytest.raises(ValueError, match=r"max_shard_size is .*; it must be a number of bytes"):
            write(tmp_path / "a", made.config, made.params, max_shard_size=size)  # pyright: ignore
    with pytest.raises(ValueError, match="format is 'onnx'; it must be 'huggingface' or 'openai'"):
        write(tmp_path / "a", made.config, made.params, format="onnx")  # pyright: ignore
    with pytest.raises(ValueError, match="the config's mine cannot be written in JSON"):
        write(tmp_path / "a", made.config | {"mine": object()}, made.params)
    assert not (tmp_path / "a").exists()


OPENAI_FILES = {"params_shapes.json", *(f"params_{i}.npy" for i in range(10))}


def test_write_copies_companions(checkpoint, tmp_path, contents):
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    for name in ("vocab.json", "merges.txt", "config.json", "model.safetensors", "README.md"):
        (source / name).write_text(name)
    (source / "tokenizer.json").symlink_to(source / "vocab.json")
    copied = ("vocab.json", "merges.txt", "tokenizer.json")
    made = checkpoint(LM_HEAD)
    for format, weights in (("huggingface", {"model.safetensors"}), ("openai", OPENAI_FILES)):
        write(target, made.config, made.params, companions=source, format=format)  # pyright: ignore
        assert set(contents(target)) == {*copied, "config.json", *weights}
        assert not (target / "tokenizer.json").is_symlink()
        before = contents(target)
        write(target, made.config, made.params, companions=target, format=format)  # pyright: ignore
        assert contents(target) == before


def test_write_leaves_nothing_if_companions_fail(checkpoint, tmp_path, contents):
    made, source, target = checkpoint(LM_HEAD), tmp_path / "a", tmp_path / "b"
    source.mkdir()
    (source / "vocab.json").write_text("{}")
    (target / "vocab.json").mkdir(parents=True)
    with pytest.raises(OSError, match="cannot write to"):
        write(target, made.config, made.params, companions=source)
    assert [path.name for path in target.iterdir()] == ["vocab.json"]


def test_write_openai_rejects_huggingface_options(checkpoint, tmp_path):
    made = checkpoint(LM_HEAD)
    for options in ({"max_shard_size": "1MB"}, {"safe_serialization": False}):
        with pytest.raises(ValueError, match="are Hugging Face's alone"):
            write(tmp_path / "a", made.config, made.params, format="openai", **options)  # pyright: ignore
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "is_weights"),
    [
        ("model.safetensors", True),
        ("model.safetensors.index.json", True),
        ("model-00001-of-00002.safetensors", True),
        ("pytorch_model.bin", True),
        ("pytorch_model.bin.index.json", True),
        ("pytorch_model-00001-of-00002.bin", True),
        ("params_0.npy", True),
        ("params_12.npy", True),
        ("params_shapes.json", True),
        ("forward.jax", True),
        ("decode.mlir", True),
        ("params_mine.npy", False),
        ("model-1.safetensors", False),
        ("model-a-of-b.safetensors", False),
        ("adapter_model.safetensors", False),
        ("training_args.bin", False),
        ("config.json", False),
    ],
)
def test_weight_files_matches_only_weight_names(tmp_path, name, is_weights):
    (tmp_path / name).touch()
    assert bool(conversion_files.weight_files(tmp_path)) == is_weights


def test_read_config_falls_back_to_openai_shapes(checkpoint, folder, tmp_path):
    assert read_config(folder) == checkpoint(LM_HEAD).config
    config, params = read(folder)
    write(tmp_path / "npy", config, params, format="openai")
    (tmp_path / "npy" / "config.json").unlink()
    assert read_config(tmp_path / "npy") == {
        "model_type": "openai-gpt",
        "n_layer": 2,
        "n_embd": 12,
        "n_head": 12,
        "n_positions": 8,
        "vocab_size": 20,
    }


def test_read_applies_config_overrides(checkpoint, tmp_path, identical):
    made = checkpoint(CLASSIFICATION)
    folder = made.save(tmp_path / "a")
    config, params = read(folder, overrides={"resid_pdrop": 0.5})
    assert config == made.config | {"resid_pdrop": 0.5}
    assert identical(params, made.params)
    with pytest.raises(ValueError, match=r"mis-shaped  score.weight \(3, 12\), expected \(5, 12\)"):
        read(folder, overrides={"num_labels": 5})
