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
    """Write the states of a layer for texts: one vector for each text, token or word.

    A file is read: one text a line; .jsonl with a JSON object a line, which has "text" or "ids";
    .csv and .tsv with a header that has "text". Other keys are copied to JSON output. Where all
    texts are ids, the checkpoint needs no tokenizer.

    The JSON object of a text has the keys text (or ids) and embedding, or, with --pooling none and
    word, tokens or words and embeddings. csv and tsv have a line a vector. A .npy file has the
    array (texts, size), and a .npz file the array embeddings. With --pooling none and word these
    are the vectors of all texts, one after the other, and the array lengths has their number in
    each text.

    Args:
        texts: texts, files of texts, or - for standard input.
        text: read every argument as a text, even if a file has its name.
        layer: 0 for the sum of the embeddings, n for the output of block n; negative numbers count
            from the last.
        pooling: mean of the states of a text's tokens, the last token's, none for all of them, or
            for every word its last token's.
        batch_tokens: tokens that are computed at once; more take more memory.
        output_format: jsonl, json, csv, tsv, npy or npz; by default after the suffix of --out, else
            jsonl.
        out: a file for the output, in place of standard output; needed for npy and npz.
        model: a checkpoint, with a tokenizer for texts; by default the bundled demo model.
        adapter: a LoRA adapter to merge into the model, of gpt1 pretrain, gpt1 finetune or peft;
            without --model, into the base that it names.
        dtype: of the weights in memory and of the computation; the checkpoint's by default.
        quantize: quantize the model to int8, for a quarter of its memory and more speed.
        pipeline: how text is prepared: huggingface, or original, as for GPT-1's training; the
            checkpoint's by default.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
        compilation_cache: where compiled programs are kept for the next run; none to keep none.
            By default $GPT1_CACHE or ~/.cache/gpt1-jax, up to 1 GB.
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
        raise ValueError(f"--pooling {pooling} needs npz: a text has several vectors")
    return chosen


def _check(given: Sequence[Text], pooling: Pooling) -> None:
    """Check what ``tokenize`` cannot know of."""
    if pooling == "word" and not isinstance(given[0].given, str):
        raise ValueError(f"{given[0].place}: --pooling word needs texts, and not ids")
    for each in given:
        if each.context is not None:
            raise ValueError(f"{each.place}: embeddings have no context")
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
