"""Every kernel compiled for GPUs that need not be here, and what the compiled code says of its speed before it runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mfu_kernels.lock import key_text, spelled
from mfu_kernels.modes import Extent
from mfubench.errors import ToolBroke
from mfubench.progress import Progress, silent
from mfubench.side_by_side import SharedProgress, one_a_core, share_out, workers
from mfubench.worker import DONE, Watch, Worker

from .catalog import examples_of
from .targets import TARGETS, Target, require_targets

_NO_DEVICE = "meta"  # workers on a CPU would interpret
MATRIX_ROWS = 64  # of a tile, that a warpgroup's instruction takes


@dataclass(frozen=True, slots=True)
class StaticRow:
    """One kernel with one config on one target, at one named shape; ``error`` says why there is no code.

    ``default``: a launch takes the config, because it is the default or ``locked`` for a GPU of the target.
    """

    op: str
    shape: str
    kernel: str
    target: str
    key: str
    config: str
    default: bool
    locked: bool = False
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    tensor_core: str | None = None
    mma_rows: int | None = None
    async_copy: str | None = None
    access_bytes: int | None = None
    instructions: int | None = None
    warps: int | None = None
    occupancy: float | None = None
    digest: str | None = None
    error: str | None = None


def compile_statically(
    ops: Sequence[str],
    targets: Sequence[str],
    *,
    all_configs: bool = False,
    progress: Progress = silent,
) -> list[StaticRow]:
    """Rows of every kernel of ``ops`` at its named shapes, ordered by op, target and kernel.

    A worker on each core takes an op for a target at a time.

    Raises:
        BadInput: an unknown target, or Triton's interpreter is on, which compiles nothing.
        ToolBroke: compiling broke, or ended its process.
    """
    require_targets(targets)
    from .ahead import refuse_interpreter

    refuse_interpreter()
    jobs = [(op, target) for op in ops for target in targets]
    rows: list[StaticRow] = []
    told = SharedProgress(progress, len(jobs))

    def compile_one(worker: Worker, job: tuple[str, str]) -> None:
        op, target = job
        told.begins(f"compiling {op} for {target}")
        answer = worker.run(compile_work, {"op": op, "target_name": target, "all_configs": all_configs})
        if answer.status != DONE and not worker.killed:
            raise ToolBroke(f"compiling {op} for {target}: {answer.reason}")
        rows.extend(answer.document or ())

    with workers(_NO_DEVICE, min(one_a_core(), len(jobs)) or 1) as hands:
        share_out(jobs, hands, compile_one)
    return sorted(rows, key=lambda row: (list(ops).index(row.op), row.target, row.kernel, row.key, not row.default))


def compile_work(
    _watch: Watch, *, op: str, target_name: str, all_configs: bool, without: Mapping[str, str]
) -> list[StaticRow]:
    """The rows of one op for one target, as work for a worker."""
    from .ahead import activate, compile_op

    examples, target = examples_of(op), TARGETS[target_name]
    activate(target)
    found: list[tuple[StaticRow, Any]] = []
    met: set[tuple[str, str]] = set()

    def wanted(kernel: str, key: Mapping[str, Any]) -> Extent:
        """Nothing where an earlier shape has led to the same kernel and key."""
        place = (kernel, key_text(key))
        again = place in met
        met.add(place)
        return "none" if again else "all" if all_configs else "launched"

    for shape, case in examples.shapes.items():

        def keep(compiled: Any, shape: str = shape) -> None:
            row = StaticRow(
                op, shape, compiled.kernel, target_name, key_text(compiled.key), spelled(compiled.config),
                compiled.taken, compiled.locked,
            )  # fmt: skip
            found.append((row, compiled.result))

        compile_op(examples, case, keep, wanted)
    return _with_code(found, target)


def _with_code(found: Sequence[tuple[StaticRow, Any]], target: Target) -> list[StaticRow]:
    """The rows with what their code says, or why there is none."""
    from .machine_code import codes_or_errors

    codes = codes_or_errors([result for _, result in found], target)
    return [
        replace(row, error=code) if isinstance(code, str) else replace(row, **asdict(code))
        for (row, _), code in zip(found, codes, strict=True)
    ]


def faults(rows: Sequence[StaticRow]) -> Iterator[str]:
    """What no config that is taken may do: fail to compile, ask for more shared memory than a block may have, leave to
    single warps, on sm_90, a product of as many rows as a warpgroup multiplies at twice the rate, or spill.

    One that is locked may spill: it was the fastest, its spills included.
    """
    for row in rows:
        if not row.default:
            continue
        where = f"{row.kernel} on {row.target} ({row.key}; {row.config})"
        if row.error is not None:
            yield f"{where} does not compile: {row.error}"
        elif row.spill_bytes and not row.locked:
            yield f"{where} spills {row.spill_bytes} bytes"
        elif row.shared_bytes is not None and row.shared_bytes > TARGETS[row.target].block_shared:
            limit = TARGETS[row.target].block_shared
            yield f"{where} needs {row.shared_bytes} bytes of shared memory, a block has {limit}"
        elif row.target == "sm_90" and (row.mma_rows or 0) >= MATRIX_ROWS:
            yield f"{where} multiplies {row.mma_rows} rows by mma, where wgmma takes {MATRIX_ROWS}"


def document(rows: Sequence[StaticRow]) -> dict[str, Any]:
    """The rows as JSON, with the toolchain that they hold for, and what is wrong with them."""
    from .machine_code import toolchain

    return {
        "schema_version": 1,
        "toolchain": toolchain(),
        "rows": [asdict(row) for row in rows],
        "faults": list(faults(rows)),
    }
