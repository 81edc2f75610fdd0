"""What could win back which line of the ledger, and how much of it: predicted before anything is tried.

A proposal claims shares of cells, milliseconds of one cause in one module. What it is predicted to win is the sum of
these shares; a change that is kept takes what it has won of them out of the cells, so that no two changes are promised
the same milliseconds, and what it left is there for others. Shares come from the roofline: what lies above an op's own
roofline, between ops or on padding can be won whole, time at a slower peak by the ratio of the peaks, traffic that
fusing saves by half (of two operators in a chain, one's output is no longer written and read).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from mfubench.attribute.roofline import winnable
from mfubench.measure.scopes import OPTIMIZER
from mfubench.run import Run
from mfubench.workload.regions import MODEL, REGIONS

from .changes import (
    BucketByLength,
    Change,
    Compile,
    SparseGradients,
    UpdateTogether,
    UseBatchSize,
    UseDtype,
    UseImpl,
    WithoutAttentionWeights,
)
from .survey import KERNEL, Survey

Cell = tuple[str, str]  # module, cause
Cells = dict[Cell, float]  # milliseconds of a step
FUSED = 0.5
FUSIBLE = ("elementwise", "norm", "reduction", "copy", "other")
DOUBLINGS = 3  # of the batch size
WORTH = 0.01  # of the step: less is not tried
ADVICE = "advice, changes the model"
LISTED = 5


@dataclass(frozen=True, slots=True)
class Proposal:
    """A remedy: the change it is, or where there is none to try its name and ``why_not``; and what it claims.

    One that goes further than another is worth trying only ``after`` that is kept; one that does much of the same at
    more cost waits ``behind`` others until they were tried.
    """

    title: str
    claims: Mapping[Cell, float]
    change: Change | None = None
    why_not: str | None = None
    after: Change | None = None
    behind: tuple[Change, ...] = ()

    def predicted_ms(self, cells: Cells) -> float:
        """Milliseconds of a step that it can win of what ``cells`` still hold."""
        return sum(share * cells.get(cell, 0.0) for cell, share in self.claims.items())

    def cause(self, cells: Cells) -> str:
        """The cause, of those it claims, that it wins most of."""
        won: dict[str, float] = {}
        for (module, cause), share in self.claims.items():
            won[cause] = won.get(cause, 0.0) + share * cells.get((module, cause), 0.0)
        return max(won, key=lambda cause: won[cause]) if won else ""

    def refused(self, why_not: str) -> "Proposal":
        """The same, not to be tried."""
        return Proposal(self.title, self.claims, why_not=why_not)

    def take(self, cells: Cells, won_ms: float | None = None) -> None:
        """Take out of ``cells`` what it has won, now that it is kept: all that it claimed, or what was measured."""
        predicted = self.predicted_ms(cells)
        won = 1.0 if won_ms is None or predicted <= 0 else min(1.0, max(0.0, won_ms / predicted))
        for cell, share in self.claims.items():
            if cell in cells:
                cells[cell] *= 1.0 - share * won


def cells_of(run: Run) -> Cells:
    """Every cell of the profile in which time is lost."""
    return {(row.name, cause): ms for row in run.modules for cause, ms in winnable(row.causes).items()}


@dataclass(slots=True)
class _Ledger:
    """The profile's cells by what remedies ask for."""

    cells: Cells
    backward: Mapping[str, float]  # share of a module's time
    total_ms: float = field(init=False)

    def __post_init__(self) -> None:
        self.total_ms = sum(self.cells.values())

    def shares(self, share_of: Callable[[str], float], modules: list[str] | None = None) -> dict[Cell, float]:
        """Shares by cause, in ``modules`` or everywhere; none where the share is 0."""
        wanted = None if modules is None else set(modules)
        return {
            (module, cause): share
            for module, cause in self.cells
            if (wanted is None or module in wanted) and (share := share_of(cause))
        }


Remedy = Callable[[_Ledger, Survey], Iterator[Proposal]]


def proposals(run: Run, survey: Survey, judge: str) -> list[Proposal]:
    """Every remedy for the profile, the best prediction first; those with ``why_not`` cannot or must not be tried."""
    cells = cells_of(run)
    ledger = _Ledger(cells, {row.name: row.bwd_time_ms / row.time_ms for row in run.modules if row.time_ms})
    found = [proposal for remedy in REMEDIES for proposal in remedy(ledger, survey)]
    if run.workload["mode"] == "infer":
        found = list(_no_larger_batches(found))
    if judge == "numbers":
        found = [_kernels_only(proposal) for proposal in found]
    elif survey.interpreted:
        found = [_not_interpreted(proposal) for proposal in found]
    return sorted(found, key=lambda proposal: -proposal.predicted_ms(cells))


def _no_larger_batches(found: Iterable[Proposal]) -> Iterator[Proposal]:
    """A training's samples may come in any batches; an inference's answer is waited for, and takes longer in each."""
    larger = [proposal for proposal in found if isinstance(proposal.change, UseBatchSize)]
    yield from (proposal for proposal in found if proposal not in larger)
    if larger:
        yield larger[0].refused(
            "each answer takes longer: `mfubench sweep --mode infer` shows what every batch size gives and takes"
        )


def _kernels_only(proposal: Proposal) -> Proposal:
    if proposal.why_not or isinstance(proposal.change, UseImpl):
        return proposal
    return proposal.refused("--judge numbers tries kernels only: it times nothing")


def _not_interpreted(proposal: Proposal) -> Proposal:
    if proposal.why_not or not isinstance(proposal.change, UseImpl):
        return proposal
    return proposal.refused(
        "Triton's interpreter runs kernels here, and its time says nothing; --judge numbers swaps without timing"
    )


def _try(change: Change, claims: Mapping[Cell, float]) -> Proposal:
    return Proposal(change.title, claims, change)


# Kernels and compilers --------------------------------------------------------------------------------------------


def _kernels(ledger: _Ledger, survey: Survey) -> Iterator[Proposal]:
    """Padding and inefficiency of attention, norms and the like: the op's own kernel, which is at its roofline."""
    for op, use in survey.ops.items():
        if use.impl == KERNEL:
            continue
        proposal = _try(UseImpl(op, KERNEL), ledger.shares(partial(_above_roofline, use.kind), use.modules))
        if op == "window_attention" and set(use.modules) <= set(survey.attention):
            proposal = replace(proposal, after=WithoutAttentionWeights())
        yield proposal.refused(use.blocked) if use.blocked else proposal


def _above_roofline(kind: str, cause: str) -> float:
    return float(cause in ("padding", "recompute", "launch", f"inefficiency.{kind}"))


def _regions(ledger: _Ledger, survey: Survey) -> Iterator[Proposal]:
    """Launch gaps, and operators in a row that a compiler fuses: all regions, one class of blocks, or the whole model.

    The whole model is one graph, which takes longest to compile: what regions win of it is had first.
    """
    parts: list[Change] = []
    for region, modules in {REGIONS: survey.regional, **survey.regions}.items():
        claims = ledger.shares(_fusing, modules)
        won = sum(share * ledger.cells[cell] for cell, share in claims.items())
        if won > (0.0 if region == REGIONS else WORTH * ledger.total_ms):
            parts.append(Compile(region, dynamic=survey.shapes_vary))
            yield _try(parts[-1], claims)
    whole = Compile(MODEL, dynamic=survey.shapes_vary)
    yield Proposal(whole.title, ledger.shares(_fusing), whole, behind=tuple(parts))
    graphs = Compile(MODEL, dynamic=survey.shapes_vary, cudagraphs=True)
    launch = ledger.shares(lambda cause: float(cause == "launch"))
    if survey.device == "cuda":
        yield _try(graphs, launch)
    else:
        yield Proposal(graphs.title, launch, why_not="CUDA graphs need a CUDA device")


def _fusing(cause: str) -> float:
    """What compiling wins of a cause. What multiplies matrices keeps its kernels; an attention's own operators fuse."""
    family, _, kind = cause.partition(".")
    if family == "launch" or (family == "inefficiency" and kind in (*FUSIBLE, "attention")):
        return 1.0
    return FUSED if family == "memory_bound" and kind in FUSIBLE else 0.0


def _attention_weights(ledger: _Ledger, survey: Survey) -> Iterator[Proposal]:
    """Attention that hands out its weights writes and reads the whole matrix of scores."""
    if survey.attention:
        yield _try(WithoutAttentionWeights(), ledger.shares(_fusing, survey.attention))


# Products, batches, optimizers ------------------------------------------------------------------------------------


def _dtypes(ledger: _Ledger, survey: Survey) -> Iterator[Proposal]:
    """Products at the peak of a shorter dtype; odd widths, which no dtype mends, as advice."""
    if survey.dtype == "fp32":
        for dtype in ("tf32", "bf16"):
            peak, title = survey.peaks.get(dtype), UseDtype(dtype).title
            share = max(0.0, 1.0 - survey.peaks["fp32"] / peak) if peak else 0.0
            claims = {cell: share for cell in ledger.shares(lambda cause: float(cause in _PRODUCTS))}
            if peak is None:
                yield Proposal(title, claims, why_not=f"no {dtype} on this device")
            else:
                yield _try(UseDtype(dtype), claims)
    if survey.odd_widths:
        odd = {name.partition(" ")[0] for name in survey.odd_widths}
        claims = ledger.shares(lambda cause: float(cause == "inefficiency.gemm"), sorted(odd))
        names = ", ".join(survey.odd_widths[:LISTED]) + (", ..." if len(survey.odd_widths) > LISTED else "")
        yield Proposal("widths in multiples that the device likes", claims, why_not=f"{ADVICE}: {names}")


_PRODUCTS = ("useful", "peak_gap", "padding", "inefficiency.gemm")


def _batches(ledger: _Ledger, survey: Survey) -> Iterator[Proposal]:
    """What a step costs whatever its size is shared by more samples; padding goes where like lengths meet."""
    halved = ledger.shares(lambda cause: 0.5 * (cause in ("launch", "optimizer")))
    gradients = _gradients(ledger, [*survey.dense_tables, *survey.stuck_tables])
    halved |= {cell: 0.5 * share for cell, share in gradients.items()}
    smaller = None
    for doubling in range(1, DOUBLINGS + 1):
        larger = UseBatchSize(survey.batch_size * 2**doubling)
        proposal = Proposal(larger.title, halved, larger, after=smaller)
        if survey.one_size:
            yield proposal.refused("its loader gives batches of one size; a torch DataLoader gives any")
            break
        yield proposal
        smaller = larger
    won = survey.padded_share_won
    if won is None:
        yield Proposal("bucket_by_length", {}, why_not="the model makes its own batches")
        return
    padded = sum(ms for (_, cause), ms in ledger.cells.items() if cause in _PRODUCTS)
    padding = ledger.shares(lambda cause: float(cause == "padding"))
    held = sum(ledger.cells[cell] for cell in padding)
    share = min(1.0, max(0.0, won) * padded / held) if held else 0.0
    yield _try(BucketByLength(), dict.fromkeys(padding, share))


def _optimizers(ledger: _Ledger, survey: Survey) -> Iterator[Proposal]:
    """Updates in one kernel, down to what they must move."""
    cell = (OPTIMIZER, "optimizer")
    ms = ledger.cells.get(cell, 0.0)
    floor = survey.update_bytes / (survey.bandwidth_gb_s * 1e6)
    for how, classes in survey.optimizers.items():
        if classes and ms:
            yield _try(UpdateTogether(how), {cell: max(0.0, 1.0 - floor / ms)})


def _tables(ledger: _Ledger, survey: Survey) -> Iterator[Proposal]:
    """Dense gradients of tables: filled with zeros, then read by the optimizer, as large as the tables."""
    cell = (OPTIMIZER, "optimizer")
    ms = ledger.cells.get(cell, 0.0)

    def claims(tables: Mapping[str, int]) -> dict[Cell, float]:
        moved_ms = 3 * sum(tables.values()) / (survey.bandwidth_gb_s * 1e6)
        return {cell: min(1.0, moved_ms / ms), **_gradients(ledger, tables)}

    if survey.dense_tables and ms:
        yield _try(SparseGradients(), claims(survey.dense_tables))
    if survey.stuck_tables and ms:
        why = (
            "advice, changes the training: their optimizer takes dense gradients alone, and updates every row in every "
            "step; SparseAdam, Adagrad or SGD update those of the batch, as torchrec's fused optimizers do"
        )
        num = len(survey.stuck_tables)
        title = f"row-sparse gradients of {num} table{'s' * (num > 1)}"
        yield Proposal(title, claims(survey.stuck_tables), why_not=why)
    if survey.sparse_tables and ms:
        why = "advice, changes the training: one number of state for a row in place of one for each element"
        yield Proposal("row-wise optimizer of tables", {cell: FUSED}, why_not=why)


def _gradients(ledger: _Ledger, tables: Iterable[str]) -> dict[Cell, float]:
    """What the dense gradients of ``tables`` take: they are filled with zeros before rows are added."""
    looked_up = ledger.shares(lambda cause: float(cause.endswith((".copy", ".embedding"))), list(tables))
    return {(table, cause): ledger.backward.get(table, 0.0) for table, cause in looked_up}


REMEDIES: tuple[Remedy, ...] = (_kernels, _regions, _attention_weights, _dtypes, _batches, _optimizers, _tables)
