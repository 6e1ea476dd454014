"""Labels of many short texts by a fine-tuned model, against transformers' pipeline."""

import contextlib
import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro
from flax import nnx

import gpt1_jax as gpt1
from benchmarks.peers import OURS, PEERS
from benchmarks.quiet import quiet
from benchmarks.score import QUICK, read_sentences, relative_error, with_tokenizer
from benchmarks.suite import DEFAULTS, Options, open_suite, show_seconds
from benchmarks.tasks import data_folder
from benchmarks.timing import Spread
from gpt1_jax.demo import FOLDER as DEMO
from gpt1_jax.training.data.tasks import Task, prepare_tokenizer

CLASSES = ("negative", "positive")


def predict(
    options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS,
    count: int = 500,
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
) -> dict[str, Any]:
    """Race the labels of UCI's short sentences by a classifier of random weights.

    Everyone takes strings, and returns the probability of every class. Those of all are compared
    before they are timed: the root mean square of the difference from ours, relative to that of
    ours. transformers is its text-classification pipeline, in the fastest of several batch sizes.

    Args:
        options: of every suite; random weights have GPT-1's own tokenizer, ``quick`` the demo.
        count: sentences; they are repeated if there are fewer.
        data: the folder of public data; by default $GPT1_DATA, or ../shared/data.

    Returns:
        What is written to the file.

    Raises:
        FileNotFoundError: there is no data.
        ValueError: an option is wrong, or outputs differ; the message says which.
    """
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    if options.memory:
        raise ValueError("predict measures no memory: leave out --memory")
    folder = data_folder(data)
    if options.quick:
        options = dataclasses.replace(options, model=options.model or DEMO)
        count = min(count, QUICK)
    texts = list(itertools.islice(itertools.cycle(read_sentences(folder)), count))
    with (
        open_suite("predict", options) as suite,
        with_tokenizer(suite.folder, folder) as base,
        classifier(base) as checkpoint,
    ):
        with quiet():
            runs = {}
            for name, peer in suite.peers.items():
                assert peer.predict is not None
                runs[name] = functools.partial(peer.predict(checkpoint), texts)
            found = {name: run() for name, run in runs.items()}
            errors = {name: relative_error(own, found[OURS]) for name, own in found.items()}
            for name, error in errors.items():
                if not error <= PEERS[name].tolerance:
                    raise ValueError(f"the labels of {name} are {error:.2g} from {OURS}'s")
            seconds, limits = suite.race(runs)
        notes = {
            name: f" {count / Spread.of(times).median:7.1f} texts/s"
            for name, times in seconds.items()
        }
        case = {"texts": "sentences", "count": count}
        show_seconds(f"{count} sentences", seconds, notes)
        suite.add(case=case, errors=errors, seconds=seconds, limits=limits)
        return suite.record


@contextlib.contextmanager
def classifier(base: Path) -> Iterator[Path]:
    """Make a classifier of a language model, with a new head and its tokenizer."""
    tokenizer = gpt1.Tokenizer.from_pretrained(base)
    config = gpt1.OpenAIGPTConfig.from_pretrained(base)
    task = Task(
        name="classification",
        tokenizer=tokenizer,
        special=prepare_tokenizer(tokenizer),
        n_positions=config.n_positions,
        classes=CLASSES,
    )
    rngs = nnx.Rngs(0)
    model = gpt1.OpenAIGPTForSequenceClassification.from_pretrained(
        base, rngs=rngs, num_labels=len(CLASSES), pad_token_id=0
    )
    model.config = model.transformer.config = task.configure(model.config)
    model.resize_token_embeddings(len(tokenizer), rngs=rngs)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield Path(folder)
