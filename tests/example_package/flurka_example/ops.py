"""The example's parts as ops: what ``tensors`` launches."""

from flurka_bench.lowering import compression, similarity
from flurka_bench.lowering.recorder import Var


class SquaredRelu(similarity.FeatureMap):
    """relu(y)^2 + 1e-3."""

    def activate(self, y: Var) -> Var:
        """relu, square, addition."""
        positive = self.tape.clamp_min(y)
        return self.tape.add_constant(self.tape.multiply(positive, positive, "square"))


class Strided(compression.Compression):
    """A copy of every window's first row."""

    def shared_rows(self, x: Var, of_values: bool = False) -> Var:
        """x (..., N, c) -> (..., k, c)."""
        channels = x.shape[-1]
        rows = self.case.rank
        return self.tape.copy(
            x, *x.shape[:-2], rows, channels, name=self._name(of_values), copied_back=True
        )

    def head_rows(self, x: Var, of_values: bool = False, *, tokens_first: bool = False) -> Var:
        """x (b, h, N, d) -> (b, h, k, d)."""
        return self.shared_rows(x, of_values)
