"""The ladder of parity with torch on tiny random models: each module, the whole, losses, gradients.

Every rung stands twice: in float64, where a difference is one of the algorithm (measured: 4e-15 at
most), and in float32, where it is rounding (measured: 1.2e-6 at most). Everything runs eagerly and
in few shapes, so that operations are compiled once and not once an example.
"""

import inspect
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

torch = pytest.importorskip("torch")

from support.torch_reference import (  # noqa: E402
    computing_in,
    first_differing_module,
    flax_model,
    largest_difference,
    to_torch,
    torch_model,
)

import conversion  # noqa: E402
from gpt1_jax.nn.attention import Mask  # noqa: E402
from gpt1_jax.pretrained import flatten  # noqa: E402
from gpt1_jax.pure import functional, merge, split  # noqa: E402

TOLERANCE = {"float64": 1e-13, "float32": 5e-6}
# Float64 shows that the formula is right, so its programs are left as they are; float32 runs the
# programs that users run.
DTYPES = ["float64", pytest.param("float32", marks=pytest.mark.optimized)]
ARCHITECTURES = conversion.ARCHITECTURES
VOCABULARY, POSITIONS = 13, 7
# Gradients take several times as many operations: one block of one size, to be compiled quickly.
# Gradients through twelve blocks are compared in test_full_size.py.
TRAINED = {"heads": ((2, 3),), "blocks": 1}
# Without shrinking: an example takes a second, and the assertion names what differs.
LADDER = settings(
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate)
)


@st.composite
def configs(draw: st.DrawFn, heads: Any = ((2, 3), (3, 4)), blocks: int = 2) -> dict[str, Any]:
    n_head, width = draw(st.sampled_from(heads))
    return {
        "vocab_size": VOCABULARY,
        "n_positions": POSITIONS,
        "n_layer": draw(st.integers(1, blocks)),
        "n_head": n_head,
        "n_embd": n_head * width,
        "afn": draw(st.sampled_from(["gelu", "relu", "silu", "swish"])),
        "layer_norm_epsilon": draw(st.sampled_from([1e-12, 1e-5, 1e-2])),
        "tie_word_embeddings": draw(st.booleans()),
        "summary_type": draw(st.sampled_from(["cls_index", "last", "first", "mean"])),
        "summary_use_proj": draw(st.booleans()),
        "summary_activation": draw(st.sampled_from([None, "tanh"])),
        "pad_token_id": draw(st.sampled_from([0, 5])),
        "num_labels": draw(st.sampled_from([1, 3])),
    }


@st.composite
def inputs(draw: st.DrawFn, rows: int = 3) -> dict[str, Any]:
    """Ids, and at will a mask with padding on either side, token types and positions."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    B, T = rows, draw(st.sampled_from([1, POSITIONS]))
    made: dict[str, Any] = {"input_ids": rng.integers(VOCABULARY, size=(B, T), dtype=np.int32)}
    side = draw(st.sampled_from(["none", "left", "right", "anywhere"]))
    if side != "none":  # rows of nothing but padding included
        pads = rng.integers(T + 1, size=(B, 1))
        place = np.arange(T)[None]
        mask = {"left": place >= pads, "right": place < T - pads}.get(
            side, rng.random((B, T)) > 0.4
        )
        made["attention_mask"] = mask.astype(np.int32)
    if draw(st.booleans()):
        made["token_type_ids"] = rng.integers(VOCABULARY, size=(B, T), dtype=np.int32)
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(B, T), (1, T)]))
        made["position_ids"] = rng.integers(POSITIONS, size=shape, dtype=np.int32)
    return made


def both(reference: Any, model: Any, arguments: dict[str, Any]) -> tuple[Any, Any]:
    with torch.no_grad():
        theirs = reference(**{name: to_torch(value) for name, value in arguments.items()})
    return model(**arguments), theirs


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(data=st.data())
@settings(LADDER, max_examples=4)
def test_model_modules_and_outputs_match_torch(
    architecture: str, dtype: str, data: st.DataObject
) -> None:
    with computing_in(dtype):
        reference = torch_model(architecture, data.draw(st.integers(0, 99)), **data.draw(configs()))
        model = flax_model(reference, dtype)
        arguments = data.draw(inputs())
        mask = arguments.get("attention_mask")
        if mask is not None:
            mask = jnp.asarray(mask, dtype)
        T = arguments["input_ids"].shape[-1]

        differing = first_differing_module(
            model, reference, Mask.build(mask, T, None), TOLERANCE[dtype], arguments
        )
        assert differing is None, differing

        more = {"output_hidden_states": True, "output_attentions": True}
        ours, theirs = both(reference, model, {**arguments, **more})
        names = ["hidden_states", "attentions"]
        for name in names:
            for i, (a, b) in enumerate(zip(ours[name], theirs[name], strict=True)):
                assert largest_difference(a, b) <= TOLERANCE[dtype], f"{name}[{i}]"
        for name in ("last_hidden_state", "logits", "mc_logits"):
            if name in theirs:
                assert largest_difference(ours[name], theirs[name]) <= TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(LADDER, max_examples=3)
def test_lm_loss_and_gradients_match_torch(dtype: str, data: st.DataObject) -> None:
    with computing_in(dtype):
        config = data.draw(configs(**TRAINED))
        reference = torch_model("OpenAIGPTLMHeadModel", data.draw(st.integers(0, 99)), **config)
        arguments = data.draw(inputs())
        ids = arguments["input_ids"]
        ignored = np.random.default_rng(0).random(ids.shape) < data.draw(st.sampled_from([0, 0.3]))
        labels = np.where(ignored, -100, ids)
        labels[:, -1] = ids[:, -1]
        hypothesis.assume(ids.shape[1] > 1)  # there is a next token to predict
        arguments["labels"] = labels
        if data.draw(st.booleans()):
            arguments["num_items_in_batch"] = 7
        compare_training(reference, arguments, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adamw_step_matches_torch(dtype: str) -> None:
    """One model will do: the formula of a step asks for nothing but gradients."""
    with computing_in(dtype):
        sizes = {"vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": 6, "n_head": 2}
        reference = torch_model("OpenAIGPTLMHeadModel", n_layer=1, **sizes)
        ids = np.random.default_rng(0).integers(VOCABULARY, size=(3, POSITIONS))
        arguments = {name: to_torch(ids) for name in ("input_ids", "labels")}
        reference(**arguments).loss.backward()
        compare_adamw_step(reference, flax_model(reference, dtype), dtype)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(LADDER, max_examples=3)
def test_classifier_losses_and_gradients_match_torch(dtype: str, data: st.DataObject) -> None:
    with computing_in(dtype):
        problem = data.draw(
            st.sampled_from(
                [None, "regression", "single_label_classification", "multi_label_classification"]
            )
        )
        n = 3 if problem == "single_label_classification" else data.draw(st.sampled_from([1, 3]))
        config = {**data.draw(configs(**TRAINED)), "num_labels": n, "problem_type": problem}
        reference = torch_model("OpenAIGPTForSequenceClassification", **config)
        arguments = data.draw(inputs(rows=3))
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        if problem == "single_label_classification" or (problem is None and n > 1):
            arguments["labels"] = rng.integers(n, size=3)
        elif problem == "multi_label_classification":
            arguments["labels"] = rng.integers(2, size=(3, n)).astype(dtype)
        else:
            arguments["labels"] = rng.normal(size=(3, n) if n > 1 else 3).astype(dtype)
        compare_training(reference, arguments, dtype)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(LADDER, max_examples=3)
def test_double_heads_with_choices_match_torch(dtype: str, data: st.DataObject) -> None:
    """Inputs (batch, choices, T): the case that Hugging Face has for "cls_index" alone."""
    with computing_in(dtype):
        config = {
            **data.draw(configs(**TRAINED)),
            "summary_type": "cls_index",
            "summary_use_proj": True,
        }
        reference = torch_model("OpenAIGPTDoubleHeadsModel", **config)
        flat = data.draw(inputs(rows=6))
        T = flat["input_ids"].shape[-1]
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        choices = {
            "input_ids": flat["input_ids"].reshape(2, 3, T),
            "labels": flat["input_ids"].reshape(2, 3, T),
            "mc_labels": rng.integers(3, size=2),
        }
        if data.draw(st.booleans()):
            choices["mc_token_ids"] = rng.integers(T, size=(2, 3))
        if "attention_mask" in flat:  # Hugging Face takes the rows' masks flattened only
            choices["attention_mask"] = flat["attention_mask"]
        if T > 1:
            compare_training(reference, choices, dtype)
        model = flax_model(reference, dtype)
        del choices["labels"], choices["mc_labels"]
        ours, theirs = both(reference, model, choices)
        for name in ("logits", "mc_logits"):
            assert largest_difference(ours[name], theirs[name]) <= TOLERANCE[dtype], name
        if "attention_mask" in choices:
            choices["attention_mask"] = choices["attention_mask"].reshape(2, 3, T)
        shaped = model(**choices, output_hidden_states=True)
        np.testing.assert_array_equal(shaped.mc_logits, ours.mc_logits)
        assert shaped.hidden_states[0].shape == (2, 3, T, config["n_embd"])


@pytest.mark.nightly
@pytest.mark.parametrize("summary_type", ["last", "first", "mean"])
def test_double_heads_summarizes_each_choice_separately(summary_type: str) -> None:
    """Where Hugging Face picks along the choices, each choice here is what it is alone there."""
    reference = torch_model(
        "OpenAIGPTDoubleHeadsModel",
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_layer=2,
        n_embd=8,
        n_head=2,
        summary_type=summary_type,
    )
    model = flax_model(reference)
    ids = np.random.default_rng(0).integers(VOCABULARY, size=(2, 3, 5))
    ours, theirs = both(reference, model, {"input_ids": ids.reshape(6, 5)})
    assert largest_difference(ours.mc_logits, theirs.mc_logits) <= TOLERANCE["float32"]
    np.testing.assert_allclose(
        model(ids).mc_logits.reshape(6), ours.mc_logits, rtol=0, atol=1e-6
    )  # measured: 0


@pytest.mark.nightly
def test_inputs_embeds_match_torch() -> None:
    for architecture in ARCHITECTURES:
        reference = torch_model(
            architecture,
            vocab_size=11,
            n_positions=6,
            n_layer=2,
            n_embd=8,
            n_head=2,
            pad_token_id=0,
        )
        embeds = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
        ours, theirs = both(reference, flax_model(reference), {"inputs_embeds": embeds})
        assert largest_difference(ours[0], theirs[0]) <= TOLERANCE["float32"], architecture


@pytest.mark.parametrize("keep", [0, 1, 3, np.array([0, 2]), np.array([[0, 1], [4, 2]])])
def test_logits_to_keep_matches_torch(keep: Any) -> None:
    reference = torch_model(
        "OpenAIGPTLMHeadModel", vocab_size=11, n_positions=6, n_layer=1, n_embd=8, n_head=2
    )
    ids = np.random.default_rng(0).integers(11, size=(2, 5))
    ours, theirs = both(
        reference, flax_model(reference), {"input_ids": ids, "logits_to_keep": keep}
    )
    assert largest_difference(ours.logits, theirs.logits) <= TOLERANCE["float32"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_arguments_have_the_places_of_transformers(architecture: str) -> None:
    sizes = {"vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": 6, "n_head": 2}
    reference = torch_model(architecture, **sizes, n_layer=1, pad_token_id=0)
    ours = flax_model(reference)
    names = list(inspect.signature(type(reference).forward).parameters)
    shape = (1, 2, 3) if "Double" in architecture else (1, 3)
    ids = np.ones(shape, np.int32)
    values = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids).reshape(-1, 3),
        "token_type_ids": ids + 1,
        "position_ids": (ids + np.arange(3, dtype=np.int32)).reshape(-1, 3),
        "inputs_embeds": None,
        "mc_token_ids": ids[..., 0],
        "labels": ids[:, 0] if "Classification" in architecture else ids,
        "mc_labels": ids[:, 0, 0] if "Double" in architecture else None,
        "output_attentions": True,
        "output_hidden_states": True,
    }
    given = [values[name] for name in names[1 : names.index("output_hidden_states") + 1]]
    with torch.no_grad():
        expected = reference(*map(to_torch, given))
    apply, params = functional(ours)
    for out in (ours(*given), apply(params, *given)):
        assert list(out) == list(expected)
        for name in set(out) - {"hidden_states", "attentions"}:
            assert largest_difference(out[name], expected[name]) < TOLERANCE["float32"], name


def test_positions_from_mask_match_transformers_generate() -> None:
    reference = torch_model(
        "OpenAIGPTLMHeadModel", vocab_size=11, n_positions=6, n_layer=2, n_embd=8, n_head=2
    )
    model = flax_model(reference)
    ids = np.random.default_rng(0).integers(11, size=(2, 5))
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clip(0)
    _, theirs = both(
        reference,
        model,
        {"input_ids": ids, "attention_mask": mask, "position_ids": positions},
    )
    ours = model(ids, attention_mask=mask, positions_from_mask=True)
    assert largest_difference(ours.logits, theirs.logits) <= TOLERANCE["float32"]
    default = model(ids, attention_mask=mask)  # Hugging Face's forward ignores the mask
    assert largest_difference(default.logits, theirs.logits) > 0.01


def compare_training(reference: Any, arguments: dict[str, Any], dtype: str) -> None:
    """Compare the losses and every gradient."""
    model = flax_model(reference, dtype)
    structure, params = split(model)

    def total(params: Any) -> Any:
        out = merge(structure, params)(**arguments)
        losses = [getattr(out, name, None) for name in ("loss", "mc_loss")]
        return sum(loss for loss in losses if loss is not None), out

    (loss, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    theirs = reference(**{name: to_torch(value) for name, value in arguments.items()})
    losses = [theirs[name] for name in ("loss", "mc_loss") if name in theirs]
    if dtype == "float64" and type(reference).__name__ == "OpenAIGPTLMHeadModel":
        losses = [float64_loss(theirs.logits, arguments)]
    reference.zero_grad()
    expected_loss = torch.stack(losses).sum()
    expected_loss.backward()
    assert largest_difference(loss, expected_loss) <= TOLERANCE[dtype], "loss"
    assert out.loss.dtype == dtype

    leaves, rows = flatten(gradients), parameters_of(reference, model)
    assert len(leaves) == len(rows)
    for row, parameter in rows:
        gradient = parameter.grad
        expected = np.zeros(row.torch_shape) if gradient is None else gradient.numpy()
        ours = np.asarray(leaves[row.path])
        ours = ours.T if row.transposed else ours
        assert largest_difference(ours, expected) <= TOLERANCE[dtype], f"gradient of {row.torch}"


def parameters_of(reference: Any, model: Any) -> list[tuple[Any, Any]]:
    """Each row of the layout with torch's parameter."""
    named = dict(reference.named_parameters())
    tied = {"transformer.tokens_embed.weight": "lm_head.weight"}
    rows = conversion.param_specs(model.config.to_dict(), type(reference).__name__)
    return [(row, named[row.torch if row.torch in named else tied[row.torch]]) for row in rows]


def compare_adamw_step(reference: Any, model: Any, dtype: str) -> None:
    """Compare the parameters after a step of AdamW, from the gradients that torch has.

    A key's bias adds the same to all scores of a query, so its exact gradient is zero, and from
    gradients of its own each side would divide rounding by rounding.
    """
    rows = [row for row in parameters_of(reference, model) if row[1].grad is not None]
    gradients = {row.path: jnp.asarray(row.from_torch(p.grad.numpy())) for row, p in rows}
    before = {path: leaf for path, leaf in flatten(model.params).items() if path in gradients}
    rates: dict[str, Any] = {"weight_decay": 0.01, "eps": 1e-8}
    optimizer = optax.adamw(1e-3, b1=0.9, b2=0.999, **rates)

    @jax.jit
    def step(gradients: Any, before: Any) -> Any:
        updates, _ = optimizer.update(gradients, optimizer.init(before), before)
        return optax.apply_updates(before, updates)

    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic is not strict
        after = step(gradients, before)
    torch.optim.AdamW(reference.parameters(), lr=1e-3, betas=(0.9, 0.999), **rates).step()
    for row, parameter in rows:
        ours, expected = np.asarray(after[row.path]), parameter.detach().numpy()
        difference = largest_difference(ours.T if row.transposed else ours, expected)
        assert difference <= TOLERANCE[dtype], f"{row.torch} after a step"


def float64_loss(logits: Any, arguments: dict[str, Any]) -> Any:
    """Hugging Face's LM loss without its cast to float32."""
    targets = torch.from_numpy(arguments["labels"][:, 1:].astype(np.int64)).flatten()
    items = arguments.get("num_items_in_batch")
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets, reduction="sum" if items else "mean"
    )
    return loss / items if items else loss
