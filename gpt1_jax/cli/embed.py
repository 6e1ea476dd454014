"""The command ``gpt1 embed``."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from gpt1_jax._conversion import files
from gpt1_jax.cli.adapters import takes_adapter
from gpt1_jax.cli.arguments import Adapter, DType, MaybeModel, Quantize
from gpt1_jax.cli.compilation_cache import Cache, enable_compilation_cache
from gpt1_jax.cli.table_output import OutputFile, Record, output, write_records
from gpt1_jax.cli.texts import (
    Text,
    Texts,
    check_other_keys,
    errors_name_places,
    read_texts,
    tokenizer_of,
)
from gpt1_jax.demo import DEMO, HubOptions, resolve
from gpt1_jax.explore.text_embeddings import Pooling, Tokens, embed_batches, tokenize
from gpt1_jax.generation.batches import reorder
from gpt1_jax.model import from_pretrained
from gpt1_jax.quantization import quantized_if
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import Pipeline

Format = Literal["jsonl", "json", "csv", "tsv", "npy", "npz"]
EmbeddingFormat = Annotated[Format | None, tyro.conf.arg(help_behavior_hint="")]
SUFFIXES: dict[str, Format] = {f".{name}": name for name in ("json", "csv", "tsv", "npy", "npz")}
KEYS = ("text", "ids", "tokens", "words", "embedding", "embeddings", "text_index", "token", "word")


@takes_adapter(DEMO)
def embed(
    texts: Texts,
    text: bool = False,
    layer: int = -1,
    pooling: Pooling = "mean",
    batch_tokens: int = 4096,
    output_format: EmbeddingFormat = None,
    out: OutputFile = None,
    model: MaybeModel = None,
    adapter: Adapter = None,
    dtype: DType | None = None,
    quantize: Quantize = None,
    pipeline: Pipeline | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    compilation_cache: Cache = None,
) -> None:
    """Write a layer's hidden states as vectors of texts, tokens or words.

    An argument that is a file is read: .jsonl has a JSON object a line, with "text" or "ids"; .csv
    and .tsv have a header with the column "text"; any other file has one text a line. Other keys
    are copied to JSON output. If all texts are ids, the checkpoint needs no tokenizer.

    The JSON object of a text has the keys text (or ids) and embedding or, with --pooling none and
    word, the keys tokens or words, and embeddings. csv and tsv have a line for each vector. A .npy
    file has one array (texts, size), and a .npz file the array "embeddings". With --pooling none
    and word, that array has the vectors of all texts, one after the other, and the array "lengths"
    has their number in each text.

    Args:
        texts: texts, files of texts, or - for standard input.
        text: treat every argument as a text, even if a file has its name.
        layer: layer to read: 0 is the sum of the embeddings, n the output of block n; negative
            numbers count from the last block.
        pooling: vectors of a text: mean of its tokens' states, the state of its last token, none
            for all of them, or word for the state of each word's last token.
        batch_tokens: number of tokens to compute at once; a larger number is faster on an
            accelerator and takes more memory.
        output_format: format of the output; by default that of the suffix of --out, or else jsonl.
            npy and npz need --out.
        out: file to write the output to; by default standard output.
        model: checkpoint to use: a folder or a Hugging Face Hub id, with a tokenizer if texts are
            given; by default the bundled demo model.
        adapter: folder of a LoRA adapter, written by gpt1 pretrain, gpt1 finetune or peft, to merge
            into the model; without --model, it is merged into the base model that the adapter
            names.
        dtype: dtype of the weights in memory and of the computation; by default the checkpoint's.
        quantize: quantize the weights to int8, which takes a quarter of float32's memory and
            decodes faster; by default they are not quantized.
        pipeline: text preprocessing: huggingface, as transformers does it, or original, as for
            GPT-1's own training (needs the extra "text"); by default the checkpoint's.
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
        compilation_cache: folder that keeps compiled programs for the next run, up to 1 GB, or none
            to keep none; by default $GPT1_CACHE or else ~/.cache/gpt1-jax.
    """
    assert model is not None  # see ``takes_adapter``
    enable_compilation_cache(compilation_cache)
    chosen = _chosen_format(output_format, out, pooling)
    given = read_texts(texts, force_text=text)
    _check(given, pooling)
    hub: HubOptions = {"revision": revision, "local_files_only": local_files_only}
    folder = resolve(model, **hub)
    are_texts = isinstance(given[0].given, str)
    tokenizer = tokenizer_of(folder, model, pipeline, for_texts=are_texts)
    network = quantized_if(from_pretrained(folder, dtype=dtype), quantize)
    with errors_name_places(given):
        tokens = tokenize(
            network.config,
            [each.given for each in given],
            tokenizer,
            words=pooling == "word",
        )
    batches = embed_batches(
        network, tokens, layer=layer, pooling=pooling, batch_tokens=batch_tokens
    )
    from tqdm import tqdm

    hidden = None if len(given) > 1 and not (out is None and sys.stdout.isatty()) else True
    vectors = reorder(tqdm(batches, total=len(given), unit="text", disable=hidden))
    if chosen == "npy" or chosen == "npz":
        assert out is not None
        _write_arrays(out, list(vectors), chosen, each=pooling in ("mean", "last"))
    else:
        unit = "word" if pooling == "word" else "token"
        names = [_names(each, tokenizer, pooling) for each in tokens]
        records_of = _objects if chosen in ("json", "jsonl") else _lines
        with output(out) as file:
            write_records(records_of(given, names, vectors, unit), chosen, file)


def _chosen_format(output_format: Format | None, out: Path | None, pooling: Pooling) -> Format:
    """Return the format: by default the file suffix's, else jsonl."""
    by_suffix = "jsonl" if out is None else SUFFIXES.get(out.suffix.lower(), "jsonl")
    chosen: Format = output_format or by_suffix
    if chosen in ("npy", "npz") and out is None:
        raise ValueError(f"--output-format {chosen} needs --out FILE")
    if chosen == "npy" and pooling in ("none", "word"):
        raise ValueError(f"--pooling {pooling} gives several vectors a text: use npz, not npy")
    return chosen


def _check(given: Sequence[Text], pooling: Pooling) -> None:
    """Check what ``tokenize`` cannot know of."""
    if pooling == "word" and not isinstance(given[0].given, str):
        raise ValueError(f"{given[0].place}: --pooling word needs texts, and not ids")
    for each in given:
        if each.context is not None:
            raise ValueError(f'{each.place}: "context" has no effect on embeddings')
    check_other_keys(given, KEYS)


def _names(
    tokens: Tokens, tokenizer: Tokenizer | None, pooling: Pooling
) -> Sequence[str | None] | None:
    """Return what the vectors of a text are of: its words or tokens; None for the text, or ids."""
    if pooling == "word":
        return tokens.words
    if pooling == "none" and tokenizer is not None:
        return tokenizer.convert_ids_to_tokens(tokens.ids)
    return None


def _write_arrays(out: Path, vectors: Sequence[np.ndarray], chosen: Format, *, each: bool) -> None:
    """Write a .npy or .npz file, of one vector ``each`` or of several, whole or not at all."""
    arrays = {"embeddings": np.stack(vectors) if each else np.concatenate(vectors)}
    if not each:
        arrays["lengths"] = np.asarray(list(map(len, vectors)))
    with files.atomic_file(out) as new, new.open("wb") as file:
        if chosen == "npy":
            np.save(file, arrays["embeddings"])
        else:
            np.savez(file, allow_pickle=False, **arrays)


def _numbers(vector: np.ndarray) -> list[float]:
    """Return float32 numbers with their few digits, not a float64's."""
    return [float(str(x)) for x in vector]


def _objects(
    given: Sequence[Text],
    names: Sequence[Sequence[str | None] | None],
    vectors: Iterator[np.ndarray],
    unit: str,
) -> Iterator[Record]:
    """Yield an object for each text."""
    for text, parts, found in zip(given, names, vectors, strict=True):
        fields: dict[str, Any] = dict(text.other)
        fields["text" if isinstance(text.given, str) else "ids"] = text.given
        if parts is not None:
            fields[f"{unit}s"] = list(parts)
        if found.ndim == 1:
            fields["embedding"] = _numbers(found)
        else:
            fields["embeddings"] = list(map(_numbers, found))
        yield fields


def _lines(
    given: Sequence[Text],
    names: Sequence[Sequence[str | None] | None],
    vectors: Iterator[np.ndarray],
    unit: str,
) -> Iterator[Record]:
    """Yield a line for each vector."""
    for i, (_, parts, found) in enumerate(zip(given, names, vectors, strict=True)):
        for k, vector in enumerate(np.atleast_2d(found)):
            part = {} if parts is None else {unit: parts[k]}
            numbers = {str(column): x for column, x in enumerate(_numbers(vector))}
            yield {"text_index": i, **part, **numbers}
