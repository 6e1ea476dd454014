"""The outputs and the loss of a batch of examples, against the models' own calls and numpy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_models import difference, numpy_logits, small_model

import gpt1_jax as gpt1
from gpt1_jax.pure import merge, split
from gpt1_jax.training import task_objective
from gpt1_jax.training.data.tasks import Example, collate
from gpt1_jax.training.step import Sums, TrainState, make_step, micro_batches
from gpt1_jax.training.task_objective import task_loss, task_outputs

VOCABULARY, POSITIONS, CLASSIFY, ROWS = 13, 16, 12, 4
# float32 against float64, relative to the loss where that is above 1. Measured: 3e-7.
TOLERANCE = 5e-6
KINDS = ("classes", "numbers", "both orders", "choices")
SEQUENCES = {"classes": 1, "numbers": 1, "both orders": 2, "choices": 3}


@functools.cache
def model_of(kind: str, **fields: Any) -> Any:
    sizes = {"n_positions": POSITIONS, "vocab_size": VOCABULARY, "n_layer": 1, "pad_token_id": 0}
    fields = {**sizes, **fields}
    if kind == "choices":
        return small_model(gpt1.OpenAIGPTDoubleHeadsModel, summary_activation="tanh", **fields)
    labels = 1 if kind == "numbers" else 3
    return small_model(gpt1.OpenAIGPTForSequenceClassification, num_labels=labels, **fields)


@functools.cache
def compiled(kind: str, classifier_dropout: float = 0.1, **fields: Any) -> Any:
    """Outputs, and the loss with the language-modelling loss at half weight and without it."""
    structure, params = split(model_of(kind, **fields))

    @jax.jit
    def run(params: Any, batch: Any, key: Any = None) -> dict[str, jax.Array]:
        model, rate = merge(structure, params), classifier_dropout
        outputs = task_outputs(model, batch, key, classifier_dropout=rate)
        loss, sums = task_loss(model, batch, key, lm_weight=0.5, classifier_dropout=rate)
        task_alone, _ = task_loss(model, batch, key, lm_weight=0.0, classifier_dropout=rate)
        return {"outputs": outputs, "loss": loss, **sums, "task_alone": task_alone}

    return functools.partial(run, params)


def random_examples(kind: str, count: int, seed: int, longest: int = POSITIONS) -> list[Example]:
    rng = np.random.default_rng(seed)

    def sequence() -> list[int]:
        return [*rng.integers(1, CLASSIFY, rng.integers(1, longest)).tolist(), CLASSIFY]

    def label() -> int | float:
        return float(rng.normal()) if kind == "numbers" else int(rng.integers(3))

    return [Example([sequence() for _ in range(SEQUENCES[kind])], label()) for _ in range(count)]


def nats(logits: np.ndarray, label: int) -> float:
    largest = logits.max()
    return float(largest + np.log(np.exp(logits - largest).sum()) - logits[label])


def expected(kind: str, examples: list[Example], lm_weight: float) -> tuple[np.ndarray, float]:
    """Outputs and loss in float64, a sequence at a time and without padding."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model_of(kind).params)
    # The table is as good as square, so the logits say what the states were.
    inverse = np.linalg.pinv(params["transformer"]["tokens_embed"]["embedding"].T)
    outputs, total = [], 0.0
    for example in examples:
        states, lm = [], []
        for ids in example.sequences:
            logits = numpy_logits(params, np.asarray([ids]))[0]
            states.append(logits[-1] @ inverse)
            lm.append(np.mean([nats(logits[t], ids[t + 1]) for t in range(len(ids) - 1)]))
        if kind == "choices":
            summary = params["multiple_choice_head"]["summary"]
            output = np.tanh(np.stack(states) @ summary["kernel"] + summary["bias"])[:, 0]
        else:
            output = np.sum(states, axis=0) @ params["score"]["kernel"]
        label: Any = example.label
        total += (output[0] - label) ** 2 if kind == "numbers" else nats(output, label)
        total += lm_weight * float(np.mean(lm))
        outputs.append(output)
    return np.stack(outputs), total


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
@given(count=st.integers(1, ROWS), seed=st.integers(0, 2**32 - 1), longest=st.integers(3, 15))
@settings(max_examples=12)
def test_task_objective_batch_matches_single_sequences(
    kind: str, count: int, seed: int, longest: int
) -> None:
    examples = random_examples(kind, count, seed, longest)
    batch = collate(examples, n_positions=POSITIONS, rows=ROWS)
    got = compiled(kind)(batch)
    outputs, loss = expected(kind, examples, 0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    assert difference(got["outputs"][:count], outputs) <= TOLERANCE
    assert difference(got["loss"], loss) <= TOLERANCE
    assert difference(got["task_alone"], expected(kind, examples, 0.0)[1]) <= TOLERANCE
    assert got["weight"] == count
    assert difference(got["task_loss"], got["task_alone"]) <= TOLERANCE
    assert difference(got["task_loss"] + 0.5 * got["lm_loss"], got["loss"]) <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_task_loss_ignores_rows_of_zero_weight(kind: str) -> None:
    examples = random_examples(kind, ROWS, 0)
    batch = collate(examples, n_positions=POSITIONS)
    batch["weight"][2:] = 0
    other = {name: array.copy() for name, array in batch.items()}
    for name in ("input_ids", "classify_at", "label"):
        other[name][2:] = 0
    got, same = (compiled(kind)(each) for each in (batch, other))
    assert got["weight"] == 2
    for name in ("loss", "task_alone", "weight"):
        assert got[name] == same[name]


@pytest.mark.parametrize("kind", KINDS)
def test_task_loss_of_micro_batches_adds_up(kind: str) -> None:
    examples = random_examples(kind, ROWS, 1)
    whole, first, rest = (
        compiled(kind)(collate(part, n_positions=POSITIONS, rows=ROWS))
        for part in (examples, examples[:1], examples[1:])
    )
    assert difference(first["loss"] + rest["loss"], whole["loss"]) <= TOLERANCE
    assert first["weight"] + rest["weight"] == whole["weight"] == ROWS


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["numbers", "choices"])
def test_task_loss_accumulates_over_micro_batches_without_rows(kind: str) -> None:
    """The step of a batch that is filled up is that of its examples alone."""
    structure, params = split(model_of(kind))

    def objective(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Sums]:
        return task_loss(merge(structure, params), batch, lm_weight=0.5)

    step, states = make_step(objective, optax.sgd(1.0)), []
    examples = random_examples(kind, 3, 0)
    for rows, accumulate in ((3, 1), (8, 4)):
        batch = micro_batches(collate(examples, n_positions=POSITIONS, rows=rows), accumulate)
        state, measures = step(TrainState.create(params, optax.sgd(1.0), 0), {}, batch)
        states.append({"params": state.params, **measures})
    assert max(jax.tree.leaves(jax.tree.map(difference, states[0]["params"], params))) > 0.1
    errors = jax.tree.map(difference, *states)
    assert max(jax.tree.leaves(errors)) <= TOLERANCE


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_task_outputs_of_similarity_ignore_text_order(seed: int) -> None:
    examples = random_examples("both orders", ROWS, seed)
    swapped = [Example(example.sequences[::-1], example.label) for example in examples]
    got, other = (
        compiled("both orders")(collate(each, n_positions=POSITIONS))
        for each in (examples, swapped)
    )
    assert difference(got["outputs"], other["outputs"]) <= TOLERANCE
    assert difference(got["loss"], other["loss"]) <= TOLERANCE


def test_task_outputs_match_model_call() -> None:
    batch = collate(random_examples("classes", ROWS, 2), n_positions=POSITIONS)
    apply, params = gpt1.functional(model_of("classes"))
    out = apply(params, batch["input_ids"][:, 0], labels=batch["label"])
    got = compiled("classes")(batch)
    assert difference(got["outputs"], out.logits) <= TOLERANCE
    assert difference(got["task_alone"] / got["weight"], out.loss) <= TOLERANCE

    batch = collate(random_examples("choices", ROWS, 2), n_positions=POSITIONS)
    apply, params = gpt1.functional(model_of("choices"))
    places, right = batch["classify_at"], batch["label"]
    out = apply(params, batch["input_ids"], mc_token_ids=places, mc_labels=right)
    got = compiled("choices")(batch)
    assert difference(got["outputs"], out.mc_logits) <= TOLERANCE
    assert difference(got["task_alone"] / got["weight"], out.mc_loss) <= TOLERANCE


def test_task_loss_skips_lm_loss_at_zero_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the language-modelling loss is computed")

    monkeypatch.setattr(task_objective, "chunked_cross_entropy", refuse)
    structure, params = split(model_of("classes"))
    batch = collate(random_examples("classes", 2, 0), n_positions=POSITIONS)

    def trace(lm_weight: float) -> None:
        jax.eval_shape(lambda p: task_loss(merge(structure, p), batch, lm_weight=lm_weight), params)

    trace(0.0)
    with pytest.raises(AssertionError, match="is computed"):
        trace(0.5)


NO_BODY_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def test_classifier_dropout_is_shared_across_choices() -> None:
    ids = random_examples("choices", 1, 3)[0].sequences[0]
    batch = collate([Example([ids] * 3, 0)] * ROWS, n_positions=POSITIONS)
    run = compiled("choices", 0.5, **NO_BODY_DROPOUT)
    outputs, plain = run(batch, jax.random.key(0))["outputs"], run(batch)["outputs"]
    assert difference(outputs, np.broadcast_to(outputs[:, :1], outputs.shape)) <= TOLERANCE
    assert len(set(np.asarray(outputs)[:, 0].round(4).tolist())) == ROWS  # a mask for each example
    assert difference(outputs, plain) > 0.01


def test_classifier_dropout_has_correct_rate_and_scale() -> None:
    model = model_of("numbers", **NO_BODY_DROPOUT)
    kernel = np.zeros(model.score.kernel.shape, np.float32)
    kernel[0] = 1  # the output is the first of the state's numbers
    structure, params = split(model)
    params["score"]["kernel"] = jnp.asarray(kernel)
    batch = collate(random_examples("numbers", ROWS, 4), n_positions=POSITIONS)

    @jax.jit
    def outputs(keys: Any) -> jax.Array:
        return jax.vmap(lambda key: task_outputs(merge(structure, params), batch, key))(keys)

    plain = np.asarray(jax.jit(lambda: task_outputs(merge(structure, params), batch))())
    dropped = np.asarray(outputs(jax.random.split(jax.random.key(0), 1000)))
    kept = dropped != 0
    assert difference(dropped[kept], np.broadcast_to(plain / 0.9, kept.shape)[kept]) <= TOLERANCE
    # 4,000 draws: the standard deviation of the rate is 0.0047.
    assert abs(1 - kept.mean() - 0.1) < 4 * 0.0047
    apart = np.corrcoef(kept[..., 0].T)[np.triu_indices(ROWS, 1)]
    assert np.abs(apart).max() < 4 / np.sqrt(1000)  # the rows' masks are independent


@pytest.mark.nightly
def test_task_objective_applies_body_dropout() -> None:
    batch = collate(random_examples("classes", ROWS, 5), n_positions=POSITIONS)
    run = compiled("classes", 0.0)
    got, again, other = (run(batch, jax.random.key(seed)) for seed in (0, 0, 1))
    for name in ("outputs", "loss", "task_alone"):
        assert difference(got[name], again[name]) == 0
        assert difference(got[name], other[name]) > 1e-3
    # One key gives one mask: the loss is that of the outputs.
    nats_of_labels = -jax.nn.log_softmax(got["outputs"])[np.arange(ROWS), batch["label"]]
    assert difference(got["task_alone"], nats_of_labels.sum()) <= TOLERANCE


@pytest.mark.parametrize("kind", ["both orders", "choices"])
def test_task_loss_is_float32_in_bfloat16(kind: str) -> None:
    batch = collate(random_examples(kind, ROWS, 6), n_positions=POSITIONS)
    got = compiled(kind, dtype=jnp.bfloat16)(batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(got["loss"], compiled(kind)(batch)["loss"], rtol=0.05)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["both orders", "choices"])
def test_task_loss_gradients_reach_every_parameter(kind: str) -> None:
    structure, params = split(model_of(kind))
    batch = collate(random_examples(kind, ROWS, 7, 3), n_positions=POSITIONS)

    def loss(params: Any) -> jax.Array:
        return task_loss(merge(structure, params), batch, lm_weight=0.5)[0]

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradients))
