"""Join a trace to the model: every span of device time to a module, a direction and a class of operator.

Host spans nest. Walking a thread's spans in order, each gets its self time (its duration without its children's), and
inherits its owner: the innermost scope, or inside the backward pass the scope that created the autograd node that runs.
On a CPU an operator's self time is device time, but for what an operator that does nothing takes in the same trace:
that is the host's, as the gaps between operators are. On a GPU the device time is the kernel's, which belongs to the
host span that launched it.
The gap before a node of the backward pass, or before the model's forward begins, belongs to what waits there; the
loss's first gradient, which is made before any node runs, belongs to the loss. Formats: the Chrome trace event format,
as torch.profiler writes it.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from mfu_kernels.cost import OpClass
from mfubench.measure.classify import op_class
from mfubench.measure.count import RECOMPUTE, WorkKey
from mfubench.measure.scopes import BACKWARD, FORWARD, LOSS, Scope
from mfubench.measure.trace import NOTHING, SCOPE_PREFIX, STEP_PREFIX, Trace

ENGINE = "autograd::engine::evaluate_function: "
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCH_CATEGORIES = ("cuda_runtime", "cuda_driver")
UNOWNED = "(not attributed)"
NOBODYS = (UNOWNED, FORWARD, BACKWARD)  # a phase as such is no owner


@dataclass(slots=True)
class Span:
    """One host span with what the walk found out about it; times in microseconds."""

    name: str
    start: float
    end: float
    self_time: float
    category: str
    correlation: int | None
    scope: Scope | None = None
    direction: str = "fwd"
    operators: tuple[str, ...] = ()  # inside the owner, outermost first
    in_step: bool = False
    reached: float = 0.0  # where its last child ended
    waited: float = 0.0  # gap before it that belongs to it and not to its parent

    @property
    def operator(self) -> str:
        """The outermost operator inside the owner: what its work is classed by."""
        return self.operators[0] if self.operators else ""


@dataclass(slots=True)
class Attribution:
    """Microseconds of all traced steps.

    ``busy`` is device time by key, ``host`` the time a module's scope or node spent between operators (device idle on
    a CPU), ``by_operators`` device time by the operators that it was spent in, outermost first, ``kernels`` device time
    and calls by key and innermost operator, ``span`` the traced steps' length, ``idle`` the device's.
    """

    busy: dict[WorkKey, float] = field(default_factory=lambda: defaultdict(float))
    host: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    by_operators: dict[tuple[str, ...], float] = field(default_factory=lambda: defaultdict(float))
    kernels: dict[tuple[WorkKey, str], list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))
    span: float = 0.0
    idle: float = 0.0

    def book(self, key: WorkKey, operators: tuple[str, ...], name: str, time: float) -> None:
        """Add one operator's or kernel's device time."""
        self.busy[key] += time
        self.by_operators[operators] += time
        row = self.kernels[key, name]
        row[0] += time
        row[1] += 1

    def attributed_share(self) -> float:
        """Share of the traced time, operators and the gaps between them, whose owner is known."""
        total = sum(self.busy.values()) + sum(self.host.values())
        unowned = sum(time for key, time in self.busy.items() if key.module in NOBODYS)
        unowned += sum(time for (module, _), time in self.host.items() if module in NOBODYS)
        return 1.0 - unowned / total if total else 0.0


def attribute(trace: Trace, device_type: str) -> Attribution:
    """Who spent the traced time, on a ``cpu`` or a ``cuda`` device."""
    spans = list(_walk(trace))
    result = Attribution()
    result.span = sum(span.end - span.start for span in spans if _is_step(span.name))
    if device_type == "cpu":
        _on_cpu(spans, result)
    else:
        _on_gpu(spans, trace.events, result)
    return result


def _walk(trace: Trace) -> Iterator[Span]:
    """Every host span, thread by thread, parents before children, with owner, direction and self time filled in."""
    threads: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    wanted = ("cpu_op", "user_annotation", *LAUNCH_CATEGORIES)
    steps = sorted((e["ts"], e["ts"] + e["dur"]) for e in trace.events if _is_step(e.get("name")) and e["ph"] == "X")
    for event in trace.events:
        if event.get("ph") == "X" and event.get("cat") in wanted:
            threads[event["pid"], event["tid"]].append(event)
    for events in threads.values():
        events.sort(key=lambda event: (event["ts"], -event["dur"]))
        for span in _walk_thread(events, trace.tracker.scopes, trace.tracker.owner_of):
            place = bisect_right(steps, (span.start, float("inf"))) - 1
            span.in_step = place >= 0 and span.start < steps[place][1]  # the backward may run in a thread of its own
            yield span


def _walk_thread(
    events: Iterable[dict[str, Any]], scopes: list[Scope], owner_of: Callable[[int], Scope | None]
) -> Iterator[Span]:
    open_spans: list[Span] = []
    done: list[Span] = []
    last_backward: Scope | None = None
    last_loss: Scope | None = None
    for event in events:
        args = event.get("args", {})
        span = Span(
            name=event["name"],
            start=event["ts"],
            end=event["ts"] + event["dur"],
            self_time=event["dur"],
            category=event["cat"],
            correlation=args.get("correlation"),
            reached=event["ts"],
        )
        while open_spans and open_spans[-1].end <= span.start:
            open_spans.pop()
        parent = open_spans[-1] if open_spans else None
        if parent is not None:
            parent.self_time -= max(0.0, min(span.end, parent.end) - span.start)
            if span.name.startswith(ENGINE) or _is_phase(parent):
                span.waited = max(0.0, span.start - parent.reached)
                parent.self_time -= span.waited
            parent.reached = span.end
            span.scope, span.direction = parent.scope, parent.direction
            span.operators = parent.operators
        if span.name.startswith(SCOPE_PREFIX):
            span.scope = scopes[int(span.name[len(SCOPE_PREFIX) :].partition(":")[0])]
            span.operators = ()
            last_loss = span.scope if span.scope.module == LOSS else last_loss
        elif span.name.startswith(ENGINE):
            span.direction, span.operators = "bwd", ()
            number = args.get("Sequence number", -1)
            # A node without a number accumulates the gradient that the node before it made.
            span.scope = owner_of(number) if number is not None and number >= 0 else last_backward
            last_backward = span.scope
        elif "::" in span.name and span.category == "cpu_op":
            span.operators = (*span.operators, span.name)
            if parent is not None and _is_phase(parent, BACKWARD):
                span.scope, span.direction = last_loss, "bwd"
        open_spans.append(span)
        done.append(span)
    yield from done


def _is_phase(span: Span, *names: str) -> bool:
    """Whether the span is a phase that owns nothing itself."""
    scope = span.scope
    return span.name.startswith(SCOPE_PREFIX) and scope is not None and scope.module in (names or (FORWARD, BACKWARD))


def _is_step(name: object) -> bool:
    return isinstance(name, str) and name.startswith(STEP_PREFIX)


def _key(span: Span) -> WorkKey:
    scope = span.scope
    kind: OpClass = scope.kind if scope is not None and scope.kind is not None else op_class(span.operator)
    direction = RECOMPUTE if scope is not None and scope.recompute else span.direction
    return WorkKey(scope.module if scope is not None else UNOWNED, direction, kind)


def _cost_of_nothing(spans: list[Span]) -> float:
    """Median microseconds of an operator that does nothing, in this trace."""
    within = [span for span in spans if span.name == NOTHING]
    costs = [s.self_time for s in spans if s.category == "cpu_op" and any(n.start <= s.start < n.end for n in within)]
    return median(costs) if costs else 0.0


def _on_cpu(spans: list[Span], result: Attribution) -> None:
    """An operator's self time beyond what any operator costs is work; all else in a step is time between operators."""
    nothing = _cost_of_nothing(spans)
    for span in spans:
        if not span.in_step:
            continue
        key = _key(span)
        between = span.waited
        if span.operator and span.category == "cpu_op":
            busy = max(0.0, span.self_time - nothing)
            between += span.self_time - busy
            result.book(key, span.operators, span.operators[-1], busy)
        else:
            between += span.self_time
        result.host[key.module, key.direction] += between
        result.idle += between


def _on_gpu(spans: list[Span], events: list[dict[str, Any]], result: Attribution) -> None:
    """A kernel belongs to the span that launched it; the device idles wherever no kernel runs.

    Overlapping kernels share the time in which they overlap, so that busy and idle add up to the span.
    """
    launches = {span.correlation: span for span in spans if span.correlation is not None and span.in_step}
    kernels = sorted(
        (event for event in events if event.get("ph") == "X" and event.get("cat") in DEVICE_CATEGORIES),
        key=lambda event: event["ts"],
    )
    frontier: float | None = None
    for event in kernels:
        launch = launches.get(event.get("args", {}).get("correlation"))
        if launch is None:
            continue
        start, end = event["ts"], event["ts"] + event["dur"]
        if frontier is None:
            frontier = start
        if start > frontier:
            result.idle += start - frontier
            result.host[(launch.scope.module if launch.scope else UNOWNED), launch.direction] += start - frontier
        exclusive = max(0.0, end - max(start, frontier))
        frontier = max(frontier, end)
        key = _key(launch)
        result.book(key, launch.operators or (event["name"],), event["name"], exclusive)
    result.span = sum(result.busy.values()) + result.idle
