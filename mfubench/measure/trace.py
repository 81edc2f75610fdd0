"""The trace pass: torch.profiler over a few steps, with scopes that carry each module's name into the trace.

The profiler slows a step that its host bounds; so what is taken from here is scaled to the timed step, and the
distortion is published.
"""

import gzip
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function

from .compiled import Compilation
from .scopes import Scope, ScopeTracker
from .timing import wait_for

SCOPE_PREFIX = "mfu#"  # in the trace: mfu#<index of the scope>:<module>[/<op>]
STEP_PREFIX = "ProfilerStep#"  # the name by which trace viewers know a step
NOTHING = "mfu-nothing"  # a span of operators that do nothing, whose time is what any operator costs its host
NUM_NOTHING = 200


class TraceTracker(ScopeTracker):
    """A scope tracker that writes each scope into the trace."""

    def __init__(self, model: nn.Module, *, compiled: bool = False) -> None:
        super().__init__(model, compiled=compiled)
        self._records: list[Any] = []

    def opened(self, scope: Scope) -> None:
        """Begin the scope's span."""
        label = f"{scope.module}/{scope.op}" if scope.op else scope.module
        record = record_function(f"{SCOPE_PREFIX}{scope.index}:{label}")
        record.__enter__()
        self._records.append(record)

    def closed(self, scope: Scope) -> None:
        """End the scope's span."""
        self._records.pop().__exit__(None, None, None)


@dataclass(slots=True)
class Trace:
    """Events of a profiled run, as in the Chrome trace format, the tracker that knows its scopes, what was compiled."""

    events: list[dict[str, Any]]
    tracker: TraceTracker
    compilation: Compilation = field(default_factory=Compilation)


def _do_nothing(device: torch.device) -> None:
    one, other = torch.ones((), device=device), torch.ones((), device=device)
    with record_function(NOTHING):
        for _ in range(NUM_NOTHING):
            one.add_(other)  # a scalar of Python would be made a tensor by operators inside, each cheaper than a whole


def _all_threads(device: torch.device) -> Any:
    """On a CPU the operators of threads that a model starts are recorded too; on a GPU the default."""
    return _ExperimentalConfig(profile_all_threads=True) if device.type == "cpu" else None


@contextmanager
def _quiet_profile(**options: Any) -> Iterator[profile]:
    """A profile without torch 2.11's warning that it clears the events of earlier cycles, of which there are none.

    Asking for the events of all cycles would silence it, too, and take seconds to walk through what nobody reads.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Profiler clears events at the end of each cycle")
        with profile(**options) as profiler:
            yield profiler


def trace_steps(
    model: nn.Module,
    step: Callable[[ScopeTracker, int], None],
    *,
    device: torch.device,
    num_steps: int,
    keep: Path | None = None,
    compilation: Compilation | None = None,
) -> Trace:
    """Profile ``num_steps`` calls of ``step(tracker, index)``; with ``keep``, leave the gzipped trace at that path.

    A call before them warms the profiler up and is not recorded. ``compilation`` is what was seen when parts of
    ``model`` were compiled, None where nothing is.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler's own log lines stand in the terminal
    tracker = TraceTracker(model, compiled=compilation is not None)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with tracker.attached():
        step(tracker, 0)
        wait_for(device)
        with _quiet_profile(activities=activities, experimental_config=_all_threads(device)) as profiler:
            _do_nothing(device)
            for index in range(num_steps):
                with record_function(f"{STEP_PREFIX}{index}"):
                    step(tracker, index)
            wait_for(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
        if keep is not None:
            packed = path.with_suffix(".json.gz")
            with path.open("rb") as plain, gzip.open(packed, "wb", compresslevel=6) as stream:
                shutil.copyfileobj(plain, stream)
            shutil.move(packed, keep)
    return Trace(events, tracker, compilation or Compilation())
