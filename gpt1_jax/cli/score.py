"""The command ``gpt1 score``."""

import math
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import tyro

from gpt1_jax.cli.adapters import takes_adapter
from gpt1_jax.cli.arguments import Adapter, DType, MaybeModel, Quantize
from gpt1_jax.cli.compilation_cache import Cache, enable_compilation_cache
from gpt1_jax.cli.table_output import (
    OutputFile,
    OutputFormat,
    Record,
    chosen_format,
    number,
    output,
    write_records,
)
from gpt1_jax.cli.texts import (
    Text,
    Texts,
    check_other_keys,
    errors_name_places,
    read_texts,
    tokenizer_of,
)
from gpt1_jax.demo import DEMO, HubOptions, resolve
from gpt1_jax.generation.batches import reorder
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.quantization import quantized_if
from gpt1_jax.scoring import Score, score_batches
from gpt1_jax.text.tokenizer_files import Pipeline

By = Literal["token", "word", "text"]
MaybeInt = Annotated[int | None, tyro.conf.arg(help_behavior_hint="")]
MEASURES = ("sum", "mean", "perplexity", "bits_per_character")
KEYS = (
    *("text", "context", "ids", "tokens", "spans", "log_probs", "is_greedy", "words", *MEASURES),
    *("text_index", "token", "id", "word", "start", "end", "log_prob", "surprisal"),
)


@takes_adapter(DEMO)
def score(
    texts: Texts,
    text: bool = False,
    by: By = "token",
    join_punctuation: bool = False,
    stride: MaybeInt = None,
    bos_token_id: MaybeInt = None,
    batch_tokens: int = 4096,
    output_format: OutputFormat = None,
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
    """Print the log-probability of each token, word or text, in nats.

    The first token of a text without a context has no log-probability, and is null in JSON.

    An argument that is a file is read: .jsonl has a JSON object a line, with "text" or "ids" and
    optionally "context", a text or a number of tokens that are read but not scored; .csv and .tsv
    have a header with the column "text"; any other file has one text a line. Other keys and columns
    are copied to the output.

    The JSON object of a text has the keys text, context, tokens, ids, spans (characters of the
    context and the text together), log_probs, is_greedy, sum, mean, perplexity and
    bits_per_character. With --by word, words replace the tokens. A table, csv and tsv have a line
    for each token, word or text.

    Args:
        texts: texts, files of texts, or - for standard input.
        text: treat every argument as a text, even if a file has its name.
        by: unit of the output: each token, each word, or the whole text.
        join_punctuation: with --by word, count a punctuation mark as part of the word before it.
        stride: number of tokens that each further window of a text longer than n_positions scores;
            a smaller number gives each token more context and takes longer. By default half of
            n_positions.
        bos_token_id: id of a token to read before each text, so that the text's first token is
            scored too; by default none is read.
        batch_tokens: number of tokens to compute at once; a larger number is faster on an
            accelerator and takes more memory.
        output_format: format of the output; by default that of the suffix of --out, or else a table
            on a terminal and jsonl elsewhere.
        out: file to write the output to; by default standard output.
        model: checkpoint to use: a folder or a Hugging Face Hub id, with a tokenizer; by default
            the bundled demo model.
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
    if join_punctuation and by != "word":
        raise ValueError("--join-punctuation has no effect without --by word")
    given = read_texts(texts, force_text=text)
    are_ids = not isinstance(given[0].given, str)
    if are_ids and by == "word":
        raise ValueError(f"{given[0].place}: --by word needs texts, and not ids")
    check_other_keys(given, KEYS)
    hub: HubOptions = {"revision": revision, "local_files_only": local_files_only}
    folder = resolve(model, **hub)
    tokenizer = tokenizer_of(folder, model, pipeline, for_texts=not are_ids)
    language_model = OpenAIGPTLMHeadModel.from_pretrained(folder, dtype=dtype)
    with errors_name_places(given):
        scores = score_batches(
            quantized_if(language_model, quantize),
            [each.given for each in given],
            [each.context for each in given],
            tokenizer=tokenizer,
            stride=stride,
            bos_token_id=bos_token_id,
            batch_tokens=batch_tokens,
        )
    from tqdm import tqdm

    chosen = chosen_format(output_format, out)
    # Lines that appear on a terminal one by one show the progress themselves.
    shows_lines = chosen == "jsonl" and out is None and sys.stdout.isatty()
    hidden = True if shows_lines or len(given) == 1 else None  # None: unless it is on a terminal
    finished = reorder(tqdm(scores, total=len(given), unit="text", disable=hidden))
    records_of = _objects if chosen in ("json", "jsonl") else _lines
    with output(out) as file:
        write_records(records_of(given, finished, by, join_punctuation), chosen, file)


def _objects(
    given: Iterable[Text], scores: Iterable[Score], by: By, join_punctuation: bool
) -> Iterator[Record]:
    """Yield an object for each text."""
    for text, found in zip(given, scores, strict=True):
        fields = _own_fields(text)
        if by == "token":
            fields |= {"tokens": list(found.tokens)} if found.tokens else {}
            fields["ids"] = found.ids.tolist()
            fields |= {"spans": found.spans} if found.spans else {}
            fields["log_probs"] = list(map(number, found.log_probs))
            fields["is_greedy"] = found.is_greedy.tolist()
        elif by == "word":
            words = found.split_words(join_punctuation=join_punctuation)
            fields["words"] = [
                word._asdict() | {"log_prob": number(word.log_prob)} for word in words
            ]
        yield fields | _measures(found)


def _lines(
    given: Iterable[Text], scores: Iterable[Score], by: By, join_punctuation: bool
) -> Iterator[Record]:
    """Yield a line for each token, word or text."""
    for i, (text, found) in enumerate(zip(given, scores, strict=True)):
        if by == "text":
            yield {"text_index": i, **_own_fields(text), **_measures(found)}
        elif by == "word":
            for word in found.split_words(join_punctuation=join_punctuation):
                yield {"text_index": i, "word": word.text, **_numbers(word.span, word.log_prob)}
        else:
            for k, (id_, log_prob) in enumerate(zip(found.ids, found.log_probs, strict=True)):
                token = {"token": found.tokens[k]} if found.tokens else {}
                span = found.spans[k] if found.spans else None
                yield {"text_index": i, **token, "id": int(id_), **_numbers(span, log_prob)}


def _own_fields(text: Text) -> dict[str, Any]:
    context = {} if text.context is None else {"context": text.context}
    own = {"text": text.given} if isinstance(text.given, str) else {}
    return {**text.other, **own, **context}


def _numbers(span: tuple[int, int] | None, log_prob: Any) -> dict[str, Any]:
    characters = {} if span is None else {"start": span[0], "end": span[1]}
    bits = number(-float(log_prob) / math.log(2))
    return {**characters, "log_prob": number(log_prob), "surprisal": bits}


def _measures(found: Score) -> dict[str, float | None]:
    return {name: number(getattr(found, name)) for name in MEASURES}
