"""From a case to what it launches: op lists and peak memory. No torch."""

from flurka_bench.lowering.lower import lower
from flurka_bench.lowering.memory import peak_memory_bytes

__all__ = ["lower", "peak_memory_bytes"]
