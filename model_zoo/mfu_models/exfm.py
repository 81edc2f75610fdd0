"""External distillation as ExFM has it (arXiv 2502.17494): any model of the zoo as the student of a stored teacher.

For N candidates with labels y [N], p [N] the teacher's probabilities, logged with the samples, and z [N, h] what the
last layer of the student's head maps to its logit:

    y_s = student(batch)        h(y_s, y)                    the only head that serves
    y_d = MLP_d(z)              w h(y_d, min(alpha p, 1))    auxiliary head: learns the teacher, not the label
    y_a = MLP_a(p)              h(y_a, y)                    student adapter: the teacher, put right by fresh labels
    y_r = MLP_r(z)              h(y_r, sg(sigmoid(y_a)))     auxiliary head of the adapter

h is the cross-entropy of a logit, its mean over the candidates; the loss is the sum. alpha lifts the teacher's
probabilities, which lie near 0 where clicks are rare; beta scales the gradient of both auxiliary heads on its way into
z, so that it reaches the student's body apart from what w does to the heads. The hook into the student is the input of
its head's last layer: through the logit instead, the teacher would pull on the serving head, which the method is there
to prevent. That the adapter has a head of its own, without w, is how others describe the paper; its text was not read.

Not in it: the teacher, and the service that logs its answers once for all students.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mfu_kernels.errors import InvalidArgument

from .batch import Batch
from .common.config import require
from .common.flops import FlopCount, linear, mlp
from .common.layers import Mlp
from .output import TrainingOutput


@dataclass(frozen=True, slots=True)
class ExFMConfig:
    """alpha ``label_scale``, w ``loss_weight`` and beta ``gradient_scale`` as published; hidden widths are ours."""

    label_scale: float = 5.0
    loss_weight: float = 10.0
    gradient_scale: float = 20.0
    head_mlp: tuple[int, ...] = (64,)
    adapter: bool = True
    adapter_mlp: tuple[int, ...] = (8,)

    def __post_init__(self) -> None:
        for field in ("label_scale", "loss_weight", "gradient_scale"):
            require(getattr(self, field) > 0, f"{field}={getattr(self, field)}; allowed: more than 0")
        for field in ("head_mlp", "adapter_mlp"):
            widths = getattr(self, field)
            require(all(width >= 1 for width in widths), f"{field}={widths}; allowed: widths of at least 1")


class ExFM(nn.Module):
    """``student`` with what it takes to learn from a teacher; outside training it is the student alone.

    Raises:
        InvalidArgument: the student has no head.
    """

    def __init__(self, student: nn.Module, config: ExFMConfig | None = None) -> None:
        super().__init__()
        self.student = student
        self.config = config = config or ExFMConfig()
        self.hidden_width = last_layer(student).in_features
        widths = (self.hidden_width, *config.head_mlp, 1)
        self.auxiliary = Mlp(widths)
        self.adapter = Mlp((1, *config.adapter_mlp, 1)) if config.adapter else None
        self.adapted = Mlp(widths) if config.adapter else None

    def forward(self, batch: Batch, teacher: Tensor | None = None) -> Tensor | TrainingOutput:
        """Logits [N], in training with the loss of all but the student's own head; ``teacher`` [N] is needed then."""
        if not self.training:
            served: Tensor = self.student(batch)
            return served
        if teacher is None:
            raise InvalidArgument("training needs the teacher's probability for each candidate; got none")
        output, hidden = self._run_student(batch)
        loss = self._auxiliary_loss(hidden, batch.labels, teacher)
        if isinstance(output, TrainingOutput):
            return TrainingOutput(output.logits, output.auxiliary_loss + loss)
        return TrainingOutput(output, loss)

    def _run_student(self, batch: Batch) -> tuple[Tensor | TrainingOutput, Tensor]:
        """What the student gives, and z [N, h], which its last layer is given on the way."""
        seen: list[Tensor] = []
        hook = last_layer(self.student).register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
        with hook:
            output = self.student(batch)
        return output, seen[0].reshape(-1, self.hidden_width)

    def _auxiliary_loss(self, hidden: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
        hidden = scale_gradient(hidden, self.config.gradient_scale)
        scaled = (self.config.label_scale * teacher).clamp(max=1.0)
        loss = self.config.loss_weight * _cross_entropy(self.auxiliary(hidden), scaled)
        if self.adapter is None or self.adapted is None:
            return loss
        corrected = self.adapter(teacher.unsqueeze(-1))
        target = torch.sigmoid(corrected.detach().float()).squeeze(-1)
        return loss + _cross_entropy(corrected, labels) + _cross_entropy(self.adapted(hidden), target)


def last_layer(student: nn.Module) -> nn.Linear:
    """The last layer of ``student``'s head, which is the last of its own ``Mlp``s that ends in one number.

    Raises:
        InvalidArgument: there is none.
    """
    ends = [cast(nn.Linear, child.layers[-1]) for child in student.children() if isinstance(child, Mlp)]
    heads = [layer for layer in ends if layer.out_features == 1]
    if not heads:
        raise InvalidArgument(f"{type(student).__name__} has no head that is an Mlp; allowed: a model of the zoo")
    return heads[-1]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over ``logits`` [N, 1] and ``targets`` [N]."""
    return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(-1).float(), targets.float())


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself, whose gradient is multiplied by ``factor`` on its way back."""
    same = x.view_as(x)
    if same.requires_grad:
        same.register_hook(lambda gradient: factor * gradient)
    return same


def model_flops(config: ExFMConfig, student: FlopCount, hidden_width: int, num_candidates: int) -> FlopCount:
    """``student`` and what training adds for ``num_candidates`` in all; nothing needs a gradient by the teacher."""
    added = mlp(num_candidates, (hidden_width, *config.head_mlp, 1))
    needless = 0
    if config.adapter:
        widths = (1, *config.adapter_mlp, 1)
        added = 2 * added + mlp(num_candidates, widths)
        needless = linear(num_candidates, *widths[:2])
    return FlopCount(student.fwd + added, student.bwd + 2 * added - needless, student.training_only + added)
