"""Input families have the properties they are named for; the encoder is the trained one; wrong
requests say how they are wrong."""

import json
import math

import pytest
import torch

from flurka_bench.kinds.error import text as texts
from flurka_bench.kinds.error.encoder import (
    Encoder,
    packaged_model,
)
from flurka_bench.kinds.error.inputs import (
    Clustered,
    Gaussian,
    LowRankPlusNoise,
    Trained,
    family,
)
from flurka_bench.words.errors import RequestError


def packaged():
    try:
        return packaged_model()
    except RequestError:
        pytest.skip("the packaged encoder (flurka-bench[quality]) is not installed")


SIZES = {"num_heads": 2, "seq_len": 256, "head_dim": 32}


@pytest.mark.parametrize(
    "kind", [Gaussian(scale=0.5), LowRankPlusNoise(), Clustered(), Clustered(contiguous=True)]
)
def test_draws_depend_on_the_seed_alone_and_training_never_meets_testing(kind):
    first, again, other, train = (
        kind.draw(seed, **SIZES, train=train)
        for seed, train in ((0, False), (0, False), (1, False), (0, True))
    )
    assert torch.equal(first.q, again.q) and torch.equal(first.v, again.v)
    assert not torch.equal(first.k, other.k) and not torch.equal(first.k, train.k)
    assert first.q.shape == (2, 256, 32) and first.q.dtype == torch.float64


def test_gaussian_logits_have_the_scale_squared_whatever_the_width():
    for head_dim in (16, 64):
        inputs = Gaussian(scale=1.5).draw(0, num_heads=4, seq_len=256, head_dim=head_dim)
        logits = inputs.q @ inputs.k.mT / math.sqrt(head_dim)
        assert float(logits.std()) == pytest.approx(1.5**2, rel=0.1)


def test_low_rank_has_the_chosen_spectrum():
    keys = (
        LowRankPlusNoise(decay=1.0, noise=0.0)
        .draw(0, num_heads=1, seq_len=20_000, head_dim=16)
        .k[0]
    )
    singular = torch.linalg.svdvals(keys)
    expected = torch.arange(1, 17, dtype=torch.float64) ** -1.0
    assert torch.allclose(singular / singular[0], expected, rtol=0.05)
    assert float(keys.square().mean().sqrt()) == pytest.approx(1.0, rel=0.05)
    noisy = (
        LowRankPlusNoise(decay=3.0, noise=0.5)
        .draw(0, num_heads=1, seq_len=20_000, head_dim=16)
        .k[0]
    )
    assert float(torch.linalg.svdvals(noisy)[-1]) == pytest.approx(
        0.5 * math.sqrt(20_000), rel=0.05
    )


def test_clusters_share_their_keys_up_to_the_spread():
    keys = (
        Clustered(clusters=4, spread=0.0, contiguous=True)
        .draw(0, num_heads=1, seq_len=64, head_dim=8)
        .k[0]
    )
    assert len(torch.unique(keys, dim=0)) <= 4
    changes = int((keys[1:] != keys[:-1]).any(-1).sum())
    assert changes == len(torch.unique(keys, dim=0)) - 1  # contiguous: each cluster is one run
    mixed = Clustered(clusters=4, spread=0.0).draw(0, num_heads=1, seq_len=64, head_dim=8).k[0]
    assert int((mixed[1:] != mixed[:-1]).any(-1).sum()) > 20


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("gausian", {}, "did you mean 'gaussian'"),
        ("gaussian", {"sclae": 2}, "did you mean 'scale'"),
        ("gaussian", {"scale": -1}, "from 0 to"),
        ("clustered", {"clusters": 0}, "from 1 to"),
        ("low-rank", {"noise": -1}, "from 0 to"),
    ],
)
def test_wrong_families_are_one_line(name, parameters, says):
    with pytest.raises(RequestError, match=says) as caught:
        family(name, **parameters)
    assert "\n" not in str(caught.value)


# --- The trained encoder
# -------------------------------------------------------------------------------------------------


def test_the_packaged_encoder_is_the_one_transformers_runs():
    transformers = pytest.importorskip("transformers")
    encoder = Encoder(packaged())
    tokens = encoder.tokens(texts.docstrings()[0])[:40]
    model = transformers.BertModel.from_pretrained(str(encoder.folder)).double().eval()
    ids = torch.tensor([[101, *tokens[1:-1], 102]])
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states
        for layer, (q, _, v) in enumerate(encoder.queries_keys_values(tokens)):
            own = model.encoder.layer[layer].attention.self
            for linear, ours in ((own.query, q), (own.value, v)):
                theirs = linear(hidden[layer])[0].view(40, 12, 32).transpose(0, 1)
                assert (theirs - ours).abs().max() < 1e-10


def tiny_model(folder, architecture):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    sizes = {"vocab_size": 40, "max_position_embeddings": 34}
    torch.manual_seed(0)
    if architecture == "distilbert":
        config = transformers.DistilBertConfig(
            dim=32, n_heads=4, n_layers=2, hidden_dim=48, **sizes
        )
        model = transformers.DistilBertModel(config)
    else:
        kinds = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}
        config = kinds[architecture](
            hidden_size=32,
            num_attention_heads=4,
            num_hidden_layers=2,
            intermediate_size=48,
            type_vocab_size=1,
            **sizes,
        )
        model = transformers.AutoModel.from_config(config)
    model.save_pretrained(folder)
    vocabulary = {"[UNK]": 0, "<pad>": 1, **{f"w{index}": index for index in range(2, 40)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model.double().eval()


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_other_encoders_by_path(tmp_path, architecture):
    model = tiny_model(tmp_path, architecture)
    encoder = Encoder(tmp_path)
    tokens = encoder.tokens(" ".join(f"w{index}" for index in range(2, 26)))
    assert tokens == list(range(2, 26))
    with torch.no_grad():
        hidden = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[1][0]
    layer = (
        model.transformer.layer[1].attention.k_lin
        if architecture == "distilbert"
        else model.encoder.layer[1].attention.self.key
    )
    ours = encoder.queries_keys_values(tokens)[1][1]
    assert (layer(hidden).view(24, 4, 8).transpose(0, 1) - ours).abs().max() < 1e-10
    with pytest.raises(RequestError, match="takes 2 to"):
        encoder.queries_keys_values(tokens * 2)


def test_wrong_model_folders_are_one_line(tmp_path):
    def refused(says):
        with pytest.raises(RequestError, match=says) as caught:
            Encoder(tmp_path / "model")
        assert "\n" not in str(caught.value)

    refused("no model folder")
    (tmp_path / "model").mkdir()
    refused("no config.json")
    config = tmp_path / "model" / "config.json"
    config.write_text("{")
    refused("not valid JSON")
    config.write_text(json.dumps({"model_type": "bret"}))
    refused("did you mean 'bert'")
    config.write_text(json.dumps({"model_type": "bert"}))
    refused("lacks num_hidden_layers")
    sizes = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 8,
        "max_position_embeddings": 16,
    }
    config.write_text(
        json.dumps({"model_type": "bert", **sizes, "position_embedding_type": "relative_key"})
    )
    refused("absolute position")
    config.write_text(json.dumps({"model_type": "bert", **sizes}))
    refused("has no weights")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"not safetensors")
    refused("cannot be read as safetensors")
    from safetensors.torch import save_file

    save_file({"embeddings.word_embeddings.weight": torch.zeros(4, 8)}, weights)
    refused("weights lack")


def test_text_files(tmp_path):
    path = tmp_path / "text.txt"
    with pytest.raises(RequestError, match="cannot read"):
        texts.read_text(path)
    path.write_bytes(b"   \n")
    with pytest.raises(RequestError, match="is empty"):
        texts.read_text(path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(RequestError, match=r"not UTF-8 text \(byte 3\)"):
        texts.read_text(path)


def test_trained_documents_split_into_testing_and_training(tmp_path):
    model = packaged()
    trained = Trained(model=str(model), layers=[5])
    test, train = (trained.pieces(512, train=side) for side in (False, True))
    assert min(len(test), len(train)) >= 20
    assert not {tuple(piece) for piece in test} & {tuple(piece) for piece in train}
    path = tmp_path / "short.txt"
    path.write_text("one two three four five six seven eight nine ten " * 4)
    short = Trained(model=str(model), text=str(path))
    assert len(short.pieces(16, train=False)) + len(short.pieces(16, train=True)) == 2
    with pytest.raises(RequestError, match="longer --text"):
        short.check(seq_len=16, seed=1)
    with pytest.raises(RequestError, match="up to 512"):
        short.check(seq_len=1024, seed=0)
    with pytest.raises(RequestError, match="not one of the encoder's 6"):
        Trained(model=str(model), layers=[6])


def test_docstrings_are_the_same_every_time():
    documents = texts.docstrings()
    assert len(documents) >= 50
    assert texts.digest(documents) == texts.digest(texts.docstrings.__wrapped__())
    assert "argparse" in documents[0] or "command-line" in documents[0].lower()
