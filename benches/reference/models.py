"""Stable Diffusion 1.5 with AnimateLCM's motion modules, in diffusers, at its published size and without its weights.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, accelerate 1.15.0.
"""
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNetMotionModel
from named_weights import fill
from transformers import CLIPTextConfig, CLIPTextModel

UNET = dict(cross_attention_dim=768, num_attention_heads=8, motion_num_attention_heads=8, motion_max_seq_length=32, use_motion_mid_block=True)
VAE = dict(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
           layers_per_block=2, latent_channels=4, sample_size=512, scaling_factor=0.18215)
TEXT = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768,
            max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)


class PerFrame(torch.nn.Module):
    """The group norm of a motion module with statistics of each frame, as AnimateDiff and AnimateLCM trained it."""

    def __init__(self, gn):
        super().__init__()
        self.gn = gn

    def forward(self, h):
        b, c, f, hh, ww = h.shape
        h = self.gn(h.permute(0, 2, 1, 3, 4).reshape(b * f, c, hh, ww))
        return h.reshape(b, f, c, hh, ww).permute(0, 2, 1, 3, 4)


def per_frame_norms(unet):
    for m in unet.modules():
        if type(m).__name__ == "AnimateDiffTransformer3D":
            m.norm = PerFrame(m.norm)
    return unet


def empty(component):
    """The component with its parameters on the meta device and its buffers in place."""
    with init_empty_weights(include_buffers=False):
        if component == "unet":
            return UNetMotionModel(**UNET).eval()
        if component == "vae":
            return AutoencoderKL(**VAE).eval()
        return CLIPTextModel(CLIPTextConfig(**TEXT)).eval()


def full_name(component, name):
    if component == "text_encoder":
        name = "text_model." + name.removeprefix("text_model.")
    return f"{component}.{name}"


def drawn(component):
    """The component in float32 with the weights that `named_weights` tells."""
    module = empty(component)
    for name, p in list(module.named_parameters()):
        value = torch.empty(p.shape, dtype=torch.float32)
        fill(full_name(component, name), value.numpy())
        owner, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        setattr(owner, leaf, torch.nn.Parameter(value, requires_grad=False))
    assert not any(t.is_meta for t in [*module.parameters(), *module.buffers()])
    return module


def noise(component, dtype, device):
    """The component with cheap random weights, for timing."""
    module = empty(component).to_empty(device=device)
    for name, p in module.named_parameters():
        p.requires_grad_(False)
        if p.ndim > 1:
            p.normal_(std=(p[0].numel()) ** -0.5)
        else:
            p.fill_(1.0 if name.endswith(".weight") else 0.0)
    for name, b in module.named_buffers():
        if name.endswith("pos_embed.pe"):
            b.uniform_(-1, 1)
        else:
            b.copy_(torch.arange(b.numel()).reshape(b.shape))
    return module.to(dtype)
