"""Pre-training: from plain text to a language model."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gpt1_jax._conversion import extras, layout
from gpt1_jax.checks import Count, MaybeCount, Positive, PositiveInteger, check_fields
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import resolve
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import merge, split
from gpt1_jax.sharding.mesh import init_sharded, process_local_rows
from gpt1_jax.sharding.processes import is_main_process, main_process_first
from gpt1_jax.text.bpe_training import train_tokenizer
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training import lora, run_folder
from gpt1_jax.training.callbacks import Callback
from gpt1_jax.training.data.batches import BatchIterator, count_steps, shuffled_batches
from gpt1_jax.training.data.corpus import (
    PackedBlocks,
    TokenizedText,
    find_texts,
    load_tokens,
    read_pieces,
)
from gpt1_jax.training.embedding_dropout import configure_dropout
from gpt1_jax.training.lm_objective import lm_loss
from gpt1_jax.training.loop import LoopSettings, TrainProgress, TrainSpec, train_into
from gpt1_jax.training.optimizer import (
    AnyOptimizer,
    OptimizerSettings,
    check_rate,
    describe_optimizer,
    known_rate,
    make_optimizer,
)
from gpt1_jax.training.perplexity import text_measures
from gpt1_jax.training.run_settings import (
    RunSettings,
    check_files,
    check_vocabulary,
    fields_of,
)
from gpt1_jax.training.step import Batch, Sums
from gpt1_jax.training.summary import (
    show_summary,
    summarize_longer,
    summarize_text,
    summarize_training,
)
from gpt1_jax.training.task_file import TASK

OPTIMIZER = OptimizerSettings(
    optimizer="openai", learning_rate=2.5e-4, schedule="cosine", warmup=2000
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewModel:
    """The sizes of a model that is trained from scratch; the defaults are GPT-1's.

    Attributes:
        merges: number of byte-pair merges to learn from the texts, which sets the size of the
            vocabulary.
        n_layer: number of blocks of a new model.
        n_embd: width of a new model's hidden states.
        n_head: number of attention heads of a new model.
        n_positions: largest number of tokens that a new model can read.

    Raises:
        ValueError: no model has such sizes.
    """

    merges: Count = 40_000
    n_layer: PositiveInteger = 12
    n_embd: PositiveInteger = 768
    n_head: PositiveInteger = 12
    n_positions: PositiveInteger = 512

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
            raise ValueError(f"{changed[0]} is for a new model, but model is {model}")
        if tokenizer is not None and "merges" in changed:
            raise ValueError(f"merges is for a new tokenizer, but tokenizer is {tokenizer}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings(RunSettings):
    """The settings of pre-training; the defaults are those of the GPT-1 paper.

    Attributes:
        epochs: number of passes over the texts; a fraction is rounded up to whole steps.
        steps: number of steps to train, in place of epochs.
        batch_size: number of sequences in a step; a larger number takes more memory.
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
    optimizer: AnyOptimizer = OPTIMIZER,
    loop: LoopSettings = LoopSettings(),
    mesh: Mesh | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainProgress:
    """Train a language model on text files; run again, a killed run goes on, bit by bit the same.

    With more epochs or steps, a run that has ended is made longer, see ``finetune``.

    The recipe is the paper's by default: 64 sequences of 512 tokens a step, 100 epochs, OpenAI's
    Adam with a peak of 2.5e-4 after 2000 steps and a cosine to 0.

    Args:
        texts: UTF-8 files, read one after another; the column "text" of .jsonl and other files of
            records; folders and patterns, see ``corpus.find_texts``.
        out: the folder of the result: a checkpoint in Hugging Face's layout with its tokenizer, the
            best by validation or else the last; ``log.jsonl``, ``loss.png``, ``checkpoints/``, the
            texts as tokens, and with ``settings.lora_rank`` the adapter apart in ``adapter/``.
        valid: files to validate on, likewise.
        model: a checkpoint to go on from, with its tokenizer; a new model by default.
        tokenizer: a folder or hub id of one, for a new model; one is learned by default.
        new: sizes of a new model.
        settings: how long, on how much.
        optimizer: how gradients become updates: settings, or any transformation of optax, which
            has its own learning rate.
        loop: when to log, validate and save.
        mesh: the devices to train on, of all processes that call this; one device by default. It is
            no part of the run: another one may go on with it.
        callbacks: called while training runs, see ``Callback``; no part of the run either.

    Returns:
        How the validations went.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a setting or a text is wrong, or ``out`` holds another run.
        BlockingIOError: another process is training into ``out``.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint.
    """
    job = _Pretraining(texts, valid, model, tokenizer, new, settings, optimizer, loop, mesh)
    return train_into(out, job.prepare, callbacks)


@dataclasses.dataclass(frozen=True)
class _Pretraining:
    """The arguments of ``pretrain``, and the steps that lead from them to the first batch."""

    texts: Sequence[str | os.PathLike[str]]
    valid: Sequence[str | os.PathLike[str]]
    model: str | os.PathLike[str] | None
    tokenizer: str | os.PathLike[str] | None
    new: NewModel
    settings: PretrainSettings
    optimizer: AnyOptimizer
    loop: LoopSettings
    mesh: Mesh | None

    def prepare(self, out: Path) -> tuple[TrainSpec, LoopSettings]:
        """Return what is trained, and when to do what; claim the output folder."""
        found = {"texts": find_texts(self.texts), "valid": find_texts(self.valid)}
        return dataclasses.replace(self, **found).prepare_files(out)

    def prepare_files(self, out: Path) -> tuple[TrainSpec, LoopSettings]:
        """Do so for texts that are all files."""
        rows = self.check()
        given = self.tokenizer if self.model is None else self.model
        source = None if given is None else resolve(given, weights=self.model is not None)
        run = self.describe(source)
        begun = run_folder.claim(out, run, self.mesh)
        tokenizer = self.make_tokenizer(out if begun else source)
        model = self.make_model(source, tokenizer)
        with main_process_first():
            text = load_tokens(self.texts, tokenizer, out / "tokens")
            valid = load_tokens(self.valid, tokenizer, out / "tokens") if self.valid else None
        blocks = PackedBlocks(text.ids, model.config.n_positions, text.files)
        spec = self.specify(model, blocks, valid, rows, out)
        epoch = count_steps(1, len(blocks), self.settings.batch_size)
        summary = {
            "train": summarize_text(text, model.config.n_positions),
            "valid": None if valid is None else summarize_text(valid, model.config.n_positions),
            **summarize_training(spec, self.optimizer, epoch),
            **summarize_longer(spec, run_folder.shorter_run(out, run, spec.steps)),
            "warnings": [],
        }
        if is_main_process():
            tokenizer.save_pretrained(out)  # which a run that goes on reads
            if self.settings.lora is not None:
                tokenizer.save_pretrained(out / lora.ADAPTER)
            run_folder.begin(out, run, summary)
        show_summary(summary)
        return spec, dataclasses.replace(self.loop, eval_every=self.loop.eval_every or epoch)

    def check(self) -> np.ndarray:
        """Check what needs no reading, and return the rows of a batch that this process reads."""
        if not self.texts:
            raise ValueError("give at least one text file")
        extras.require("pre-training", "grain", "matplotlib", extra="train")
        check_files([*self.texts, *self.valid])
        self.new.check_for(self.model, self.tokenizer)
        if self.settings.lora is not None and self.model is None:
            raise ValueError(
                "lora_rank needs model, the checkpoint that the adapters are trained for"
            )
        self.loop.check_for(self.settings.batch_size, validates=bool(self.valid))
        return process_local_rows(self.mesh, self.settings.batch_size, self.loop.accumulate)

    def describe(self, source: Path | None) -> dict[str, object]:
        """Return all that the result depends on, as run.json holds it."""
        given = "tokenizer_content" if self.model is None else "model_content"
        return {
            "texts": [str(path) for path in self.texts],
            "valid": [str(path) for path in self.valid],
            "texts_content": [run_folder.content(path) for path in self.texts],
            "valid_content": [run_folder.content(path) for path in self.valid],
            "model": None if self.model is None else str(self.model),
            "tokenizer": None if self.tokenizer is None else str(self.tokenizer),
            given: None if source is None else run_folder.checkpoint_content(source),
            **fields_of(self.new, self.settings, self.loop),
            **describe_optimizer(self.optimizer),
        }

    def make_tokenizer(self, known: Path | None) -> Tokenizer:
        """Return the tokenizer in a folder, or else one that is learned from the texts."""
        if known is not None:
            tokenizer = Tokenizer.from_pretrained(known)
            if (known / TASK).is_file():
                tokenizer.set_template("$A")  # the task's own is not that of a language model
            return tokenizer
        pieces = (piece for path in self.texts for piece in read_pieces(path))
        return train_tokenizer(
            (line for piece in pieces for line in piece.split("\n")), self.new.merges
        )

    def make_model(self, source: Path | None, tokenizer: Tokenizer) -> OpenAIGPTLMHeadModel:
        """Return the model to go on from, or a new one."""
        settings, mesh = self.settings, self.mesh
        rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), settings.dropout)
        if self.model is None or source is None:
            config = dataclasses.replace(self.new.config(len(tokenizer)), **rates)
            if mesh is not None:
                return init_sharded(
                    OpenAIGPTLMHeadModel,
                    config,
                    mesh,
                    seed=settings.seed,
                    dtype=settings.dtype,
                    remat=settings.remat,
                )
            rngs = nnx.Rngs(settings.seed)
            return OpenAIGPTLMHeadModel(
                config, rngs=rngs, dtype=settings.dtype, remat=settings.remat
            )
        model = OpenAIGPTLMHeadModel.from_pretrained(
            source,
            dtype=settings.dtype,
            param_dtype="float32",
            remat=settings.remat,
            mesh=mesh,
            **rates,
        )
        layout.check_not_quantized(model.config.to_dict(), "training", source)
        check_vocabulary(source, tokenizer, model.config.vocab_size)
        return model

    def specify(
        self,
        model: OpenAIGPTLMHeadModel,
        blocks: PackedBlocks,
        valid: TokenizedText | None,
        rows: np.ndarray,
        out: Path,
    ) -> TrainSpec:
        """Return what is trained, and on what."""
        settings = self.settings
        steps = settings.steps or count_steps(settings.epochs, len(blocks), settings.batch_size)
        check_rate(self.optimizer, steps)
        evaluate = None if valid is None else text_measures(model, valid)
        dropped = configure_dropout(model, settings.embedding_dropout, settings.dropout)
        if settings.lora is None:
            parts = lora.TrainedParts(*split(model))
        else:
            parts = lora.split_adapted(model, settings.lora, settings.seed, train_heads=False)

        def objective(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
            return lm_loss(merge(parts.structure, params), batch, key)

        def tokens(batch: Batch) -> int:
            # As if other processes had as many blocks as this one.
            return round(float(batch["weights"].mean()) * settings.batch_size * blocks.length)

        return TrainSpec(
            params=parts.trained,
            frozen=parts.frozen,
            combine=parts.combine,
            combine_to_train=parts.combine_to_train,
            objective=dropped(parts.wrap(objective)),
            optimizer=make_optimizer(self.optimizer, steps),
            learning_rate=known_rate(self.optimizer, steps),
            batches=batches(blocks, settings.batch_size, settings.seed, rows),
            tokens=tokens,
            steps=steps,
            seed=settings.seed,
            save=functools.partial(self.save, model, out),
            evaluate=evaluate,
            mesh=self.mesh,
            batch_size=settings.batch_size,
        )

    def save(self, model: OpenAIGPTLMHeadModel, out: Path, trained: Params, params: Params) -> None:
        """Write the model, and its adapters apart."""
        if self.settings.lora is not None and self.model is not None:
            lora.save_adapters(
                out / lora.ADAPTER,
                self.settings.lora,
                trained["adapters"],
                architecture=layout.LM_HEAD,
                base=lora.base_name(self.model),
            )
        model.save_pretrained(out, params=params)


def batches(
    blocks: PackedBlocks, batch_size: int, seed: int, rows: np.ndarray | slice = slice(None)
) -> BatchIterator:
    """Return grain's iterator over shuffled batches, without end: each epoch in another order.

    The last batch of an epoch is filled up with rows of weight 0, so that every block is read once
    an epoch, and one program computes all batches. Of each batch ``rows`` alone are read. The
    position is that of whole batches, so another number of processes goes on from it.
    """
    own = np.arange(batch_size)[rows]

    def read(numbers: Sequence[int]) -> dict[str, np.ndarray]:
        tokens = np.zeros((len(own), blocks.length + 1), np.int32)
        weights = np.zeros((len(own), blocks.length), np.float32)
        for row in np.flatnonzero(own < len(numbers)):
            tokens[row] = blocks[numbers[own[row]]]
            weights[row] = 1
        return {"tokens": tokens, "weights": weights}

    return shuffled_batches(range(len(blocks)), batch_size, seed, read)
