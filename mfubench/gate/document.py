"""What `mfubench gate` found, as one document, from which every report of it is made."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from mfubench.measure.environment import command_line, environment

from .judge import METHOD, Judged
from .policy import Policy
from .rows import Outcome
from .source import Source

SCHEMA_VERSION = 1  # what is added leaves it; what is renamed, left out or means something else raises it


def document(
    judged: Judged,
    base: Source,
    head: Source,
    policy: Policy,
    *,
    device: str,
    targets: Sequence[str],
    exits: Mapping[str, bool],
) -> dict[str, Any]:
    """As JSON; ``exits``: what besides a FAIL is to end with an exit code of its own (`Outcome.exit_code`)."""
    rows, warnings = policy.waive(judged.rows, datetime.now(UTC).date())
    outcome = Outcome.of(rows)
    return {
        "schema_version": SCHEMA_VERSION,
        "command_line": command_line(),
        "verdict": outcome.verdict,
        "exit_code": outcome.exit_code(**exits),
        "counted": outcome.counted,
        "base": base.to_document(),
        "head": head.to_document(),
        "environment": environment(torch.device(device)),
        "toolchain": _toolchain() if targets else {},
        "targets": list(targets),
        "workloads": judged.workloads,
        "policy": policy.to_document(),
        "rows": outcome.to_rows(),
        "timings": judged.timings,
        "notes": judged.notes,
        "warnings": [*judged.warnings, *warnings],
        "method": METHOD,
    }


def _toolchain() -> dict[str, str]:
    from mfubench.kernels.machine_code import toolchain

    return toolchain()
