"""CTranslate2, an inference engine in C++."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import conversion
from benchmarks.timing import cores


def load(folder: Path, dtype: str = "float32") -> Any:
    """Return a generator; ``dtype`` is that of weights and products, "int8" too."""
    import ctranslate2
    from ctranslate2.specs import Activation, TransformerDecoderModelSpec

    config, params = conversion.read(folder)
    body = params["transformer"]
    spec: Any = TransformerDecoderModelSpec.from_config(
        config["n_layer"],
        config["n_head"],
        pre_norm=False,
        activation=Activation.GELUTanh,
        no_final_norm=True,
    )

    def linear(target: Any, layer: Any) -> None:
        target.weight = np.ascontiguousarray(np.asarray(layer["kernel"]).T)
        target.bias = np.asarray(layer["bias"])

    def norm(target: Any, layer: Any) -> None:
        target.gamma = np.asarray(layer["scale"])
        target.beta = np.asarray(layer["bias"])

    decoder = spec.decoder
    embedding = np.asarray(body["tokens_embed"]["embedding"])
    decoder.embeddings.weight = embedding
    decoder.projection.weight = embedding
    decoder.position_encodings.encodings = np.asarray(body["positions_embed"]["embedding"])
    decoder.scale_embeddings = False
    for i, layer in enumerate(decoder.layer):
        block = body["h"][str(i)]
        linear(layer.self_attention.linear[0], block["attn"]["c_attn"])
        linear(layer.self_attention.linear[1], block["attn"]["c_proj"])
        norm(layer.self_attention.layer_norm, block["ln_1"])
        linear(layer.ffn.linear_0, block["mlp"]["c_fc"])
        linear(layer.ffn.linear_1, block["mlp"]["c_proj"])
        norm(layer.ffn.layer_norm, block["ln_2"])
    tokens = [f"t{i}" for i in range(config["vocab_size"])]
    spec.register_vocabulary(tokens)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = tokens[0]
    spec.config.layer_norm_epsilon = config["layer_norm_epsilon"]
    spec.validate()
    with tempfile.TemporaryDirectory() as converted:
        spec.save(converted)
        return ctranslate2.Generator(
            converted,
            device=_device(),
            compute_type=dtype,
            inter_threads=1,
            intra_threads=cores(),
        )


def lacks(dtype: str) -> str | None:
    """Return that it has no ``dtype`` here, and would quietly compute in another; else None."""
    import ctranslate2

    device = _device()
    if dtype in ctranslate2.get_supported_compute_types(device):
        return None
    return f"CTranslate2 has no {dtype} on this {device}"


def forward(folder: Path, head: bool, dtype: str = "float32") -> Callable[[np.ndarray], Any]:
    """Return the forward of the language model.

    Raises:
        ValueError: asked for the transformer alone, which it cannot be.
    """
    import ctranslate2

    if not head:
        raise ValueError("CTranslate2 has no forward without the head")
    generator = load(folder, dtype)

    def run(ids: np.ndarray) -> np.ndarray:
        rows = ctranslate2.StorageView.from_array(np.ascontiguousarray(ids, np.int32))
        lengths = ctranslate2.StorageView.from_array(np.full(len(ids), ids.shape[1], np.int32))
        return generator.forward_batch(rows, lengths)

    return run


def generate(folder: Path, dtype: str = "float32") -> Callable[[np.ndarray, int], np.ndarray]:
    """Return greedy generation."""
    generator = load(folder, dtype)

    def run(prompts: np.ndarray, new: int) -> np.ndarray:
        out = generator.generate_batch(
            [[f"t{i}" for i in row] for row in prompts],
            max_length=new,
            min_length=new,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
        )
        added = np.asarray([result.sequences_ids[0] for result in out])
        return np.concatenate([prompts, added], axis=1)

    return run


def _device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"
