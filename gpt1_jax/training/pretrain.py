"""Pre-training: from plain text to a language model."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gpt1_jax._conversion import files
from gpt1_jax.checks import Count, MaybeCount, Positive, check_fields
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import resolve
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import merge, split
from gpt1_jax.sharding.mesh import init_sharded, process_local_rows
from gpt1_jax.sharding.processes import (
    assert_same_folder,
    assert_same_on_all_processes,
    fail_together,
    is_main_process,
    main_process_first,
)
from gpt1_jax.text.bpe_training import train_tokenizer
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training import run_folder
from gpt1_jax.training.data.batches import shuffled_batches
from gpt1_jax.training.data.corpus import PackedBlocks, load_tokens, read_pieces
from gpt1_jax.training.embedding_dropout import configure_dropout
from gpt1_jax.training.lm_objective import lm_loss
from gpt1_jax.training.loop import LoopSettings, TrainProgress, TrainSpec, run_training
from gpt1_jax.training.optimizer import OptimizerSettings, learning_rate, make_optimizer
from gpt1_jax.training.perplexity import text_measures
from gpt1_jax.training.run_settings import (
    RunSettings,
    check_files,
    check_modules,
    check_vocabulary,
    fields_of,
)

OPTIMIZER = OptimizerSettings(
    optimizer="openai", learning_rate=2.5e-4, schedule="cosine", warmup=2000
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewModel:
    """The sizes of a model that is trained from scratch; the defaults are GPT-1's.

    Attributes:
        merges: byte-pair merges to learn from the texts, unless a tokenizer is given.
        n_layer: blocks.
        n_embd: width.
        n_head: attention heads.
        n_positions: positions, the longest text.

    Raises:
        ValueError: no model has such sizes.
    """

    merges: Count = 40_000
    n_layer: int = 12
    n_embd: int = 768
    n_head: int = 12
    n_positions: int = 512

    def __post_init__(self) -> None:
        check_fields(self)
        self.config(vocab_size=1)

    def config(self, vocab_size: int) -> OpenAIGPTConfig:
        """Return the configuration of the model with a vocabulary of that size."""
        return OpenAIGPTConfig(
            vocab_size=vocab_size,
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            n_head=self.n_head,
            n_positions=self.n_positions,
        )

    def check_for(self, model: object | None, tokenizer: object | None) -> None:
        """Check that nothing is set that a given model or tokenizer has of its own.

        Raises:
            ValueError: something is.
        """
        changed = [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        if model is not None and tokenizer is not None:
            raise ValueError(f"{model} has its own tokenizer: give either model or tokenizer")
        if model is not None and changed:
            raise ValueError(f"{changed[0]} is for a new model, but {model} is there to go on from")
        if tokenizer is not None and "merges" in changed:
            raise ValueError(f"merges are for a new tokenizer, but {tokenizer} is given")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings(RunSettings):
    """How long to train on how much at once, and how to compute it; the defaults are the paper's.

    Attributes:
        epochs: how often to read the texts.
        steps: how many steps to take, in place of epochs.
        batch_size: sequences a step.
    """

    epochs: Positive = 100.0
    steps: MaybeCount = None
    batch_size: Count = 64


def pretrain(
    texts: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    valid: Sequence[str | os.PathLike[str]] = (),
    model: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    new: NewModel = NewModel(),
    settings: PretrainSettings = PretrainSettings(),
    optimizer: OptimizerSettings = OPTIMIZER,
    loop: LoopSettings = LoopSettings(),
    mesh: Mesh | None = None,
) -> TrainProgress:
    """Train a language model on text files; run again, a killed run goes on, bit by bit the same.

    The recipe is the paper's by default: 64 sequences of 512 tokens a step, 100 epochs, OpenAI's
    Adam with a peak of 2.5e-4 after 2000 steps and a cosine to 0.

    Args:
        texts: UTF-8 files, read one after another.
        out: the folder of the result: a checkpoint in Hugging Face's layout with its tokenizer, the
            best by validation or else the last; ``log.jsonl``, ``loss.png``, ``checkpoints/``, and
            the texts as tokens.
        valid: files to validate on.
        model: a checkpoint to go on from, with its tokenizer; a new model by default.
        tokenizer: a folder or hub id of one, for a new model; one is learned by default.
        new: sizes of a new model.
        settings: how long, on how much.
        optimizer: how gradients become updates.
        loop: when to log, validate and save.
        mesh: the devices to train on, of all processes that call this; one device by default. It is
            no part of the run: another one may go on with it.

    Returns:
        How the validations went.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a setting or a text is wrong, or ``out`` holds another run.
        BlockingIOError: another process is training into ``out``.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint.
    """
    with contextlib.ExitStack() as stack:
        with fail_together():
            out = files.output_path(out)
            stack.enter_context(run_folder.locked(out))
            training, loop = _prepare(
                texts,
                out,
                valid=valid,
                model=model,
                tokenizer=tokenizer,
                new=new,
                settings=settings,
                optimizer=optimizer,
                loop=loop,
                mesh=mesh,
            )
        return run_training(training, loop, out)


def _prepare(
    texts: Sequence[str | os.PathLike[str]],
    out: Path,
    *,
    valid: Sequence[str | os.PathLike[str]],
    model: str | os.PathLike[str] | None,
    tokenizer: str | os.PathLike[str] | None,
    new: NewModel,
    settings: PretrainSettings,
    optimizer: OptimizerSettings,
    loop: LoopSettings,
    mesh: Mesh | None,
) -> tuple[TrainSpec, LoopSettings]:
    """Return what ``pretrain`` trains, and when to do what; the output folder is the run's then."""
    if not texts:
        raise ValueError("give at least one text file")
    check_modules("grain", "matplotlib")
    check_files([*texts, *valid])
    new.check_for(model, tokenizer)
    loop.check_for(settings.batch_size, validates=bool(valid))
    rows = (
        slice(None)
        if mesh is None
        else process_local_rows(mesh, settings.batch_size, loop.accumulate)
    )
    given = tokenizer if model is None else model
    source = None if given is None else resolve(given, weights=model is not None)
    run = {
        "texts": [str(path) for path in texts],
        "valid": [str(path) for path in valid],
        "contents": [run_folder.content(path) for path in (*texts, *valid)],
        "model": None if model is None else str(model),
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "given_content": None if source is None else run_folder.checkpoint_content(source),
        **fields_of(new, settings, optimizer, loop),
    }
    assert_same_on_all_processes(run, mesh)
    assert_same_folder(out)
    known = out if run_folder.check(out, run) else source
    if known is None:
        text_tokenizer = _learned_tokenizer(texts, new.merges)
    else:
        text_tokenizer = Tokenizer.from_pretrained(known)
    language_model = _model(None if model is None else source, text_tokenizer, new, settings, mesh)
    config = language_model.config
    with main_process_first():
        text = load_tokens(texts, text_tokenizer, out / "tokens")
        valid_text = load_tokens(valid, text_tokenizer, out / "tokens") if valid else None
    blocks = PackedBlocks(text.ids, config.n_positions, text.files)
    epoch = math.ceil(len(blocks) / settings.batch_size)
    steps = settings.steps or max(1, round(settings.epochs * len(blocks) / settings.batch_size))
    evaluate = None
    if valid_text is not None:
        evaluate = text_measures(language_model, valid_text)

    dropped = configure_dropout(language_model, settings.embedding_dropout, settings.dropout)
    graphdef, params = split(language_model)

    def objective(params: Params, batch: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return lm_loss(merge(graphdef, params), batch, key)

    def save(_: Params, params: Params) -> None:
        language_model.save_pretrained(out, params=params)

    training = TrainSpec(
        params=params,
        frozen={},
        objective=dropped(objective),
        optimizer=make_optimizer(optimizer, steps),
        learning_rate=learning_rate(optimizer, steps),
        batches=batches(blocks, settings.batch_size, settings.seed, rows),
        tokens=lambda batch: settings.batch_size * config.n_positions,
        steps=steps,
        seed=settings.seed,
        save=save,
        evaluate=evaluate,
        mesh=mesh,
        batch_size=settings.batch_size,
    )
    if is_main_process():
        text_tokenizer.save_pretrained(out)  # which a run that goes on reads
        run_folder.begin(out, run)
    return training, dataclasses.replace(loop, eval_every=loop.eval_every or epoch)


def batches(blocks: PackedBlocks, batch_size: int, seed: int, rows: Any = slice(None)) -> Any:
    """Return grain's iterator over shuffled batches, without end: each epoch in another order.

    Of each batch ``rows`` alone are read. The position is that of whole batches, so another number
    of processes goes on from it.
    """

    def read(numbers: Sequence[int]) -> dict[str, np.ndarray]:
        return {"tokens": np.stack([blocks[number] for number in np.asarray(numbers)[rows]])}

    return shuffled_batches(range(len(blocks)), batch_size, seed, read)


def _learned_tokenizer(texts: Sequence[str | os.PathLike[str]], merges: int) -> Tokenizer:
    pieces = (line for path in texts for piece in read_pieces(path) for line in piece.split("\n"))
    return train_tokenizer(pieces, merges)


def _model(
    path: Path | None,
    tokenizer: Tokenizer,
    new: NewModel,
    settings: PretrainSettings,
    mesh: Mesh | None,
) -> OpenAIGPTLMHeadModel:
    """Return the model to go on from, or a new one."""
    rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), settings.dropout)
    if path is None:
        config = dataclasses.replace(new.config(len(tokenizer)), **rates)
        numerics: Any = {"dtype": settings.dtype, "remat": settings.remat}
        if mesh is not None:
            return init_sharded(OpenAIGPTLMHeadModel, config, mesh, seed=settings.seed, **numerics)
        return OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(settings.seed), **numerics)
    model = OpenAIGPTLMHeadModel.from_pretrained(
        path, dtype=settings.dtype, param_dtype="float32", remat=settings.remat, mesh=mesh, **rates
    )
    check_vocabulary(path, tokenizer, model.config.vocab_size)
    return model
