"""mfubench: how much of a GPU a recommendation model uses, where the rest is lost, and which change gets it back."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .optimize.recipe import Applied

__version__ = "0.1.0"


def apply(model: Any, recipe: Any, optimizers: Any = ()) -> "Applied":
    """Apply a recipe of ``mfubench optimize`` to a live model (`mfubench.optimize.recipe.apply`)."""
    from .optimize.recipe import apply as apply_recipe  # which imports torch: the command line's help must not

    return apply_recipe(model, recipe, optimizers)


def use_lock(file: Any) -> None:
    """Let kernels take the configs that ``mfubench kernels tune`` found (`mfubench.kernels.locks.use_lock`)."""
    from .kernels.locks import use_lock as use

    use(file)
