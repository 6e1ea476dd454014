"""GPT-1's own size against torch: logits, rounding, gradients, generated ids.

The weights are random (Hugging Face's initialisation, a fixed seed), the tokenizer is the real one.
"""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

import conversion  # noqa: E402
import gpt1_jax as gpt1  # noqa: E402
from gpt1_jax.pretrained import flatten  # noqa: E402

pytestmark = pytest.mark.slow

PROMPTS = (
    "the president is",
    "i looked at him and",
    "she opened the door , and there on the step stood",
    "once upon a time",
    "he",
    "in the middle of the night the old house began to make sounds that nobody could explain ,",
    "what do you think about",
    "the rain had not stopped for three days and",
    '" who is there ? " asked',
    "they walked along the river until",
    "nothing",
    "my mother always said that",
    "on the third of may , 1843 , a ship",
    "the colour of the sky was",
    "it was the best of times , it was",
    "a small dog ran after the carriage and",
    "if only he had known",
    "the doctor 's hands were",
    "we had been travelling for weeks through mountains covered with snow , and at last",
    "yes",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("full-size")
    torch.manual_seed(0)
    transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig()).save_pretrained(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return transformers.OpenAIGPTLMHeadModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def model(folder: Path) -> gpt1.OpenAIGPTLMHeadModel:
    return gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder)


def test_logits(reference: Any, model: gpt1.OpenAIGPTLMHeadModel) -> None:
    ids = torch.randint(40478, (2, 256), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = reference(ids).logits.numpy()
        exact = copy.deepcopy(reference).double()(ids).logits.numpy()
    apply, params = gpt1.functional(model)
    ours = np.asarray(apply(params, ids.numpy()).logits)
    assert np.abs(ours - theirs).max() <= 1e-5  # measured: 5.7e-6

    def rms(logits: np.ndarray) -> float:
        return float(np.sqrt(((logits - exact) ** 2).mean()))

    # measured: 4.5e-7 and 4.2e-7, 1.08 times
    assert rms(ours) <= 1.5 * rms(theirs), f"{rms(ours):.2e} against torch's {rms(theirs):.2e}"


def test_gradients(reference: Any, model: gpt1.OpenAIGPTLMHeadModel) -> None:
    ids = torch.randint(40478, (2, 32), generator=torch.Generator().manual_seed(2))
    reference.zero_grad()
    loss = reference(ids, labels=ids).loss
    loss.backward()
    apply, params = gpt1.functional(model)
    ours, gradients = jax.value_and_grad(
        lambda params: apply(params, ids.numpy(), labels=ids.numpy()).loss
    )(params)
    assert abs(float(ours) - loss.item()) <= 2e-6  # measured: 9.5e-7
    named, leaves = dict(reference.named_parameters()), flatten(gradients)
    largest = max(float(parameter.grad.abs().max()) for parameter in named.values())
    for row in conversion.layout(model.config.to_dict(), "OpenAIGPTLMHeadModel"):
        difference = np.abs(np.asarray(leaves[row.path]) - named[row.torch].grad.numpy()).max()
        assert difference <= 2e-6 * largest, row.torch  # measured: 1.2e-6
    reference.zero_grad(set_to_none=True)


@pytest.fixture(scope="module")
def prompts(data_folder: Path) -> list[list[int]]:
    tokenizer = gpt1.Tokenizer.from_pretrained(data_folder / "gpt1_bpe")
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


def test_greedy_ids(
    reference: Any, model: gpt1.OpenAIGPTLMHeadModel, prompts: list[list[int]]
) -> None:
    batch = gpt1.generate(model, prompts, max_new_tokens=10, return_dict=True)
    for i, prompt in enumerate(prompts):
        theirs = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=10,
            do_sample=False,
        )[0]
        alone = gpt1.generate(model, [prompt], max_new_tokens=10, return_dict=True)
        np.testing.assert_array_equal(alone.sequences[0], theirs, err_msg=PROMPTS[i])
        np.testing.assert_array_equal(batch.sequences[i], theirs, err_msg=PROMPTS[i])
        # measured: 4.3e-6
        np.testing.assert_allclose(batch.scores[i], alone.scores[0], rtol=0, atol=1e-5)


def test_every_decode_step_equals_the_full_forward(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    ids = np.random.default_rng(3).integers(40478, size=(2, 48))
    apply, params = gpt1.functional(model)
    full = np.asarray(apply(params, ids).logits)
    out = apply(params, ids[:, :32], cache=gpt1.Cache.empty(model.config, 2, 48))
    np.testing.assert_allclose(out.logits, full[:, :32], rtol=0, atol=1e-5)  # measured: 2.6e-6
    for t in range(32, 48):
        out = apply(params, ids[:, t : t + 1], cache=out.cache)
        np.testing.assert_allclose(out.logits[:, 0], full[:, t], rtol=0, atol=1e-5)


def test_bfloat16_is_as_close_as_torch_bfloat16(
    reference: Any, folder: Path, model: gpt1.OpenAIGPTLMHeadModel
) -> None:
    ids = torch.randint(40478, (1, 64), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        exact = reference(ids).logits.numpy()
        theirs = copy.deepcopy(reference).bfloat16()(ids).logits.float().numpy()
    half = gpt1.OpenAIGPTLMHeadModel.from_pretrained(
        folder, dtype="bfloat16", param_dtype="bfloat16"
    )
    apply, params = gpt1.functional(half)
    ours = np.asarray(apply(params, ids.numpy()).logits)
    error = [float(np.sqrt(((logits - exact) ** 2).mean())) for logits in (ours, theirs)]
    assert error[0] <= error[1], f"{error[0]:.2e} against torch's {error[1]:.2e}"
