"""Join a trace to the model: every span of device time to a module, a direction and a class of operator.

Host spans nest. Walking a thread's spans in order, each gets its self time (its duration without its children's), and
inherits its owner: the innermost scope, or inside the backward pass the scope that created the autograd node that runs.
On a CPU an operator's self time is device time, but for what an operator that does nothing takes in the same trace:
that is the host's, as the gaps between operators are. On a GPU the device time is the kernel's, which belongs to the
host span that launched it.
The gap before a node of the backward pass, before the model's forward begins, or before a kernel of a compiled graph,
belongs to what waits there; the loss's first gradient, which is made before any node runs, belongs to the loss. A
kernel of a compiled graph belongs to all the modules that it serves; what a graph runs that is of no known module is
nobody's. What the ranks of a job say to each other is communication where no work hides it; in the forward it belongs
to the module that began it. Formats: the Chrome trace event format, as torch.profiler writes it.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from mfu_kernels.cost import OpClass
from mfubench.measure.classify import communicates, op_class
from mfubench.measure.compiled import PRODUCTS, CompiledKernel
from mfubench.measure.count import RECOMPUTE, WorkKey
from mfubench.measure.scopes import BACKWARD, COMMUNICATION, FORWARD, LOSS, Scope
from mfubench.measure.trace import NOTHING, SCOPE_PREFIX, STEP_PREFIX, Trace
from mfubench.run import TOGETHER

from .attribution import UNOWNED, Attribution
from .fused import CALL, REGION, GraphCall, align, of_module, regions_of_functions
from .waits import WAIT, Interval, merged, of_a_backend, overlaps, waits

ENGINE = "autograd::engine::evaluate_function: "
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCH_CATEGORIES = ("cuda_runtime", "cuda_driver")
GRAPH_LAUNCH = "cudaGraphLaunch"


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
    region: str | None = None  # of the compiler, as it names them
    call: GraphCall | None = None  # of a compiled graph, that this is or is directly inside
    kernel: CompiledKernel | None = None  # of that graph, that this is
    orphan: bool = False  # whether compiled code ran it for no module that is known
    in_step: bool = False
    elsewhere: bool = False  # in a thread that is neither the step's nor the backward's
    reached: float = 0.0  # where its last child ended
    waited: float = 0.0  # gap before it that belongs to it and not to its parent

    @property
    def operator(self) -> str:
        """The outermost operator inside the owner."""
        return self.operators[0] if self.operators else ""

    @property
    def kind(self) -> OpClass:
        """Class of its work: that of the outermost operator that has one, as what is counted of it does.

        Of what torch makes of others, such as a GRU, it is theirs.
        """
        return next((kind for name in self.operators if (kind := op_class(name)) != "other"), "other")


def attribute(trace: Trace, device_type: str) -> Attribution:
    """Who spent the traced time, on a ``cpu`` or a ``cuda`` device."""
    talking = merged(
        (event["ts"], event["ts"] + event["dur"])
        for event in trace.events
        if event.get("ph") == "X" and of_a_backend(event["name"])
    )
    spans = list(_walk(trace, talking if device_type == "cpu" else ()))
    steps = [(span.start, span.end) for span in spans if _is_step(span.name)]
    length = sum(end - start for start, end in steps)
    result = Attribution(span=length, steps=max(1, len(steps)), apart=device_type != "cpu")
    ran = [span.start for span in spans if span.operators and span.category == "cpu_op"]
    result.operators = [sum(start <= at < end for at in ran) for start, end in steps]
    if device_type == "cpu":
        result.talking = sum(end - start for step in steps for _, (start, end) in overlaps(step, talking))
        _on_cpu(spans, result)
    else:
        _on_gpu(spans, trace.events, result)
    return result


def _walk(trace: Trace, talking: Sequence[Interval]) -> Iterator[Span]:
    """Every host span, thread by thread, parents before children, with owner, direction and self time filled in.

    The thread of the steps has a span where it does nothing while ranks are ``talking``.
    """
    threads: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    wanted = ("cpu_op", "user_annotation", *LAUNCH_CATEGORIES)
    for event in trace.events:
        if event.get("ph") == "X" and event.get("cat") in wanted and not of_a_backend(event["name"]):
            threads[event["pid"], event["tid"]].append(event)
    host = (event for events in threads.values() for event in events)  # a GPU's trace has steps of the device, too
    steps = sorted((e["ts"], e["ts"] + e["dur"]) for e in host if _is_step(e["name"]))
    for events in threads.values():
        if talking and any(_is_step(event["name"]) for event in events):
            events += waits(events, talking)
        events.sort(key=lambda event: (event["ts"], -event["dur"]))
        _number_nodes(events)
    regions = regions_of_functions(threads.values())
    for events in threads.values():
        elsewhere = not any(_is_step(event["name"]) or event["name"].startswith(ENGINE) for event in events)
        for span in _walk_thread(events, trace, regions):
            span.elsewhere = elsewhere
            place = bisect_right(steps, (span.start, float("inf"))) - 1
            span.in_step = place >= 0 and span.start < steps[place][1]  # the backward may run in a thread of its own
            yield span


def _number_nodes(events: Sequence[dict[str, Any]]) -> None:
    """Give the span of each node that runs the number of its function inside, where a tensor's hook has hidden it."""
    hidden: dict[str, Any] | None = None
    for event in events:
        name, number = event["name"], event.get("args", {}).get("Sequence number")
        if name.startswith(ENGINE):
            hidden = event if number is None else None
        elif hidden is not None and number is not None and hidden["name"] == ENGINE + name:
            hidden.setdefault("args", {})["Sequence number"] = number
            hidden = None


def _walk_thread(events: Sequence[dict[str, Any]], trace: Trace, regions: dict[int, str]) -> Iterator[Span]:
    open_spans: list[Span] = []
    done: list[Span] = []
    last_backward: Scope | None = None
    last_loss: Scope | None = None
    repeated: dict[int, Scope | None] = {}  # whose the nodes are that a function makes which a node repeats
    classes = {name: type(module) for module, name in trace.tracker.names.items()}
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
            _inherit(span, parent)
        if span.name.startswith(SCOPE_PREFIX):
            span.scope = trace.tracker.scopes[int(span.name[len(SCOPE_PREFIX) :].partition(":")[0])]
            span.direction = RECOMPUTE if span.scope.recompute else span.direction
            span.operators, span.region = (), None
            last_loss = span.scope if span.scope.module == LOSS else last_loss
        elif span.name.startswith(ENGINE):
            span.direction, span.operators = "bwd", ()
            number = args.get("Sequence number", -1)
            # A node without a number accumulates the gradient that the node before it made.
            span.scope = trace.tracker.owner_of(number) if number is not None and number >= 0 else last_backward
            if span.scope is not None and span.scope.module == BACKWARD:
                span.scope = repeated.get(number, span.scope)
            span.region = regions.get(number)
            last_backward, last_loss = span.scope, None
        elif span.name.startswith(REGION):
            span.region = span.name[len(REGION) :]
        elif span.name.startswith(CALL):
            of_forward = span.direction == RECOMPUTE  # which is what is repeated
            kernels = trace.compilation.graphs.get((span.region or "", "fwd" if of_forward else span.direction), ())
            called = span.scope.module if span.scope is not None else ""
            span.call = GraphCall(of_module(kernels, called, classes) if called in classes else kernels)
        elif span.call is not None and span.category not in LAUNCH_CATEGORIES:
            _claim(span, span.call.next(span.name))
        elif "::" in span.name and span.category == "cpu_op":
            span.operators = (*span.operators, span.name)
            if span.direction == "bwd" and args.get("Sequence number", -1) >= 0:
                repeated[args["Sequence number"]] = span.scope  # one that makes no node has the next one's number
            if parent is not None and _is_phase(parent, BACKWARD) and last_loss is not None:
                span.scope, span.direction = last_loss, "bwd"
            if span.region is not None and not trace.compilation.graphs:  # another compiler than Inductor, or unseen
                span.orphan, span.scope = span.scope is not None, None
        open_spans.append(span)
        done.append(span)
    yield from done


def _inherit(span: Span, parent: Span) -> None:
    """What a span has from the one around it; its own time is no longer the other's."""
    parent.self_time -= max(0.0, min(span.end, parent.end) - span.start)
    if span.name.startswith(ENGINE) or _is_phase(parent) or parent.name.startswith(CALL):
        span.waited = max(0.0, span.start - parent.reached)
        parent.self_time -= span.waited
    parent.reached = span.end
    span.scope, span.direction, span.region = parent.scope, parent.direction, parent.region
    span.operators, span.kernel = parent.operators, parent.kernel
    span.call = parent.call if parent.name.startswith(CALL) else None


def _claim(span: Span, kernel: CompiledKernel | None) -> None:
    """Give what a compiled graph runs to the modules that it serves.

    Those that the compiler does not name are the module whose forward the region is, and so is a copy of an input.
    """
    region = span.scope
    span.kernel, span.operators = kernel, (kernel.name if kernel is not None and kernel.name else span.name,)
    if kernel is not None and kernel.owners:
        own = region.module if region is not None else UNOWNED
        names = {own if owner is None else owner for owner in kernel.owners}
        span.scope = Scope(-1, TOGETHER.join(sorted(names)), kind=kernel.kind)
        span.direction = RECOMPUTE if kernel.repeated else span.direction
    elif op_class(span.name) != "copy":
        span.orphan, span.scope = True, None


def _is_phase(span: Span, *names: str) -> bool:
    """Whether the span is a phase that owns nothing itself."""
    scope = span.scope
    return span.name.startswith(SCOPE_PREFIX) and scope is not None and scope.module in (names or (FORWARD, BACKWARD))


def _communicates(span: Span, kernel: str = "") -> bool:
    return span.name == WAIT or communicates(kernel) or any(map(communicates, span.operators))


def _talks_as(span: Span) -> WorkKey:
    """Whose a collective is: in the forward the module's that began it; the backward's serve the whole model."""
    key = _key(span)
    if key.direction == "fwd" and not key.module.startswith("("):
        return key
    return key._replace(module=COMMUNICATION, direction="bwd" if key.module == BACKWARD else key.direction)


def _is_step(name: object) -> bool:
    return isinstance(name, str) and name.startswith(STEP_PREFIX)


def _key(span: Span) -> WorkKey:
    scope = span.scope
    kind: OpClass = scope.kind if scope is not None and scope.kind is not None else span.kind
    return WorkKey(scope.module if scope is not None else UNOWNED, span.direction, kind)


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
        if span.elsewhere:  # while the step's own thread waits
            if op_class(span.name) in PRODUCTS:
                result.elsewhere[span.name] += span.self_time
            continue
        key = _key(span)
        between = span.waited
        if _communicates(span):
            result.book_communication(_talks_as(span), span.operator or WAIT, span.self_time)
            result.host[key.module, key.direction] += between
            result.idle += between
            continue
        if span.call is not None and span.kernel is not None:
            result.book_compiled(key, span.kernel)
        if span.orphan:
            result.unknown[span.name] += span.end - span.start
        if span.operator and span.category == "cpu_op":
            generated = span.kernel is not None and span.kernel.generated  # no operator: its span is all its own
            busy = max(0.0, span.self_time - (0.0 if generated else nothing))
            between += span.self_time - busy
            result.book(key, span.operators, span.operators[-1], busy)
        else:
            between += span.self_time
        result.host[key.module, key.direction] += between
        result.idle += between


def _on_gpu(spans: list[Span], events: list[dict[str, Any]], result: Attribution) -> None:
    """A kernel belongs to the span that launched it; the device idles wherever no kernel runs.

    Overlapping kernels share the time in which they overlap, so that busy and idle add up to the span. Those of
    collectives have what no other kernel takes.
    """
    launches = {span.correlation: span for span in spans if span.correlation is not None and span.in_step}
    kernels = [
        (event, launches[event["args"]["correlation"]])
        for event in sorted(events, key=lambda event: event.get("ts", 0.0))
        if event.get("cat") in DEVICE_CATEGORIES and event.get("args", {}).get("correlation") in launches
    ]
    for span in spans:
        if span.kernel is not None and span.call is not None and span.in_step:
            result.book_compiled(_key(span), span.kernel)
    frontier = kernels[0][0]["ts"] if kernels else 0.0
    launchers = _launchers(kernels, result)
    collectives = _Collectives(kernels, launchers)
    for (event, _), span in zip(kernels, launchers, strict=True):
        start, end = event["ts"], event["ts"] + event["dur"]
        if _communicates(span, event["name"]):
            continue
        key = _key(span)
        if start > frontier:
            idle = start - frontier - collectives.book(frontier, start, result)
            result.idle += idle
            result.host[key.module, key.direction] += idle
        exclusive = max(0.0, end - max(start, frontier))
        frontier = max(frontier, end)
        result.book(key, span.operators or (event["name"],), event["name"], exclusive)
        if span.region is not None and span.scope is None:
            result.unknown[event["name"]] += exclusive
    if kernels:
        collectives.book(frontier, float("inf"), result)
    result.talking = collectives.total
    result.span = sum(result.busy.values()) + result.idle + sum(result.communication.values())
    ran = {span.correlation for _, span in kernels}
    result.lost = sum(span.name == GRAPH_LAUNCH and span.correlation not in ran for span in launches.values())


class _Collectives:
    """The kernels of a trace by which ranks talk, as time that they take together."""

    def __init__(self, kernels: Sequence[tuple[dict[str, Any], Span]], launchers: Sequence[Span]) -> None:
        self.apart: list[Interval] = []
        self.named: list[tuple[WorkKey, str]] = []
        for (event, _), span in zip(kernels, launchers, strict=True):
            start, end = event["ts"], event["ts"] + event["dur"]
            reached = self.apart[-1][1] if self.apart else start
            if _communicates(span, event["name"]) and end > reached:
                self.apart.append((max(start, reached), end))
                self.named.append((_talks_as(span), event["name"]))
        self.total = sum(end - start for start, end in self.apart)

    def book(self, start: float, end: float, result: Attribution) -> float:
        """Book what they take of a time in which no other kernel runs, and give how much that is."""
        taken = 0.0
        for place, (begins, ends) in overlaps((start, end), self.apart):
            result.book_communication(*self.named[place], ends - begins)
            taken += ends - begins
        return taken


def _launchers(kernels: list[tuple[dict[str, Any], Span]], result: Attribution) -> list[Span]:
    """The span that each kernel is booked on: what launched it, or for one of a CUDA graph what it is in that graph."""
    spans = [span for _, span in kernels]
    calls: dict[int, list[int]] = defaultdict(list)
    for place, span in enumerate(spans):
        if span.call is not None and span.kernel is None and span.category in LAUNCH_CATEGORIES:
            calls[id(span.call)].append(place)
    for places in calls.values():
        call = spans[places[0]].call
        work = [place for place in places if kernels[place][0]["cat"] == "kernel"]
        found = dict(zip(work, align(call.kernels if call else (), [kernels[p][0]["name"] for p in work]), strict=True))
        following: CompiledKernel | None = None  # what a copy or a fill makes ready
        for place in reversed(places):
            following = found.get(place, following)
            spans[place] = replace(spans[place])
            _claim(spans[place], following)
            result.inferred += found.get(place) is not None
            if following is not None and place in found:
                result.book_compiled(_key(spans[place]), following)
    return spans
