"""Who races: each library's way to load the same checkpoint and to run it."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from benchmarks.machine import Platform
from benchmarks.peers import ctranslate, hugging_face, minicons_scorer, onnx_runtime, ours
from benchmarks.peers.other_jax import OtherJax

OURS = "gpt1-jax"
ALL_OURS = {"float32": OURS, "bfloat16": f"{OURS}-bfloat16", "int8": f"{OURS}-int8"}
OLDER = " older"  # after the name of one of ours: it under another JAX
Kind = Literal["forward", "generate", "train", "load", "score", "predict"]

# ids (B, T) -> logits (B, T, V) or, without the head, states (B, T, E): ready, in the library's
# own arrays.
Forward = Callable[[np.ndarray], Any]
# Prompts (B, T) and a number of new tokens -> greedy ids (B, T + new).
Generate = Callable[[np.ndarray, int], np.ndarray]
# Texts -> of each, the log-probabilities of its tokens but the first.
Scores = Callable[[Sequence[str]], list[np.ndarray]]
# Texts -> the probabilities of the classes of each, (texts, classes).
Predict = Callable[[Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library, or a way to use it.

    Attributes:
        modules: what has to be installed.
        tolerance: relative error (of the root mean squares) of its logits that passes for equal.
        dtype: of its products, whose limit counts.
        forward: from a checkpoint, and whether to compute logits.
        generate: from a checkpoint.
        train: from a checkpoint; see ``train.py``.
        load: reads a checkpoint; what it returns is ready to be used.
        score: from a checkpoint with its tokenizer.
        predict: from a classifier with its tokenizer.
        states: whether it has a forward without the head.
        platforms: where it runs.
        compiles: whether it compiles anew after another library has run: it is run once more before
            it is timed.
        lacks: gives the reason why it cannot run here though its modules are installed, or None.
    """

    modules: tuple[str, ...]
    tolerance: float
    dtype: str = "float32"
    forward: Callable[[Path, bool], Forward] | None = None
    generate: Callable[[Path], Generate] | None = None
    train: Callable[..., Any] | None = None
    load: Callable[[Path], object] | None = None
    score: Callable[[Path], Scores] | None = None
    predict: Callable[[Path], Predict] | None = None
    states: bool = True
    platforms: tuple[Platform, ...] = ("cpu", "gpu")
    compiles: bool = False
    lacks: Callable[[], str | None] | None = None


TORCH = ("torch", "transformers")
PEERS: dict[str, Peer] = {
    OURS: Peer(
        modules=(),
        tolerance=1e-5,
        forward=ours.forward,
        generate=ours.generate,
        train=ours.train,
        load=ours.load,
        score=ours.score,
        predict=ours.predict,
        platforms=("cpu", "gpu", "tpu"),
    ),
    "gpt1-jax-bfloat16": Peer(
        modules=(),
        tolerance=2e-2,
        dtype="bfloat16",
        forward=functools.partial(ours.forward, dtype="bfloat16"),
        generate=functools.partial(ours.generate, dtype="bfloat16"),
        load=functools.partial(ours.load, dtype="bfloat16"),
        score=functools.partial(ours.score, dtype="bfloat16"),
        predict=functools.partial(ours.predict, dtype="bfloat16"),
        platforms=("cpu", "gpu", "tpu"),
    ),
    "gpt1-jax-int8": Peer(
        modules=(),
        tolerance=1e-1,
        dtype="int8",
        forward=functools.partial(ours.forward, dtype="int8"),
        generate=functools.partial(ours.generate, dtype="int8"),
        load=functools.partial(ours.load, dtype="int8"),
        score=functools.partial(ours.score, dtype="int8"),
        predict=functools.partial(ours.predict, dtype="int8"),
        platforms=("cpu", "gpu", "tpu"),
    ),
    "transformers": Peer(
        modules=TORCH,
        tolerance=1e-5,
        forward=hugging_face.forward,
        generate=hugging_face.generate,
        train=hugging_face.train,
        load=hugging_face.load,
        score=hugging_face.score,
        predict=hugging_face.predict,
    ),
    "transformers-bfloat16": Peer(
        modules=TORCH,
        tolerance=2e-2,
        dtype="bfloat16",
        forward=functools.partial(hugging_face.forward, dtype="bfloat16"),
        load=functools.partial(hugging_face.load, dtype="bfloat16"),
        score=functools.partial(hugging_face.score, dtype="bfloat16"),
    ),
    "transformers-int8": Peer(
        modules=TORCH,
        tolerance=1e-1,
        dtype="int8",
        forward=functools.partial(hugging_face.forward, dtype="int8"),
        load=functools.partial(hugging_face.load, dtype="int8"),
        score=functools.partial(hugging_face.score, dtype="int8"),
        platforms=("cpu",),
    ),
    "torch.compile": Peer(
        modules=TORCH,
        tolerance=1e-5,
        forward=functools.partial(hugging_face.forward, compiled=True),
        train=functools.partial(hugging_face.train, compiled=True),
        compiles=True,
        lacks=hugging_face.no_compiler,
    ),
    "torch.compile-bfloat16": Peer(
        modules=TORCH,
        tolerance=2e-2,
        dtype="bfloat16",
        forward=functools.partial(hugging_face.forward, dtype="bfloat16", compiled=True),
        compiles=True,
        lacks=hugging_face.no_compiler,
    ),
    "torch.compile-int8": Peer(
        modules=TORCH,
        tolerance=1e-1,
        dtype="int8",
        forward=functools.partial(hugging_face.forward, dtype="int8", compiled=True),
        platforms=("cpu",),
        compiles=True,
        lacks=hugging_face.no_compiler,
    ),
    "onnxruntime": Peer(
        modules=("onnxruntime", "onnxscript", *TORCH),
        tolerance=1e-5,
        forward=onnx_runtime.forward,
    ),
    "onnxruntime-int8": Peer(
        modules=("onnxruntime", "onnxscript", *TORCH),
        tolerance=1e-1,
        dtype="int8",
        forward=functools.partial(onnx_runtime.forward, dtype="int8"),
        platforms=("cpu",),
    ),
    "ctranslate2": Peer(
        modules=("ctranslate2",),
        tolerance=1e-5,
        forward=ctranslate.forward,
        generate=ctranslate.generate,
        load=ctranslate.load,
        states=False,
    ),
    "ctranslate2-bfloat16": Peer(
        modules=("ctranslate2",),
        tolerance=2e-2,
        dtype="bfloat16",
        forward=functools.partial(ctranslate.forward, dtype="bfloat16"),
        generate=functools.partial(ctranslate.generate, dtype="bfloat16"),
        load=functools.partial(ctranslate.load, dtype="bfloat16"),
        states=False,
        lacks=functools.partial(ctranslate.lacks, "bfloat16"),
    ),
    "ctranslate2-int8": Peer(
        modules=("ctranslate2",),
        tolerance=1e-1,
        dtype="int8",
        forward=functools.partial(ctranslate.forward, dtype="int8"),
        generate=functools.partial(ctranslate.generate, dtype="int8"),
        load=functools.partial(ctranslate.load, dtype="int8"),
        states=False,
    ),
    "minicons": Peer(modules=("minicons", *TORCH), tolerance=1e-5, score=minicons_scorer.score),
    "gpt2": Peer(modules=TORCH, tolerance=0, generate=hugging_face.gpt2),
}


def dtype_of(name: str) -> str:
    """Return the dtype in which a peer computes; one that is not known does in float32."""
    name = name.removesuffix(OLDER)
    return PEERS[name].dtype if name in PEERS else "float32"


def opponent(name: str, present: Mapping[str, object]) -> str | None:
    """Return which of ours a peer is compared with: the one of its dtype if it takes part."""
    if name in ALL_OURS.values():
        return None
    own = ALL_OURS[dtype_of(name)]
    return next((ours for ours in (own, OURS) if ours in present), None)


def with_ours(names: Sequence[str], kind: Kind) -> list[str]:
    """Return peers after those of ours that they are compared with."""
    dtypes = {"float32", *map(dtype_of, names)}
    ours = [name for dtype, name in ALL_OURS.items() if dtype in dtypes]
    able = [name for name in ours if getattr(PEERS[name], kind) is not None]
    return list(dict.fromkeys([*able, *names]))


def available_peers(names: Sequence[str], kind: Kind) -> tuple[dict[str, Peer], dict[str, str]]:
    """Return those of the named peers that can run a suite here, and why the others cannot.

    Args:
        names: of ``PEERS``, to which those of ours are added that they are compared with; without
            any, all that take part in the suite at all.
        kind: the suite.

    Raises:
        ValueError: a name that is no peer's, or that of one that takes no part in the suite.
    """
    able = [name for name, peer in PEERS.items() if getattr(peer, kind) is not None]
    for name in names:
        if name not in able:
            raise ValueError(f"{name!r} is no peer in {kind}; the peers are {', '.join(able)}")
    present, absent = {}, {}
    for name in with_ours(names, kind) if names else able:
        peer = PEERS[name]
        missing = [module for module in peer.modules if importlib.util.find_spec(module) is None]
        if missing:
            absent[name] = f"{', '.join(missing)} is not installed"
        elif jax.default_backend() not in peer.platforms:
            absent[name] = f"does not run on a {jax.default_backend()}"
        elif peer.lacks is not None and (why := peer.lacks()):
            absent[name] = why
        else:
            present[name] = peer
    return present, absent


def older_peers(other: OtherJax, kind: Kind, names: Sequence[str]) -> dict[str, Peer]:
    """Return those of the named peers that are ours, under another JAX.

    Raises:
        ValueError: a suite of another kind than forward, generate or train.
    """
    if kind == "load":
        raise ValueError("another JAX takes part in forward, generate and train")
    found = {}
    for dtype, name in ALL_OURS.items():
        if name in names:
            peer = PEERS[name]
            found[name + OLDER] = dataclasses.replace(
                peer,
                forward=lambda folder, head, dtype=dtype: other.forward(folder, head, dtype),
                generate=lambda folder, dtype=dtype: other.generate(folder, dtype),
                train=other.train,
                load=None,
            )
    return found
