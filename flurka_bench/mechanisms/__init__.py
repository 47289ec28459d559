"""Mechanisms as arithmetic: their names, the canonical form of a case, op lists and peak memory. No
torch."""

from flurka_bench.mechanisms.lowering import lower
from flurka_bench.mechanisms.memory import peak_memory_bytes
from flurka_bench.mechanisms.names import MECHANISMS, Mechanism, canonical, get

__all__ = ["MECHANISMS", "Mechanism", "canonical", "get", "lower", "peak_memory_bytes"]
