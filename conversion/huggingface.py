"""Hugging Face's layout: a folder with config.json and safetensors, or torch's pickles of old."""

import json
import operator
import os
import shutil
import weakref
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from conversion.config_file import CONFIG, config_text
from conversion.files import atomic_write
from conversion.json_file import first_line, read_json, short
from conversion.layout import (
    DOUBLE_HEADS,
    ParamSpec,
    check_not_quantized,
    quantization,
    tied,
)
from conversion.match import STORED, LazyTensor, aligned_empty, first_faults
from conversion.torch_module import import_torch, state_dict, stored_tensors

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
_INDEX = ".index.json"
# transformers does not look for this name. Under its own it would take int8 numbers for floats.
INT8 = "model.int8.safetensors"
# Where several lie in one folder, the first is read, as transformers does.
WEIGHTS = (SAFETENSORS, SAFETENSORS + _INDEX, PICKLE, PICKLE + _INDEX, INT8, INT8 + _INDEX)

# safetensors' codes of the dtypes that may be seen in a checkpoint; of others, the code is shown.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def weights_names(variant: str | None = None) -> list[str]:
    """Return the names that weights, or the index of their shards, may have; the first is read.

    Args:
        variant: goes before the suffix, "fp16" for ``model.fp16.safetensors``.
    """
    if variant is None:
        return list(WEIGHTS)
    return [str(Path(name).with_suffix(f".{variant}{Path(name).suffix}")) for name in WEIGHTS[:4]]


def weights_file(folder: Path, variant: str | None = None) -> Path | None:
    """Return the file of ``folder`` that is read: its weights, or the index of their shards."""
    names = weights_names(variant)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def open_weights(path: Path) -> list[LazyTensor]:
    """Return every tensor of a file of weights, or of the shards of an index. None is read yet.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a file is damaged or not what its name says, or the index is not true.
        ImportError: torch is needed and not installed.
    """
    if path.suffix == ".json":
        return _open_shards(path)
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    architecture: str,
    leaves: Sequence[tuple[ParamSpec, LazyTensor]],
    copies: Sequence[Path] = (),
    *,
    files: Mapping[str, bytes] = MappingProxyType({}),
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
) -> None:
    """Write config.json and the weights, named as transformers names them.

    Args:
        folder: made if need be. What it holds of other weights is removed.
        config: the fields of the config.json.
        architecture: one of ``ARCHITECTURES``.
        leaves: the table's rows with their leaves.
        copies: files to copy into the folder.
        files: contents of other files to write, by their names; they come before ``copies``.
        max_shard_size: weights above this size are split into several files with an index; bytes,
            or a number with KB, MB, GB or TB.
        safe_serialization: model.safetensors; if false, pytorch_model.bin, which needs torch.

    Raises:
        ValueError: the size or a field of the config cannot be used.
        OSError: the folder cannot be written. It is left as it was.
        ImportError: torch is needed and not installed.
    """
    if not safe_serialization:
        check_not_quantized(config, PICKLE)
        import_torch("writing pytorch_model.bin")
    save = _save_safetensors if safe_serialization else _save_pickle
    name = SAFETENSORS if safe_serialization else PICKLE
    if quantization(config) is not None:
        name = INT8
    text = config_text(
        config, architecture, {one.dtype for row, one in leaves if row.dtype is None}
    )
    saved = {saved_name(row, config, architecture): (row, one) for row, one in leaves}
    shards, index = _split(
        {key: one.nbytes for key, (_, one) in saved.items()}, name, max_shard_size
    )
    with atomic_write(folder, weights=True) as new:
        for file, keys in shards.items():
            save({key: saved[key][0].to_torch(saved[key][1].load()) for key in keys}, new(file))
        if index is not None:
            new(name + _INDEX).write_text(index, encoding="utf-8")
        for path in copies:
            if path.name not in files:
                shutil.copyfile(path, new(path.name))
        for file, content in files.items():
            new(file).write_bytes(content)
        # Last, so that a folder never has a new config beside old weights.
        new(CONFIG).write_text(text, encoding="utf-8")


def _open_safetensors(path: Path) -> list[LazyTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        # It checks the header. Its own arrays take twice as long, and JAX would copy each again.
        with safe_open(path, framework="np", backend="pread"):
            file = _OpenFile(path)
    except SafetensorError as error:
        hint = ""
        with path.open("rb") as damaged:
            if damaged.read(23) == b"version https://git-lfs":
                hint = "; it is a pointer of git-lfs, run `git lfs pull`"
        raise ValueError(
            f"{path} is not a whole safetensors file ({first_line(error)}){hint}"
        ) from None

    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    header = json.loads(file.read(8, 8 + length).tobytes())
    header.pop("__metadata__", None)

    def stored(name: str, described: Mapping[str, Any]) -> LazyTensor:
        code, shape = str(described["dtype"]), tuple(described["shape"])
        begin, end = (8 + length + offset for offset in described["data_offsets"])
        dtype = _DTYPES.get(code, code)

        def load() -> np.ndarray:
            return file.read(begin, end).view(STORED[dtype]).reshape(shape)

        return LazyTensor(name, shape, dtype, load, path.name)

    return [stored(name, described) for name, described in sorted(header.items())]


class _OpenFile:
    """A file that is read in parts, the same one even if another is put in its place meanwhile.

    It is not mapped: the pages of a mapped file would count as a second copy of the weights, and
    one that is cut short meanwhile would end the process.
    """

    def __init__(self, path: Path):
        self._path = path
        with path.open("rb") as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, begin: int, end: int) -> np.ndarray:
        """Return the bytes from ``begin`` up to ``end``, in memory of their own."""
        array = aligned_empty((end - begin,), np.uint8)
        missing = array.data
        while missing:
            count = self._read_into(missing, end - len(missing))
            if count == 0:
                raise ValueError(f"{self._path} was cut short while it was read")
            missing = missing[count:]
        return array

    def _read_into(self, memory: memoryview, begin: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [memory], begin)
        with self._path.open("rb") as file:  # on Windows, which replaces no file that is open
            file.seek(begin)
            return file.readinto(memory)


def _open_pickle(path: Path) -> list[LazyTensor]:
    sizes = _record_sizes(path)
    # Mapped, so that shapes are known before anything is read.
    state = _unpickle(path, mmap=sizes is not None)
    # Mapped, torch takes as many bytes from where a record begins as the tensor needs.
    if sizes is not None and _storage_sizes(state) != sizes:
        state = _unpickle(path, mmap=False)
    return stored_tensors(state, file=path.name)


def _unpickle(path: Path, *, mmap: bool) -> Mapping[str, Any]:
    """Return the state dict in a file, in which nothing but dense tensors is unpickled."""
    torch = import_torch(f"reading {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # pickle, zipfile and torch raise what they like
        raise ValueError(
            f"{path} is not a state dict that torch can load safely ({first_line(error)})"
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} must hold a state dict, not {type(state).__name__}")
    for name, value in state.items():
        dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
        dense = dense and not value.is_meta  # which has no values
        if not isinstance(name, str) or not dense:
            raise ValueError(
                f"{path} must hold a state dict of dense tensors by name; under {short(name)} it "
                f"holds {type(value).__name__}"
            )
    return state


def _record_sizes(path: Path) -> list[int] | None:
    """Return the sizes of the tensors' records in order; None if the file cannot be mapped.

    That is a file of before torch 1.6, which is not a zip archive, or one that is compressed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
            for member in members:
                archive.open(member).close()  # which checks the second header, before the record
    except Exception:  # torch says what is wrong with it
        return None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        return None
    records = [
        member for member in members if member.filename.split("/", 1)[-1].startswith("data/")
    ]
    return [member.file_size for member in records if member.file_size]


def _storage_sizes(state: Mapping[str, Any]) -> list[int]:
    """Return the sizes of the tensors' storages in the order of the mapped file."""
    storages = [tensor.untyped_storage() for tensor in state.values()]
    sizes = {one.data_ptr(): one.nbytes() for one in storages if one.nbytes()}
    return [size for _, size in sorted(sizes.items())]


def _open_shards(index: Path) -> list[LazyTensor]:
    listing = read_json(index)
    places = listing.get("weight_map") if isinstance(listing, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index} has no weight_map from names of tensors to names of files")
    outside = [file for file in places.values() if not file or Path(file).name != file]
    if outside:
        raise ValueError(f"{index} names files outside its own folder: {short(outside[0])}")

    files = sorted(set(places.values()))
    other = [file for file in files if not file.endswith((".safetensors", ".bin"))]
    if other:
        raise ValueError(
            f"{index} names {short(other[0])}, which is not a .safetensors or .bin file"
        )
    here = {path.name for path in index.parent.iterdir() if path.is_file()}
    missing = [file for file in files if file not in here]
    if missing:
        raise FileNotFoundError(
            f"{index.parent} lacks {', '.join(first_faults(missing))}, which {index} names"
        )
    found = [one for file in files for one in open_weights(index.parent / file)]

    there = {(one.name, one.file) for one in found}
    lies = [
        f"{index} says that {name} is in {file}, where it is not"
        for name, file in places.items()
        if (name, file) not in there
    ]
    lies += [
        f"{index} does not name {one.name}, which is in {one.file}"
        for one in found
        if one.name not in places
    ]
    if lies:
        raise ValueError("\n".join(first_faults(lies)))
    return found


def saved_name(row: ParamSpec, config: Mapping[str, Any], architecture: str) -> str:
    """Return a parameter's name in a file of weights: torch's, or that of its second use."""
    # Tied, transformers keeps one of the two names: of the double heads model it is the head's.
    tokens = row.torch.endswith("tokens_embed.weight")
    if tokens and architecture == DOUBLE_HEADS and tied(config):
        return "lm_head.weight"
    return row.torch


def _split(
    sizes: Mapping[str, int], name: str, max_shard_size: int | str
) -> tuple[dict[str, list[str]], str | None]:
    """Each file's tensors, and the text of the index if there is more than one file."""
    if isinstance(max_shard_size, int) and sum(sizes.values()) <= max_shard_size:
        return {name: list(sizes)}, None

    from huggingface_hub import split_state_dict_into_shards_factory

    stem, _, suffix = name.rpartition(".")
    try:
        if not isinstance(max_shard_size, str) and operator.index(max_shard_size) < 1:
            raise ValueError
        plan = split_state_dict_into_shards_factory(
            dict(sizes),
            get_storage_size=lambda size: size,
            filename_pattern=f"{stem}{{suffix}}.{suffix}",
            max_shard_size=max_shard_size,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"max_shard_size is {max_shard_size!r}; it must be a number of bytes, or a text such "
            f"as '5GB'"
        ) from error
    if not plan.is_sharded:
        return plan.filename_to_tensors, None
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    return plan.filename_to_tensors, json.dumps(index, indent=2, sort_keys=True) + "\n"


def _save_safetensors(arrays: dict[str, np.ndarray], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        # The arrays are contiguous (ParamSpec.to_torch); safetensors garbles others silently.
        save_file(arrays, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _save_pickle(arrays: dict[str, np.ndarray], path: Path) -> None:
    import torch

    try:
        torch.save(state_dict(arrays), path)
    except RuntimeError as error:  # such as of a full disk, without its number
        raise OSError(f"torch cannot write it: {str(error).splitlines()[0]}") from error
