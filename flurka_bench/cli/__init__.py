"""The ``flurka-bench`` command: one module a verb, each turning arguments into one call and
rendering what it returns."""

from flurka_bench.cli.main import main

__all__ = ["main"]
