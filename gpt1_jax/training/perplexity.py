"""How well a model predicts a text: loss, perplexity, bits per character."""

import itertools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np

from gpt1_jax.checks import INTEGER, at_least, check
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import merge, split
from gpt1_jax.sharding.mesh import batch_shardings, mesh_of, round_up_to_mesh, shard
from gpt1_jax.training.data.corpus import TokenizedText
from gpt1_jax.training.lm_objective import lm_loss


def windows(ids: np.ndarray, length: int, stride: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield a text in windows that together predict every token but the first, each once.

    Args:
        ids: (N,) of the text, at least two.
        length: T, what a window predicts at most.
        stride: how many tokens a window predicts that the one before did not; what comes before
            them is context. T for windows that do not overlap.

    Yields:
        tokens (T + 1,) int32, and weights (T,) float32 of the last T, 1 for those that this window
        predicts first. A text shorter than a window is filled up with zeros.
    """
    last = len(ids) - 1
    predicted = 0
    while predicted < last:
        stop = min(predicted + stride if predicted else length, last)
        start = max(stop - length, 0)
        tokens = np.zeros(length + 1, np.int32)
        tokens[: stop - start + 1] = ids[start : stop + 1]
        weights = np.zeros(length, np.float32)
        weights[predicted - start : stop - start] = 1
        yield tokens, weights
        predicted = stop


def check_stride(stride: int, T: int) -> None:
    """Check that windows of T tokens can advance by ``stride``; otherwise raise a ValueError."""
    if not 1 <= stride <= T:
        raise ValueError(f"stride is {stride}, but must be in [1, {T}], n_positions being {T}")


def text_measures(
    model: OpenAIGPTLMHeadModel,
    text: TokenizedText,
    *,
    stride: int | None = None,
    batch_size: int = 8,
) -> Callable[[Params], dict[str, float]]:
    """Return the function from a model's parameters to its measures on a text.

    Args:
        model: whose structure it is; its own parameters are not used.
        text: at least two tokens.
        stride: see ``windows``; by default windows do not overlap.
        batch_size: windows that are computed at once.

    Returns:
        Parameters -> ``loss``, the mean of the tokens' cross-entropies in nats; ``perplexity``, its
        exponential; and ``bits_per_character``, their sum in bits over the characters of the text.

    Raises:
        ValueError: the text has fewer than two tokens, the stride does not fit the model, or
            there are no windows in a batch.
    """
    T = model.config.n_positions
    stride = T if stride is None else stride
    check_stride(stride, T)
    if len(text.ids) < 2:
        raise ValueError(f"{', '.join(text.files)}: one token is no text to predict")
    check("batch_size", batch_size, INTEGER, at_least(1))
    structure, _ = split(model)

    @jax.jit
    def losses(params: Params, batch: dict[str, np.ndarray]) -> jax.Array:
        return lm_loss(merge(structure, params), batch)[0]

    def measure(params: Params) -> dict[str, float]:
        total = 0.0
        mesh = mesh_of(params)
        rows = batch_size if mesh is None else round_up_to_mesh(mesh, batch_size)
        every = windows(text.ids, T, stride)
        while group := list(itertools.islice(every, rows)):
            group += [(np.zeros(T + 1, np.int32), np.zeros(T, np.float32))] * (rows - len(group))
            tokens, weights = map(np.stack, zip(*group, strict=True))
            batch = {"tokens": tokens, "weights": weights}
            if mesh is not None:
                batch = shard(batch, batch_shardings(mesh, batch))
            total += float(losses(params, batch))
        loss = total / (len(text.ids) - 1)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_character": total / math.log(2) / text.characters,
        }

    return measure
