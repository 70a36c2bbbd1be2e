"""The ONNX encoder gives the vectors of the model it was exported from, without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_bert

from recollect.answers import Answers
from recollect.answers.encoders import Encoder, make_encoder
from recollect.answers.encoders.minilm import MiniLMEncoder
from recollect.answers.encoders.onnx import OnnxEncoder
from recollect.errors import HostError, RecipeError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's

TEXTS = ["what is a b c?", "card", "", "x y z " * 40, "4 2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small BERT with random weights: transformers' files, and the same model as ONNX."""
    path = tmp_path_factory.mktemp("bert")
    model = tiny_bert.write(path)
    export(model, path / "model.onnx")
    return path


def export(model, path, output="hidden"):
    """Write a BERT as ONNX with the usual names."""
    import torch

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, mask):
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return hidden if output == "hidden" else hidden[:, 0]

    ids, mask = torch.ones((2, 6), dtype=torch.long), torch.ones((2, 6), dtype=torch.long)
    mask[1, 4:] = 0  # an example without padding would be exported without a mask
    axes = {name: {0: "b", 1: "t"} for name in ("input_ids", "attention_mask")}
    torch.onnx.export(
        Hidden(), (ids, mask), str(path), input_names=list(axes), output_names=[output],
        dynamic_axes={**axes, output: {0: "b", 1: "t"} if output == "hidden" else {0: "b"}},
        dynamo=False,
    )  # fmt: skip


@pytest.mark.parametrize("window", [8, 64])
def test_vectors_are_those_of_the_torch_model(folder, window):
    onnx = OnnxEncoder(folder / "model.onnx", window=window, batch=2, threads=1)
    torch = MiniLMEncoder(folder, window=window)
    assert isinstance(onnx, Encoder)
    assert (onnx.dim, onnx.encode([]).shape) == (32, (0, 32))
    np.testing.assert_allclose(onnx.encode(TEXTS), torch.encode(TEXTS), atol=1e-4)


def test_its_identity_changes_with_the_files_and_the_reading(folder, tmp_path):
    encoder = make_encoder(f"onnx:{folder / 'model.onnx'}")
    other = OnnxEncoder(folder / "model.onnx", window=32)
    assert encoder.encoder_id != other.encoder_id
    assert encoder.encoder_id == OnnxEncoder(folder / "model.onnx").encoder_id
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["a"], tokenizer["model"]["vocab"]["b"] = 5, 4
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    changed = OnnxEncoder(folder / "model.onnx", tmp_path / "tokenizer.json")
    assert changed.encoder_id != encoder.encoder_id


def test_a_long_text_is_refused_where_asked(folder):
    encoder = OnnxEncoder(folder / "model.onnx", window=8, long="refuse")
    with pytest.raises(RecipeError, match="word pieces and the encoder reads 6"):
        encoder.encode(["a b c d e f g h"])


def test_what_is_no_encoder_is_refused(folder, tmp_path):
    with pytest.raises(HostError, match="no file"):
        OnnxEncoder(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(RecipeError, match="no model that ONNX Runtime reads"):
        OnnxEncoder(tmp_path / "model.onnx", folder / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RecipeError, match="no tokenizer"):
        OnnxEncoder(folder / "model.onnx", tmp_path / "tokenizer.json")
    from transformers import AutoModel

    export(AutoModel.from_pretrained(folder).eval(), tmp_path / "pooled.onnx", output="pooled")
    with pytest.raises(HostError, match="gives no token vectors"):
        OnnxEncoder(tmp_path / "pooled.onnx", folder / "tokenizer.json")


def test_a_cache_serves_with_it(folder):
    answers = Answers(
        recipe="gptcache", encoder=OnnxEncoder(folder / "model.onnx"), min_similarity=0.99
    )
    ask = {"model": "m", "messages": [{"role": "user", "content": "What is a b c?"}]}
    message = {"role": "assistant", "content": "d"}
    answers.store(
        answers.lookup(ask, scope_id="a"),
        {"choices": [{"message": message, "finish_reason": "stop"}]},
    )
    ask = {"model": "m", "messages": [{"role": "user", "content": "what is a b C?"}]}
    assert answers.lookup(ask, scope_id="a").tier == "semantic"


def test_it_needs_neither_torch_nor_transformers(folder):
    code = (
        "import sys; from recollect.answers.encoders.onnx import OnnxEncoder; "
        f"OnnxEncoder({str(folder / 'model.onnx')!r}).encode(['a']); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
