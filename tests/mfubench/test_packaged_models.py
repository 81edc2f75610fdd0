"""Models out of other people's packages, where those are installed: the same profile, and their FLOPs by hand."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mfubench.profiling import profile
from mfubench.run import Run
from mfubench.workload.spec import WorkloadSpec

pytestmark = pytest.mark.usefixtures("fixed_calibration")
B = 8

TORCHREC = """
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

FEATURES = [f"feature_{number}" for number in range(3)]
CONFIGS = [
    EmbeddingBagConfig(name=f"t_{name}", embedding_dim=16, num_embeddings=100, feature_names=[name])
    for name in FEATURES
]

def make_batch(batch_size, device):
    lengths = torch.randint(0, 4, (len(FEATURES) * batch_size,))
    values = torch.randint(0, 100, (int(lengths.sum()),))
    return torch.randn(batch_size, 13, device=device), KeyedJaggedTensor(FEATURES, values, lengths=lengths).to(device)

def dlrm(tables):
    return DLRM(tables, 13, dense_arch_layer_sizes=[32, 16], over_arch_layer_sizes=[32, 1]), make_batch

def plain():
    return dlrm(EmbeddingBagCollection(CONFIGS, device=torch.device("cpu")))

def fused():
    options = {"optimizer_type": torch.optim.SGD, "optimizer_kwargs": {"lr": 0.1}, "device": torch.device("cpu")}
    return dlrm(FusedEmbeddingBagCollection(CONFIGS, **options))
"""
PAIRS = 4 * 3 // 2  # of three tables and the dense features
DLRM = 2 * (13 * 32 + 32 * 16 + 4 * 4 * 16 + (16 + PAIRS) * 32 + 32)  # forward, a sample: the interaction is a product

BERT = """
import torch
from transformers import BertConfig, BertModel

def build():
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        attn_implementation=ATTENTION,
    )

    def make_batch(batch_size, device):
        mask = torch.ones(batch_size, 12, dtype=torch.long, device=device)
        mask[:, 9:] = 0
        return {"input_ids": torch.randint(50, (batch_size, 12), device=device), "attention_mask": mask}

    return BertModel(config), make_batch
"""
LAYER = 2 * 12 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * 12 * 12 * 32
POOLER = 2 * 32 * 32


@pytest.fixture
def profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Profiles a function of a module that is written into the working directory."""

    def run(text: str, function: str, mode: str) -> Run:
        name = f"packaged_{abs(hash((text, function, mode)))}"
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        return profile(WorkloadSpec(f"{name}:{function}", mode=mode, device="cpu", steps=2, batch_size=B))

    return run


def balanced(run: Run) -> None:
    assert sum(line.ms for line in run.ledger) == pytest.approx(run.step["time_ms"]["median"], rel=1e-3)
    assert sum(row.fwd_model_flops + row.bwd_model_flops for row in run.modules) == run.flops["model"]
    assert run.flops["coverage"] == 1.0 and run.flops["unknown_ops"] == []
    assert not any("left out" in warning for warning in run.warnings)


@pytest.mark.filterwarnings("ignore")  # of packages that nobody here wrote
@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("tables", ["plain", "fused"])
def test_a_dlrm_of_torchrec(tables: str, mode: str, profiled: Callable[..., Run]) -> None:
    """Keyed jagged inputs; and FBGEMM's tables, whose optimizer runs inside the backward."""
    pytest.importorskip("torchrec", reason="torchrec is not installed; see the extras [torchrec] and [torchrec-cpu]")
    run = profiled(TORCHREC, tables, mode)
    assert run.flops["fwd_model"] == B * DLRM
    assert run.flops["bwd_model"] == (B * (2 * DLRM - 2 * 13 * 32) if mode == "train" else 0)
    balanced(run)
    looked_up = {row.module for row in run.kernels if row.kind == "embedding"}
    assert any(name.startswith("sparse_arch.embedding_bag_collection") for name in looked_up), looked_up


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_bert_of_transformers(attention: str, mode: str, profiled: Callable[..., Run]) -> None:
    """Built from a config, its weights drawn here: the same count whichever way its attention runs."""
    pytest.importorskip("transformers", reason="transformers is not installed; pip install transformers")
    run = profiled(BERT.replace("ATTENTION", repr(attention)), "build", mode)
    forward = B * (2 * LAYER + POOLER)
    assert run.flops["fwd_model"] == forward
    assert run.flops["bwd_model"] == (2 * forward if mode == "train" else 0)
    balanced(run)
    assert "encoder.layer.0.attention.self.query" in {row.name for row in run.modules}
