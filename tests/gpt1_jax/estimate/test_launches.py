"""Launches and bytes in XLA's text, as its compilers for CPU, GPU and TPU write it."""

import pytest

from gpt1_jax.estimate.launches import Launches, launches, written_arrays

KERNEL = """
%fused (param_0: f32[8,4], param_1: f32[4]) -> f32[8,4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %param_1 = f32[4]{0} parameter(1)
  %wide = f32[8,4]{1,0} broadcast(%param_1), dimensions={1}
  ROOT %sum = f32[8,4]{1,0} add(%param_0, %wide)
}
"""


def program(*lines: str, computations: str = KERNEL) -> str:
    """Return the text of a program whose entry computation has these lines."""
    body = "\n".join(f"  {line}" for line in lines)
    head = "HloModule jit_run, is_scheduled=true"
    return f"{head}\n{computations}\nENTRY %main (p: f32[8,4]) -> f32[8,4] {{\n{body}\n}}\n"


P, Q = "%p = f32[8,4]{1,0} parameter(0)", "%q = f32[4]{0} parameter(1)"
FUSION = "%f = f32[8,4]{1,0} fusion(%p, %q), kind=kLoop, calls=%fused"


def test_launches_counts_kinds_and_bytes() -> None:
    text = program(
        P,
        Q,
        FUSION,
        "%c = f32[8,4]{0,1} copy(%f)",
        '%x = (f32[8,4]{1,0}, u8[16]{0}) custom-call(%c, /*index=1*/%q), custom_call_target="fmha"',
        "%y = f32[8,4]{1,0} get-tuple-element(%x), index=0",
        "ROOT %s = f32[8]{0} sort(%y), dimensions={0}, to_apply=%less",
    )
    sizes = (128 + 16 + 128, 128 + 128, 128 + 16 + 128 + 16, 128 + 32)
    assert launches(text) == Launches(1, 1, 1, 1, sum(sizes))
    assert launches(text).total == 4


@pytest.mark.parametrize(
    "line",
    [
        "%b = f32[4,8]{1,0} bitcast(%p)",
        "%c = f32[] constant(0)",
        "%t = (f32[8,4]{1,0}, f32[4]{0}) tuple(%p, %q)",
        "%a = token[] after-all()",
        '%j = f32[8,4]{1,0} custom-call(%p, %q), custom_call_target="ConcatBitcast"',
    ],
)
def test_launches_ignores_what_computes_nothing(line: str) -> None:
    assert launches(program(P, Q, line)) == Launches()


def test_launches_counts_started_operations_once() -> None:
    text = program(
        P,
        "%cs = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[]) copy-start(%p)",
        "%ss = ((f32[8,4]{1,0}), f32[2,4]{1,0}, s32[]) slice-start(%p), slice={[0:2], [0:4]}",
        "%as = ((f32[8,4]{1,0}), f32[8,4]{1,0}, s32[]) async-start(%p), calls=%inner",
        "%au = ((f32[8,4]{1,0}), f32[8,4]{1,0}, s32[]) async-update(%as)",
        "%ad = f32[8,4]{1,0} async-done(%au)",
        "%sd = f32[2,4]{1,0} slice-done(%ss)",
        "%cd = f32[8,4]{1,0} copy-done(%cs)",
        computations="""
%inner (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %n = f32[8,4]{1,0} negate(%p)
}
""",
    )
    copied, sliced, negated = 2 * 128, 2 * 32, 2 * 128
    assert launches(text) == Launches(copies=2, others=1, bytes=copied + sliced + negated)


@pytest.mark.parametrize(
    ("attributes", "times"), [(', backend_config={"known_trip_count":{"n":"8"}}', 8), ("", 1)]
)
def test_launches_multiplies_loop_by_known_trip_count(attributes: str, times: int) -> None:
    loop = f"%w = f32[8,4]{{1,0}} while(%p), condition=%fused, body=%body{attributes}"
    body = f"""
%body (p: f32[8,4]) -> f32[8,4] {{
  {P}
  {Q}
  ROOT {FUSION}
}}
"""
    text = program(P, loop, computations=KERNEL + body)
    assert launches(text) == Launches(fusions=times, bytes=times * 272)


def test_launches_counts_inside_command_buffer() -> None:
    buffer = f"\n%command_buffer (p: f32[8,4], q: f32[4]) -> f32[8,4] {{\n  {P}\n  {Q}\n"
    buffer += f"  {FUSION}\n  ROOT %c = f32[8,4]{{1,0}} copy(%f)\n}}\n"
    call = "ROOT %r = f32[8,4]{1,0} call(%p, %q), to_apply=%command_buffer"
    text = program(P, Q, call, computations=KERNEL + buffer)
    assert launches(text) == Launches(fusions=1, copies=1, bytes=272 + 256)


@pytest.mark.parametrize(
    "branches",
    ["branch_computations={%one, %two}", "true_computation=%two, false_computation=%one"],
)
def test_launches_takes_largest_branch(branches: str) -> None:
    texts = "".join(
        f"\n%{name} (p: f32[8,4]) -> f32[8,4] {{\n  {P}\n{lines}}}\n"
        for name, lines in (
            ("one", "  %a = f32[8,4]{1,0} copy(%p)\n"),
            ("two", "  %a = f32[8,4]{1,0} copy(%p)\n  %b = f32[8,4]{1,0} copy(%a)\n"),
        )
    )
    text = program(P, f"%r = f32[8,4]{{1,0}} conditional(%i, %p), {branches}", computations=texts)
    assert launches(text) == Launches(copies=2, bytes=4 * 128)


def test_launches_leaves_out_bytes_on_the_chip() -> None:
    """S(1) is a TPU's vector memory; tiles, such as T(8,128)(2,1), say nothing of a place."""
    text = program(
        "%p = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)",
        "%near = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} add(%p, %p)",
        "%far = bf16[8,4]{1,0:T(8,128)(2,1)} add(%near, %near)",
    )
    assert launches(text) == Launches(others=2, bytes=2 * 64 + 64)


IN_PLACE = """
%update (param_0: f32[8,4], param_1: f32[1,4], param_2: s32[]) -> f32[8,4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %same = f32[8,4]{1,0} bitcast(%param_0)
  %param_1 = f32[1,4]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %u = f32[8,4]{1,0} dynamic-update-slice(%same, %param_1, %param_2, %zero)
}
"""
AS_PART = IN_PLACE.replace("ROOT %u", "%u").replace(
    "\n}", "\n  ROOT %n = f32[8,4]{1,0} negate(%u)\n}"
)


@pytest.mark.parametrize(
    ("computation", "moved"),
    [(IN_PLACE, 16 + 4 + 16), (AS_PART, 128 + 16 + 4 + 128)],
    ids=["in_place", "new_array"],
)
def test_launches_counts_only_the_update_of_an_array_in_place(computation: str, moved: int) -> None:
    fusion = "%f = f32[8,4]{1,0} fusion(%p, %new, %i), kind=kLoop, calls=%update"
    parameters = (P, "%new = f32[1,4]{1,0} parameter(1)", "%i = s32[] parameter(2)")
    text = program(*parameters, fusion, computations=computation)
    assert launches(text) == Launches(fusions=1, bytes=moved)
    plain = "%u = f32[8,4]{1,0} dynamic-update-slice(%p, %new, %i, %i)"
    assert launches(program(*parameters, plain)) == Launches(others=1, bytes=16 + 2 * 4 + 16)


def test_launches_counts_only_the_slices_of_a_table() -> None:
    computation = """
%look (param_0: f32[8,4], param_1: s32[2]) -> (f32[2,4], f32[2,4]) {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %param_1 = s32[2]{0} parameter(1)
  %g = f32[2,4]{1,0} gather(%param_0, %param_1), offset_dims={1}
  %n = f32[2,4]{1,0} negate(%g)
  ROOT %t = (f32[2,4]{1,0}, f32[2,4]{1,0}) tuple(%g, %n)
}
"""
    fusion = "%f = (f32[2,4]{1,0}, f32[2,4]{1,0}) fusion(%p, %ids), kind=kLoop, calls=%look"
    text = program(P, "%ids = s32[2]{0} parameter(1)", fusion, computations=computation)
    assert launches(text) == Launches(fusions=1, bytes=32 + 8 + 2 * 32)


def test_launches_counts_all_results_of_a_fused_argmax() -> None:
    computation = """
%argmax (param_0: f32[8,4]) -> (f32[8], s32[8]) {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %i = s32[8,4]{1,0} iota(), iota_dimension=1
  ROOT %r = (f32[8]{0}, s32[8]{0}) reduce(%param_0, %i), dimensions={1}, to_apply=%greater
}
"""
    fusion = "ROOT %f = (f32[8]{0}, s32[8]{0}) fusion(%p), kind=kInput, calls=%argmax"
    text = program(P, fusion, computations=computation)
    assert launches(text) == Launches(fusions=1, bytes=128 + 32 + 32)


def test_launches_rejects_text_without_entry() -> None:
    with pytest.raises(ValueError, match="it has no ENTRY"):
        launches("%p = f32[8] add(%a, %b)")


def test_written_arrays_leaves_out_what_stays_in_a_fusion() -> None:
    text = program(P, Q, FUSION, "ROOT %r = (bf16[4]{0}, f32[]) reduce(%f, %f), to_apply=%fused")
    assert written_arrays(text) == {("f32", (8, 4)), ("bf16", (4,)), ("f32", ())}
