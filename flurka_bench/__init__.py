"""flurka-bench: how fast fused low-rank + kernel attention (FLuRKA, arXiv 2306.15799) is, where,
and at what error."""

__version__ = "0.1.0"
