"""Many devices: a mesh of them, and what of a model, an optimizer or a batch lies on which.

Programs are written for one device. Their inputs are placed here, and XLA's partitioner splits the
programs after them; the few hints that it needs stand in the model (``partitioning.constrain``, and
``pure.merge``, which lays parameters out as they are computed with).

The mesh has three axes. ``data`` splits the rows of a batch and keeps the parameters whole.
``fsdp`` splits the rows and the parameters with their optimizer state; a layer's parameters come
together where it is computed (ZeRO-3, arXiv:1910.02054). ``tensor`` splits each layer's work, and
keeps the rows whole (Megatron-LM, arXiv:1909.08053): a device has its own attention heads and its
own part of the MLP, so that a block takes two all-reduces forward and two backward.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.partitioning import AXES, FSDP, ROWS, TENSOR, Axes, place
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel

Tree = TypeVar("Tree")
Model = TypeVar("Model", bound=OpenAIGPTPreTrainedModel)
AnyMesh = Mesh | jax.sharding.AbstractMesh

# How a parameter (rows, columns) is split, by the end of its name: the first that matches counts.
#
# The embeddings are split along their width, since a vocabulary may divide by nothing (GPT-1's is
# 40478 = 2 x 37 x 547), and a width divides by what heads and layers divide by anyway.
# c_attn is split by rows: it is queries, keys and values side by side, and of equal shares of its
# columns none would be that of a device's heads. The other kernels lie as Megatron-LM has them, by
# ``tensor`` along the dimension that heads or the MLP's inner units run along.
# Biases and gains are less than 0.2 % of a block, and are everywhere: gathering them would cost
# more messages than all kernels together. So are the small heads, and adapters of LoRA.
RULES: tuple[tuple[str, P], ...] = (
    (r"embed\.embedding", P(None, (TENSOR, FSDP))),
    (r"attn\.c_attn\.kernel", P((TENSOR, FSDP))),
    (r"(attn|mlp)\.c_proj\.kernel", P(TENSOR, FSDP)),
    (r"mlp\.c_fc\.kernel", P(FSDP, TENSOR)),
    (r"lm_head\.kernel", P((TENSOR, FSDP))),
    (r"(score|summary)\.kernel", P()),
    # In int8 the weights are (outputs, inputs).
    (r"(tokens_embed|attn\.c_attn|lm_head)\.qvalue", P(None, (TENSOR, FSDP))),
    (r"c_proj\.qvalue", P(FSDP, TENSOR)),
    (r"c_fc\.qvalue", P(TENSOR, FSDP)),
    (r"(lora_A|lora_B|bias|scale)", P()),
)


def parse_mesh(text: str) -> dict[str, int]:
    """Return the sizes of a mesh from words such as "data=4,fsdp=2"; axes left out are 1.

    Raises:
        ValueError: an unknown or repeated axis, or a size that is not a positive integer.
    """
    sizes: dict[str, int] = {}
    for word in text.split(","):
        axis, _, size = (part.strip() for part in word.partition("="))
        if axis not in AXES or axis in sizes or not re.fullmatch("[1-9][0-9]*", size):
            raise ValueError(
                f"the mesh {text!r} must be such as 'data=4,fsdp=2': of the axes "
                f"{', '.join(AXES)}, each at most once, with its size"
            )
        sizes[axis] = int(size)
    return {axis: sizes.get(axis, 1) for axis in AXES}


def make_mesh(sizes: str | Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of devices with the axes "data", "fsdp" and "tensor".

    Args:
        sizes: of the axes, as a mapping or such as "data=4,fsdp=2"; axes left out are 1.
        devices: by default all there are, those of other processes too.

    Raises:
        ValueError: see ``parse_mesh`` and ``check_devices``.
    """
    if isinstance(sizes, Mapping):
        sizes = ",".join(f"{axis}={size}" for axis, size in sizes.items())
    text = str(sizes)
    shape = parse_mesh(text)
    devices = jax.devices() if devices is None else devices
    check_devices(text, len(devices))
    axis_types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(shape.values()), AXES, axis_types, devices=devices)


def check_devices(text: str, devices: int) -> None:
    """Check that a mesh such as "data=4,fsdp=2" takes so many devices.

    Raises:
        ValueError: its sizes do not multiply to that.
    """
    places = math.prod(parse_mesh(text).values())
    if places != devices:
        raise ValueError(
            f"the mesh {text!r} is for {places} devices, but there are {devices}: "
            "the sizes of its axes must multiply to that"
        )


def mesh_of(tree: object) -> Mesh | None:
    """Return the mesh that arrays lie on, or None if it is none of ``make_mesh``."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        if isinstance(mesh, Mesh) and mesh.axis_names == AXES:
            return mesh
    return None


def check_mesh(mesh: Mesh, config: OpenAIGPTConfig) -> None:
    """Check that a model can lie on a mesh.

    Raises:
        ValueError: the mesh is none of ``make_mesh``, or does not divide the heads.
    """
    if mesh.axis_names != AXES:
        raise ValueError(f"the mesh has the axes {mesh.axis_names}, but must be of make_mesh")
    check_heads(mesh, config)


def check_heads(mesh: AnyMesh, config: OpenAIGPTConfig) -> None:
    """Check that every device can have as many attention heads as any other.

    Raises:
        ValueError: tensor does not divide them.
    """
    if config.n_head % mesh.shape[TENSOR]:
        raise ValueError(
            f"n_head = {config.n_head} attention heads cannot be split over tensor = "
            f"{mesh.shape[TENSOR]} devices: tensor must divide n_head"
        )


def param_shardings(mesh: AnyMesh, tree: Tree) -> Tree:
    """Return where parameters lie, and what follows them, after ``RULES``.

    Args:
        mesh: of ``make_mesh``.
        tree: arrays or their shapes: a nested dict of parameters, or anything that has such in it,
            as an optimizer's state and a ``TrainState`` do. Arrays that lie in no dict (numbers of
            steps, keys) are whole on every device.

    Returns:
        The same tree of shardings.

    Raises:
        ValueError: a parameter that no rule is for, or that an axis of the mesh does not divide.
    """

    def sharding(path: tuple[Any, ...], leaf: jax.Array) -> NamedSharding:
        keys = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        name = ".".join(keys)
        if not keys or not leaf.shape:
            return NamedSharding(mesh, P())
        for pattern, spec in RULES:
            if re.search(rf"(^|[._]){pattern}$", name):
                return _sharding(mesh, name, leaf.shape, spec)
        raise ValueError(f"there is no rule for splitting the parameter {name} over devices")

    return jax.tree.map_with_path(sharding, tree)


def batch_shardings(mesh: AnyMesh, tree: Tree, axis: int = 0) -> Tree:
    """Return where batches lie: their rows over data and fsdp, a cache's heads over tensor.

    Args:
        mesh: of ``make_mesh``.
        tree: arrays (rows, ...) or their shapes, and caches; numbers () are on every device.
        axis: the dimension that the rows run along, in place of the first.

    Returns:
        The same tree of shardings.

    Raises:
        ValueError: the mesh does not divide the rows.
    """

    def sharding(node: Any) -> Any:
        if isinstance(node, Cache):
            shape = node.keys[0].shape
            spec = P(TENSOR) if len(shape) == 3 else P(ROWS, TENSOR)  # squeezed, or not
            heads = _sharding(mesh, "a cache", shape, spec)
            whole: Any = (heads,) * len(node.keys)
            return Cache(whole, whole, sharding(node.mask), sharding(node.index))
        spec = P(*[None] * axis, ROWS) if node.shape else P()
        return _sharding(mesh, "a batch", node.shape, spec)

    return jax.tree.map(sharding, tree, is_leaf=lambda node: isinstance(node, Cache))


def _sharding(mesh: AnyMesh, name: str, shape: tuple[int, ...], spec: P) -> NamedSharding:
    """Return the sharding as JAX spells that of results, without axes that split nothing."""
    splitting: list[Axes] = []
    for dimension, axes in enumerate(spec):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
        splitting.append(axes if len(axes) > 1 else axes[0] if axes else None)
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if shape[dimension] % parts:
            sizes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
            raise ValueError(
                f"{name} of shape {shape}: dimension {dimension} cannot be split over {sizes}, "
                f"since {parts} does not divide {shape[dimension]}: give the mesh sizes that do"
            )
    while splitting and splitting[-1] is None:
        splitting.pop()
    return NamedSharding(mesh, P(*splitting))


def shard(tree: Tree, shardings: Tree) -> Tree:
    """Return arrays that lie where ``shardings`` say.

    Args:
        tree: of arrays. Where the mesh spans processes each of these has them whole, and alike.
        shardings: the same tree.
    """
    return jax.tree.map(place, tree, shardings)


def constrain_like(tree: Tree, shardings_of: Callable[[AnyMesh, Tree], Tree]) -> Tree:
    """Have the result of a compiled function lie where its input did, inside of it.

    The partitioner is free to leave results elsewhere; then the buffers of the input could not be
    reused, and the next call would have to be compiled anew.

    Args:
        tree: traced arrays; some of them, or none, lie on a mesh.
        shardings_of: ``param_shardings`` or ``batch_shardings``.
    """
    for leaf in jax.tree.leaves(tree):
        mesh = jax.typeof(leaf).sharding.mesh
        if mesh.axis_names == AXES:
            return jax.lax.with_sharding_constraint(tree, shardings_of(mesh, tree))
    return tree


def shard_model(model: OpenAIGPTPreTrainedModel, mesh: Mesh) -> None:
    """Place a model's parameters on a mesh: ``functional`` and ``generate`` then compute there.

    Raises:
        ValueError: the mesh is none of ``make_mesh``, or does not divide its heads or parameters.
    """
    check_mesh(mesh, model.config)
    params = model.params
    model.load_params(shard(params, param_shardings(mesh, params)))


def init_sharded(
    cls: type[Model], config: OpenAIGPTConfig, mesh: Mesh, *, seed: int, **numerics: Any
) -> Model:
    """Return a new model on a mesh; each device draws only its own shards.

    Its parameters are those of ``cls(config, rngs=nnx.Rngs(seed), **numerics)``, bit by bit where
    XLA computes a shard as it does the whole: on a CPU, JAX 0.12 draws a few numbers of shards that
    are narrower than a vector one unit in the last place apart.

    Args:
        cls: one of the four models.
        config: its sizes.
        mesh: of ``make_mesh``.
        seed: of the initial weights.
        **numerics: other keywords of ``cls``, ``dtype`` for example.

    Raises:
        ValueError: see ``shard_model``.
    """
    check_mesh(mesh, config)

    def make() -> Model:
        return cls(config, rngs=nnx.Rngs(seed), **numerics)

    model = nnx.eval_shape(make)
    draw = jax.jit(lambda: make().params, out_shardings=param_shardings(mesh, model.params))
    model.load_params(draw())
    return model


def round_up_to_mesh(mesh: AnyMesh, rows: int) -> int:
    """Return ``rows`` rounded up to what the mesh divides."""
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    return -(-rows // parts) * parts


def process_local_rows(mesh: Mesh | None, rows: int, accumulate: int = 1) -> np.ndarray:
    """Return which rows of a batch this process has to read.

    Args:
        mesh: of devices, which may be of several processes; None for one device.
        rows: of the whole batch.
        accumulate: micro-batches that it is computed in, each of which is split over the mesh.

    Returns:
        (own rows,) their numbers, in the order of ``make_global_batch``.

    Raises:
        ValueError: the mesh does not divide the micro-batches.
    """
    if mesh is None:
        return np.arange(rows)
    parts = round_up_to_mesh(mesh, 1)
    if rows // accumulate % parts:
        times = "" if accumulate == 1 else f" x accumulate = {accumulate}"
        raise ValueError(
            f"a batch of {rows} rows cannot be split over this mesh: its size must be a multiple "
            f"of data x fsdp = {parts}{times}"
        )
    numbers = np.arange(rows).reshape(accumulate, -1)
    sharding = _sharding(mesh, "a batch", numbers.shape, P(None, ROWS))
    indices = sharding.addressable_devices_indices_map(numbers.shape).values()
    own = np.unique([numbers[index][0] for index in indices])
    return (own + numbers[:, :1]).ravel()


def make_global_batch(mesh: Mesh, batch: Tree, rows: int) -> Tree:
    """Return micro-batches on a mesh, of the rows that every process has of them.

    Args:
        mesh: see ``process_local_rows``.
        batch: arrays (accumulate, own rows, ...).
        rows: of a whole micro-batch.
    """

    def whole(own: np.ndarray) -> jax.Array:
        shape = (len(own), rows, *own.shape[2:])
        sharding = _sharding(mesh, "a batch", shape, P(None, ROWS))
        return jax.make_array_from_process_local_data(sharding, own, shape)

    return jax.tree.map(whole, batch)


def gather(tree: Tree) -> Tree:
    """Return arrays as numpy's, whole, in every process; all processes have to call it.

    One after another, so that a device holds one of them whole at most; and each once, however
    often it stands in the tree.
    """
    from jax.experimental.multihost_utils import process_allgather

    arrays = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}
    gathered = {key: process_allgather(array, tiled=True) for key, array in arrays.items()}
    return jax.tree.map(lambda leaf: gathered[id(leaf)], tree)
