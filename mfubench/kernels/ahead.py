"""Compile kernels for a GPU that is not here: just enough of a Triton driver for its compiler, with no device behind.

It takes the place of the process's driver, so it belongs into a process of its own. Kernels of ours are compiled by
their own launches (`compile_ahead`); those of anybody else are `recorded`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mfu_kernels.examples import Case, Draw, Examples, Inputs
from mfu_kernels.modes import Compiled, Wanted, compile_ahead
from mfu_kernels.registry import interpreting
from mfubench.errors import BadInput

from .machine_code import usage
from .targets import Target

DTYPE = torch.bfloat16  # what the kernels run in on a GPU
MAX_THREADS = 1024  # of a block, on every target


class AheadDriver:
    """Answers what Triton's compiler asks of a driver, for one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.utils = self

    def get_device_properties(self, _device: int) -> Mapping[str, int]:
        """Limits of the target."""
        target = self.target
        return {
            "max_shared_mem": target.block_shared,
            "multiprocessor_count": target.processors,
            "max_num_regs": target.registers,
            "warpSize": 32,
        }

    def get_current_target(self) -> Any:
        """The target in Triton's words."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.target.capability, 32)

    def get_current_device(self) -> int:
        """A number of its own for each target: Triton keeps compiled kernels by device."""
        return self.target.capability

    def get_current_stream(self, _device: int | None = None) -> int:
        """No stream: nothing is launched."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where tensors lie that are passed to kernels."""
        return torch.device("cpu")

    def load_binary(self, _name: str, cubin: bytes, _shared: int, _device: int) -> tuple[object, object, int, int, int]:
        """What is told of a kernel on a GPU, without a module and a function: registers, words of stack, threads."""
        registers, stack = usage(cubin)
        return object(), object(), registers, stack // 4, MAX_THREADS

    def unload_module(self, _module: object) -> None:
        """Nothing: nothing was loaded."""

    def launcher_cls(self, source: Any, _metadata: Any) -> Callable[..., None]:
        """What launches a kernel where `recorded` does not stand in for it."""

        def launch(*_: Any) -> None:
            raise RuntimeError(f"{source.name}: a kernel is not launched where no GPU is")

        return launch


def refuse_interpreter(asked: str = "") -> None:
    """Refuse what ``asked``, such as ``--ahead: ``, to compile, where nothing is.

    Raises:
        BadInput: Triton's interpreter is on.
    """
    if interpreting():
        raise BadInput(f"{asked}Triton's interpreter compiles nothing; unset TRITON_INTERPRET")


def activate(target: Target) -> None:
    """Make ``target`` the one that this process compiles for."""
    from triton.runtime.driver import driver

    driver.set_active(AheadDriver(target))


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch of anybody's Triton kernel, which was compiled for the active target and did not run.

    ``source`` is what Triton compiled, ``options`` with how many warps, stages and the like. ``tuned`` names those of
    the source's constants that an autotuner chooses; ``trial``: it only tries them. ``result``: triton's
    CompiledKernel, or what was raised in place of it or of its launch.
    """

    source: Any
    options: Any
    tuned: frozenset[str]
    trial: bool
    grid: tuple[int, ...]
    result: Any


@contextmanager
def recorded(sink: Callable[[Launch], None]) -> Iterator[None]:
    """Inside, a launch of a Triton kernel compiles it for the active target and reports it to ``sink``; nothing runs.

    Its tensors may lie on a CPU or have no numbers; what it would write is not written. An autotuner's configs are all
    tried, by compiling them: it takes the first that compiles and fits. What does not is reported as well, and passed
    over as if it had been launched.
    """
    from triton.compiler import CompiledKernel
    from triton.runtime import Autotuner, JITFunction

    recorder = _Recorder(sink, JITFunction.run, Autotuner.run)
    instead = (
        (JITFunction, lambda function, *args, **options: recorder.call(function, *args, **options)),
        (Autotuner, lambda tuner, *args, **options: recorder.tune(tuner, *args, **options)),
        (CompiledKernel, property(lambda kernel: partial(recorder.launch, kernel))),
    )
    with ExitStack() as stack:
        stack.callback(recorder.leave)
        for owner, replacement in instead:
            stack.callback(setattr, owner, "run", owner.run)
            owner.run = replacement
        yield


class _Recorder:
    """Stands in for the methods of Triton's that lead to a launch; `call` and `tune` go through those given."""

    def __init__(self, sink: Callable[[Launch], None], call: Callable[..., Any], tune: Callable[..., Any]) -> None:
        self._sink, self._call, self._tune = sink, call, tune
        self._tuners: dict[Any, dict[str, Any]] = {}  # and what was in each before
        self._tuned: frozenset[str] = frozenset()
        self._trial = self._failed = False

    def leave(self) -> None:
        """Give the autotuners back what they knew."""
        for tuner, before in self._tuners.items():
            vars(tuner).clear()
            vars(tuner).update(before)

    def call(self, function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        """For ``function[grid](...)``; a warm-up is for its caller, who gets its kernel or its error."""
        try:
            return self._call(function, *args, grid=grid, warmup=warmup, **options)
        except Exception as error:
            if warmup:
                raise
            source, parsed, arguments = _bound(function, args, options)
            self._report(source, parsed, grid(arguments) if callable(grid) else grid, error)

    def launch(self, kernel: Any, x: int, y: int, z: int, *_: Any) -> None:
        """For the launch of a compiled kernel, which is loaded before: that finds out whether it fits."""
        kernel._init_handles()
        self._report(kernel.src, kernel.metadata, (x, y, z), kernel)

    def tune(self, tuner: Any, *args: Any, **options: Any) -> Any:
        """For an autotuner's launch, which tries its configs anew; nobody else learns of a choice that was none."""
        if tuner not in self._tuners:
            self._tuners[tuner] = dict(vars(tuner))
            vars(tuner).update(cache={}, cache_results=False, do_bench=self._bench)
        before, self._tuned = self._tuned, frozenset(name for config in tuner.configs for name in config.kwargs)
        try:
            return self._tune(tuner, *args, **options)
        finally:
            self._tuned = before

    def _bench(self, call: Callable[[], Any], *_: Any, **_options: Any) -> list[float]:
        """Times by which those that compile and fit are all as fast."""
        self._trial, self._failed = True, False
        try:
            call()
        finally:
            self._trial = False
        return [math.inf if self._failed else 0.0] * 3

    def _report(self, source: Any, options: Any, grid: tuple[int, ...], result: Any) -> None:
        self._failed = isinstance(result, Exception)
        self._sink(Launch(source, options, self._tuned, self._trial, grid, result))


def _bound(function: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[Any, Any, Mapping[str, Any]]:
    """What Triton makes of a call: the source that it compiles, its options, and the arguments by name."""
    from triton.runtime.driver import driver

    _, _, _, backend, binder = function.device_caches[driver.active.get_current_device()]
    arguments, specialization, options = binder(*args, **options)
    parsed, signature, constants, attributes = function._pack_args(backend, options, arguments, specialization, options)
    return function.ASTSource(function, signature, constants, attributes), parsed, arguments


def compile_op(examples: Examples, shape: Case, sink: Callable[[Compiled], None], wanted: Wanted) -> None:
    """Compile what is ``wanted`` of one op's forward and backward at ``shape``, for the active target."""
    inputs = examples.make(shape, Draw(DTYPE, torch.device("meta")))
    with compile_ahead(sink, wanted):
        call_both_ways(examples, inputs)


def call_both_ways(examples: Examples, inputs: Inputs, between: Callable[[], None] = lambda: None) -> None:
    """The op's forward with its kernels on ``inputs`` that need no numbers, and its backward if one has a gradient."""
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}
    outputs = outputs_of(examples.function(**leaves, **inputs.others, impl="triton"))
    between()
    if leaves:
        torch.autograd.backward(outputs, [torch.empty_like(out) for out in outputs])


def outputs_of(given: torch.Tensor | Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """What an op's implementation gives, one tensor or several."""
    return [given] if isinstance(given, torch.Tensor) else given
