"""pytorch_model.bin, which only torch reads and writes."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest

from conversion import ARCHITECTURES, read, write
from conversion.match import DTYPES
from conversion.torch_module import state_dict

torch = pytest.importorskip("torch")

BASE, LM_HEAD, DOUBLE_HEADS, CLASSIFICATION = ARCHITECTURES


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    made = checkpoint(LM_HEAD)
    write(tmp_path / "a", made.config, made.params, safe_serialization=False)
    return tmp_path / "a"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard_size", ["5GB", "2KB"])
@pytest.mark.parametrize("tied", [True, False])
def test_write_then_read_is_bit_exact(
    checkpoint, tmp_path, identical, architecture, dtype, shard_size, tied
):
    made = checkpoint(architecture, dtype, tie_word_embeddings=tied)
    write(tmp_path, made.config, made.params, max_shard_size=shard_size, safe_serialization=False)
    assert (len(list(tmp_path.glob("*.bin"))) > 1) == (shard_size == "2KB")
    config, params = read(tmp_path)
    assert config == made.config | {"dtype": dtype}
    assert identical(params, made.params)


def test_read_accepts_files_from_before_torch_1_6(checkpoint, folder, identical):
    made = checkpoint(LM_HEAD)
    tensors = state_dict(made.tensors)
    # The hub's, too: masks, the head beside the embedding and, as they share memory, once on disk.
    tensors["lm_head.weight"] = tensors["transformer.tokens_embed.weight"]
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert not path.read_bytes().startswith(b"PK")
    assert identical(read(folder)[1], made.params)


def test_read_accepts_strided_parameters_with_gradients(checkpoint, folder, identical):
    made = checkpoint(LM_HEAD)
    tensors = state_dict(made.tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            tensors[name] = torch.nn.Parameter(tensor.t().contiguous().t())
    torch.save(tensors, folder / "pytorch_model.bin")
    assert identical(read(folder)[1], made.params)


def test_read_arrays_do_not_alias_the_file(checkpoint, folder, identical):
    _, params = read(folder)
    path = folder / "pytorch_model.bin"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert identical(params, checkpoint(LM_HEAD).params)


def test_read_prefers_safetensors(checkpoint, folder, identical):
    made = checkpoint(LM_HEAD, "float16")
    made.save(folder)
    assert identical(read(folder)[1], made.params)


def zip_again(path: Path, compression: int = zipfile.ZIP_STORED, **changed) -> None:
    """Write an archive anew; ``changed`` has functions from old records to new ones, by name."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            change = changed.get(name.rpartition("data/")[2], lambda content: content)
            archive.writestr(name, change(content))


def test_read_accepts_compressed_archives(checkpoint, folder, identical):
    path = folder / "pytorch_model.bin"
    size = path.stat().st_size
    zip_again(path, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < size
    assert identical(read(folder)[1], checkpoint(LM_HEAD).params)


@pytest.mark.parametrize(
    "change", [lambda a: a[: len(a) // 2], lambda a: a + a, lambda a: a[:-1], lambda a: b""]
)
def test_read_rejects_records_of_another_size(folder, change):
    path = folder / "pytorch_model.bin"
    zip_again(path, **{"3": change})
    with pytest.raises(RuntimeError, match="does not match expected size"):
        torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=r"\(record size .* does not match expected size") as error:
        read(folder)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_read_rejects_damaged_headers_of_records(folder):
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        offset = next(one for one in archive.infolist() if "data/3" in one.filename).header_offset
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"torch can load safely \(.*data/3: invalid header"):
        read(folder)


def test_read_maps_what_torch_writes(folder, monkeypatch):
    """For the sake of memory: each tensor is copied when it is asked for."""
    mapped = []
    load = torch.load

    def recorded(*args, mmap, **kwargs):
        mapped.append(mmap)
        return load(*args, mmap=mmap, **kwargs)

    monkeypatch.setattr(torch, "load", recorded)
    read(folder)
    assert mapped == [True]


def test_read_rejects_tensors_without_values(folder):
    torch.save({"a": torch.zeros(3, device="meta")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="dense tensors by name; under 'a' it holds Tensor"):
        read(folder)


class Malicious:
    ran = False

    def __reduce__(self):
        return setattr, (Malicious, "ran", True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold a state dict, not list"),
        ({"model": {"a": 1}}, "a state dict of dense tensors by name; under 'model' it holds dict"),
        ({1: torch.zeros(2)}, "a state dict of dense tensors by name; under 1 it holds Tensor"),
        ({"a": torch.eye(2).to_sparse()}, "dense tensors by name; under 'a' it holds Tensor"),
        ({"a": Malicious()}, "is not a state dict that torch can load safely ("),
    ],
)
def test_read_rejects_other_pickled_objects(folder, content, message):
    path = folder / "pytorch_model.bin"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin") as error:
        read(folder)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert not Malicious.ran


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not a pickle",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-30],
        lambda data: pickle.dumps({"a": 1}),
    ],
)
def test_read_reports_damaged_pickles(folder, damage):
    path = folder / "pytorch_model.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin") as error:
        read(folder)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_read_names_unsupported_dtypes(checkpoint, folder):
    tensors = state_dict(checkpoint(LM_HEAD).tensors)
    tensors["transformer.h.0.ln_1.weight"] = tensors["transformer.h.0.ln_1.weight"].to(torch.int8)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"transformer.h.0.ln_1.weight is int8, expected float32"):
        read(folder)


def test_read_reports_missing_shard(checkpoint, tmp_path):
    made = checkpoint(LM_HEAD)
    write(tmp_path, made.config, made.params, max_shard_size="4KB", safe_serialization=False)
    index = json.loads((tmp_path / "pytorch_model.bin.index.json").read_text())
    gone = index["weight_map"]["transformer.h.0.ln_1.bias"]
    (tmp_path / gone).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {gone}, which .*index.json names"):
        read(tmp_path)
