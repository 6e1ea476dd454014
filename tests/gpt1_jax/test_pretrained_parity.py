"""Loading and resizing beside transformers: the same files, and the same parameters."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402
from support.small_models import SIZES, random_ids  # noqa: E402
from support.torch_reference import flax_model, largest_difference, torch_model  # noqa: E402

import gpt1_jax as gpt1  # noqa: E402

IDS = random_ids(1, 4)


def logits(model: Any, ids: Any = IDS) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(ids.astype(np.int64))).logits


@pytest.mark.parametrize("shards", ["5GB", 2000])
def test_from_pretrained_reads_a_variant_that_transformers_wrote(
    shards: Any, tmp_path: Path
) -> None:
    whole = torch_model("OpenAIGPTLMHeadModel", **SIZES)
    other = torch_model("OpenAIGPTLMHeadModel", seed=1, **SIZES)
    whole.save_pretrained(tmp_path)
    other.half().save_pretrained(tmp_path, variant="fp16", max_shard_size=shards)
    assert len(list(tmp_path.glob("model.fp16*"))) > (1 if shards == 2000 else 0)
    for variant, expected in ((None, whole), ("fp16", other)):
        model = gpt1.from_pretrained(tmp_path, variant=variant, param_dtype="float32")
        assert largest_difference(model(IDS).logits, logits(expected.float())) < 5e-6
    half = gpt1.OpenAIGPTLMHeadModel.from_pretrained(tmp_path, variant="fp16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half.params)} == {"float16"}
    with pytest.raises(
        FileNotFoundError, match=r"holds no weights; looked for model\.bf16\.safete"
    ):
        gpt1.from_pretrained(tmp_path, variant="bf16")


def test_from_pretrained_takes_dtypes_of_torch(tmp_path: Path) -> None:
    torch_model("OpenAIGPTLMHeadModel", **SIZES).save_pretrained(tmp_path)
    model = gpt1.from_pretrained(tmp_path, dtype=torch.float32, param_dtype=torch.bfloat16)
    assert (str(model.dtype), str(jax.tree.leaves(model.params)[0].dtype)) == (
        "float32",
        "bfloat16",
    )
    with pytest.raises(ValueError, match="param_dtype is 'int8', but must be one of float32"):
        gpt1.from_pretrained(tmp_path, param_dtype=torch.int8)


def test_from_pretrained_stores_in_dtype_as_transformers(tmp_path: Path) -> None:
    torch_model("OpenAIGPTLMHeadModel", **SIZES).save_pretrained(tmp_path)
    theirs = transformers.OpenAIGPTLMHeadModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ours = gpt1.OpenAIGPTLMHeadModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    files = [tmp_path / name / "model.safetensors" for name in ("theirs", "ours")]
    assert load_file(files[0]).keys() == load_file(files[1]).keys()
    for name, tensor in load_file(files[0]).items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, load_file(files[1])[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_from_pretrained_rounds_weights_as_torch(dtype: str, tmp_path: Path) -> None:
    reference = torch_model("OpenAIGPTLMHeadModel", **SIZES)
    # Subnormal and the largest in float16, and half-way between two numbers of either dtype.
    corners = [1e-7, -3e-8, 6e-5, 2e-8, 65519.0, 1 + 2**-11, 1 + 3 * 2**-11]
    corners += [1 + 2**-8, 1 + 3 * 2**-8, 1e-40, -0.0, float("inf")]
    with torch.no_grad():
        reference.transformer.tokens_embed.weight.view(-1)[: len(corners)] = torch.tensor(corners)
    reference.save_pretrained(tmp_path)
    table = gpt1.from_pretrained(tmp_path, param_dtype=dtype).get_input_embeddings().embedding
    expected = reference.transformer.tokens_embed.weight.to(getattr(torch, dtype))
    assert np.array_equal(
        np.asarray(table.get_value()).view(np.int16), expected.detach().view(torch.int16).numpy()
    )


def test_from_pretrained_ignores_mismatched_sizes_as_transformers(tmp_path: Path) -> None:
    name = "OpenAIGPTForSequenceClassification"
    torch_model(name, **SIZES).save_pretrained(tmp_path)
    options: dict[str, Any] = {"num_labels": 3, "ignore_mismatched_sizes": True}
    theirs = getattr(transformers, name).from_pretrained(tmp_path, **options)
    ours = gpt1.from_pretrained(tmp_path, **options, rngs=nnx.Rngs(0))
    assert ours.config.id2label == theirs.config.id2label
    assert ours.params["score"]["kernel"].shape == tuple(theirs.score.weight.shape)[::-1]
    ours.score.kernel.set_value(jax.numpy.asarray(theirs.score.weight.detach().numpy().T))
    assert largest_difference(ours(IDS).logits, logits(theirs.eval())) < 5e-6


@pytest.mark.nightly
@pytest.mark.difference("new rows of embeddings")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("size", "multiple"), [(17, None), (17, 8), (None, 8), (5, None)])
def test_resize_token_embeddings_matches_transformers(
    tied: bool, size: int | None, multiple: int | None
) -> None:
    theirs = torch_model("OpenAIGPTLMHeadModel", **SIZES, tie_word_embeddings=tied)
    ours = flax_model(theirs)
    table = theirs.resize_token_embeddings(size, multiple)
    assert ours.resize_token_embeddings(size, multiple).num_embeddings == table.num_embeddings
    assert ours.config.vocab_size == theirs.config.vocab_size
    # Their rows are drawn around the mean: five deviations of sqrt(1e-9) times that of the rows.
    noise = 5 * 1e-9**0.5 * float(theirs.get_input_embeddings().weight.detach().std())
    rows = ours.get_input_embeddings().embedding.get_value()
    np.testing.assert_allclose(rows, table.weight.detach(), rtol=0, atol=noise)
    if not tied:
        kernel = ours.get_output_embeddings().kernel.get_value().T
        expected = theirs.get_output_embeddings().weight.detach()
        np.testing.assert_allclose(kernel, expected, rtol=0, atol=noise)
    assert largest_difference(ours(IDS % 5).logits, logits(theirs, IDS % 5)) < 1e-3
