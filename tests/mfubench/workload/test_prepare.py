"""From what a user asks for to a workload: defaults, hashes, sources, and what is refused before it is allocated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfubench.errors import BadInput
from mfubench.identity import digest
from mfubench.measure.operators import tensors_of
from mfubench.workload import prepare as prepare_module
from mfubench.workload.prepare import DEFAULT_BATCH_SIZE, DEFAULT_SIZE, mover, prepare
from mfubench.workload.spec import CHOICES, NUM_ROTATED, Workload, WorkloadSpec
from mfubench.workload.step import make_optimizers, run_step
from mfubench.workload.zoo import list_models, num_params

Zoo = Callable[..., Workload]
DATA = {"kuairand": "kuairand-slice", "movielens": "ml-latest-small"}


@pytest.fixture(params=["synthetic", "kuairand", "movielens"])
def source(request: pytest.FixtureRequest) -> str:
    """Each data source as the command line names it; the real ones where they are."""
    if request.param == "synthetic":
        return "synthetic"
    folder: Path = request.getfixturevalue("test_data")
    return f"{request.param}:{folder / DATA[request.param]}"


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def hashes(workload: Workload) -> tuple[str, str]:
    return workload.description["model_hash"], workload.description["data_hash"]


# What a spec refuses by itself.


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_there_is_not_is_named_with_what_there_is(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        WorkloadSpec("transformer", **{name: "sideways"})  # type: ignore[arg-type]
    assert str(caught.value) == f"--{name} 'sideways' is unknown; allowed: {', '.join(CHOICES[name])}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 0}, "--batch-size 0; allowed: 1 or more"),
        ({"batch_size": -3}, "--batch-size -3; allowed: 1 or more"),
        ({"steps": 0}, "--steps 0; allowed: 1 or more"),
        ({"seed": -1}, "--seed -1; allowed: 0 or more, below 2[*][*]63"),
        ({"seed": 2**63}, "--seed 9223372036854775808; allowed"),
    ],
)
def test_numbers_out_of_range(change: dict[str, int], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        WorkloadSpec("transformer", **change)  # type: ignore[arg-type]


# Defaults.


def test_defaults_on_a_cpu(no_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DEFAULT_SIZE == "base"
    monkeypatch.setattr(prepare_module, "DEFAULT_SIZE", "tiny")  # which is quicker to build
    workload = prepare(WorkloadSpec("transformer", steps=1))
    told = workload.description
    assert (told["size"], told["batch_size"], told["dtype"]) == ("tiny", DEFAULT_BATCH_SIZE["cpu"], "fp32")
    assert (told["device"], told["mode"], told["impl"], told["compile"]) == ("cpu", "train", "auto", "none")
    assert (told["data"], told["seed"], told["overrides"]) == ("synthetic", 0, {})
    assert workload.device.type == "cpu" and workload.num_samples == [32]


@pytest.mark.gpu
def test_defaults_on_a_gpu() -> None:
    told = prepare(WorkloadSpec("transformer", size="tiny", steps=1)).description
    assert (told["device"], told["dtype"], told["batch_size"]) == ("cuda", "bf16", DEFAULT_BATCH_SIZE["cuda"])


@pytest.mark.gpu
@pytest.mark.parametrize("candidates", [1, 3])
def test_batches_wait_for_a_gpu_in_page_locked_memory(candidates: int) -> None:
    workload = prepare(WorkloadSpec("transformer", size="tiny", steps=1, batch_size=4, candidates=candidates))
    assert all(tensor.is_pinned() for batch in workload.inputs for tensor in tensors_of(batch))


def test_batches_in_page_locked_memory_are_the_same(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any other a copy waits for the device, and the host falls behind it in every step."""
    (batch,) = zoo(steps=1).inputs
    pinned: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: [pinned.append(id(tensor)), tensor.clone()][1])
    copied = batch.pin_memory()
    assert sorted(pinned) == sorted(map(id, tensors_of(batch)))
    pairs = zip(tensors_of(batch), tensors_of(copied), strict=True)
    assert all(torch.equal(one, other) and one is not other for one, other in pairs)


def test_memory_of_a_batch_waits_for_the_stream_that_reads_it(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next batch, fetched while a step computes, could be written over one that the step still reads."""
    (batch,) = zoo(steps=1).inputs
    kept: list[tuple[int, Any]] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append((id(tensor), stream)))
    stream: Any = object()
    batch.record_stream(stream)
    assert sorted(key for key, _ in kept) == sorted(map(id, tensors_of(batch)))
    assert all(of is stream for _, of in kept)


@pytest.mark.gpu
def test_a_gpu_fetches_a_batch_while_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step would wait for its batch."""
    (batch,) = prepare(WorkloadSpec("transformer", size="tiny", steps=1, batch_size=4)).inputs
    made: list[torch.cuda.Stream] = []
    new = torch.cuda.Stream
    monkeypatch.setattr(torch.cuda, "Stream", lambda *args, **more: made.append(new(*args, **more)) or made[-1])
    fetch, computed = mover(torch.device("cuda")), torch.cuda.Event()
    fetch(batch)  # the first one allocates memory, which may wait for the device
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # cycles, about a second
    computed.record()
    fetched = fetch(batch)
    made[0].synchronize()
    assert not computed.query()
    for one, other in zip(tensors_of(batch), tensors_of(fetched), strict=True):
        assert torch.equal(one, other.cpu())
    assert computed.query()  # reading it on the stream that computes has waited


def test_what_is_asked_for_wins(zoo: Zoo) -> None:
    workload = zoo(dtype="bf16", batch_size=3, mode="infer", overrides={"num_layers": "2"})
    told = workload.description
    assert (told["dtype"], told["batch_size"], told["mode"]) == ("bf16", 3, "infer")
    assert told["overrides"] == {"num_layers": "2"} and len(workload.module.layers) == 2
    assert not workload.module.training and workload.optimizers == []


@pytest.mark.parametrize(("steps", "sets"), [(1, 1), (NUM_ROTATED + 3, NUM_ROTATED)])
def test_there_are_input_sets_to_rotate_and_no_more_than_steps(zoo: Zoo, steps: int, sets: int) -> None:
    inputs = zoo(steps=steps).inputs
    assert len(inputs) == sets
    assert len({tuple(batch.candidate_items.tolist()) for batch in inputs}) == sets


# Hashes.


def test_models_share_their_data(zoo: Zoo, source: str) -> None:
    """Two runs compare when their data hashes agree, and these two models read other sequences of it."""
    transformer, kunlun = (zoo(model, data=source) for model in ("transformer", "kunlun"))
    assert hashes(transformer)[1] == hashes(kunlun)[1] and hashes(transformer)[0] != hashes(kunlun)[0]
    for one, other in zip(transformer.inputs, kunlun.inputs, strict=True):
        assert torch.equal(one.labels, other.labels) and torch.equal(one.candidate_items, other.candidate_items)


def test_the_same_request_has_the_same_hashes(zoo: Zoo, source: str) -> None:
    assert hashes(zoo(data=source)) == hashes(zoo(data=source))


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 5}, {"size": "small"}, {"steps": 2}])
def test_other_data_has_another_hash(zoo: Zoo, change: dict[str, Any]) -> None:
    assert hashes(zoo(**change))[1] != hashes(zoo())[1]


def test_every_source_has_another_hash(zoo: Zoo, test_data: Path) -> None:
    sources = ["synthetic", *(f"{kind}:{test_data / folder}" for kind, folder in DATA.items())]
    assert len({hashes(zoo(data=data))[1] for data in sources}) == 3


def test_another_config_is_another_model_on_the_same_data(zoo: Zoo) -> None:
    plain, changed = zoo("kunlun"), zoo("kunlun", overrides={"comp_skip": "false"})
    assert hashes(plain)[0] != hashes(changed)[0] and hashes(plain)[1] == hashes(changed)[1]


@pytest.mark.parametrize("change", [{"mode": "infer"}, {"dtype": "bf16"}, {"impl": "reference"}])
def test_how_a_model_runs_is_in_neither_hash(zoo: Zoo, change: dict[str, str]) -> None:
    assert hashes(zoo(**change)) == hashes(zoo())


def test_a_seed_makes_the_same_weights(zoo: Zoo) -> None:
    one, same, other = (zoo(seed=seed).module.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_digest_is_of_all_its_parts() -> None:
    assert digest("a", "b") != digest("ab") != digest("ba") and digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})
    assert len(digest("a")) == 16


# Every source runs, and its FLOPs are those of its lengths.


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("model", ["transformer", "kunlun"])
def test_every_source_runs(zoo: Zoo, source: str, model: str, mode: str) -> None:
    workload = zoo(model, data=source, mode=mode)
    run_step(workload, 0)
    assert workload.needed is not None
    exact, padded = workload.needed(workload.inputs[0])
    assert 0 < exact.fwd <= padded.fwd and exact.bwd <= padded.bwd
    assert (exact.bwd > 0) == (mode == "train")


def test_rows_keep_to_the_maximum_lengths(zoo: Zoo) -> None:
    lengths = zoo("kunlun", overrides={"engagement.max_length": "3", "exposure.max_length": "5"}).inputs[0].lengths()
    assert max(lengths["clicks"]) <= 3 and max(lengths["impressions"]) <= 5


def test_large_tables_train_sparsely_and_the_rest_with_adamw(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfu_models.common.embedding.MAX_DENSE_ROWS", 100)
    workload = zoo()
    adamw, adagrad = workload.optimizers
    assert isinstance(adamw, torch.optim.AdamW) and isinstance(adagrad, torch.optim.Adagrad)
    tables = {m.weight for m in workload.module.modules() if isinstance(m, nn.Embedding) and m.sparse}
    assert tables and set(adagrad.param_groups[0]["params"]) == tables
    every = {*adamw.param_groups[0]["params"], *adagrad.param_groups[0]["params"]}
    assert every == set(workload.module.parameters())


def test_frozen_parameters_have_no_optimizer() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    (only,) = make_optimizers(model)
    assert only.param_groups[0]["params"] == [model.bias]
    assert make_optimizers(model.requires_grad_(False)) == []


# What is refused.


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": "nonesuch"}, InvalidArgument, "unknown model 'nonesuch'; the zoo has: transformer, .*, kunlun"),
        ({"size": "huge"}, InvalidArgument, "transformer has no size 'huge'; it has: tiny, small"),
        ({"overrides": {"depth": "2"}}, InvalidArgument, "'depth' is not a field.*; allowed: max_length"),
        ({"overrides": {"num_layers": "two"}}, InvalidArgument, "num_layers='two' is not allowed; allowed: "),
        ({"overrides": {"width": "33"}}, InvalidArgument, "width=33; allowed: a multiple of"),
        ({"data": "criteo:x"}, BadInput, "data source 'criteo:x' is unknown; allowed: synthetic"),
        ({"data": "kuairand:/nowhere"}, BadInput, "/nowhere: no such file or folder"),
        ({"compile": "cudagraphs"}, BadInput, "needs a CUDA device"),
        (
            {"overrides": {"width": str(2 * 10**12)}},
            BadInput,
            "transformer cannot be built with such a config: .*; choose smaller",
        ),
        ({"batch_size": 10**9, "candidates": 1000}, BadInput, "--batch-size 1000000000: .*; use a smaller one"),
    ],
)
def test_bad_input(zoo: Zoo, changes: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        zoo(**changes)
    assert "\n" not in str(caught.value)


def test_an_implementation_that_an_op_does_not_have(zoo: Zoo) -> None:
    workload = zoo(impl="triton")
    with pytest.raises(InvalidArgument, match="has no impl='triton' yet"):
        run_step(workload, 0)


def test_a_gpu_that_is_not_there(no_cuda: None) -> None:
    with pytest.raises(BadInput, match="--device cuda: no CUDA device is visible; use --device cpu"):
        prepare(WorkloadSpec("transformer", device="cuda"))


@pytest.mark.parametrize(("mode", "copies"), [("train", 4), ("infer", 1)])
def test_what_cannot_fit_is_refused_to_the_byte(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, mode: str, copies: int
) -> None:
    """Training keeps a gradient and two moments beside each parameter."""
    needed = copies * sum(parameter.nbytes for parameter in zoo().module.parameters())
    monkeypatch.setattr(prepare_module, "free_host_memory", lambda: needed - 1)
    with pytest.raises(BadInput, match=f"transformer needs at least {needed / 1e9:.1f} GB for its parameters"):
        zoo(mode=mode)
    monkeypatch.setattr(prepare_module, "free_host_memory", lambda: needed)
    assert zoo(mode=mode).inputs


def test_what_this_process_holds_of_a_gpu_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a first model that was let go: torch keeps its memory for the next."""
    for name, value in {"mem_get_info": (2, 100), "memory_reserved": 70, "memory_allocated": 10}.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda device, value=value: value)
    assert prepare_module._free_on(torch.device("cuda")) == 62


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_a_table_with_row_sparse_gradients_has_one_state_beside_it(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Its gradient is the rows of a batch, and Adagrad sums into a table of its size: what is asked for is there."""
    monkeypatch.setattr("mfu_models.common.embedding.MAX_DENSE_ROWS", 100)
    workload = zoo(mode=mode)
    needed = sum(parameter.nbytes for parameter in workload.module.parameters())
    if mode == "train":
        run_step(workload, 0)
        adamw, adagrad = workload.optimizers
        dense = adamw.param_groups[0]["params"]
        assert adagrad.state and dense
        needed += sum(p.nbytes for p in dense)  # their gradients
        states = (state for optimizer in workload.optimizers for state in optimizer.state.values())
        needed += sum(value.nbytes for state in states for value in state.values() if value.dim())
    monkeypatch.setattr(prepare_module, "free_host_memory", lambda: needed - 1)
    with pytest.raises(BadInput, match="transformer needs at least"):
        zoo(mode=mode)
    monkeypatch.setattr(prepare_module, "free_host_memory", lambda: needed)
    assert zoo(mode=mode).inputs


def test_the_largest_model_is_refused_before_it_is_allocated(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 36 GB of parameters are only counted, on meta tensors, and no batch is drawn."""
    monkeypatch.setattr(prepare_module, "free_host_memory", lambda: 20 * 10**9)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("the model is being built"))
    with pytest.raises(
        BadInput, match=r"kunlun needs at least 14\d\.\d GB .*; 20.0 GB are free on cpu; choose a smaller --size"
    ):
        zoo("kunlun", size="xxl")


def test_a_host_that_does_not_tell_its_memory_is_not_refused(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "free_host_memory", lambda: None)
    assert zoo().inputs


def test_the_zoo_lists_full_lengths() -> None:
    listed = {model["name"]: model for model in list_models()}
    assert listed.keys() == MODELS.keys()
    for model in listed.values():
        for facts in model["sizes"].values():
            assert 0 < facts["fwd_gflops_per_sample"] < facts["train_gflops_per_sample"]
            assert 0 < facts["dense_params"] < facts["params"] and min(facts["sequences"].values()) > 0
        ultra = {size: facts for size, facts in model["sizes"].items() if size.startswith("ultra_")}  # HSTU's second
        plain = {size: facts for size, facts in model["sizes"].items() if size not in {*ultra, "dlrmv3"}}
        for ladder in (plain, ultra):
            work = [facts["train_gflops_per_sample"] for facts in ladder.values()]
            assert work == sorted(work)


def test_single_ops_have_their_own_implementation() -> None:
    assert WorkloadSpec("kunlun", impl="reference,gdpa=triton").impl == "reference,gdpa=triton"


@pytest.mark.parametrize("impl", ["x", "reference,x=triton", "reference,gdpa=x", "reference,gdpa", "x,gdpa=triton"])
def test_implementations_that_there_are_not(impl: str) -> None:
    with pytest.raises((BadInput, InvalidArgument), match=r"allowed|unknown"):
        WorkloadSpec("kunlun", impl=impl)


def test_a_table_that_two_modules_share_is_there_once() -> None:
    first, second = nn.Embedding(100, 8), nn.Embedding(100, 8)
    second.weight = first.weight
    assert num_params(nn.ModuleList([first, second, nn.Linear(2, 3)])) == (809, 9)


@pytest.mark.parametrize(("batch_size", "warned"), [(2, False), (3, True)])
def test_a_log_of_fewer_impressions_than_a_step_has_requests_is_warned_of(
    batch_size: int, warned: bool, tmp_path: Path
) -> None:
    header = "user_id,video_id,time_ms,is_click,is_follow,is_comment,is_forward,long_view,duration_ms,is_profile_enter"
    rows = [f"1,{video},165000000000{video},{video % 2},0,0,0,1,8000,0" for video in (1, 2)]
    (tmp_path / "log.csv").write_text("\n".join([header, *rows]) + "\n")
    data = f"kuairand:{tmp_path / 'log.csv'}"
    found = prepare(WorkloadSpec("dlrm", size="tiny", device="cpu", batch_size=batch_size, data=data, steps=1)).warnings
    said = "a step has 3 requests, the log only 2 impressions: batches repeat the same rows"
    assert [warning.startswith(said) for warning in found] == [True] * warned


def test_what_is_made_as_it_is_drawn_never_ends() -> None:
    assert prepare(WorkloadSpec("dlrm", size="tiny", device="cpu", batch_size=64, steps=1)).warnings == []
