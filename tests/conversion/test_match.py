from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion import ARCHITECTURES, MissingHeadError, read, write
from conversion.layout import param_specs, sizes
from conversion.match import LazyTensor, first_faults, match_tensors, match_tree

BASE, LM_HEAD, DOUBLE_HEADS, CLASSIFICATION = ARCHITECTURES
HEADS = ("lm_head.weight", "score.weight", "multiple_choice_head.summary.weight")


def unread() -> np.ndarray:
    raise AssertionError("data was read before the check was done")


def describe(tensors) -> dict[str, LazyTensor]:
    return {
        name: LazyTensor(name, array.shape, str(array.dtype), unread, "a.safetensors")
        for name, array in tensors.items()
    }


def complaint(found, config, architecture) -> list[str]:
    """The lines below the first one."""
    with pytest.raises(ValueError, match=r"^SOURCE does not fit") as error:
        match_tensors("SOURCE", found, config, architecture)
    assert not isinstance(error.value, MissingHeadError)
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"SOURCE does not fit {architecture}")
    return lines


def has(lines, fault, name):
    return any(line.split()[1:3] in ([fault, name], [fault, name + ":"]) for line in lines)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("untied", [False, True])
def test_match_tensors_accepts_matching_checkpoint(checkpoint, architecture, untied):
    made = checkpoint(architecture, tie_word_embeddings=not untied)
    found = describe(made.tensors)
    fitted = match_tensors("SOURCE", found.values(), made.config, architecture)
    assert len(fitted) == len(found)
    assert all(stored.shape == row.torch_shape for row, stored in fitted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_match_tensors_reports_each_fault_by_name(checkpoint, architecture):
    made = checkpoint(architecture, tie_word_embeddings=False)
    found = describe(made.tensors)
    for name, stored in found.items():
        others = [one for one in found.values() if one is not stored]
        renamed = replace(stored, name=name.replace("weight", "weights").replace("bias", "biases"))
        longer = replace(stored, shape=(*stored.shape[:-1], stored.shape[-1] + 1))
        deeper = replace(stored, shape=(1, *stored.shape))
        whole = replace(stored, dtype="int64")
        second = replace(stored, file="b.safetensors")
        said = found, made.config, architecture

        if name != "score.weight":  # alone missing, a head is a matter of its own
            assert complaint(others, *said[1:]) == [f"  - missing     {name} {stored.shape}"]
        lines = complaint([*others, renamed], *said[1:])
        assert has(lines, "unexpected", renamed.name)
        assert has(lines, "missing", name)
        assert len(lines) == 2
        for wrong in (longer, deeper):
            assert complaint([*others, wrong], *said[1:]) == [
                f"  ~ mis-shaped  {name} {wrong.shape}, expected {stored.shape}"
            ]
        assert complaint([*others, whole], *said[1:]) == [
            f"  ~ dtype       {name} is int64, expected float32 or bfloat16 or float16"
        ]
        assert complaint([*found.values(), second], *said[1:]) == [
            f"  * duplicate   {name}: {name} in a.safetensors and {name} in b.safetensors"
        ]
        added = replace(stored, name="more." + name)
        assert complaint([*found.values(), added], *said[1:]) == [
            f"  + unexpected  more.{name} {stored.shape}"
        ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_match_tree_reports_each_fault_by_path(checkpoint, architecture):
    made = checkpoint(architecture, tie_word_embeddings=False)

    def complaints(change):
        params = checkpoint(architecture, tie_word_embeddings=False).params
        change(params)
        with pytest.raises(ValueError, match=r"^the parameters do not fit") as error:
            match_tree(params, made.config, architecture)
        return str(error.value).splitlines()[1:]

    rows = match_tree(made.params, made.config, architecture)
    assert len(rows) == len(made.tensors)
    for row, _ in rows:
        *path, last = row.path

        def parent(params, path=path):
            for key in path:
                params = params[key]
            return params

        name = ".".join(row.path)

        def delete(params, last=last, parent=parent):
            del parent(params)[last]

        def add(params, parent=parent):
            parent(params)["more"] = np.zeros(3, np.float32)

        def reshape(params, last=last, parent=parent):
            parent(params)[last] = parent(params)[last][None]

        def widen(params, last=last, parent=parent):
            parent(params)[last] = parent(params)[last].astype(np.float64)

        assert complaints(delete) == [f"  - missing     {name} {row.shape}"]
        assert complaints(add) == [f"  + unexpected  {'.'.join((*path, 'more'))} (3,)"]
        assert complaints(reshape) == [
            f"  ~ mis-shaped  {name} {(1, *row.shape)}, expected {row.shape}"
        ]
        assert complaints(widen) == [
            f"  ~ dtype       {name} is float64, expected float32 or bfloat16 or float16"
        ]


@given(data=st.data())
def test_match_tensors_reports_both_of_two_faults(data):
    config = {"n_layer": 2, "n_embd": 4, "n_head": 2, "n_positions": 3, "vocab_size": 5}
    architecture = data.draw(st.sampled_from(ARCHITECTURES))
    found = {
        row.torch: LazyTensor(row.torch, row.torch_shape, "float32", unread)
        for row in param_specs(config, architecture)
    }
    body = sorted(set(found) - set(HEADS) - {"multiple_choice_head.summary.bias"})
    names = data.draw(st.lists(st.sampled_from(body), min_size=2, max_size=2, unique=True))
    expected = []
    for name in names:
        fault = data.draw(st.sampled_from(["missing", "unexpected", "mis-shaped", "dtype"]))
        if fault == "missing":
            del found[name]
            expected.append((fault, name))
        elif fault == "unexpected":
            extra = data.draw(st.text("abch.", min_size=1).filter(lambda text: text not in found))
            found[extra] = LazyTensor(extra, (1,), "float32", unread)
            expected.append((fault, extra))
        elif fault == "mis-shaped":
            size = data.draw(st.integers(100, 200))
            found[name] = replace(found[name], shape=(size,))
            expected.append((fault, name))
        else:
            found[name] = replace(found[name], dtype="bool")
            expected.append((fault, name))
    lines = complaint(found.values(), config, architecture)
    for fault, name in set(expected):
        assert has(lines, fault, name), (fault, name, lines)
    assert len(lines) == len(set(expected))


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [("n_layer", 1, 2), ("n_embd", 15, 12), ("n_positions", 7, 8), ("vocab_size", 21, 20)],
)
def test_match_tensors_names_config_mismatch_first(checkpoint, field, value, shown):
    made = checkpoint(LM_HEAD)
    with pytest.raises(ValueError, match=r"^SOURCE does not fit") as error:
        match_tensors(
            "SOURCE", describe(made.tensors).values(), made.config | {field: value}, LM_HEAD
        )
    first = str(error.value).splitlines()[0]
    assert first == (
        f"SOURCE does not fit OpenAIGPTLMHeadModel: config.json says {field} {value}, "
        f"the weights show {shown}"
    )


@pytest.fixture
def few_rows(monkeypatch):
    """Fails a test where a table of many rows is made."""

    def limited(config, architecture):
        assert sizes(config).n_layer < 100
        return param_specs(config, architecture)

    for module in ("checkpoint", "match"):
        monkeypatch.setattr(f"conversion.{module}.param_specs", limited)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("field", ["n_layer", "num_hidden_layers"])
@pytest.mark.parametrize("value", [100_000, 10**9])
def test_read_compares_the_number_of_layers_first(checkpoint, tmp_path, field, value):
    made = checkpoint(LM_HEAD)
    del made.config["n_layer"]
    made.config[field] = value
    source = made.save(tmp_path / "a") / "model.safetensors"
    with pytest.raises(ValueError, match="n_layer") as error:
        read(tmp_path / "a")
    assert str(error.value) == (
        f"{source} does not fit OpenAIGPTLMHeadModel: config.json says n_layer {value}, the "
        f"weights show 2"
    )
    with pytest.raises(ValueError, match=rf"config, whose n_layer is {value}: there are 26 of"):
        match_tree(made.params, made.config, LM_HEAD)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("field", ["n_embd", "n_positions", "vocab_size", "num_labels"])
def test_read_fails_at_once_for_any_size(checkpoint, tmp_path, field):
    made = checkpoint(CLASSIFICATION)
    made.config.pop("id2label")
    made.config[field] = 3 * 2**29  # which the number of heads divides
    made.save(tmp_path / "a")
    with pytest.raises(ValueError, match=f"config.json says (.*; )?{field} {3 * 2**29}, the weig"):
        read(tmp_path / "a")


def test_match_errors_name_20_faults(checkpoint):
    made = checkpoint(LM_HEAD)
    extra = {f"extra.{n}": np.zeros(1, np.float32) for n in range(1_000)}
    lines = complaint(describe(made.tensors | extra).values(), made.config, LM_HEAD)
    assert lines[0] == "  + unexpected  extra.0 (1,)"
    assert lines[19:] == ["  + unexpected  extra.19 (1,)", "  ... and 980 more"]
    with pytest.raises(ValueError, match=r"^the parameters do not fit") as error:
        match_tree(
            made.params | {name[6:]: leaf for name, leaf in extra.items()}, made.config, LM_HEAD
        )
    assert str(error.value).splitlines()[20:] == ["  + unexpected  19 (1,)", "  ... and 980 more"]


def test_first_faults_cuts_long_lines():
    assert first_faults(["a", "b" * 401]) == ["a", "b" * 400 + " ..."]


def test_match_tensors_names_num_labels_mismatch(checkpoint):
    made = checkpoint(CLASSIFICATION)
    config = made.config | {"num_labels": 4}
    with pytest.raises(ValueError, match="says num_labels 4, the weights show 3\n"):
        match_tensors("SOURCE", describe(made.tensors).values(), config, CLASSIFICATION)


@pytest.mark.parametrize(
    ("config", "overrides", "said"),
    [
        ({}, {"num_labels": 4}, "num_labels=4 is given"),
        ({"num_labels": 4}, {}, "config.json says num_labels 4"),
        ({"id2label": {"0": "a"}}, {}, "config.json says num_labels 1"),
        ({"id2label": None}, {}, "config.json has no num_labels, whose default is 2"),
    ],
)
def test_read_says_where_a_number_comes_from(checkpoint, tmp_path, config, overrides, said):
    made = checkpoint(CLASSIFICATION)
    made.config |= config
    folder = made.save(tmp_path / "a")
    with pytest.raises(ValueError, match=f"Classification: {said}, the weights show 3") as error:
        read(folder, overrides=overrides)
    assert ("ignore_mismatched_sizes=True" in str(error.value)) == bool(overrides)


def test_read_leaves_out_a_head_of_another_size(checkpoint, tmp_path, identical):
    made = checkpoint(CLASSIFICATION)
    folder = made.save(tmp_path / "a")
    ignore = {"ignore_mismatched_sizes": True, "overrides": {"num_labels": 4}}
    config, params = read(folder, new_head=True, **ignore)
    assert config["num_labels"] == 4
    assert identical(params, {"transformer": made.params["transformer"]})
    with pytest.raises(MissingHeadError, match=r"holds no score.weight of shape \(4, 12\), which"):
        read(folder, **ignore)
    # Where the shapes are right, nothing is left out; where the body's are wrong, nothing is read.
    whole = read(folder, new_head=True, ignore_mismatched_sizes=True)[1]
    assert identical(whole, made.params)
    wrong = {"ignore_mismatched_sizes": True, "overrides": {"num_labels": 4, "vocab_size": 21}}
    with pytest.raises(
        ValueError, match="Classification: vocab_size=21 is given, the weights sho"
    ) as error:
        read(folder, new_head=True, **wrong)
    assert "score" not in str(error.value)


@pytest.mark.parametrize("asked", ARCHITECTURES)
@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("held", ["tokens", "lm_head", "both"])
def test_read_loads_any_body_into_any_architecture(
    checkpoint, tmp_path, identical, asked, prefix, held
):
    made, wanted = checkpoint(BASE), checkpoint(asked)
    tensors = {prefix + name: array for name, array in made.tensors.items()}
    if held != "tokens":
        tensors["lm_head.weight"] = made.tensors["tokens_embed.weight"]
    if held == "lm_head":
        del tensors[prefix + "tokens_embed.weight"]
    folder = made.save(tmp_path / "a", tensors)
    config, params = read(folder, architecture=asked, new_head=True)
    assert config == made.config | {"architectures": [asked]}
    for head in ("score", "multiple_choice_head"):
        wanted.params.pop(head, None)
    if asked == BASE:
        assert identical(params, made.params)
    else:
        assert identical(params, {"transformer": made.params})
        assert params.keys() == wanted.params.keys()


def test_match_tensors_reports_both_spellings_as_duplicate(checkpoint):
    made = checkpoint(LM_HEAD)
    found = describe(made.tensors)
    name = "transformer.h.1.ln_2.bias"
    bare = replace(found[name], name="h.1.ln_2.bias")
    lines = complaint([*found.values(), bare], made.config, LM_HEAD)
    assert lines == [
        f"  * duplicate   {name}: {name} in a.safetensors and h.1.ln_2.bias in a.safetensors"
    ]


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_match_tensors_ignores_only_known_buffers(checkpoint, prefix):
    made = checkpoint(BASE)
    found = {prefix + name: one for name, one in describe(made.tensors).items()}
    found = {name: replace(one, name=name) for name, one in found.items()}

    def buffer(name, shape, dtype="uint8"):
        return LazyTensor(prefix + name, shape, dtype, unread, "a.safetensors")

    masks = [buffer(f"h.{n}.attn.bias", (1, 1, 8, 8)) for n in range(2)]
    for positions in ((8,), (1, 8)):
        held = [*found.values(), *masks, buffer("position_ids", positions, "int64")]
        fitted = match_tensors("SOURCE", held, made.config, BASE)
        assert len(fitted) == len(found)

    wrong = buffer("h.0.attn.bias", (1, 1, 9, 9))
    assert complaint([*found.values(), wrong], made.config, BASE) == [
        f"  ~ mis-shaped  {prefix}h.0.attn.bias (1, 1, 9, 9), expected (1, 1, 8, 8)"
    ]
    wrong = buffer("position_ids", (9,))
    assert complaint([*found.values(), wrong], made.config, BASE) == [
        f"  ~ mis-shaped  {prefix}position_ids (9,), expected (8,) or (1, 8)"
    ]
    for name in ("h.2.attn.bias", "h.0.attn.masked_bias", "h.00.attn.bias", "attn.bias"):
        wrong = buffer(name, (1, 1, 8, 8))
        assert complaint([*found.values(), wrong], made.config, BASE) == [
            f"  + unexpected  {prefix}{name} (1, 1, 8, 8)"
        ]


@pytest.mark.parametrize("architecture", [BASE, LM_HEAD, DOUBLE_HEADS, CLASSIFICATION])
def test_read_requires_tied_head_to_equal_embedding(checkpoint, tmp_path, architecture):
    made = checkpoint(architecture)
    prefix = "" if architecture == BASE else "transformer."
    tokens = made.tensors.get(prefix + "tokens_embed.weight", made.tensors.get("lm_head.weight"))
    assert tokens is not None
    tokens[0, :2] = np.nan, 0.0
    both = made.tensors | {prefix + "tokens_embed.weight": tokens, "lm_head.weight": tokens.copy()}
    read(made.save(tmp_path / "equal", both))

    both["lm_head.weight"][0, 1] = -0.0
    with pytest.raises(ValueError, match=r"differs from") as error:
        read(made.save(tmp_path / "differing", both))
    text = str(error.value)
    assert "lm_head.weight differs from " + prefix + "tokens_embed.weight" in text
    assert "set tie_word_embeddings to false" in text
    assert str(tmp_path / "differing") in text

    both["lm_head.weight"] = tokens.astype(np.float16)
    with pytest.raises(ValueError, match="differs"):
        read(made.save(tmp_path / "dtypes", both))


@pytest.mark.parametrize("architecture", [LM_HEAD, DOUBLE_HEADS])
@pytest.mark.parametrize("gone", ["lm_head.weight", "transformer.tokens_embed.weight"])
def test_match_tensors_requires_untied_head_and_embedding(checkpoint, architecture, gone):
    made = checkpoint(architecture, tie_word_embeddings=False)
    found = describe(made.tensors)
    del found[gone]
    assert has(complaint(found.values(), made.config, architecture), "missing", gone)


def test_read_drops_untied_head_for_base_model(checkpoint, tmp_path, identical):
    made = checkpoint(LM_HEAD, tie_word_embeddings=False)
    _, params = read(made.save(tmp_path / "a"), architecture=BASE)
    assert identical(params, made.params["transformer"])


@pytest.mark.parametrize("held", [LM_HEAD, DOUBLE_HEADS, CLASSIFICATION])
@pytest.mark.parametrize("asked", ARCHITECTURES)
def test_match_tensors_drops_other_heads(checkpoint, held, asked):
    made = checkpoint(held)
    found = describe(made.tensors)
    fitted = match_tensors("SOURCE", found.values(), made.config, asked, new_head=True)
    heads = {row.torch for row, _ in fitted if row.openai_shape is None}
    assert heads == (
        {name for name in found if name.startswith(("score", "mult"))} if held == asked else set()
    )
    stray = LazyTensor("score.bias", (3,), "float32", unread, "a.safetensors")
    with pytest.raises(ValueError, match=r"\+ unexpected  score.bias \(3,\)"):
        match_tensors("SOURCE", [*found.values(), stray], made.config, asked, new_head=True)


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        (CLASSIFICATION, "no score.weight of shape (3, 12),"),
        (
            DOUBLE_HEADS,
            "no multiple_choice_head.summary.weight of shape (1, 12) and no "
            "multiple_choice_head.summary.bias of shape (1,),",
        ),
    ],
)
def test_read_reports_missing_head(checkpoint, tmp_path, identical, asked, needed):
    made = checkpoint(LM_HEAD)
    folder = made.save(tmp_path / "a")
    with pytest.raises(MissingHeadError) as error:
        read(folder, architecture=asked)
    assert str(error.value).endswith(f"holds {needed} which {asked} needs")
    _, params = read(folder, architecture=asked, new_head=True)
    assert identical(params, made.params)

    # With anything else wrong, it is one line among the others.
    del made.tensors["transformer.h.0.ln_1.bias"]
    lines = complaint(describe(made.tensors).values(), made.config, asked)
    assert has(lines, "missing", needed.split()[1].rstrip(","))
    assert has(lines, "missing", "transformer.h.0.ln_1.bias")


def test_match_tensors_reports_partial_head_as_fault(checkpoint):
    made = checkpoint(DOUBLE_HEADS)
    del made.tensors["multiple_choice_head.summary.bias"]
    with pytest.raises(ValueError, match=r"missing     multiple_choice_head.summary.bias") as error:
        match_tensors(
            "S", describe(made.tensors).values(), made.config, DOUBLE_HEADS, new_head=True
        )
    assert not isinstance(error.value, MissingHeadError)


def test_write_rejects_invalid_tree_keys(checkpoint, tmp_path):
    made = checkpoint(LM_HEAD)
    layers = made.params["transformer"]["h"]
    made.params["transformer"]["h"] = {int(n): layer for n, layer in layers.items()}
    with pytest.raises(ValueError, match=r"key 0 under transformer.h; keys must be strings"):
        write(tmp_path / "a", made.config, made.params)
    with pytest.raises(ValueError, match=r"'transformer.h' under their root"):
        write(tmp_path / "a", made.config, {"transformer.h": layers})
    assert not (tmp_path / "a").exists()


def test_match_tree_explains_extra_tied_head(checkpoint):
    made = checkpoint(LM_HEAD, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="only if tie_word_embeddings is false"):
        match_tree(made.params, made.config | {"tie_word_embeddings": True}, LM_HEAD)
