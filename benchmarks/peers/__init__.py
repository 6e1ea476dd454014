"""Who races: each library's way to load the same checkpoint and to run it."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from benchmarks.machine import Platform
from benchmarks.peers import ctranslate, hugging_face, onnx_runtime, ours

OURS = "gpt1-jax"
Kind = Literal["forward", "generate", "train", "load"]

# ids (B, T) -> logits (B, T, V) or, without the head, states (B, T, E): ready, in the library's
# own arrays.
Forward = Callable[[np.ndarray], Any]
# Prompts (B, T) and a number of new tokens -> greedy ids (B, T + new).
Generate = Callable[[np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library, or a way to use it.

    Attributes:
        modules: what has to be installed.
        tolerance: relative error (of the root mean squares) of its logits that passes for equal.
        dtype: of its products, whose limit counts; "int8" has none.
        forward: from a checkpoint, and whether to compute logits.
        generate: from a checkpoint.
        train: from a checkpoint; see ``train.py``.
        load: reads a checkpoint; what it returns is ready to be used.
        states: whether it has a forward without the head.
        platforms: where it runs.
    """

    modules: tuple[str, ...]
    tolerance: float
    dtype: str = "float32"
    forward: Callable[[Path, bool], Forward] | None = None
    generate: Callable[[Path], Generate] | None = None
    train: Callable[..., Any] | None = None
    load: Callable[[Path], object] | None = None
    states: bool = True
    platforms: tuple[Platform, ...] = ("cpu", "gpu")


TORCH = ("torch", "transformers")
PEERS: dict[str, Peer] = {
    OURS: Peer(
        modules=(),
        tolerance=1e-5,
        forward=ours.forward,
        generate=ours.generate,
        train=ours.train,
        load=ours.load,
        platforms=("cpu", "gpu", "tpu"),
    ),
    "gpt1-jax-bfloat16": Peer(
        modules=(),
        tolerance=2e-2,
        dtype="bfloat16",
        forward=functools.partial(ours.forward, dtype="bfloat16"),
        generate=functools.partial(ours.generate, dtype="bfloat16"),
        load=functools.partial(ours.load, dtype="bfloat16"),
        platforms=("cpu", "gpu", "tpu"),
    ),
    "transformers": Peer(
        modules=TORCH,
        tolerance=1e-5,
        forward=hugging_face.forward,
        generate=hugging_face.generate,
        train=hugging_face.train,
        load=hugging_face.load,
    ),
    "transformers-bfloat16": Peer(
        modules=TORCH,
        tolerance=2e-2,
        dtype="bfloat16",
        forward=functools.partial(hugging_face.forward, dtype="bfloat16"),
        load=functools.partial(hugging_face.load, dtype="bfloat16"),
    ),
    "torch.compile": Peer(
        modules=TORCH,
        tolerance=1e-5,
        forward=functools.partial(hugging_face.forward, compiled=True),
        train=functools.partial(hugging_face.train, compiled=True),
    ),
    "onnxruntime": Peer(
        modules=("onnxruntime", "onnxscript", *TORCH),
        tolerance=1e-5,
        forward=onnx_runtime.forward,
    ),
    "ctranslate2": Peer(
        modules=("ctranslate2",),
        tolerance=1e-5,
        forward=ctranslate.forward,
        generate=ctranslate.generate,
        load=ctranslate.load,
        states=False,
    ),
    "ctranslate2-int8": Peer(
        modules=("ctranslate2",),
        tolerance=2e-1,
        dtype="int8",
        forward=functools.partial(ctranslate.forward, dtype="int8"),
        generate=functools.partial(ctranslate.generate, dtype="int8"),
        load=functools.partial(ctranslate.load, dtype="int8"),
        states=False,
    ),
    "gpt2": Peer(modules=TORCH, tolerance=0, generate=hugging_face.gpt2),
}


def available_peers(names: Sequence[str], kind: Kind) -> tuple[dict[str, Peer], dict[str, str]]:
    """Return those of the named peers that can run a suite here, and why the others cannot.

    Args:
        names: of ``PEERS``; without any, all that take part in the suite at all.
        kind: the suite.

    Raises:
        ValueError: a name that is no peer's, or that of one that takes no part in the suite.
    """
    able = [name for name, peer in PEERS.items() if getattr(peer, kind) is not None]
    for name in names:
        if name not in able:
            raise ValueError(f"{name!r} is no peer in {kind}; the peers are {', '.join(able)}")
    present, absent = {}, {}
    for name in names or able:
        peer = PEERS[name]
        missing = [module for module in peer.modules if importlib.util.find_spec(module) is None]
        if missing:
            absent[name] = f"{', '.join(missing)} is not installed"
        elif jax.default_backend() not in peer.platforms:
            absent[name] = f"does not run on a {jax.default_backend()}"
        else:
            present[name] = peer
    return present, absent
