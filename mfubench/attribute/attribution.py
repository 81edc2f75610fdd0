"""What the join of a trace to a model finds: whose the traced time is."""

from collections import defaultdict
from dataclasses import dataclass, field

from mfubench.measure.compiled import CompiledKernel
from mfubench.measure.count import WorkKey
from mfubench.measure.scopes import BACKWARD, FORWARD

UNOWNED = "(not attributed)"
NOBODYS = (UNOWNED, FORWARD, BACKWARD)  # a phase as such is no owner


@dataclass(slots=True)
class Attribution:
    """Microseconds of all traced steps.

    ``busy`` is device time by key, ``host`` the time a module's scope or node spent between operators (device idle on
    a CPU), ``communication`` the time in which ranks talk and no work hides it, ``talking`` all such time, hidden or
    not, ``by_operators`` device time by the operators that it was spent in, outermost first, ``kernels`` device time
    and calls by key and innermost operator, ``span`` the traced steps' length, ``idle`` the device's. ``moved`` has the
    bytes of compiled kernels by key, ``unsized`` how many of their calls had shapes that are not known, ``inferred``
    how many kernels were recognised by their place in a CUDA graph, ``unknown`` the time in compiled graphs that is of
    no known module by the name of what ran, and ``lost`` the launches of CUDA graphs whose kernels the trace lacks.
    ``elsewhere`` has the time of products that ran in threads of the model's own, which no count sees, by operator.
    ``steps`` were traced, each of which ran so many ``operators``, and ``apart`` says whether a device of its own did
    the work, which no profiler slows.
    """

    busy: dict[WorkKey, float] = field(default_factory=lambda: defaultdict(float))
    host: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    communication: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    talking: float = 0.0
    by_operators: dict[tuple[str, ...], float] = field(default_factory=lambda: defaultdict(float))
    kernels: dict[tuple[WorkKey, str], list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))
    moved: dict[WorkKey, int] = field(default_factory=lambda: defaultdict(int))
    unsized: int = 0
    inferred: int = 0
    unknown: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    lost: int = 0
    span: float = 0.0
    idle: float = 0.0
    elsewhere: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: int = 1
    operators: list[int] = field(default_factory=list)
    apart: bool = False

    def book(self, key: WorkKey, operators: tuple[str, ...], name: str, time: float) -> None:
        """Add one operator's or kernel's device time."""
        self.busy[key] += time
        self.by_operators[operators] += time
        row = self.kernels[key, name]
        row[0] += time
        row[1] += 1

    def book_communication(self, key: WorkKey, name: str, time: float) -> None:
        """Add time in which the device did nothing but wait for other ranks, in one collective of ``key``."""
        self.communication[key.module, key.direction] += time
        row = self.kernels[key, name]
        row[0] += time
        row[1] += 1

    def book_compiled(self, key: WorkKey, kernel: CompiledKernel) -> None:
        """Note what is known beyond its time of a kernel that a compiled graph called."""
        self.moved[key] += kernel.bytes or 0
        self.unsized += kernel.bytes is None

    def attributed_share(self) -> float:
        """Share of the traced time, operators and the gaps between them, whose owner is known."""
        total = sum(self.busy.values()) + sum(self.host.values()) + sum(self.communication.values())
        unowned = sum(time for key, time in self.busy.items() if key.module in NOBODYS)
        unowned += sum(time for (module, _), time in self.host.items() if module in NOBODYS)
        return 1.0 - unowned / total if total else 0.0
