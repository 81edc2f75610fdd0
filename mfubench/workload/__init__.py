"""A workload: model, size, batch source, dtype and mode, made into steps that are seeded, hashed and repeatable."""

from .prepare import prepare as prepare
from .spec import Workload as Workload
from .spec import WorkloadSpec as WorkloadSpec
