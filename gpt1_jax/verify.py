"""Checks of a checkpoint: that it is whole, that torch agrees, and that it is the published GPT-1.

The published outputs come from three independent implementations: the test of transformers'
``OpenAIGPTLMHeadModel``, rust-bert's test of GPT-1, and AllenNLP's fixture of the original
TensorFlow model. No other checkpoint gives them.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from gpt1_jax._conversion import conversion, extras
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import HubOptions, resolve
from gpt1_jax.generation import generate
from gpt1_jax.model import MODELS, OpenAIGPTLMHeadModel
from gpt1_jax.pretrained import Params, flatten
from gpt1_jax.pure import functional
from gpt1_jax.quantization import is_quantized
from gpt1_jax.text.tokenizer import Tokenizer

# The largest difference of float32 outputs between torch and JAX, relative to the largest output
# where that is above 1: measured 5.7e-6 on random weights, 4.1e-6 on ones with logits up to 15.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Published:
    """What the published GPT-1 gives.

    Attributes:
        row: a token id and the start of its embedding.
        greedy: the length of a prompt, and the ids that greedy decoding continues it to.
        next_token: a text, the likeliest next id and its logit.
        states: ids, and (place, start of the top-layer state, norm of the state) for some of them.
    """

    row: tuple[int, Sequence[float]]
    greedy: tuple[int, Sequence[int]]
    next_token: tuple[str, int, float]
    states: tuple[Sequence[int], Sequence[tuple[int, Sequence[float], float]]]


GPT1 = Published(
    row=(3001, (-0.12091, 0.05169, 0.030707, -0.009344, 0.1531, 0.07153, 0.0034096, -0.079538)),
    greedy=(
        3,
        (
            *(481, 4735, 544, 246, 963, 870, 762, 239, 244, 40477),
            *(244, 249, 719, 881, 487, 544, 240, 244, 603, 481),
        ),
    ),
    next_token=("Wondering what the next word will", 580, 9.1056),
    states=(
        (
            *(249, 1925, 485, 6231, 246, 4121, 669, 1662, 939, 715, 1009),
            *(995, 239, 861, 1081, 822, 37700, 606, 1925, 504, 20267, 239),
        ),
        (
            (0, (0.15006, -0.24787, -0.10215, -0.39148, 0.49780), 16.6580),
            (11, (1.93257, -0.37740, 0.07665, 0.14770, 0.59034), 21.2159),
            (21, (-0.14036, 0.51124, 0.84184, -0.76988, 0.41258), 15.3317),
        ),
    ),
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One check: what it is, what was seen, and whether it passed (None: it could not run)."""

    name: str
    passed: bool | None
    detail: str

    def __str__(self) -> str:
        verdict = {True: "ok", False: "FAILED", None: "not run"}[self.passed]
        return f"{verdict:<7}  {self.name}: {self.detail}"


def verify(
    path: str | os.PathLike[str], published: Published = GPT1, **hub: Unpack[HubOptions]
) -> Iterator[Check]:
    """Check a checkpoint, and yield the outcome of each check as soon as it is known.

    Args:
        path: a folder or hub id.
        published: the outputs to compare with, if its embedding is that of the published GPT-1.
        **hub: ``subfolder``, ``revision``, ``cache_dir``, ``local_files_only``, ``token`` and
            ``force_download``.

    Raises:
        ValueError: the files do not hold a GPT-1.
        FileNotFoundError: there is no such folder, file or repository.
    """
    folder = resolve(path, **hub)
    config, params = conversion.read(folder)
    architecture = config["architectures"][0]
    model = MODELS[architecture].from_pretrained(folder, dtype=jnp.float32, precision="highest")
    yield Check("layout", True, f"{architecture}, {model.num_parameters():,} parameters")
    yield _finite(params)
    ids = _sample(model.config)
    out = functional(model)[0](model.params, ids)
    logits = np.asarray(out[0])
    finite = bool(np.isfinite(logits).all())
    seen = "all finite" if finite else "not all finite"
    yield Check("forward", finite, f"output {logits.shape}, {seen}")
    if is_quantized(model):
        yield Check("torch", None, "transformers does not read int8 weights")
        return
    yield _against_torch(folder, config, params, ids, logits)
    if finite:
        yield from _against_published(folder, params, published)


def _finite(params: Params) -> Check:
    wrong = [
        ".".join(path)
        for path, array in flatten(params).items()
        if not np.isfinite(array.astype(np.float32)).all()
    ]
    return Check("values", not wrong, f"not finite: {', '.join(wrong)}" if wrong else "all finite")


def _sample(config: OpenAIGPTConfig) -> np.ndarray:
    """Return (1, T) ids that any model of this configuration can read."""
    rng = np.random.default_rng(0)
    return rng.integers(config.vocab_size, size=(1, min(64, config.n_positions)), dtype=np.int32)


def _against_torch(
    folder: Path, config: Mapping[str, Any], params: Params, ids: np.ndarray, ours: np.ndarray
) -> Check:
    name = "torch"
    missing = extras.absent("torch", "transformers")
    if missing:
        return Check(name, None, extras.explain("the comparison", missing, "torch"))
    import torch
    import transformers

    if (folder / "params_shapes.json").exists():  # transformers cannot read OpenAI's files itself
        reference = conversion.to_torch(config, params)
    else:
        cls = getattr(transformers, config["architectures"][0])
        reference = cls.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = reference.eval()(torch.from_numpy(ids.astype(np.int64)))[0].numpy()
    difference = float(np.abs(theirs - ours).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(theirs).max()))
    return Check(
        name,
        difference <= allowed,
        f"largest difference {difference:.1e}, at most {allowed:.1e} "
        f"(torch {torch.__version__}, transformers {transformers.__version__})",
    )


def _against_published(folder: Path, params: Params, published: Published) -> Iterator[Check]:
    name = "published outputs"
    body = params.get("transformer", params)
    id_, start = published.row
    table = body["tokens_embed"]["embedding"]
    if id_ >= len(table) or not np.allclose(
        table[id_, : len(start)].astype(np.float32), start, rtol=5e-5, atol=0
    ):
        yield Check(name, None, "this is not the published GPT-1 (its embedding is another)")
        return
    yield Check(name, True, f"the embedding of token {id_} is that of the published GPT-1")

    model = OpenAIGPTLMHeadModel.from_pretrained(folder, dtype=jnp.float32, precision="highest")
    apply, weights = functional(model)
    prompt, expected = published.greedy
    got = generate(model, [list(expected[:prompt])], max_new_tokens=len(expected) - prompt)[0]
    yield Check(
        "published greedy text",
        list(got) == list(expected),
        f"{len(expected)} ids as published"
        if list(got) == list(expected)
        else f"got {list(map(int, got))}",
    )

    ids, places = published.states
    states = apply(weights, [list(ids)], output_hidden_states=True).hidden_states[-1][0]
    worst = max(
        max(
            np.abs(np.asarray(states[place, : len(start)]) - start).max(),
            abs(float(jnp.linalg.norm(states[place])) - norm),
        )
        for place, start, norm in places
    )
    yield Check(
        "published states", bool(worst <= 1e-4), f"largest difference {worst:.1e}, at most 1e-04"
    )

    text, token, logit = published.next_token
    try:
        tokenizer = Tokenizer.from_pretrained(folder)
    except FileNotFoundError:
        yield Check("published next token", None, "the folder has no tokenizer")
        return
    logits = apply(weights, [tokenizer.encode(text, add_special_tokens=False)]).logits[0, -1]
    best = int(logits.argmax())
    difference = abs(float(logits[best]) - logit)
    yield Check(
        "published next token",
        best == token and difference <= 1e-4,
        f"id {best} at {float(logits[best]):.4f}, published {token} at {logit:.4f}",
    )
