"""``python -m flurka_bench`` is the ``flurka-bench`` command."""

from flurka_bench.cli import main

main()
