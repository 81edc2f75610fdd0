"""Kernels of compiled graphs, on traces written by hand: whose work each does, with spans and without."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mfu_kernels.cost import OpClass
from mfubench.attribute.attribution import UNOWNED, Attribution
from mfubench.attribute.fused import align, count_of_kernels, of_module, unseen
from mfubench.attribute.ledger import ledger_lines, slice_step
from mfubench.attribute.roofline import Ceilings
from mfubench.measure.compiled import Compilation, CompiledKernel
from mfubench.measure.count import Count, Work, WorkKey
from mfubench.measure.scopes import BACKWARD, FORWARD, ROOT, Scope
from tests.mfubench.attribute.by_hand import ENGINE, STEP, Known, joined, kernel, launch, node, scope, span

CALL, REGION, FUNCTION = "## Call CompiledFxGraph None ##", "Torch-Compiled Region: 0/0", "CompiledFunction"
MM_A = CompiledKernel("aten::mm", ("a",), "gemm", bytes=100)
MM_B = CompiledKernel("aten::mm", ("b",), "gemm", bytes=200)
FUSED = CompiledKernel("triton_fused_0", ("a", "b"), "norm", bytes=30)
OWN = CompiledKernel("triton_own_1", (None, "b"), "elementwise", bytes=7)
AGAIN = CompiledKernel("triton_fused_0", ("b",), "elementwise", repeated=True, bytes=None)
BOTH = "a + b"


def compilation(**graphs: list[CompiledKernel]) -> Compilation:
    """Of one region, its kernels by direction."""
    return Compilation({("0/0", direction): kernels for direction, kernels in graphs.items()}, happened=True)


def forward(*inside: dict) -> list[dict]:
    """A step of a compiled model: what its graph runs stands between 20 and 80."""
    return [
        *(span(STEP, 0, 100, "user_annotation"), scope(0, FORWARD, 2, 96), scope(1, ROOT, 4, 92)),
        *(span(REGION, 10, 80), span(FUNCTION, 12, 76, **{"Sequence number": 5}), span(CALL, 20, 60), *inside),
    ]


SCOPES = (Scope(0, FORWARD), Scope(1, ROOT), Scope(2, BACKWARD))
KNOWN = Known(*SCOPES, owners={5: 1})


def test_spans_are_the_graphs_kernels_in_order() -> None:
    """The second product is another module's, though of the same operator; C++ kernels' names are prefixed."""
    found = joined(
        forward(
            *(span("aten::mm", 22, 8), span("aten::resolve_conj", 24, 2)),
            *(span("graph_3_triton_fused_0", 32, 10), span("aten::mm", 44, 6), span("graph_3_triton_own_1", 52, 8)),
        ),
        KNOWN,
        "cpu",
        compilation(fwd=[MM_A, FUSED, MM_B, OWN]),
    )
    assert found.busy == {
        WorkKey("a", "fwd", "gemm"): 8,
        WorkKey(BOTH, "fwd", "norm"): 10,
        WorkKey("b", "fwd", "gemm"): 6,
        WorkKey(f"{ROOT} + b", "fwd", "elementwise"): 8,  # the compiler names none for what the region's module does
    }
    assert {key.module: moved for key, moved in found.moved.items()} == {"a": 100, BOTH: 30, "b": 200, f"{ROOT} + b": 7}
    assert not found.unknown and not found.unsized and not found.inferred


def test_what_is_waited_for_owns_the_gap_and_all_adds_up() -> None:
    found = joined(
        forward(span("aten::mm", 22, 8), span("graph_3_triton_fused_0", 40, 10)), KNOWN, "cpu",
        compilation(fwd=[MM_A, FUSED]),
    )  # fmt: skip
    assert found.host["a", "fwd"] == 2 and found.host[BOTH, "fwd"] == 10
    assert found.host[ROOT, "fwd"] == (92 - 80) + 20 + (60 - 30) + 2  # around the region, in it, after its last kernel
    assert sum(found.busy.values()) + sum(found.host.values()) == found.span == 100


def test_what_a_graph_runs_for_no_known_module_is_nobodys() -> None:
    """But for the copies of its inputs, which are the region's module's."""
    found = joined(
        forward(
            *(span("aten::mm", 22, 8), span("aten::mm", 32, 5)),
            *(span("other_kernel", 40, 3), span("aten::copy_", 50, 4)),
        ),
        KNOWN,
        "cpu",
        compilation(fwd=[MM_A]),
    )
    assert found.busy == {
        WorkKey("a", "fwd", "gemm"): 8,
        WorkKey(UNOWNED, "fwd", "gemm"): 5,
        WorkKey(ROOT, "fwd", "copy"): 4,
        WorkKey(UNOWNED, "fwd", "other"): 3,
    }
    assert found.unknown == {"aten::mm": 5, "other_kernel": 3}


def test_a_region_that_modules_share_is_the_one_that_is_called() -> None:
    """The compiler has named the parts of the module for which it was compiled."""
    blocks = [nn.Sequential(nn.GELU(), nn.Identity()) for _ in range(2)]
    names = {part: name for name, part in nn.ModuleList(blocks).named_modules()}
    own = CompiledKernel("triton_fused_0", (None, "0.0", "0.1"), "elementwise", bytes=1)
    for index in range(2):
        tracker = Known(Scope(0, FORWARD), Scope(1, f"{index}"), owners={5: 1}, names=names)
        found = joined(forward(span("graph_3_triton_fused_0", 40, 10)), tracker, "cpu", compilation(fwd=[own]))
        assert {key.module for key in found.busy} == {f"{index} + {index}.0 + {index}.1"}
    elsewhere = of_module([MM_A], "0", {"0": nn.Linear, "a": nn.GELU})
    assert elsewhere == [MM_A]


def test_another_compilers_operators_are_nobodys() -> None:
    """A module that runs as it was written inside the region still owns its own."""
    tracker = Known(*SCOPES, Scope(3, "eager"), owners={5: 1})
    eager = [span("aten::mm", 90.5, 2), scope(3, "eager", 93, 2), span("aten::relu", 93.5, 1)]
    found = joined([*forward(span("aten::mm", 22, 8)), *eager], tracker, "cpu", Compilation(happened=True))
    assert found.busy == {
        WorkKey(UNOWNED, "fwd", "gemm"): 8,
        WorkKey(ROOT, "fwd", "gemm"): 2,
        WorkKey("eager", "fwd", "elementwise"): 1,
    }
    assert found.unknown == {"aten::mm": 8}


def test_a_backward_is_looked_up_by_its_forwards_region() -> None:
    """It runs in a thread of its own, known by its sequence number; what repeats a forward is told apart."""
    name = "CompiledFunctionBackward"
    events = [
        *forward(span("graph_1_triton_fused_0", 22, 8)),
        *(node(name, 102, 40, 5, ENGINE), span(name, 103, 38, thread=ENGINE), span(CALL, 104, 30, thread=ENGINE)),
        *(span("graph_1_triton_fused_0", 106, 6, thread=ENGINE), span("aten::mm", 114, 9, thread=ENGINE)),
    ]
    events[0]["dur"] = 150
    found = joined(events, KNOWN, "cpu", compilation(fwd=[FUSED], bwd=[AGAIN, MM_B]))
    assert found.busy == {
        WorkKey(BOTH, "fwd", "norm"): 8,
        WorkKey("b", "recompute", "elementwise"): 6,
        WorkKey("b", "bwd", "gemm"): 9,
    }
    assert found.unsized == 1 and found.host[ROOT, "bwd"] == 2 + 8 + (30 - 19)


def on_a_gpu(*device: dict, launches: list[dict], **graphs: list[CompiledKernel]) -> Attribution:
    return joined([*forward(*launches), *device], KNOWN, "cuda", compilation(**graphs))


def test_kernels_that_spans_launch() -> None:
    """A generated kernel's span has its name; a product may be several kernels, whose bytes count once."""
    found = on_a_gpu(
        *(kernel(1, 30, 5), kernel(2, 35, 3), kernel(3, 40, 10, name="triton_fused_0")),
        launches=[span("aten::mm", 22, 8), launch(1, 23), launch(2, 25), span("triton_fused_0", 32, 4), launch(3, 33)],
        fwd=[MM_A, FUSED],
    )
    assert found.busy == {WorkKey("a", "fwd", "gemm"): 8, WorkKey(BOTH, "fwd", "norm"): 10}
    assert list(found.moved.values()) == [100, 30] and found.host == {(BOTH, "fwd"): 2}
    assert ("aten::mm",) in found.by_operators and not found.inferred


def test_kernels_of_a_cuda_graph_are_told_apart_by_order_and_name() -> None:
    """Between two names that are known stand the products; a fill belongs to what it makes ready."""
    found = on_a_gpu(
        *(kernel(1, 30, 1, "gpu_memset", "Memset"), kernel(1, 31, 5, name="ampere_sgemm")),
        *(kernel(1, 36, 10, name="triton_fused_0"), kernel(1, 50, 6, name="cutlass_gemm")),
        kernel(1, 56, 2, name="triton_own_1"),
        launches=[launch(1, 24, name="cudaGraphLaunch")],
        fwd=[MM_A, FUSED, MM_B, OWN],
    )
    assert found.busy == {
        WorkKey("a", "fwd", "gemm"): 6,
        WorkKey(BOTH, "fwd", "norm"): 10,
        WorkKey("b", "fwd", "gemm"): 6,
        WorkKey(f"{ROOT} + b", "fwd", "elementwise"): 2,
    }
    assert found.host == {("b", "fwd"): 4} and found.inferred == 4
    assert sum(found.busy.values()) + found.idle == found.span


def test_products_that_cannot_be_told_apart_belong_to_all_of_them() -> None:
    """Three kernels for two products: each of them may be either's; and the work of both is theirs."""
    found = on_a_gpu(
        *(kernel(1, 30 + 5 * place, 5, name=f"gemm_{place}") for place in range(3)),
        kernel(1, 45, 1, name="triton_fused_0"),
        launches=[launch(1, 24, name="cudaGraphLaunch")],
        fwd=[MM_A, MM_B, FUSED],
    )
    assert found.busy == {WorkKey(BOTH, "fwd", "gemm"): 15, WorkKey(BOTH, "fwd", "norm"): 1}
    assert found.moved[WorkKey(BOTH, "fwd", "gemm")] == 300


def test_a_kernel_that_no_graph_names_is_nobodys() -> None:
    found = on_a_gpu(
        *(kernel(1, 30, 5, name="triton_fused_0"), kernel(1, 35, 3, name="surprise")),
        launches=[launch(1, 24, name="cudaGraphLaunch")],
        fwd=[FUSED],
    )
    assert found.busy == {WorkKey(BOTH, "fwd", "norm"): 5, WorkKey(UNOWNED, "fwd", "other"): 3}
    assert found.unknown == {"surprise": 3}


def test_unknown_time_is_that_in_which_nothing_else_ran() -> None:
    """Of 8 us the first 3 are shared with the kernel before: no more is unknown than was booked."""
    found = on_a_gpu(
        *(kernel(1, 30, 5, name="triton_fused_0"), kernel(1, 32, 8, name="surprise")),
        launches=[launch(1, 24, name="cudaGraphLaunch")],
        fwd=[FUSED],
    )
    assert found.busy == {WorkKey(BOTH, "fwd", "norm"): 5, WorkKey(UNOWNED, "fwd", "other"): 5}
    assert found.unknown == {"surprise": 5}


@pytest.mark.parametrize(("repeated", "direction"), [((True, False), "fwd"), ((True, True), "recompute")])
def test_products_that_cannot_be_told_apart_repeat_something_if_all_of_them_do(
    repeated: tuple[bool, bool], direction: str
) -> None:
    products = [replace(product, repeated=again) for product, again in zip((MM_A, MM_B), repeated, strict=True)]
    found = on_a_gpu(
        *(kernel(1, 30 + 5 * place, 5, name=f"gemm_{place}") for place in range(3)),
        launches=[launch(1, 24, name="cudaGraphLaunch")],
        fwd=products,
    )
    assert found.busy == {WorkKey(BOTH, direction, "gemm"): 15}


def test_launches_whose_kernels_are_not_in_the_trace_are_counted() -> None:
    """The profiler's buffers may hold only some replays; what they lack would pass for idle time."""
    found = on_a_gpu(
        kernel(2, 30, 5, name="triton_fused_0"),
        launches=[*(launch(number, 20 + number, name="cudaGraphLaunch") for number in (1, 2, 3)), launch(4, 29)],
        fwd=[FUSED],
    )
    assert found.lost == 2


GENERATED = st.sampled_from(["triton_x", "triton_y", "triton_z"])


@given(st.lists(st.tuples(st.booleans(), GENERATED), min_size=1))
def test_a_graph_that_runs_as_it_says_is_aligned_exactly(calls: list[tuple[bool, str]]) -> None:
    """Whatever the order of generated kernels and products, and however often a name recurs."""
    graph = [
        CompiledKernel(name if generated else "aten::mm", (f"m{place}",), "gemm", bytes=1)
        for place, (generated, name) in enumerate(calls)
    ]
    names = [kernel.name if kernel.generated else "vendor_gemm" for kernel in graph]
    assert align(graph, names) == graph


CEILINGS = Ceilings(1.0, 1.0, 1.0, {"fp32": 1.0})  # 1 TFLOP/s and 1 GB/s
GFLOP = 10**9


@pytest.fixture
def compiled_step() -> tuple[Count, Attribution]:
    """Two modules: a's product is alone in its kernel; b's is merged with what a does besides, and c's is nobody's."""
    count, attribution = Count(), Attribution(span=20_000.0)
    for module in ("a", "b"):
        count.work[WorkKey(module, "fwd", "gemm")].add(Work(model=GFLOP, hardware=GFLOP, bytes=9000))
        count.work[WorkKey(module, "fwd", "elementwise")].add(Work(bytes=5000))
    count.work[WorkKey("eager", "fwd", "norm")].add(Work(bytes=800))
    attribution.busy |= {
        WorkKey("a", "fwd", "gemm"): 8000.0,
        WorkKey(BOTH, "fwd", "elementwise"): 10_000.0,
        WorkKey("eager", "fwd", "norm"): 2000.0,
    }
    attribution.moved |= {WorkKey("a", "fwd", "gemm"): 2_000_000, WorkKey(BOTH, "fwd", "elementwise"): 1_000_000}
    return count, attribution


def test_work_goes_where_the_kernels_are(compiled_step: tuple[Count, Attribution]) -> None:
    """Two steps were traced; the FLOPs of all modules stay, the bytes are the compiled kernels'."""
    count, attribution = compiled_step
    placed = count_of_kernels(count, attribution, 2)
    assert placed.total().model == count.total().model == 2 * GFLOP
    assert {key: (work.model, work.bytes) for key, work in placed.work.items()} == {
        WorkKey("a", "fwd", "gemm"): (GFLOP, 1_000_000),
        WorkKey(BOTH, "fwd", "elementwise"): (GFLOP, 500_000),
        WorkKey("eager", "fwd", "norm"): (0, 800),
    }
    assert count.work[WorkKey("a", "fwd", "gemm")].bytes == 9000  # the eager step's own count is left alone


def test_what_an_update_must_move_stays_known(compiled_step: tuple[Count, Attribution]) -> None:
    count, attribution = compiled_step
    count.update_bytes = 77
    assert count_of_kernels(count, attribution, 2).update_bytes == 77


def test_operators_that_run_eagerly_in_a_compiled_module_keep_their_bytes(
    compiled_step: tuple[Count, Attribution],
) -> None:
    """Their time has a key that no compiled kernel has: behind a graph that broke."""
    count, attribution = compiled_step
    attribution.busy[WorkKey("a", "fwd", "elementwise")] = 500.0
    placed = count_of_kernels(count, attribution, 2)
    assert placed.work[WorkKey("a", "fwd", "elementwise")].bytes == 5000
    assert placed.work[WorkKey("a", "fwd", "gemm")].bytes == 1_000_000


@pytest.mark.parametrize(
    ("kernels", "home"),
    [
        # What multiplies matrices goes before what is the module's alone, and that before what takes longer.
        ({("b", "elementwise"): 9000.0, (BOTH, "gemm"): 100.0}, (BOTH, "gemm")),
        ({("b", "gemm"): 100.0, (BOTH, "gemm"): 9000.0}, ("b", "gemm")),
        ({("b", "gemm"): 100.0, ("b", "attention"): 9000.0}, ("b", "attention")),
    ],
)
def test_a_product_is_in_the_kernel_that_fits_best(
    kernels: dict[tuple[str, OpClass], float], home: tuple[str, OpClass]
) -> None:
    count, attribution = Count(), Attribution(span=20_000.0)
    count.work[WorkKey("b", "fwd", "rnn")].add(Work(model=GFLOP, hardware=GFLOP))
    for (module, kind), time in kernels.items():
        attribution.busy[WorkKey(module, "fwd", kind)] = time
        attribution.moved[WorkKey(module, "fwd", kind)] = 10
    placed = count_of_kernels(count, attribution, 1)
    assert {(key.module, key.kind) for key, work in placed.work.items() if work.model} == {home}


def test_without_compiled_kernels_the_count_stays(compiled_step: tuple[Count, Attribution]) -> None:
    count, attribution = compiled_step
    attribution.moved.clear()
    assert count_of_kernels(count, attribution, 2) is count


def test_time_that_nobody_is_known_to_own_holds_the_useful_work_that_is_done_in_it() -> None:
    """FLOPs are known and their modules' kernels are not: useful is told apart from the rest, and the lines add up."""
    count, attribution = Count(), Attribution(span=10_000.0)
    count.work[WorkKey("a", "fwd", "gemm")].add(Work(model=2 * GFLOP, hardware=2 * GFLOP))
    attribution.busy[WorkKey(UNOWNED, "fwd", "gemm")] = 9000.0
    attribution.unknown["aten::mm"] = 9000.0
    lines = {line.cause: line.ms for line in ledger_lines(slice_step(attribution, count, CEILINGS, 10.0), 10.0)}
    assert lines == pytest.approx({"useful": 2.0, "not_attributed": 8.0})


def test_what_is_not_known_of_a_compiled_step_is_said(compiled_step: tuple[Count, Attribution]) -> None:
    _, attribution = compiled_step
    attribution.unknown |= {f"op_{number}": 400.0 for number in range(5)}
    attribution.unsized, attribution.inferred, attribution.lost = 3, 2, 1
    said = "\n".join(unseen(Compilation(), attribution))
    for words in ("op_0, op_1, op_2 and 2 more", "10.0% of the traced time", "3 calls", "order", "1 launches"):
        assert words in said, words
    assert "no Inductor" in "\n".join(unseen(Compilation(blind="no Inductor"), None))
    assert len(unseen(Compilation(), Attribution())) == 2
