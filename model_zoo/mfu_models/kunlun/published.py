"""What is published of the road's steps, each number beside the source that prints it.

The paper's own tables could not be read; its abstract could. The rest is secondary: the README of a third party's
re-implementation and a reader's note on the paper. Where they contradict each other both stand here, and where a number
contradicts its neighbours, ``CONTRADICTIONS`` says so. None of them names its batch size, its sizes, or the setting
that a change starts from, except that GDPA was removed from the full model.
"""

from dataclasses import dataclass
from typing import Literal

Metric = Literal["samples_per_s", "mfu", "model_flops_per_sample"]
ABSTRACT = "abstract of arXiv 2602.10016"
README = "third-party README (github.com/doogkong/ad_ranking, kunlun/README.md, commit 5a4c502)"
NOTE = "reader's note on the paper (secondary)"
UNIT_UNKNOWN = "no source says whether its MFU changes are percent or points"
WHOLE = "interformer to kunlun"


@dataclass(frozen=True, slots=True)
class Published:
    """One published change of ``metric``, with the switch of ``step`` on over off: 0.31 is 31 % more.

    ``printed`` is the number as the source has it. ``no_size`` says why only its sign can be compared,
    ``not_comparable`` why not even that; empty where it can.
    """

    step: str
    metric: Metric
    change: float
    printed: str
    source: str
    no_size: str = ""
    not_comparable: str = ""


PUBLISHED = (
    Published(
        WHOLE,
        "mfu",
        37 / 17 - 1,
        "17 % to 37 % on B200",
        ABSTRACT,
        no_size="the published baseline is the production InterFormer, and 37 % includes Kunlun's fused kernels",
    ),
    Published("+gdpa", "mfu", 37 / 34 - 1, "37 % to 34 % without it", f"{README}; {NOTE}"),
    Published("+gdpa", "samples_per_s", 1 / 0.92 - 1, "-8 % QPS without it", f"{README}; {NOTE}"),
    Published("+hsp", "mfu", -0.0679, "-6.79 % MFU", NOTE, no_size=UNIT_UNKNOWN),
    Published("+hsp", "samples_per_s", 0.088, "+8.8 % QPS", NOTE),
    Published("+hsp", "samples_per_s", 1 / 1.088 - 1, "PMA, without it, is 8.8 % faster", README),
    Published("+window", "mfu", -0.041, "-4.1 % MFU", f"{README}; {NOTE}", no_size=UNIT_UNKNOWN),
    Published("+window", "samples_per_s", 0.311, "+31.1 % QPS", f"{README}; {NOTE}"),
    Published("+window", "model_flops_per_sample", -0.295, "-29.5 % FLOPs", f"{README}; {NOTE}"),
    Published("+comp_skip", "mfu", -0.025, "-2.5 % MFU", f"{README}; {NOTE}", no_size=UNIT_UNKNOWN),
    Published("+comp_skip", "samples_per_s", 0.35, "+35 % QPS", f"{README}; {NOTE}"),
    Published("+comp_skip", "model_flops_per_sample", -0.431, "-43.1 % FLOPs", f"{README}; {NOTE}"),
    Published("+event_personalization", "samples_per_s", 0.13, "+13 % QPS", README),
    Published("+event_personalization", "model_flops_per_sample", -0.11, "-11 % FLOPs", README),
    Published(
        "+experts",
        "samples_per_s",
        0.04,
        "+4 % QPS",
        README,
        not_comparable="published for placing the experts on several GPUs; here they share one device",
    ),
)

CONTRADICTIONS = (
    "HSP: the note prints +8.8 % QPS for HSP, the README says that PMA, which it replaces, is 8.8 % faster. HSP does "
    "more work than PMA, so the README's reading is the likely one; both are held against the measurement.",
    "MFU is QPS times FLOPs a sample over the peak, so the published MFU cells should follow from the two others. "
    "Window: 1.311 x 0.705 makes -7.6 %, printed is -4.1 %. Computation skip: 1.350 x 0.569 makes -23 %, printed is "
    "-2.5 %. These three numbers cannot come from one setting, whether the MFU change is in percent or in points.",
    "GDPA: -8 % QPS and 37 % to 34 % MFU (-8.1 %) fit each other if FLOPs hardly change, and only as points.",
    "Which setting a change starts from is stated for GDPA alone (removed from the full model); the others are held "
    "against both the step of the road and the switch taken out of the full model.",
    "Nothing is published of separate towers and of rotary temporal embedding alone.",
)
