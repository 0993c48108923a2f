"""Golden for `tests/models/depth_anything.rs`: transformers' `DepthAnythingForDepthEstimation` on random weights, under the names of
the published file, and the sizes to which its processor resizes pictures."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

FOLDER = Path(__file__).parent.parent / "depth_anything"
BACKBONE = {
    "hidden_size": 12,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "mlp_ratio": 2,
    "patch_size": 14,
    "image_size": 42,
    "layer_norm_eps": 1e-6,
    "out_indices": [1, 2, 4, 5],
    "reshape_hidden_states": False,
    "apply_layernorm": True,
}
SIZES = {
    "fusion_hidden_size": 6,
    "head_hidden_size": 7,
    "head_in_index": -1,
    "neck_hidden_sizes": [5, 8, 9, 11],
    "reassemble_factors": [4, 2, 1, 0.5],
    "reassemble_hidden_size": 12,
    "patch_size": 14,
}
# The names of transformers 4, with which the files were published.
RENAMED = [
    ("attention.q_proj.", "attention.attention.query."),
    ("attention.k_proj.", "attention.attention.key."),
    ("attention.v_proj.", "attention.attention.value."),
    ("attention.o_proj.", "attention.output.dense."),
]


def published(name):
    for new, old in RENAMED:
        name = name.replace(new, old)
    return name


# `preprocessor_config.json` of the published model; a smaller side for the tiny one.
processor = lambda side: DPTImageProcessorPil(
    do_resize=True,
    size={"height": side, "width": side},
    keep_aspect_ratio=True,
    ensure_multiple_of=14,
    resample=3,
    do_rescale=True,
    rescale_factor=1 / 255,
    do_normalize=True,
    image_mean=[0.485, 0.456, 0.406],
    image_std=[0.229, 0.224, 0.225],
    do_pad=False,
)
torch.manual_seed(20)
torch.set_num_threads(1)
config = DepthAnythingConfig(backbone_config=Dinov2Config(**BACKBONE), **SIZES)
model = DepthAnythingForDepthEstimation(config).eval()
with torch.no_grad():
    for name, weight in model.named_parameters():
        spread = 1.2 / weight[0].numel() ** 0.5 if weight.dim() > 1 and "embeddings" not in name else 0.4
        weight.copy_(torch.randn(weight.shape) * spread + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    # Depths of which few are cut at 0.
    model.head.conv3.bias.fill_(12.0)
weights = {published(name): weight.contiguous() for name, weight in model.state_dict().items()}
cases = {}
# The size of the stored positions, and another with an even and an odd number of patches.
for i, (height, width) in enumerate([(42, 42), (28, 70)]):
    pixels = torch.randn(2 if i == 1 else 1, 3, height, width)
    with torch.no_grad():
        depth = model(pixels).predicted_depth
    assert depth.shape[1:] == (height, width) and 0.5 < (depth > 0).float().mean() < 1, (depth > 0).float().mean()
    cases[f"pixels.{i}"], cases[f"depth.{i}"] = pixels, depth
# Back to the size of a picture, as `post_process_depth_estimation` resizes.
cases["resized"] = torch.nn.functional.interpolate(cases["depth.1"][:1, None], size=(31, 57), mode="bicubic", align_corners=False)[0, 0]
picture = np.random.default_rng(4).integers(0, 256, (33, 51, 3), dtype=np.uint8)
inputs = processor(42)(Image.fromarray(picture), return_tensors="pt").pixel_values
with torch.no_grad():
    depth = model(inputs).predicted_depth
depth = torch.nn.functional.interpolate(depth[:, None], size=picture.shape[:2], mode="bicubic", align_corners=False)[0, 0]
cases |= {"picture": torch.from_numpy(picture), "picture.pixels": inputs, "picture.depth": depth}
FOLDER.mkdir(exist_ok=True)
save_file(weights, FOLDER / "model.safetensors")
save_file(cases, FOLDER / "cases.safetensors")
(FOLDER / "config.json").write_text(json.dumps({"model_type": "depth_anything", "backbone_config": {"model_type": "dinov2"} | BACKBONE} | SIZES) + "\n")
sizes = [(512, 512), (480, 640), (640, 480), (1080, 1920), (333, 777), (64, 64), (40, 900), (517, 519), (25, 1000), (200, 37)]
black = lambda height, width: Image.new("RGB", (width, height))
resized = [[list(size), list(processor(518)(black(*size), return_tensors="pt").pixel_values.shape[2:])] for size in sizes]
(FOLDER / "sizes.json").write_text(json.dumps(resized) + "\n")
