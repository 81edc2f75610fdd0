"""ExFM around the zoo's models: FLOPs, where gradients go and how large they are, what the teacher's labels become."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfu_models.batch import Batch
from mfu_models.common.flops import FlopCount, mlp
from mfu_models.common.layers import Mlp
from mfu_models.exfm import ExFM, ExFMConfig, model_flops, scale_gradient
from mfu_models.output import TrainingOutput
from mfubench.measure.count import count_step
from tests.model_zoo.zoo_checks import batch_of, bce, build, lengths_of

ROWS = [0, 3, 9, 0, 5]
CONFIGS = {"adapter": ExFMConfig(), "head_alone": ExFMConfig(adapter=False), "linear": ExFMConfig(head_mlp=())}


class Student(nn.Module):
    """A head over the dense features: plain aten, so that torch's counter sees all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Mlp((13, 16, 8, 1))

    def forward(self, batch: Batch) -> Tensor:
        return self.head(batch.dense).squeeze(-1)


def student_and_batch(name: str) -> tuple[nn.Module, Batch, FlopCount]:
    spec = MODELS[name]
    config = spec.config("tiny")
    lengths = lengths_of(config, [[n] * len(config.schema.sequences) for n in ROWS])
    return build(spec, config), batch_of(config, lengths), spec.model_flops(config, lengths)


def plain() -> tuple[Student, Batch]:
    torch.manual_seed(0)
    return Student(), student_and_batch("transformer")[1]


def probabilities(batch: Batch) -> Tensor:
    return torch.rand(batch.num_impressions, generator=torch.Generator().manual_seed(3)) / 4


def losses(model: ExFM, batch: Batch, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The student's own loss, and all that is added to it."""
    output = model(batch, teacher)
    assert isinstance(output, TrainingOutput)
    return bce(output.logits, batch), output.auxiliary_loss


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_the_students_and_the_heads(name: str) -> None:
    student, batch, flops = student_and_batch(name)
    config = ExFMConfig()
    model, teacher = ExFM(student, config), probabilities(batch)
    closed = model_flops(config, flops, model.hidden_width, batch.num_impressions)
    count = count_step(model, lambda _tracker: bce(model(batch, teacher), batch).backward())
    assert (count.total("fwd").model, count.total("bwd").model) == (closed.fwd, closed.bwd)
    with torch.no_grad():
        served = count_step(model.eval(), lambda _tracker: model(batch))
    assert served.total().model == closed.inference.fwd == flops.inference.fwd


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_flops_against_torchs_counter(config: ExFMConfig) -> None:
    student, batch = plain()
    fwd = mlp(5, (13, 16, 8, 1))
    closed = model_flops(config, FlopCount(fwd, 2 * fwd - 2 * 5 * 13 * 16), 8, 5)
    with FlopCounterMode(display=False) as forward:
        loss = bce(ExFM(student, config)(batch, probabilities(batch)), batch)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert (forward.get_total_flops(), backward.get_total_flops()) == (closed.fwd, closed.bwd)


@pytest.mark.parametrize(
    ("name", "config"), [*((name, "adapter") for name in MODELS), *(("transformer", c) for c in CONFIGS)]
)
def test_every_parameter_gets_a_gradient(name: str, config: str) -> None:
    student, batch, _ = student_and_batch(name)
    model = ExFM(student, CONFIGS[config])
    bce(model(batch, probabilities(batch)), batch).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        gradient = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
        assert gradient.isfinite().all() and gradient.any(), parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_outside_training_it_is_the_student(name: str) -> None:
    student, batch, _ = student_and_batch(name)
    model = ExFM(student).eval()
    torch.testing.assert_close(model(batch), student(batch), rtol=0, atol=0)
    model.train()
    output = student(batch)
    logits = output.logits if isinstance(output, TrainingOutput) else output
    torch.testing.assert_close(model(batch, probabilities(batch)).logits, logits, rtol=0, atol=0)


def test_the_teacher_does_not_reach_the_serving_head() -> None:
    student, batch = plain()
    model = ExFM(student)
    _, added = losses(model, batch, probabilities(batch))
    added.backward()
    assert student.head.layers[-1].weight.grad is None and student.head.layers[1].weight.grad.any()


def test_beta_scales_the_auxiliary_gradient_into_the_body_and_nothing_else() -> None:
    def gradients(beta: float) -> dict[str, Tensor]:
        student, batch = plain()
        model = ExFM(student, ExFMConfig(gradient_scale=beta))
        losses(model, batch, probabilities(batch))[1].backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    one, twenty = gradients(1), gradients(20)
    for name in one:
        factor = 20 if name.startswith("student.") else 1
        torch.testing.assert_close(twenty[name], factor * one[name], rtol=1e-5, atol=1e-6)


def test_the_students_own_gradient_is_not_scaled() -> None:
    student, batch = plain()
    own, _ = losses(ExFM(student, ExFMConfig(gradient_scale=1e3)), batch, probabilities(batch))
    own.backward()
    scaled = student.head.layers[0].weight.grad.clone()
    student.zero_grad()
    bce(student(batch), batch).backward()
    torch.testing.assert_close(scaled, student.head.layers[0].weight.grad)


def test_the_loss_is_the_written_one() -> None:
    """Recomputed from the heads' logits in fp64, with labels at, above and far above the clipping point."""
    student, batch = plain()
    model = ExFM(student, ExFMConfig(label_scale=4.0, loss_weight=3.0)).double()
    batch = Batch(**{**{f: getattr(batch, f) for f in Batch.__slots__}, "dense": batch.dense.double()})
    teacher = torch.tensor([0.0, 0.1, 0.25, 0.3, 1.0], dtype=torch.float64)
    clipped = torch.tensor([0.0, 0.4, 1.0, 1.0, 1.0], dtype=torch.float64)
    z = torch.nn.functional.gelu(student.head.layers[1](torch.nn.functional.gelu(student.head.layers[0](batch.dense))))

    def h(logits: Tensor, targets: Tensor) -> Tensor:
        p = torch.sigmoid(logits.squeeze(-1))
        return -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()

    adapter = model.adapter(teacher.unsqueeze(-1))
    wanted = 3 * h(model.auxiliary(z), clipped) + h(adapter, batch.labels.double())
    wanted = wanted + h(model.adapted(z), torch.sigmoid(adapter).squeeze(-1))
    torch.testing.assert_close(losses(model, batch, teacher)[1].double(), wanted, rtol=1e-6, atol=1e-6)


def test_the_adapter_learns_from_labels_alone() -> None:
    """Its target is cut off: the distillation of the adapter's answer moves the student, not the adapter."""
    student, batch = plain()
    model, teacher = ExFM(student), probabilities(batch)
    losses(model, batch, teacher)[1].backward()
    together = [parameter.grad.clone() for parameter in model.adapter.parameters()]
    model.zero_grad()
    alone = nn.functional.binary_cross_entropy_with_logits(
        model.adapter(teacher.unsqueeze(-1)).squeeze(-1), batch.labels
    )
    alone.backward()
    for one, other in zip(together, model.adapter.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)


def test_a_scaled_gradient_leaves_the_value_and_needs_no_graph() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    same = scale_gradient(x, 7.0)
    assert torch.equal(same, x)
    (same * 2).sum().backward()
    assert (x.grad == 14).all()
    assert torch.equal(scale_gradient(x.detach(), 7.0), x)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label_scale": 0}, "label_scale=0; allowed: more than 0"),
        ({"loss_weight": -1.0}, "loss_weight=-1.0; allowed: more than 0"),
        ({"gradient_scale": 0.0}, "gradient_scale=0.0; allowed: more than 0"),
        ({"head_mlp": (8, 0)}, r"head_mlp=\(8, 0\); allowed: widths of at least 1"),
        ({"adapter_mlp": (0,)}, r"adapter_mlp=\(0,\); allowed: widths of at least 1"),
    ],
)
def test_bad_configs(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        ExFMConfig(**changes)


def test_what_is_no_student_and_training_without_a_teacher() -> None:
    with pytest.raises(InvalidArgument, match="Linear has no head that is an Mlp; allowed: a model of the zoo"):
        ExFM(nn.Linear(3, 1))
    student, batch = plain()
    with pytest.raises(InvalidArgument, match="training needs the teacher's probability for each candidate"):
        ExFM(student)(batch)
