"""A recipe: the changes that a search kept, in order, for the model that it kept them for; as TOML.

It can be used again by ``mfubench profile --recipe`` and, in a training script, by ``mfubench.apply``.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfubench import __version__
from mfubench.errors import BadInput
from mfubench.files import write_text
from mfubench.workload.patching import Undo, together

from .changes import Change, from_plain, to_plain

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mfubench.workload.spec import Workload, WorkloadSpec

SCHEMA_VERSION = 1
AGAIN = "find one with `mfubench optimize`"
GIVE = "give a recipe.toml that `mfubench optimize` wrote"


@dataclass(frozen=True, slots=True)
class Kept:
    """A change and what it won: times as fast as before it, with the 95 % interval; None where time was not judged."""

    change: Change
    gain: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class Recipe:
    """``model`` identifies whose it is, ``measured`` what it was found on; ``judge`` by what changes were kept."""

    model: Mapping[str, Any]
    measured: Mapping[str, Any]
    judge: str
    kept: tuple[Kept, ...]
    file: Path | None = None

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes in their order."""
        return tuple(kept.change for kept in self.kept)

    def write(self, file: Path) -> None:
        """As TOML, whole or not at all."""
        import tomli_w

        document = {
            "schema_version": SCHEMA_VERSION,
            "mfubench": __version__,
            "judge": self.judge,
            "model": _without_none(self.model),
            "measured": _without_none(self.measured),
            "changes": [{**to_plain(each.change), **({"gain": each.gain} if each.gain else {})} for each in self.kept],
        }
        write_text(file, tomli_w.dumps(document))

    def check_model(self, description: Mapping[str, Any]) -> None:
        """Refuse another model than the recipe's, by the ``description`` of its workload.

        Raises:
            BadInput: it differs.
        """
        for key in ("model", "model_hash"):
            if self.model[key] != description[key]:
                raise BadInput(
                    f"{self.file or 'the recipe'} is for {self.model['model']} ({self.model['model_hash']}), this is "
                    f"{description['model']} ({description['model_hash']}): another model, size or config; {AGAIN}"
                )


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def read_recipe(file: Path) -> Recipe:
    """Read what `Recipe.write` wrote.

    Raises:
        BadInput: it is missing, no TOML, of another version, or holds what this release does not know.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}; {GIVE}") from None
    except ValueError as error:  # neither TOML nor text
        raise BadInput(f"{file} is no TOML: {error}; {GIVE}") from None
    for key, ours in (("schema_version", SCHEMA_VERSION), ("mfubench", __version__)):
        if document.get(key) != ours:
            raise BadInput(f"{file} has {key} {document.get(key)!r}; this release reads {ours!r}; {AGAIN}")
    for key, kind in (("model", dict), ("measured", dict), ("judge", str), ("changes", list)):
        if not isinstance(document.get(key), kind):
            raise BadInput(f"{file} has no {key}; it is no recipe; {AGAIN}")
    for key in ("model", "model_hash", "architecture"):
        if not isinstance(document["model"].get(key), str):
            raise BadInput(f"{file}: model.{key} is missing; it is no recipe; {AGAIN}")
    try:
        kept = tuple(_kept(given) for given in document["changes"])
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    return Recipe(document["model"], document["measured"], document["judge"], kept, file)


def _kept(given: Any) -> Kept:
    if not isinstance(given, dict):
        raise BadInput(f"a change is {given!r}; allowed: a table")
    return Kept(from_plain({key: value for key, value in given.items() if key != "gain"}), given.get("gain"))


def prepare_with(spec: "WorkloadSpec", recipe: Recipe) -> "Workload":
    """The workload of ``spec`` with the recipe's changes.

    Raises:
        BadInput: the recipe is another model's, a change cannot be made here, or ``spec`` asks for something else.
    """
    from mfubench.workload.prepare import prepare

    from .build import change_module

    wanted = spec
    for change in recipe.changes:
        wanted = change.respec(wanted)
    for option in ("dtype", "batch_size"):
        asked, has = getattr(spec, option), getattr(wanted, option)
        if asked is not None and asked != has:
            name = option.replace("_", "-")
            raise BadInput(f"--{name} {asked} and the recipe's {has} say different things; leave --{name} out")
    if spec.compile != "none" and any(change.name == "compile" for change in recipe.changes):
        raise BadInput(f"--compile {spec.compile}: the recipe compiles already; leave --compile out")
    workload = prepare(wanted)
    recipe.check_model(workload.description)
    require_runnable(recipe.changes, workload.module)
    made = [change for change in recipe.changes if spec.mode == "train" or not change.trains]
    try:
        change_module(workload, made)
    except BadInput as error:
        raise BadInput(f"{recipe.file or 'the recipe'}: {error}") from None
    for change in recipe.changes:
        if change not in made:
            workload.warnings.append(f"{change.title} of the recipe is left out: nothing is trained here")
    if recipe.judge != "time":
        workload.warnings.append(f"the recipe was judged by {recipe.judge} only: no speed was shown for it")
    return workload


def architecture(model: "nn.Module") -> str:
    """A hash of a live model's modules and parameters: names, classes and shapes, whatever values they hold."""
    from mfubench.identity import digest
    from mfubench.workload.regions import class_name

    modules = [(name, class_name(module)) for name, module in model.named_modules()]
    return digest(modules, [(name, list(parameter.shape)) for name, parameter in model.named_parameters()])


@dataclass(slots=True)
class Applied:
    """A recipe on a live model; ``undo`` takes it back. ``left`` names the changes that only the script can make."""

    undo: Undo
    left: list[str] = field(default_factory=list)

    def __enter__(self) -> "Applied":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def apply(
    model: "nn.Module",
    recipe: "Recipe | Path | str",
    optimizers: "torch.optim.Optimizer | Sequence[torch.optim.Optimizer]" = (),
) -> Applied:
    """Apply a recipe to a live ``model`` and its ``optimizers``, one or several, in place; parameters and names stay.

    What it hands out takes the recipe back, by ``undo()`` or as a context; the model then computes bit for bit what it
    did. ``left`` names what a script must do itself: its batch size, or what its ``optimizers`` have no place for.

    Raises:
        BadInput: no such recipe, or one for another model; a change that cannot be made here. The model is left as it
            was.
    """
    listed = _checked(model, recipe, optimizers)
    given = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe))
    found = architecture(model)
    if found != given.model["architecture"]:
        raise BadInput(
            f"{given.file or 'the recipe'} is for {given.model['model']}, architecture "
            f"{given.model['architecture']}; this model's is {found}; {AGAIN}"
        )
    require_runnable(given.changes, model)
    undos: list[Undo] = []
    left = []
    try:
        for change in given.changes:
            undo = change.adopt(model, listed)
            left += [change.title] if undo is None else []
            undos += [] if undo is None else [undo]
    except BaseException:
        together(undos)()
        raise
    return Applied(together(undos), left)


def _checked(model: Any, recipe: Any, optimizers: Any) -> "list[torch.optim.Optimizer]":
    """The optimizers as a list, if all three are what they should be."""
    import torch

    from mfubench.workload.step import listed_optimizers

    listed = listed_optimizers(optimizers)
    wanted = {
        "model": (isinstance(model, torch.nn.Module), "a torch.nn.Module"),
        "recipe": (isinstance(recipe, (Recipe, str, Path)), "a recipe, or the path of one"),
        "optimizers": (listed is not None, "a torch optimizer, or a list of them"),
    }
    for name, (right, allowed) in wanted.items():
        if not right:
            kind = type({"model": model, "recipe": recipe, "optimizers": optimizers}[name]).__name__
            raise BadInput(f"apply: {name} is of type {kind}; allowed: {allowed}")
    return listed or []


def require_runnable(changes: Sequence[Change], model: "nn.Module") -> None:
    """Refuse changes to kernels and graphs that cannot run where ``model`` is.

    Raises:
        BadInput: saying why, for instance a package that is missing.
    """
    import torch

    from mfu_kernels import OPS, UnsupportedImpl

    from .changes import Compile, UseImpl

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    for change in changes:
        if isinstance(change, UseImpl):
            try:
                OPS[change.op].choose(change.impl, device)
            except UnsupportedImpl as error:
                raise BadInput(f"{change.title}: {error}") from None
        if isinstance(change, Compile) and change.cudagraphs and device.type != "cuda":
            raise BadInput(f"{change.title}: CUDA graphs need a CUDA device; here is none")
