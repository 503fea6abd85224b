"""DINOv2 (with registers) and SigLIP side by side, and the projector of their patches."""

import torch
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

from simplevla.policies.openvla_oft.config import OpenVLAOFTConfig
from simplevla.policies.openvla_oft.pixels import prepare_pixels

REGISTERS = 4
"""Register tokens of vit_large_patch14_reg4_dinov2."""


class FusedVision(nn.Module):
    """Patch tokens of both towers' second-last layers, joined patch by patch; the last layers aren't built.

    Both towers see the same pixels, each normalised in its own way.
    """

    def __init__(self, config: OpenVLAOFTConfig) -> None:
        super().__init__()
        self.config = config
        side = {"image_size": config.image_size, "patch_size": config.patch_size}
        dino, siglip = config.dino, config.siglip
        self.dino = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=dino.hidden_size,
                num_hidden_layers=dino.layers - 1,
                num_attention_heads=dino.heads,
                mlp_ratio=dino.mlp_size // dino.hidden_size,
                num_register_tokens=REGISTERS,
                **side,
            )
        )
        # Nothing is masked, and the second-last layer's outputs are read before any norm.
        self.dino.embeddings.mask_token = None
        self.dino.layernorm = nn.Identity()
        self.siglip = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=siglip.hidden_size,
                num_hidden_layers=siglip.layers - 1,
                num_attention_heads=siglip.heads,
                intermediate_size=siglip.mlp_size,
                # timm's, with which OpenVLA was trained; transformers' default is the tanh approximation.
                hidden_act="gelu",
                vision_use_head=False,
                **side,
            )
        )
        self.siglip.post_layernorm = nn.Identity()
        for name, tower in (("dino", dino), ("siglip", siglip)):
            for measure in ("mean", "std"):
                value = torch.tensor(getattr(tower, measure)).view(1, 3, 1, 1)
                self.register_buffer(f"{name}_{measure}", value, persistent=False)

    @property
    def width(self) -> int:
        """Width of a joined patch token."""
        return self.config.dino.hidden_size + self.config.siglip.hidden_size

    def forward(self, images: list[Tensor]) -> Tensor:
        """[B, cameras * patches, width] from one uint8 [B, height, width, 3] per camera."""
        views = []
        for image in images:
            pixels = prepare_pixels(image, self.config.image_size, self.config.crop).permute(0, 3, 1, 2).float() / 255
            dino = self.dino(pixel_values=self.normalise(pixels, "dino")).last_hidden_state[:, 1 + REGISTERS :]
            siglip = self.siglip(pixel_values=self.normalise(pixels, "siglip")).last_hidden_state
            views.append(torch.cat([dino, siglip], dim=-1))
        return torch.cat(views, dim=1)

    def normalise(self, pixels: Tensor, tower: str) -> Tensor:
        """[B, 3, side, side] in 0..1 as `tower` takes them, in its dtype."""
        mean, std = self.get_buffer(f"{tower}_mean"), self.get_buffer(f"{tower}_std")
        return ((pixels - mean) / std).to(self.siglip.embeddings.patch_embedding.weight.dtype)


class Projector(nn.Module):
    """Three layers with GELU from a joined patch to the language model's width."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, language_width)
        self.fc3 = nn.Linear(language_width, language_width)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, P, language_width]."""
        gelu = nn.functional.gelu
        return self.fc3(gelu(self.fc2(gelu(self.fc1(patches)))))


class ProprioProjector(nn.Module):
    """Two layers with GELU from the normalised state to one token."""

    def __init__(self, state_dim: int, language_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(state_dim, language_width)
        self.fc2 = nn.Linear(language_width, language_width)

    def forward(self, state: Tensor) -> Tensor:
        """[B, 1, language_width] from [B, S]."""
        return self.fc2(nn.functional.gelu(self.fc1(state)))[:, None]
