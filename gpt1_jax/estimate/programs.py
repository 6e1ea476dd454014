"""The programs that a plan compiles, with the shapes and the places of what goes in."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.estimate.planning import DType, Name
from gpt1_jax.generation.decode import (
    Extras,
    SamplingParams,
    State,
    empty_state,
    least_rows,
    sample_next,
)
from gpt1_jax.generation.processors import DecodeContext
from gpt1_jax.generation_config import GenerationConfig
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.nn.attention import Backend, Cache
from gpt1_jax.nn.remat import Remat
from gpt1_jax.pretrained import Params, abstract
from gpt1_jax.pure import ModelStructure, merge, split
from gpt1_jax.sharding.mesh import (
    Tree,
    batch_shardings,
    check_heads,
    param_shardings,
    round_up_to_mesh,
)
from gpt1_jax.training.lm_objective import lm_loss
from gpt1_jax.training.optimizer import make_optimizer
from gpt1_jax.training.pretrain import OPTIMIZER
from gpt1_jax.training.step import Batch, Sums, TrainState, make_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function to be.

    Attributes:
        name: of it.
        run: jitted.
        arguments: shapes, dtypes and shardings of what it takes.
        tokens: that it reads or writes in one call, on all devices.
        flops: of its matrix products on all devices, by their shapes: 2 for each weight and token
            and for each query and key, three times as many with a backward pass. (What
            rematerialisation computes again is not counted.)
    """

    name: Name
    run: jax.stages.Wrapped
    arguments: tuple[object, ...]
    tokens: int
    flops: float


def program(
    name: Name,
    config: OpenAIGPTConfig,
    mesh: Mesh,
    *,
    rows: int,
    length: int,
    dtype: DType,
    remat: Remat,
    attention: Backend,
) -> Program:
    """Return a program of a language model.

    ``forward`` gives the logits of all tokens, ``prefill`` reads a prompt into a cache and gives
    those of its last token, ``decode`` is a step of ``generate`` as it decodes by default, with a
    cache of ``length`` slots: it reads one token more and chooses the next. ``train`` is a step of
    ``gpt1 pretrain``: loss, gradients, clipping, Adam.

    Args:
        name: of the program.
        config: of the model.
        mesh: of ``mesh.make_mesh``.
        rows: for each part that the mesh splits a batch into.
        length: tokens of a row.
        dtype: of the computation; parameters are kept in float32 for training, else in this one.
        remat: what training computes again in its backward pass.
        attention: what computes it.

    Raises:
        ValueError: the mesh does not divide the model, or the length is above its positions, or
            attention cannot be computed so.
    """
    if not 1 <= length <= config.n_positions:
        raise ValueError(
            f"length is {length}, but must be 1 to {config.n_positions}, the positions"
        )
    check_heads(mesh, config)
    kept = "float32" if name == "train" else dtype
    model = abstract(
        lambda rngs: OpenAIGPTLMHeadModel(
            config, dtype=dtype, param_dtype=kept, remat=remat, attention=attention, rngs=rngs
        )
    )
    structure, params = split(model)
    batch = rows * round_up_to_mesh(mesh, 1)

    if name == "train":
        step, arguments = _training(structure, params, mesh, _ids(1, batch, length + 1))
        flops = 3 * _flops(config, batch * length, length, batch * length)
        return Program(name, step, arguments, batch * length, flops)
    params = _placed(params, param_shardings(mesh, params))
    if name == "forward":

        @jax.jit
        def forward(params: Params, ids: jax.Array) -> jax.Array:
            return merge(structure, params).forward(ids).logits

        arguments = params, _rows_placed(mesh, _ids(batch, length))
        tokens = batch * length
        return Program(name, forward, arguments, tokens, _flops(config, tokens, length, tokens))

    if name == "decode":
        least = round_up_to_mesh(mesh, 1) * least_rows(mesh.devices.flat[0].platform)
        step, state, sampling = _decoding(structure, config, max(batch, least), length, dtype)
        arguments = params, _rows_placed(mesh, state), sampling
        return Program(name, step, arguments, batch, _flops(config, batch, length, batch))

    cache = _rows_placed(mesh, jax.eval_shape(lambda: Cache.empty(config, batch, length, dtype)))

    def read(params: Params, ids: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        out = merge(structure, params).forward(ids, cache=cache, logits_to_keep=1)
        return out.logits, out.cache

    run = jax.jit(read, donate_argnums=2)
    arguments = params, _rows_placed(mesh, _ids(batch, length)), cache
    tokens = batch * length
    return Program(name, run, arguments, tokens, _flops(config, tokens, length, batch))


def _flops(config: OpenAIGPTConfig, tokens: int, keys: int, predicted: int) -> float:
    E = config.n_embd
    block = 4 * E * E + 2 * E * config.n_inner + 2 * E * keys
    return 2.0 * (tokens * config.n_layer * block + predicted * E * config.vocab_size)


def _decoding(
    structure: ModelStructure[OpenAIGPTLMHeadModel],
    config: OpenAIGPTConfig,
    rows: int,
    length: int,
    dtype: DType,
) -> tuple[jax.stages.Wrapped, State, SamplingParams]:
    """Return a step of ``generate`` without settings, and what it takes beside the parameters."""

    def start() -> State:
        number = jnp.int32(0)
        context = DecodeContext(
            tokens=jnp.zeros((rows, length + 1), jnp.int32),
            start=jnp.zeros(rows, jnp.int32),
            length=number,
            new=number,
        )
        return empty_state(context, number, config=config, dtype=jnp.dtype(dtype), room=length)

    settings = GenerationConfig().for_model(config)
    sampling = SamplingParams.build(settings, config.vocab_size, settings.seeds(rows), Extras())

    def step(params: Params, state: State, sampling: SamplingParams) -> State:
        return sample_next(merge(structure, params), sampling, state)

    return jax.jit(step, donate_argnums=1), jax.eval_shape(start), sampling


def _training(
    structure: ModelStructure[OpenAIGPTLMHeadModel],
    params: Params,
    mesh: Mesh,
    ids: jax.ShapeDtypeStruct,
) -> tuple[jax.stages.Wrapped, tuple[object, ...]]:
    """Return the step of ``gpt1 pretrain``, and what it takes."""
    optimizer = make_optimizer(OPTIMIZER, total_steps=10_000)

    def objective(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        return lm_loss(merge(structure, params), batch, key)

    state = jax.eval_shape(lambda: TrainState.create(_zeros(params), optimizer, 0))
    state = _placed(state, param_shardings(mesh, state))
    # Without the options of the compiler that is at hand: it is another one that compiles here.
    step = jax.jit(inspect.unwrap(make_step(objective, optimizer)), donate_argnums=0)
    return step, (state, {}, {"tokens": _rows_placed(mesh, ids, axis=1)})


def _ids(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _placed(tree: Tree, shardings: Tree) -> Tree:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def _rows_placed(mesh: Mesh, tree: Tree, axis: int = 0) -> Tree:
    return _placed(tree, batch_shardings(mesh, tree, axis))


def _zeros(shapes: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
