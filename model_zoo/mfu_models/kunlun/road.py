"""The road from InterFormer's parts to Kunlun: each config differs from the one before in one switch.

The first has InterFormer's parts in Kunlun's frame: merged sequences under a MaskNet, the generated linear map (PFFN),
PMA, full attention in every layer. It is not the model `interformer`: Kunlun's frame keeps a Wukong block where
InterFormer has DHEN, pools a tower before its layer and once more where it ends, passes X_sum on as tokens of X, and
has no CLS tokens, no recent tokens and no gates; positions are off until ROTE brings them, together with time.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .config import KunlunConfig

START: Mapping[str, Any] = {
    "towers": False,
    "ffn": "pffn",
    "pooling": "pma",
    "rote": False,
    "attention": "full",
    "comp_skip": False,
    "event_personalization": False,
    "interaction_experts": False,
}
"""InterFormer's parts, as settings of Kunlun's switches."""

STEPS: Mapping[str, Mapping[str, Any]] = {
    "interformer": {},
    "+towers": {"towers": True},
    "+gdpa": {"ffn": "gdpa"},
    "+hsp": {"pooling": "hsp"},
    "+rote": {"rote": True},
    "+window": {"attention": "window"},
    "+comp_skip": {"comp_skip": True},
    "+event_personalization": {"event_personalization": True},
    "+experts": {"interaction_experts": True},
}
"""What each step of the road turns on, in order."""


def road(kunlun: KunlunConfig) -> dict[str, KunlunConfig]:
    """The steps by name, in order, for the sizes and schema of ``kunlun``; the last is ``kunlun`` with its defaults.

    Switches that are no part of the road, such as the activation, stay as they are in ``kunlun``.
    """
    config, steps = replace(kunlun, **START), {}
    for name, change in STEPS.items():
        config = replace(config, **change)
        steps[name] = config
    return steps
