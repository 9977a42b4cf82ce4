"""The network over characters: its tokenizer, and its exported graph beside torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="networks are trained with the extra finetune, which needs torch")
pytest.importorskip("transformers", reason="networks are trained with the extra finetune, which needs transformers")

from transformers import BertConfig, BertModel  # noqa: E402

from dqs.training.characters import UNKNOWN, CharacterNetwork, read_characters  # noqa: E402
from dqs.training.transformer import CHARACTERS, Network, export, read_graph  # noqa: E402

TEXTS = ["你好，世界！", "骗子 ABC", "他妈的骗子", "他們是騙子", "好好好"]


def test_forms_of_a_character_are_one() -> None:
    tokenizer, characters, sounds = read_characters(TEXTS)
    simple, traditional = (tokenizer.encode(text).ids for text in ("骗子们", "騙子們"))
    assert simple == traditional
    assert len(simple) == 3
    assert tokenizer.encode("Ａb\n c").ids == tokenizer.encode("a b c").ids
    (known,) = tokenizer.encode("好").ids
    assert characters[known] > UNKNOWN
    assert tokenizer.encode("\U0001f600").ids == [UNKNOWN]
    # Two characters that sound alike share a vector of sounds, whoever was seen.
    first, second = tokenizer.encode("他它").ids
    assert sounds[first] == sounds[second]
    assert first != second


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter that the encoder goes through, too
def test_the_graph_answers_as_torch_does(tmp_path: Path) -> None:
    tokenizer, characters, sounds = read_characters(TEXTS)
    torch.manual_seed(0)
    network = CharacterNetwork(characters, sounds, 1).eval()
    export(network, tmp_path, CHARACTERS)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    encoded = [tokenizer.encode(text).ids for text in TEXTS]
    longest = max(map(len, encoded))
    ids = np.zeros((len(encoded), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, found in enumerate(encoded):
        ids[row, : len(found)] = found
        mask[row, : len(found)] = 1
    (together,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    expected = network(torch.tensor(ids), torch.tensor(mask)).detach().numpy()
    # Large tables are stored as 8-bit integers.
    np.testing.assert_allclose(together, expected, atol=0.02)
    for row, found in enumerate(encoded):
        inputs = {"input_ids": np.array([found]), "attention_mask": np.ones((1, len(found)), dtype=np.int64)}
        (alone,) = session.run(None, inputs)
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the exporter warns of every shape in an encoder
@pytest.mark.parametrize("kind", ["characters", "encoder"])
def test_training_goes_on_from_an_exported_graph(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "characters":
        _, characters, sounds = read_characters(TEXTS)
        network = CharacterNetwork(characters, sounds, 2)
    else:
        BertModel(
            BertConfig(
                vocab_size=300, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
            )
        ).save_pretrained(tmp_path)
        network = Network(tmp_path, 2)
    for weights in network.parameters():
        torch.nn.init.normal_(weights)  # none equals another, as after training
    export(network, tmp_path, CHARACTERS)
    read = read_graph(tmp_path / "model.onnx")
    state = network.state_dict()
    assert read.keys() == state.keys()
    for name, weights in state.items():
        rounding = weights.abs().max().item() / 254 if weights.ndim == 2 else 0.0
        torch.testing.assert_close(read[name], weights, rtol=0, atol=rounding + 1e-6)
