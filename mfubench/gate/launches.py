"""Every Triton kernel that a step launches, and what its compiled code is on a GPU that need not be here."""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

from mfu_kernels.launching import KERNELS, config
from mfu_kernels.lock import key_text, spelled
from mfu_kernels.modes import Compiled, compile_ahead
from mfubench.kernels.ahead import Launch, activate, recorded, refuse_interpreter
from mfubench.kernels.machine_code import MachineCode, codes_or_errors
from mfubench.kernels.targets import Target


@dataclass(frozen=True, slots=True)
class Launched:
    """One variant of a kernel that a step launches, with one config; ``error`` says why there is no ``code``.

    ``kernel`` is the function's name, behind its module's where two modules have one of that name. ``variant`` is what
    it was compiled for: a key of ours, or the arguments of a foreign one: types, with what divides them, and constants.
    Where launches with a key of ours compile to several codes, those of its arguments follow in which they differ. All
    of this is the same in every run, wherever the code lies.

    ``taken``: launches on some GPU of the target take the config; of several that an autotuner would time it is not
    known which. ``locked``: it won on a GPU of that generation. ``launches`` counts those of the step, and ``grids``
    has each of theirs once, in programs. An autotuner's launches are counted for the first config that compiles and
    fits; the others have the grids of their trials. ``code`` is a `MachineCode`; ``line`` is that of the ``def``.
    """

    kernel: str
    variant: str
    config: str
    locked: bool
    taken: bool
    launches: int
    grids: list[str]
    file: str | None
    line: int | None
    code: dict[str, Any] | None
    error: str | None


def launched_kernels(step: Callable[[], None], target: Target) -> list[Launched]:
    """What ``step`` launches on GPUs of ``target``, in the order of the first launches; nothing is launched.

    It leaves ``target`` the one that this process compiles for. What ``step`` raises is raised; a kernel that does not
    compile is a row.

    Raises:
        BadInput: Triton's interpreter is on.
    """
    refuse_interpreter()
    activate(target)
    found: dict[Any, _Seen] = {}
    ours = compile_ahead(lambda made: _see(found, _ours(made)), lambda *_: "launched")
    with ours, recorded(lambda launch: _see(found, _foreign(launch))):
        step()
    codes = codes_or_errors([seen.result for seen in found.values()], target)
    return [_row(seen, code, found.values()) for seen, code in zip(found.values(), codes, strict=True)]


@dataclass(slots=True)
class _Seen:
    """What was seen of one compiled code, in one launch or in all. ``words``: what it was compiled for beyond a key."""

    function: Any
    name: str
    variant: str
    config: str
    words: dict[str, str]
    result: Any
    grids: dict[str, None]
    launches: int = 1
    locked: bool = False
    tried: bool = False

    @property
    def kernel(self) -> tuple[str, str]:
        """Its function, which stands for all that are made anew of the same lines."""
        return self.function.__module__, self.name


def _see(found: dict[Any, _Seen], once: _Seen) -> None:
    seen = found.setdefault((once.kernel, once.variant, once.config, *once.words.items()), once)
    if seen is not once:
        seen.launches += once.launches
        seen.tried |= once.tried
        seen.grids |= once.grids


def _row(seen: _Seen, code: MachineCode | str, everything: Collection[_Seen]) -> Launched:
    clashes = any(other.name == seen.name and other.kernel != seen.kernel for other in everything)
    same = [other for other in everything if other.kernel == seen.kernel]
    twins = [other.words for other in same if (other.variant, other.config) == (seen.variant, seen.config)]
    differ = {
        name: word for name, word in seen.words.items() if any(words and words.get(name) != word for words in twins)
    }
    return Launched(
        kernel=".".join(seen.kernel) if clashes else seen.name,
        variant=f"{seen.variant} {key_text(differ)}".strip(),
        config=seen.config,
        locked=seen.locked,
        taken=seen.launches > 0 and len({other.config for other in same if other.tried}) <= 1,
        launches=seen.launches,
        grids=list(seen.grids),
        file=seen.function.fn.__code__.co_filename,
        line=_line(seen.function),
        code=None if isinstance(code, str) else asdict(code),
        error=code if isinstance(code, str) else None,
    )


def _ours(made: Compiled) -> _Seen:
    failed = isinstance(made.result, Exception)
    return _Seen(
        KERNELS[made.kernel].function if failed else made.result.src.fn,
        made.kernel,
        key_text(made.key),
        spelled(made.config),
        {} if failed else _words(made.result.src),
        made.result,
        _grid(made.grid),
        locked=made.locked,
    )


def _foreign(launch: Launch) -> _Seen:
    options, words = launch.options, _words(launch.source)
    tiles: dict[str, Any] = {name: word for name, word in words.items() if name in launch.tuned}
    unusual = {"ctas": options.num_ctas if options.num_ctas > 1 else None, "maxnreg": options.maxnreg}
    tiles |= {name: value for name, value in unusual.items() if value is not None}
    return _Seen(
        launch.source.fn,
        launch.source.fn.fn.__name__,
        key_text({name: word for name, word in words.items() if name not in launch.tuned}),
        spelled(config(options.num_warps, options.num_stages, **tiles)),
        {},
        launch.result,
        _grid(launch.grid),
        launches=0 if launch.trial else 1,
        tried=launch.trial,
    )


def _words(source: Any) -> dict[str, str]:
    """The arguments that Triton compiled for, by name."""
    return {name: _word(kind, (at,), source) for at, (name, kind) in enumerate(source.signature.items())}


def _word(kind: Any, path: tuple[int, ...], source: Any) -> str:
    """A constant, or a type and what divides it: ``*bf16:16`` is a pointer that 16 divides."""
    if isinstance(kind, tuple):
        return f"({','.join(_word(part, (*path, at), source) for at, part in enumerate(kind))})"
    if kind == "constexpr":
        constant = source.constants.get(path)
        return str(getattr(constant, "__name__", constant))
    return ":".join([kind, *(str(value) for _, value in source.attrs.get(path, ()))])


def _grid(size: tuple[int, ...]) -> dict[str, None]:
    return {"x".join(str(programs) for programs in (*size, 1, 1)[:3]): None}


def _line(function: Any) -> int:
    """Of the ``def``, below its decorators."""
    lines = enumerate(function.raw_src, function.starting_line_number)
    return next(number for number, text in lines if text.lstrip().startswith("def "))
