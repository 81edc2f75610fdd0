"""Configs: what is refused and how, what overrides do, other schemas, and the sizes' parameter counts."""

from dataclasses import replace
from importlib import import_module
from operator import attrgetter
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS, model_spec
from mfu_models.batch import SequenceField
from mfu_models.common.config import SYNTHETIC_SCHEMAS
from mfubench.workload.zoo import num_params
from tests.model_zoo.settings import (
    BASES,
    CLICKS,
    KUNLUN,
    SWITCHES,
    TRANSFORMER,
    VIEWS,
    batch_of,
    bce,
    name_of,
    schema_with,
    spec_of,
)

KUAIRAND = schema_with(
    SequenceField("clicks", "engagement"),
    SequenceField("long_views", "engagement"),
    SequenceField("events", "exposure"),
    num_sides=2,
)
OWN_SCHEMAS = {"dlrm", "wukong", "interformer", "hstu"}  # the others' sizes are for the same data, to compare on it
# Model, override, and what its error must say: field, value, and what is allowed.
REFUSED = [
    ("kunlun", "depth", 3, "'depth' is not a field of this model's config; allowed: width, num_layers"),
    ("kunlun", "engagement.depth", 3, "'engagement.depth' is not a field .*; allowed: max_length, width"),
    ("kunlun", "width.first", 3, "'width.first': width has no fields of its own"),
    ("kunlun", "schema", 3, "'schema' is not a field of this model's config; allowed: width"),
    ("kunlun", "schema.source", "x", "'schema.source' is not a field of this model's config; allowed: width"),
    ("kunlun", "engagement", 50, "'engagement' is a group; set one of its fields: engagement.max_length"),
    ("kunlun", "width", "wide", "width='wide' is not allowed; allowed: a whole number"),
    ("kunlun", "width", 1.5, "width=1.5 is not allowed; allowed: a whole number"),
    ("kunlun", "rote_scale_s", "a day", "rote_scale_s='a day' is not allowed; allowed: a number"),
    ("kunlun", "rote", "maybe", "rote='maybe' is not allowed; allowed: true, false"),
    ("kunlun", "expert_mlp", "8,wide", "expert_mlp='8,wide' is not allowed; allowed: whole numbers"),
    ("kunlun", "expert_mlp", 2.5, "expert_mlp=2.5 is not allowed; allowed: whole numbers"),
    ("kunlun", "expert_mlp", [8, None], "expert_mlp=.* is not allowed; allowed: whole numbers"),
    ("kunlun", "ffn", "mlp", "ffn='mlp' is not allowed; allowed: pffn, gdpa"),
    ("kunlun", "pooling", "mean", "pooling='mean' is not allowed; allowed: pma, hsp"),
    ("kunlun", "attention", "local", "attention='local' is not allowed; allowed: full, window"),
    ("kunlun", "gdpa_scale", 1, "gdpa_scale=1 is not allowed; allowed: one, max_length"),
    ("kunlun", "rote_gap", "none", "rote_gap='none' is not allowed; allowed: adjacent, request"),
    ("kunlun", "activation", "tanh", "activation='tanh'; allowed: gelu, gelu_tanh"),
    ("kunlun", "width", 0, "width=0; allowed: at least 1"),
    ("kunlun", "num_layers", 0, "num_layers=0; allowed: at least 1"),
    ("kunlun", "num_summary", 0, "num_summary=0; allowed: at least 1"),
    ("kunlun", "kv_width", 0, "kv_width=0; allowed: at least 1"),
    ("kunlun", "fm_rank", -1, "fm_rank=-1; allowed: at least 1"),
    ("kunlun", "kron_rank", 0, "kron_rank=0; allowed: at least 1"),
    ("kunlun", "seeds_per_token", 1, "seeds_per_token=1; allowed: at least 2"),
    ("kunlun", "num_experts", 0, "num_experts=0; allowed: 1 to 5, half the tokens"),
    ("kunlun", "num_experts", 6, "num_experts=6; allowed: 1 to 5, half the tokens"),
    ("kunlun", "expert_mlp", "64,0", r"expert_mlp=\(64, 0\); allowed: widths of at least 1"),
    ("kunlun", "head_mlp", "0", r"head_mlp=\(0,\); allowed: widths of at least 1"),
    ("kunlun", "rote_scale_s", 0, "rote_scale_s=0.0; allowed: more than 0 seconds"),
    ("kunlun", "rote_scale_s", "nan", "rote_scale_s=nan; allowed: more than 0 seconds"),
    ("kunlun", "engagement.window", 0, "engagement.window=0; allowed: at least 1"),
    ("kunlun", "exposure.num_heads", 0, "exposure.num_heads=0; allowed: at least 1"),
    ("kunlun", "exposure.num_heads", 3, r"exposure.width=16; allowed: a multiple of 6 \(num_heads=3"),
    ("kunlun", "engagement.width", 34, r"engagement.width=34; allowed: a multiple of 4 \(num_heads=2"),
    ("kunlun", "engagement.num_tokens", 0, "engagement.num_tokens=0; allowed: at least 1"),
    ("kunlun", "engagement.max_length", 0, "engagement.max_length=0; allowed: at least 1"),
    ("kunlun", "engagement.num_layers", 3, "engagement.num_layers=3; allowed: 1 to num_layers=2"),
    ("kunlun", "engagement.num_layers", 0, "engagement.num_layers=0; allowed: 1 to num_layers=2"),
    ("transformer", "window", 3, "'window' is not a field of this model's config; allowed: max_length, width"),
    ("transformer", "norm_order", "both", "norm_order='both' is not allowed; allowed: post, pre"),
    ("transformer", "num_layers", 0, "num_layers=0; allowed: at least 1"),
    ("transformer", "num_heads", 0, "num_heads=0; allowed: at least 1"),
    ("transformer", "num_heads", 5, "width=32; allowed: a multiple of num_heads=5"),
    ("transformer", "width", 33, "width=33; allowed: a multiple of num_heads=2"),
    ("transformer", "max_length", 0, "max_length=0; allowed: at least 1"),
    ("transformer", "head_mlp", "8,-1", r"head_mlp=\(8, -1\); allowed: widths of at least 1"),
]


@pytest.mark.parametrize(("name", "field", "value", "message"), REFUSED, ids=[f"{r[0]}-{r[1]}={r[2]}" for r in REFUSED])
def test_what_makes_no_model_is_refused_with_field_value_and_what_is_allowed(
    name: str, field: str, value: object, message: str
) -> None:
    """A config would be built that fails later, far from its cause, or be refused without saying why."""
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        MODELS[name].config("tiny", overrides={field: value})


@pytest.mark.parametrize("name", MODELS)
def test_unknown_sizes_are_refused(name: str) -> None:
    """A mistyped size would be an inscrutable KeyError."""
    with pytest.raises(InvalidArgument, match=f"{name} has no size 'huge'; it has: tiny, small, base, large"):
        MODELS[name].config("huge")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_zoo_is_tested_in_every_value_of_its_switches(name: str) -> None:
    """A model that is new to the zoo could go without the checks of FLOPs, of gradients and of leaks between samples.

    The two with enough switches that pairs of them matter enter tests/model_zoo/settings.py, whose tests do all three.
    The others have few switches: each has a test file of its own, with SETTINGS that take every value of each, and runs
    the checks of zoo_checks.py on them; to run both would test them twice.
    """
    if name in BASES:
        missing = set(switches_of(type(BASES[name]))) - set(SWITCHES[name])
        assert missing <= {"activation"}
        return
    tests = import_module(f"tests.model_zoo.test_{name}")
    for field, values in switches_of(type(MODELS[name].config("tiny"))).items():
        assert {getattr(config, field) for config in tests.SETTINGS.values()} == values, field
    unit = "request" if MODELS[name].request_level else "sample"
    for test in ("test_flops", "test_gradients", f"test_a_{unit}_does_not_see_the_others"):
        (mark,) = getattr(tests, test).pytestmark
        assert mark.name == "parametrize" and list(mark.args[1]) == list(tests.SETTINGS.values())


def switches_of(config_type: type) -> dict[str, set[Any]]:
    """Every value of each field that chooses one of a few."""
    hints = get_type_hints(config_type).items()
    literals = {field: set(get_args(kind)) for field, kind in hints if get_origin(kind) is Literal}
    return literals | {field: {False, True} for field, kind in hints if kind is bool}


def test_unknown_models_are_refused() -> None:
    """As for sizes."""
    with pytest.raises(InvalidArgument, match=r"unknown model 'bert'; the zoo has: .*transformer"):
        model_spec("bert")


@pytest.mark.parametrize("name", MODELS)
def test_a_source_without_sequences_is_refused(name: str) -> None:
    """Every model reads event sequences; without one there is nothing to build."""
    none = "source test has 0 event sequences" if name == "sdim" else "source test has no event sequence"
    with pytest.raises(InvalidArgument, match=none):
        MODELS[name].config("tiny", schema_with(num_sides=2))


def test_side_ids_must_fit_the_width() -> None:
    """The transformer's event is as wide as two items, side ids sharing half of it."""
    with pytest.raises(InvalidArgument, match="width=32; allowed: a multiple of 3, the side ids of an event"):
        MODELS["transformer"].config("tiny", schema_with(CLICKS, num_sides=3))
    with pytest.raises(InvalidArgument, match="source test has no side ids"):
        MODELS["transformer"].config("tiny", schema_with(CLICKS, num_sides=0))


def test_overrides_are_parsed_by_type() -> None:
    """What the command line passes on as text would stay text, or change another field."""
    changed = MODELS["kunlun"].config(
        "tiny",
        overrides={
            "engagement.window": "50",
            "exposure.window": 7,
            "ffn": " pffn ",
            "comp_skip": "False",
            "rote": "0",
            "qo_proj": True,
            "summary_gate": "true",
            "rote_scale_s": "3.6e3",
            "expert_mlp": "(128, 64)",
            "head_mlp": (16,),
        },
    )
    default = MODELS["kunlun"].config("tiny")
    assert changed == replace(
        default,
        engagement=replace(default.engagement, window=50),
        exposure=replace(default.exposure, window=7),
        ffn="pffn",
        comp_skip=False,
        rote=False,
        qo_proj=True,
        summary_gate=True,
        rote_scale_s=3600.0,
        expert_mlp=(128, 64),
        head_mlp=(16,),
    )


@pytest.mark.parametrize("backwards", [False, True])
def test_overrides_that_need_each_other_work_in_any_order(backwards: bool) -> None:
    """A valid model could not be had, because on the way to it lies one that is not."""
    for name, overrides in (
        ("transformer", {"width": "50", "num_heads": "5"}),
        ("kunlun", {"engagement.width": 30, "engagement.num_heads": 3}),
        ("kunlun", {"num_layers": 1, "engagement.num_layers": 1}),
    ):
        items = list(overrides.items())[:: -1 if backwards else 1]
        config = MODELS[name].config("tiny", overrides=dict(items))
        assert all(attrgetter(path)(config) == int(value) for path, value in items)


@pytest.mark.parametrize("config", [KUNLUN, TRANSFORMER], ids=name_of)
@pytest.mark.parametrize(
    ("schema", "read"),
    [
        (KUAIRAND, {"kunlun": ["clicks", "long_views", "events"], "transformer": ["events"]}),
        (schema_with(CLICKS), {"kunlun": ["clicks"], "transformer": ["clicks"]}),
        (schema_with(VIEWS), {"kunlun": ["views"], "transformer": ["views"]}),
    ],
    ids=["kuairand", "engagement", "exposure"],
)
def test_models_build_on_other_schemas_and_learn(config: Any, schema: Any, read: dict[str, list[str]]) -> None:
    """A model would be tied to the synthetic source's two sequences."""
    config = replace(config, schema=schema)
    spec = spec_of(config)
    assert list(spec.max_lengths(config)) == read[spec.name]
    model = spec.build(config)
    count = len(schema.sequences)
    batch = batch_of(config, [sample[:count] for sample in ((4, 2, 0), (0, 5, 6), (0, 0, 0))])
    logits = model(batch)
    assert logits.shape == batch.labels.shape and logits.isfinite().all()
    bce(logits, batch).backward()


def test_each_sequence_has_the_tower_of_its_kind() -> None:
    """A third sequence would get the widths of the other kind."""
    config = replace(KUNLUN, schema=KUAIRAND)
    assert [tower for _, tower in config.sequence_towers] == [KUNLUN.engagement, KUNLUN.engagement, KUNLUN.exposure]


@pytest.mark.parametrize(("size", "billions"), [("xl", 1.51), ("xxl", 8.62)])
def test_large_sizes_have_the_dense_parameters_of_the_table(size: str, billions: float) -> None:
    """A size is not the model that the documents describe, or asking for its parameters needs its memory."""
    spec = MODELS["kunlun"]
    model = spec.outline(spec.config(size))
    stored = [tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_meta]
    assert sum(stored) < 2e6  # biases and the like
    assert round(num_params(model)[1] / 1e9, 2) == billions


@pytest.mark.parametrize("name", MODELS)
def test_every_size_builds_without_memory(name: str) -> None:
    """A size of the ladder is no valid config for its own schema."""
    spec = MODELS[name]
    assert (spec.schemas is SYNTHETIC_SCHEMAS) == (name not in OWN_SCHEMAS)
    for size in spec.sizes:
        config = spec.config(size)
        assert config.schema is spec.schemas[size]
        assert num_params(spec.outline(config))[1] > 0


@pytest.mark.parametrize("name", MODELS)
def test_an_outline_has_the_shapes_of_the_model(name: str) -> None:
    spec = MODELS[name]
    config = spec.config("tiny")
    built, outline = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in made.named_parameters()}
        for made in (spec.build(config), spec.outline(config))
    )
    assert outline == built
