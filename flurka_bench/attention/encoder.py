"""Level model: a pre-norm encoder stack around any mechanism (norms before attention and
feed-forward, residuals after)."""

from collections.abc import Iterable

from torch import Tensor, nn

from flurka_bench.attention.masks import kept_keys
from flurka_bench.attention.modules import AttentionLayer
from flurka_bench.attention.stages import stage


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + W_2 gelu(W_1 norm(x)). No biases but the norms'."""

    def __init__(
        self, attention: AttentionLayer, model_dim: int, ffn_dim: int, **options: object
    ) -> None:
        super().__init__()
        self.attention = attention
        self.norm_attention, self.norm_ffn = (nn.LayerNorm(model_dim, **options) for _ in range(2))
        self.ffn_in = nn.Linear(model_dim, ffn_dim, bias=False, **options)
        self.ffn_out = nn.Linear(ffn_dim, model_dim, bias=False, **options)

    def forward(
        self,
        x: Tensor,
        keep_mask: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """x (b, N, D) -> (b, N, D); masks as ``AttentionLayer``.

        Kernels: layer norm, those of the attention, addition; layer norm, matmul, gelu, matmul,
            addition.
        """
        with stage("other"):
            normed = self.norm_attention(x)
        attended = self.attention(normed, keep_mask, key_padding_mask=key_padding_mask)
        with stage("other"):
            x = x + attended
            normed = self.norm_ffn(x)
        with stage("ffn"):
            update = self.ffn_out(nn.functional.gelu(self.ffn_in(normed)))
        with stage("other"):
            return x + update


class Encoder(nn.Module):
    """A stack of ``EncoderLayer`` and a last norm; with ``vocab_size``, from tokens (b, N) to
    logits (b, N, vocab_size)."""

    def __init__(
        self, layers: Iterable[EncoderLayer], model_dim: int, vocab_size: int = 0, **options: object
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(model_dim, **options)
        self.embedding = nn.Embedding(vocab_size, model_dim, **options) if vocab_size else None
        self.head = nn.Linear(model_dim, vocab_size, bias=False, **options) if vocab_size else None

    def forward(
        self,
        x: Tensor,
        keep_mask: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """x (b, N, D) or tokens (b, N) -> (b, N, D) or logits; masks as ``AttentionLayer``."""
        keep = kept_keys(keep_mask, key_padding_mask, x, x.shape[1])
        with stage("other"):
            x = x if self.embedding is None else self.embedding(x)
        for layer in self.layers:
            x = layer(x, keep)
        with stage("other"):
            x = self.norm(x)
            return x if self.head is None else self.head(x)
