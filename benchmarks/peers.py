"""Those who generate: each a function from prompts (batch, T) to greedy ids (batch, T + new)."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gpt1_jax as gpt1

OURS = "gpt1-jax"
Generate = Callable[[np.ndarray, int], np.ndarray]


def random_checkpoint(folder: Path) -> None:
    """Save a GPT-1 of full size with random weights: nobody needs the real ones to be as fast."""
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig()).save_pretrained(folder)


def gpt1_jax(folder: Path) -> Generate:
    """Ours."""
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder)

    def generate(prompts: np.ndarray, new: int) -> np.ndarray:
        return gpt1.generate(model, prompts, max_new_tokens=new)

    return generate


def transformers(folder: Path) -> Generate:
    """Hugging Face's model and ``generate`` in torch."""
    import torch
    from transformers import OpenAIGPTLMHeadModel

    model: Any = OpenAIGPTLMHeadModel.from_pretrained(folder).eval()

    def generate(prompts: np.ndarray, new: int) -> np.ndarray:
        ids = torch.from_numpy(prompts.astype(np.int64))
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
        )
        return out.numpy()

    return generate


def ctranslate2(folder: Path) -> Generate:
    """CTranslate2, an inference engine in C++, in float32."""
    import ctranslate2
    from ctranslate2.specs import Activation, TransformerDecoderModelSpec

    import conversion

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
        generator = ctranslate2.Generator(converted, inter_threads=1, intra_threads=0)

    def generate(prompts: np.ndarray, new: int) -> np.ndarray:
        out = generator.generate_batch(
            [[tokens[i] for i in row] for row in prompts],
            max_length=new,
            min_length=new,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
        )
        added = np.asarray([result.sequences_ids[0] for result in out])
        return np.concatenate([prompts, added], axis=1)

    return generate


PEERS: dict[str, Callable[[Path], Generate]] = {
    OURS: gpt1_jax,
    "transformers": transformers,
    "ctranslate2": ctranslate2,
}
