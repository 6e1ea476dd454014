"""What pre-training and fine-tuning are set to alike, and the checks that both begin with."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from gpt1_jax.checks import (
    INTEGER,
    Count,
    DropoutRate,
    MaybeCount,
    Positive,
    Rule,
    Switch,
    check_fields,
)
from gpt1_jax.nn.remat import Remat
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training.embedding_dropout import EmbeddingDropout
from gpt1_jax.training.lora.adapters import LoraSettings

# Not float16, whose gradients underflow without a scaled loss.
DType = Literal["float32", "bfloat16"]
Seed = Annotated[int, INTEGER, Rule("in [0, 2^32)", lambda n: 0 <= n < 2**32)]  # as grain takes it


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings that pre-training and fine-tuning share.

    Attributes:
        epochs: number of passes over the training set; a fraction is rounded up to whole steps.
        batch_size: number of sequences or examples in a step; a larger number takes more memory.
        dropout: dropout rate of the embeddings, attention weights, block outputs and the input of a
            new head; it replaces the model's own rates.
        embedding_dropout: elements that dropout on the embeddings drops: sum, of each position's
            sum of vectors, as in transformers; or tables, of the embedding tables once a step, as
            OpenAI did.
        dtype: dtype of the computation; weights and optimizer state are always float32.
        remat: what the backward pass computes again to save memory: none, linear (everything but
            the outputs of linear layers) or all.
        seed: seed of new weights, of the order of the examples and of dropout.
        lora_rank: LoRA rank: train adapters of this rank (and the new head of a task) in place of
            all weights; the adapters are also saved apart, in the folder adapter. By default all
            weights are trained.
        lora_alpha: LoRA alpha: the update is scaled by alpha / rank.
        lora_targets: names of the linear layers that get LoRA adapters, as peft matches them:
            c_attn, c_fc, c_proj, attn.c_proj and so on, or all-linear for every linear layer of the
            blocks.
        lora_dropout: dropout rate of the input of LoRA adapters.
        use_rslora: scale the LoRA update by alpha / sqrt(rank) (arXiv:2312.03732).

    Raises:
        ValueError: a value out of its range; the message names both.
    """

    epochs: Positive
    batch_size: Count
    dropout: DropoutRate = 0.1
    embedding_dropout: EmbeddingDropout = "sum"
    dtype: DType = "float32"
    remat: Remat = "linear"
    seed: Seed = 0
    lora_rank: MaybeCount = None
    lora_alpha: Positive = 16.0
    lora_targets: tuple[str, ...] = ("c_attn",)
    lora_dropout: DropoutRate = 0.0
    use_rslora: Switch = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("lora_alpha", "lora_targets", "lora_dropout", "use_rslora"):
            if self.lora is None and getattr(self, name) != getattr(RunSettings, name):
                raise ValueError(f"{name} has no effect without lora_rank")

    @property
    def lora(self) -> LoraSettings | None:
        """The adapters to train, if any."""
        if self.lora_rank is None:
            return None
        return LoraSettings(
            rank=self.lora_rank,
            alpha=self.lora_alpha,
            target_modules=self.lora_targets,
            rslora=self.use_rslora,
            dropout=self.lora_dropout,
        )


def fields_of(*parts: Any) -> dict[str, object]:
    """Return the fields of several settings, which no two of them share, by their names."""
    return {name: value for part in parts for name, value in dataclasses.asdict(part).items()}


def check_files(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Check that there are such files, with something in them.

    Raises:
        FileNotFoundError: one is not there, or is no file.
        ValueError: one is empty.
    """
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file" if path.exists() else f"no file {path}")
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty")


def check_vocabulary(model: str | os.PathLike[str], tokenizer: Tokenizer, vocab_size: int) -> None:
    """Check that every token of a checkpoint's tokenizer has a row in its embedding.

    Raises:
        ValueError: some have not.
    """
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"{model}: the tokenizer has {len(tokenizer)} tokens, but the model's vocab_size is "
            f"{vocab_size}: they belong to different checkpoints, or the embedding must be resized"
        )
