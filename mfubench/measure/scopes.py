"""Which module, and which op inside it, runs now; and later, which of them created a given autograd node.

Autograd numbers the nodes that a thread creates, in order. So it is enough to note the number at which the innermost
scope changes: the owner of a backward node is the scope that was innermost when its number was handed out. The same
numbers appear in a profiler trace, and backward hooks, which miss weight gradients and break some models, are not
needed. Each thread numbers its nodes anew; so the backward pass, which on a GPU has a thread of its own, runs in the
step's thread while a tracker is attached, and what checkpointing repeats there is numbered on.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.jit._script import RecursiveScriptModule

from mfu_kernels.cost import OpClass, OpCost, observing

from .compiled import uncompiled

ROOT = "(model)"  # own work of the outermost module
LOSS, OPTIMIZER, DATA, FORWARD, BACKWARD = "(loss)", "(optimizer)", "(data)", "(forward)", "(backward)"
COMMUNICATION = "(communication)"  # between the ranks of a job, where it is no module's


@dataclass(slots=True)
class Scope:
    """One activation of a module, a phase of the step, or an op; its work counts for ``shared`` samples."""

    index: int
    module: str
    op: str | None = None
    kind: OpClass | None = None
    impl: str | None = None
    cost: OpCost | None = None
    shared: int = 1
    recompute: bool = False


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """Each module's fully qualified name, as it is without the wrappers that torch.compile puts around modules."""
    return {
        module: ".".join(part for part in name.split(".") if part != "_orig_mod") or ROOT
        for name, module in model.named_modules()
    }


def takes_hooks(module: nn.Module) -> bool:
    """Whether it says when it runs; a scripted module does not, and what it runs is told of the module around it."""
    return not isinstance(module, RecursiveScriptModule)


class ScopeTracker:
    """Follows the innermost scope of ``model`` through forward hooks, op reports and the phases of a step.

    ``with tracker.attached():`` installs the hooks. Subclasses add what happens at ``opened`` and ``closed``. A module
    whose forward runs in another thread raises a RuntimeError: what is dispatched there would be missing in silence.
    """

    def __init__(self, model: nn.Module, *, with_costs: bool = False, compiled: bool = False) -> None:
        self.compiled = compiled  # such code would be compiled again if it found its ops observed
        self.names = module_names(model)
        self.with_costs = with_costs
        self.scopes: list[Scope] = []
        self.stack: list[Scope] = []
        self._ops_inside = 0
        self._last_owner: Scope | None = None
        self._thread = threading.get_ident()
        self._marks: list[int] = []
        self._owners: list[Scope | None] = []
        self._next_node = 0  # the number of the next node, when it was last looked at

    @property
    def current(self) -> Scope | None:
        """The innermost scope."""
        return self.stack[-1] if self.stack else None

    def owner_of(self, sequence_number: int) -> Scope | None:
        """The scope that created the autograd node with this number, None if it was created outside every scope."""
        place = bisect_right(self._marks, sequence_number) - 1
        return self._owners[place] if place >= 0 else None

    def owner_of_node(self, node: Any) -> Scope | None:
        """The scope that created ``node``, to be asked in the order in which nodes run.

        A node that accumulates a gradient runs right after the one that made it, and belongs to the same scope.
        """
        if not node.name().endswith("AccumulateGrad"):
            self._last_owner = self.owner_of(node._sequence_nr())
        return self._last_owner

    def own_new_nodes(self, owner: Scope | None) -> None:
        """Nodes that were made since this or a mark was last asked for are ``owner``'s.

        It is for what no scope opens for: a function that a running node repeats makes nodes inside the backward pass.
        """
        if threading.get_ident() == self._thread and torch._C._autograd._get_sequence_nr() > self._next_node:
            self._marks.append(self._next_node)
            self._owners.append(owner)
            self._next_node = torch._C._autograd._get_sequence_nr()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on every module, and op reports, for as long as this context lasts."""
        before, after = self._before, self._after
        if self.compiled:
            before, after = uncompiled(before), uncompiled(after)
        with torch.autograd.set_multithreading_enabled(False), ExitStack() as cleanup:
            for module in filter(takes_hooks, self.names):
                cleanup.callback(module.register_forward_pre_hook(before).remove)
                # Without always_call a forward that checkpointing cuts short would never close its scope.
                cleanup.callback(module.register_forward_hook(after, always_call=True).remove)
            if not self.compiled:
                cleanup.enter_context(observing(self))
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of the step, such as ``(loss)``, as a scope."""
        self._open(name)
        try:
            yield
        finally:
            self._close()

    def opened(self, scope: Scope) -> None:
        """``scope`` has become the innermost."""

    def closed(self, scope: Scope) -> None:
        """``scope`` has ended."""

    def enter_op(self, name: str, kind: OpClass, impl: str, cost: partial[OpCost]) -> None:
        """An op reports that it begins (mfu_kernels.cost.Observer)."""
        outer = self.current
        if outer is not None and outer.op is not None:
            self._ops_inside += 1  # the outer op's implementation: its work is in the outer one's formula
            return
        module = outer.module if outer else ROOT
        self._open(module, op=name, kind=kind, impl=impl, cost=cost() if self.with_costs else None)

    def exit_op(self) -> None:
        """The innermost op has ended."""
        if self._ops_inside:
            self._ops_inside -= 1
        else:
            self._close()

    def enter_shared(self, num_samples: int) -> None:
        """Work that serves ``num_samples`` samples begins."""
        outer = self.current
        self._open(outer.module if outer else ROOT, shared=num_samples)

    def exit_shared(self) -> None:
        """That work has ended."""
        self._close()

    def _before(self, module: nn.Module, _args: Any) -> None:
        self._open(self.names[module])

    def _after(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._close()

    def _open(self, module: str, **details: Any) -> None:
        outer = self.current
        recompute = outer.recompute if outer else False
        if torch._C._current_autograd_node() is not None:  # a forward inside the backward pass: checkpointing
            recompute = True
        shared = details.pop("shared", outer.shared if outer else 1)
        scope = Scope(len(self.scopes), module, shared=shared, recompute=recompute, **details)
        self.scopes.append(scope)
        self.stack.append(scope)
        self._mark(scope)
        self.opened(scope)
        if threading.get_ident() != self._thread and torch._C._current_autograd_node() is None:
            raise RuntimeError(f"{module} runs in a thread of its own, whose operators nothing sees")

    def _close(self) -> None:
        scope = self.stack.pop()
        self._mark(self.current)
        self.closed(scope)

    def _mark(self, owner: Scope | None) -> None:
        if threading.get_ident() == self._thread:
            self._next_node = torch._C._autograd._get_sequence_nr()
            self._marks.append(self._next_node)
            self._owners.append(owner)
