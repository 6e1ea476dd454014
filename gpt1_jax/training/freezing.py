"""Training only a part of a model: its parameters as two nested dicts, trained and frozen."""

from flax.traverse_util import unflatten_dict

from gpt1_jax.pretrained import Params, flatten

EMBEDDINGS = ("tokens_embed", "positions_embed")


def split_frozen(params: Params, *, embeddings: bool, layers: int) -> tuple[Params, Params]:
    """Split parameters into those that are trained and those that stay as they are.

    The lowest layers are the most general, so a fine-tuning can do without training them.

    Args:
        params: of any of the four models.
        embeddings: whether to freeze the embeddings of tokens (and with them a tied softmax) and
            of positions.
        layers: how many blocks to freeze, from the lowest on.

    Returns:
        (trained, frozen): nested dicts without empty branches, whose leaves are those of
        ``params``, each in one of them.

    Raises:
        ValueError: the model has fewer layers, or nothing would be trained.
    """
    n_layer = len(params.get("transformer", params)["h"])
    if not 0 <= layers <= n_layer:
        raise ValueError(
            f"{layers} layers cannot be frozen: the model has {n_layer}, so it must be 0 to all "
            f"{n_layer} of them"
        )

    def is_frozen(path: tuple[str, ...]) -> bool:
        part, *rest = path[1:] if path[0] == "transformer" else path
        if part == "h":
            return int(rest[0]) < layers
        return embeddings and part in EMBEDDINGS

    trained, frozen = {}, {}
    for path, leaf in flatten(params).items():
        (frozen if is_frozen(path) else trained)[path] = leaf
    if not trained:
        raise ValueError(
            f"embeddings and all {n_layer} layers are frozen, which leaves nothing to train"
        )
    return unflatten_dict(trained), unflatten_dict(frozen)


def combine_params(trained: Params, frozen: Params) -> Params:
    """Return the parameters that ``split_frozen`` has split.

    Raises:
        ValueError: a parameter is in both.
    """
    first, second = flatten(trained), flatten(frozen)
    both = first.keys() & second.keys()
    if both:
        names = ", ".join(sorted(".".join(path) for path in both))
        raise ValueError(f"both trained and frozen, but must be one of them: {names}")
    return unflatten_dict(first | second)
