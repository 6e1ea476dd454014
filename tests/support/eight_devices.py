"""What a mesh of eight simulated devices computes, against one device: a report in JSON.

    cd tests && python -m support.eight_devices MESH [--unoptimized]

A process of its own: JAX makes the devices when it starts.
"""

import collections
import json
import os
import re
import sys
from tempfile import TemporaryDirectory
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from flax import nnx
from support.optimization import set_optimization
from support.small_models import MODELS, difference, leaves_equal, random_ids, small_model

import gpt1_jax as gpt1
from gpt1_jax.pure import merge, split
from gpt1_jax.sharding import mesh as sharding
from gpt1_jax.training import task_forward
from gpt1_jax.training.data.tasks import Example
from gpt1_jax.training.lm_objective import lm_loss
from gpt1_jax.training.optimizer import OptimizerSettings, make_optimizer
from gpt1_jax.training.step import TrainState, make_step, micro_batches

# A vocabulary that divides by no axis, as GPT-1's.
SIZES: dict[str, Any] = {"vocab_size": 106, "n_embd": 64, "n_head": 8, "n_positions": 32}
STEPS, ROWS, TOKENS = 10, 8, 16
IDS = random_ids(ROWS, TOKENS, size=SIZES["vocab_size"])
TEXTS = random_ids(STEPS, 2 * ROWS, TOKENS + 1, size=SIZES["vocab_size"], seed=1)
OPTIMIZER = OptimizerSettings(optimizer="openai", learning_rate=1e-3, schedule="constant", warmup=0)
COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def collectives(compiled: Any) -> dict[str, int]:
    return collections.Counter(COLLECTIVE.findall(compiled.as_text()))


def share(mesh: Any) -> float:
    """The most that one device holds of parameters and optimizer state, of all of them."""
    # Twice as wide as otherwise: of so narrow a model much is biases, which every device has.
    params = model_on(mesh, gpt1.OpenAIGPTLMHeadModel, n_embd=2 * SIZES["n_embd"]).params
    state = TrainState.create(params, make_optimizer(OPTIMIZER, STEPS), seed=0)
    tree = sharding.shard(state, sharding.param_shardings(mesh, state))
    held: collections.Counter[Any] = collections.Counter()
    for leaf in jax.tree.leaves(tree):
        for part in leaf.addressable_shards:
            held[part.device] += part.data.nbytes
    return max(held.values()) / sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def lie_alike(tree: Any, expected: Any) -> bool:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
    return all(a.sharding == b for a, b in pairs)


def by_rows(mesh: Any, tree: Any, axis: int = 0) -> Any:
    return (
        tree if mesh is None else sharding.shard(tree, sharding.batch_shardings(mesh, tree, axis))
    )


def model_on(mesh: Any, cls: Any, **fields: Any) -> Any:
    model = small_model(cls, **{**SIZES, "pad_token_id": 0, **fields})
    if mesh is not None:
        sharding.shard_model(model, mesh)
    return model


def placements(mesh: Any) -> dict[str, bool]:
    """Whether the parameters of models that come onto a mesh have their values and their places."""
    cls = gpt1.OpenAIGPTLMHeadModel
    config = gpt1.OpenAIGPTConfig(**SIZES, n_layer=2)
    one = cls(config, rngs=nnx.Rngs(3))
    facts = {}

    def note(fact: str, model: Any, expected: Any) -> None:
        alike = lie_alike(model.params, sharding.param_shardings(mesh, expected.params))
        facts[fact] = alike and leaves_equal(model.params, expected.params)

    note("initialised", sharding.init_sharded(cls, config, mesh, seed=3), one)
    with TemporaryDirectory() as folder:
        one.save_pretrained(folder)
        model = cls.from_pretrained(folder, mesh=mesh)
        note("loaded", model, one)
        half = cls.from_pretrained(folder, mesh=mesh, param_dtype="bfloat16")
        note("loaded_in_bfloat16", half, cls.from_pretrained(folder, param_dtype="bfloat16"))
    other = cls(config, rngs=nnx.Rngs(4))
    model.load_params(other.params)
    note("loaded_from_one_device", model, other)
    model.load_params(jax.tree.map(np.asarray, one.params))
    note("loaded_from_numpy", model, one)
    for each in (model, one):
        each.resize_token_embeddings(SIZES["vocab_size"] + 3, rngs=nnx.Rngs(5))
    note("resized", model, one)
    return facts


def heads(mesh: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What every model's head says, the language model with a cache, and what became of that."""
    said, facts = {}, {}
    for cls in MODELS:
        model = model_on(mesh, cls)
        apply, params = gpt1.functional(model)
        if cls is gpt1.OpenAIGPTDoubleHeadsModel:
            out = apply(params, by_rows(mesh, IDS).reshape(-1, 2, TOKENS))
        elif cls is gpt1.OpenAIGPTLMHeadModel:
            cache = by_rows(mesh, gpt1.Cache.empty(model.config, ROWS, TOKENS))
            out = apply(params, by_rows(mesh, IDS), cache=cache)
            if mesh is not None:
                facts["cache_kept"] = lie_alike(out.cache, sharding.batch_shardings(mesh, cache))
                buffers = (*cache.keys, *cache.values)
                facts["cache_donated"] = all(buffer.is_deleted() for buffer in buffers)
        else:
            out = apply(params, by_rows(mesh, IDS))
        for name in ("last_hidden_state", "logits", "mc_logits"):
            if hasattr(out, name):
                said[f"{cls.__name__}.{name}"] = np.asarray(getattr(out, name))
    apply, params = gpt1.functional(
        model_on(mesh, gpt1.OpenAIGPTLMHeadModel, tie_word_embeddings=False)
    )
    said["untied.logits"] = np.asarray(apply(params, by_rows(mesh, IDS)).logits)
    said["score"] = scores(model_on(mesh, gpt1.OpenAIGPTLMHeadModel))
    said["predict"] = predicted(model_on(mesh, gpt1.OpenAIGPTForSequenceClassification))
    for tied in (True, False):
        model = gpt1.quantize(model_on(mesh, gpt1.OpenAIGPTLMHeadModel, tie_word_embeddings=tied))
        if mesh is not None:
            shardings = sharding.param_shardings(mesh, model.params)
            facts["int8_placed"] = lie_alike(model.params, shardings)
        apply, params = gpt1.functional(model)
        said[f"int8.tied={tied}"] = np.asarray(apply(params, by_rows(mesh, IDS)).logits)
        if tied:
            said["int8.score"] = scores(model)
    return said, facts


def scores(model: Any) -> np.ndarray:
    """The log-probabilities of texts of several lengths, as many as no mesh divides."""
    found = gpt1.score(model, [row[: 4 + i] for i, row in enumerate(IDS[:7])])
    return np.concatenate([each.log_probs[1:] for each in found])


def predicted(model: Any) -> np.ndarray:
    """The logits of examples of several lengths, as many as no mesh divides."""
    examples = [Example([row[: 4 + i].tolist()], 0) for i, row in enumerate(IDS[:7])]
    return task_forward.forward(*split(model), examples, batch_size=5)[0]


def without_key_biases(params: Any) -> Any:
    """Parameters but for the biases of the keys, whose gradient is 0 but for rounding.

    A key's bias adds the same to all scores of a query. Adam scales its gradient, whatever that is,
    to the size of the others': so rounding alone moves these biases, on one device as on many.
    """

    def own(path: Any, leaf: np.ndarray) -> np.ndarray:
        is_bias = jax.tree_util.keystr(path).endswith("['c_attn']['bias']")
        return np.delete(leaf.reshape(3, -1), 1, axis=0) if is_bias else leaf

    return jax.tree.map_with_path(own, params)


def train(mesh: Any) -> tuple[list[float], Any, dict[str, Any]]:
    """Losses and parameters of some steps with dropout, and what became of the buffers."""
    model = model_on(mesh, gpt1.OpenAIGPTLMHeadModel)
    model.transformer.remat = "linear"  # as trainings have it by default
    structure, params = split(model)

    def objective(params: Any, batch: Any, key: Any) -> Any:
        return lm_loss(merge(structure, params), batch, key)

    optimizer = make_optimizer(OPTIMIZER, STEPS)
    step: Any = make_step(objective, optimizer)
    state = TrainState.create(params, optimizer, seed=0)
    before, facts, shardings = state, {}, None
    if mesh is not None:
        shardings = sharding.param_shardings(mesh, state)
        state = sharding.shard(state, shardings)
    losses = []
    for text in TEXTS:
        before = state
        batch = by_rows(mesh, micro_batches({"tokens": text}, 2), axis=1)
        state, measures = step(state, {}, batch)
        losses.append(float(measures["loss"]))
    if mesh is not None:
        facts["kept"] = lie_alike(state, shardings)
        facts["donated"] = all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        facts["compilations"] = step._cache_size()
    params = without_key_biases(jax.tree.map(np.asarray, state.params))
    return losses, params, facts


def gradients(mesh: Any) -> Any:
    """The gradients of the mean loss of a batch, without dropout."""
    structure, params = split(model_on(mesh, gpt1.OpenAIGPTLMHeadModel))

    def loss(params: Any, tokens: Any) -> Any:
        total, sums = lm_loss(merge(structure, params), {"tokens": tokens})
        return total / sums["weight"]

    found = jax.jit(jax.grad(loss))(params, by_rows(mesh, TEXTS[0]))
    return jax.tree.map(np.asarray, found)


def relative_difference(ours: Any, expected: Any) -> float:
    """The largest difference of two trees, relative to the largest value."""
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), ours, expected)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    return float(max(jax.tree.leaves(differences)) / largest)


def forward(mesh: Any, n_layer: int) -> dict[str, int]:
    """The collectives of a forward."""
    apply, params = gpt1.functional(model_on(mesh, gpt1.OpenAIGPTModel, n_layer=n_layer))
    run = jax.jit(lambda params, ids: apply(params, ids).last_hidden_state)
    return collectives(run.lower(params, by_rows(mesh, IDS)).compile())


def report(name: str) -> dict[str, Any]:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")

    def texts(mesh: Any) -> np.ndarray:
        """Of as many prompts as no mesh divides: greedily, and of beams."""
        model = model_on(mesh, gpt1.OpenAIGPTLMHeadModel)
        return np.stack(
            [gpt1.generate(model, IDS[:5, :5], max_new_tokens=10, num_beams=n) for n in (1, 3)]
        )

    one = heads(None), texts(None), train(None), gradients(None)
    mesh = sharding.make_mesh(name)
    losses, params, facts = train(mesh)
    said, cache_facts = heads(mesh)
    found = {
        "heads": {head: difference(said[head], x) for head, x in one[0][0].items()},
        "ids": bool((texts(mesh) == one[1]).all()),
        "gradients": relative_difference(gradients(mesh), one[3]),
        "losses": difference(losses, one[2][0]),
        "params": max(jax.tree.leaves(jax.tree.map(difference, params, one[2][1]))),
        "share": share(mesh),
        "placements": placements(mesh),
        **cache_facts,
        **facts,
    }
    if mesh.shape["tensor"] > 1:
        more, less = forward(mesh, 2), forward(mesh, 1)
        found["block"] = {kind: more[kind] - less[kind] for kind in more}
    return found


if __name__ == "__main__":
    # Nearly all of the time is XLA's, at work on programs that then run for milliseconds.
    set_optimization("--unoptimized" not in sys.argv)
    json.dump(report(sys.argv[1]), sys.stdout)
