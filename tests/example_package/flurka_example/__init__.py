"""A package outside flurka-bench that adds a similarity and a compression. Imports no torch."""

from flurka_bench.words.parts import Compression, Similarity

SQUARED_RELU = Similarity(
    name="squared-relu",
    features="random",
    torch="flurka_example.tensors:SquaredReluFeatures",
    ops="flurka_example.ops:SquaredRelu",
    reference="flurka_example.tensors:squared_relu",
    absorbs_queries=True,
    absorbs_keys=True,
    line="-.",
)
STRIDED = Compression(
    name="strided",
    torch="flurka_example.tensors:Strided",
    ops="flurka_example.ops:Strided",
    has_weights=False,
    projection="strided",
    matrix="flurka_example.tensors:strided",
)
