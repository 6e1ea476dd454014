"""The command ``gpt1 predict``."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from gpt1_jax.cli.adapters import takes_adapter
from gpt1_jax.cli.arguments import (
    Adapter,
    Columns,
    DType,
    MaybeModel,
    MaybeQuoting,
    Quantize,
    columns_by_role,
)
from gpt1_jax.cli.compilation_cache import Cache, enable_compilation_cache
from gpt1_jax.cli.table_output import (
    OutputFile,
    OutputFormat,
    chosen_format,
    output,
    write_records,
)
from gpt1_jax.cli.texts import Texts, is_json, is_read, lines_of, read_argument
from gpt1_jax.demo import HubOptions, resolve
from gpt1_jax.generation.batches import reorder
from gpt1_jax.training.data.records import SUFFIXES, Quoting, json_lines, kind_of, read_records
from gpt1_jax.training.data.tasks import TaskName
from gpt1_jax.training.predict import Predictor, Record, load_task_model
from gpt1_jax.training.task_file import TASK, read_quoting

MaybeTask = Annotated[TaskName | None, tyro.conf.arg(help_behavior_hint="")]


@takes_adapter()
def predict(
    rows: Texts,
    model: MaybeModel = None,
    adapter: Adapter = None,
    text: bool = False,
    task: MaybeTask = None,
    columns: Columns = (),
    quoting: MaybeQuoting = None,
    batch_size: int = 32,
    output_format: OutputFormat = None,
    out: OutputFile = None,
    dtype: DType | None = None,
    quantize: Quantize = None,
    revision: str | None = None,
    local_files_only: bool = False,
    compilation_cache: Cache = None,
) -> None:
    """Label texts or rows with a fine-tuned model.

    Files of rows are of the kinds that gpt1 finetune reads (.jsonl, .csv, .tsv, .parquet, ...).
    They have the columns that the model was trained on, without the label: text (classification,
    regression); premise and hypothesis (entailment); text1 and text2 (similarity); context, the
    question if there is one, and the choices (multiple-choice). For a task with one text, any other
    file is read as one text a line.

    The JSON object of a row has the row's own keys and those of the prediction: label, score (the
    label's probability) and scores (of all labels); for numbers, score alone; for several labels at
    once, labels (those above 0.5) and scores; for a multiple choice, label (the number of the
    choice) and scores. A label that the row has already is copied as true_label. A table leaves out
    scores.

    Args:
        rows: texts, files of texts or rows, or - for standard input, which has a text or a JSON
            object a line.
        model: fine-tuned checkpoint: a folder that gpt1 finetune has written, or a Hugging Face Hub
            id.
        adapter: folder of a LoRA adapter, written by gpt1 pretrain, gpt1 finetune or peft, to merge
            into the model; without --model, it is merged into the base model that the adapter
            names.
        text: treat every argument as a text, even if a file has its name.
        task: task of a classifier that transformers has trained; a model of gpt1 finetune names its
            own.
        columns: names of columns that differ from those of the training set, such as text=sentence.
        quoting: quoting in .csv and .tsv files: csv reads quoted cells, none takes quotes for a
            part of the text; by default as the model was trained.
        batch_size: number of rows to compute at once; a larger number is faster on an accelerator
            and takes more memory.
        output_format: format of the output; by default that of the suffix of --out, or else a table
            on a terminal and jsonl elsewhere.
        out: file to write the output to; by default standard output.
        dtype: dtype of the weights in memory and of the computation; by default the checkpoint's.
        quantize: quantize the weights to int8, which takes a quarter of float32's memory and
            decodes faster; by default they are not quantized.
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
        compilation_cache: folder that keeps compiled programs for the next run, up to 1 GB, or none
            to keep none; by default $GPT1_CACHE or else ~/.cache/gpt1-jax.
    """
    assert model is not None  # see ``takes_adapter``
    enable_compilation_cache(compilation_cache)
    if not rows:
        raise ValueError("give at least one text, a file of rows, or - for standard input")
    hub: HubOptions = {"revision": revision, "local_files_only": local_files_only}
    folder = resolve(model, **hub)
    predictor = Predictor.of_folder(folder, model, task, columns_by_role(columns))
    if quoting is None and (folder / TASK).is_file():
        quoting = read_quoting(folder)
    given = [
        each for argument in rows for each in _read(argument, predictor, quoting, force_text=text)
    ]
    read = predictor.make_rows(given)
    loaded = load_task_model(folder, predictor.task, dtype=dtype, quantize=quantize)
    predictions = predictor.run(loaded, read, batch_size=batch_size)
    from tqdm import tqdm

    chosen = chosen_format(output_format, out)
    hidden = True if len(given) == 1 else None  # None: unless it is on a terminal
    finished = reorder(tqdm(predictions, total=len(given), unit="row", disable=hidden))
    with output(out) as file:
        records = (
            predictor.join(record, found)
            for (_, record), found in zip(given, finished, strict=True)
        )
        if chosen == "table":
            records = (_without_scores(record) for record in records)
        write_records(records, chosen, file)


def _read(
    argument: str, predictor: Predictor, quoting: Quoting | None, *, force_text: bool
) -> Sequence[tuple[str, Record]]:
    """Return the records that an argument gives, with their places."""
    if not is_read(argument, force_text=force_text):
        place = f"the text {argument!r}"
        return [(place, predictor.as_record(place, argument))]
    found = list(_read_file(argument, predictor, quoting))
    if not found:
        name = "standard input" if argument == "-" else argument
        raise ValueError(f"{name} holds no rows")
    return found


def _read_file(
    argument: str, predictor: Predictor, quoting: Quoting | None
) -> Iterator[tuple[str, Record]]:
    columns = predictor.text_columns
    if argument != "-" and kind_of(Path(argument)) in SUFFIXES:
        yield from read_records(Path(argument), columns, quoting, keep_others=True)
        return
    name, content = read_argument(argument)
    if is_json(argument, content):
        yield from json_lines(Path(name), io.BytesIO(content.encode()), columns)
        return
    for place, line in lines_of(name, content):
        yield place, predictor.as_record(place, line)


def _without_scores(record: Record) -> dict[str, Any]:
    """Return what a line of a table has room for; the scores of choices are short."""
    return {name: value for name, value in record.items() if not isinstance(value, dict)}
