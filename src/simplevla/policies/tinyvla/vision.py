"""Images to tokens of the language model's width: a keypoint encoder for two CPU cores, and the transformers towers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from simplevla.policies.tinyvla.config import VisionConfig
from simplevla.policies.tinyvla.pixels import prepare_pixels

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and std of CLIP's training images, in the units of pixels / 255 (its published preprocessing)."""

INITIAL_SHARPNESS = 4.0
"""Factor of the standardised keypoint maps: at 4 a fresh encoder's keypoints already follow coloured objects."""


def projector(width_in: int, width_out: int, hidden: int) -> nn.Sequential:
    """Two layers with GELU between vision and language, as in TinyVLA (arXiv 2409.12514)."""
    return nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), nn.Linear(hidden, width_out))


class PointwiseConvolution(nn.Conv2d):
    """A 1 x 1 convolution as a matrix product that leaves each map's places side by side in memory."""

    def forward(self, features: Tensor) -> Tensor:
        weight = self.weight.flatten(1).expand(len(features), -1, -1)
        if self.bias is None:
            places = torch.bmm(weight, features.flatten(2))
        else:
            places = torch.baddbmm(self.bias[:, None], weight, features.flatten(2))
        return places.unflatten(2, features.shape[2:])


class KeypointEncoder(nn.Module):
    """One camera's keypoints: convolutions, conditioned on the instruction, then a soft arg-max per map.

    Every keypoint is the centre of mass of a softmax over the image places, hence finer than a pixel of the map, and
    says where something is rather than what is there. Each map is standardised over its places first, without which
    a fresh encoder's softmax is flat and every keypoint sits in the middle of the image. The instruction scales and
    shifts the channels (FiLM) of every convolution after the first, so that the maps follow the block that it names.
    """

    def __init__(self, config: VisionConfig, language_width: int) -> None:
        super().__init__()
        widths = (3, *config.channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], kernel, stride, kernel // 2)
            for i, (kernel, stride) in enumerate(zip(config.kernels, config.strides, strict=True))
        )
        self.conditioned = config.channels[1:]
        self.film = nn.Linear(language_width, 2 * sum(self.conditioned))
        self.maps = PointwiseConvolution(config.channels[-1], config.keypoints, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs lack the argument
        for name, parameter in self.convolutions.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)
        nn.init.normal_(self.maps.weight, std=2.0 / config.channels[-1] ** 0.5)
        nn.init.zeros_(self.film.bias)
        self.sharpness = nn.Parameter(torch.full((config.keypoints, 1), INITIAL_SHARPNESS))

    def forward(self, image: Tensor, instruction: Tensor, index: Tensor) -> Tensor:
        """Keypoint features [B, 3 * keypoints]: x and y in -1 (left, top) .. 1, and how strongly each map answers.

        Args:
            image: uint8 [B, height, width, 3].
            instruction: [D, language_width], one vector per distinct instruction.
            index: int64 [B], which of them each image goes with.
        """
        features = image.permute(0, 3, 1, 2).float().mul_(1 / 255).sub_(0.5)
        modulation = self.film(instruction)[index].split([2 * width for width in self.conditioned], dim=1)
        for i, convolution in enumerate(self.convolutions):
            features = convolution(features)
            if i > 0:
                scale, shift = modulation[i - 1][:, :, None, None].chunk(2, dim=1)
                features = torch.addcmul(shift, features, 1 + scale)
            features = features.relu_()
        height, width = features.shape[2:]
        places = self.maps(features).flatten(2)
        centred = places - places.mean(dim=2, keepdim=True)
        # By its norm, since torch.std is slow on CPU; the floor keeps the gradient of a blank image finite.
        variance = torch.linalg.vector_norm(centred, dim=2, keepdim=True).square() / (height * width)
        weights = (centred * (self.sharpness / (variance + 1e-6).sqrt())).softmax(dim=2)
        centres = F.linear(weights, _grid(height, width, image.device))
        strength = (weights * places).sum(dim=2)
        return torch.cat([centres.flatten(1), strength], dim=1)


def _grid(height: int, width: int, device: torch.device) -> Tensor:
    """float32 [2, height * width]: x and y of every place, -1 to 1 between the image's borders."""
    y = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
    return torch.stack([x.repeat(height), y.repeat_interleave(width)])


class KeypointVision(nn.Module):
    """A `KeypointEncoder` and a projector per camera."""

    def __init__(self, config: VisionConfig, cameras: int, language_width: int) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.encoders = nn.ModuleList(KeypointEncoder(config, language_width) for _ in range(cameras))
        self.projectors = nn.ModuleList(
            projector(3 * config.keypoints, config.tokens * language_width, language_width) for _ in range(cameras)
        )

    def forward(self, images: list[Tensor], instruction: Tensor, index: Tensor) -> Tensor:
        """Tokens [B, cameras * tokens, language_width]."""
        views = [
            project(encode(image, instruction, index)).unflatten(1, (self.tokens, -1))
            for image, encode, project in zip(images, self.encoders, self.projectors, strict=True)
        ]
        return torch.cat(views, dim=1)


class TransformerVision(nn.Module):
    """A SigLIP or CLIP vision model, shared by the cameras, and a projector of its patch tokens.

    The patch tokens of the second-last layer are read, as in TinyVLA, so the last layer is not built.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisionConfig, language_width: int) -> None:
        super().__init__()
        sizes = {
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.layers - 1,
            "num_attention_heads": config.heads,
            "intermediate_size": config.mlp_size,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
        }
        if config.kind == "siglip":
            self.tower = SiglipVisionModel(SiglipVisionConfig(**sizes, vision_use_head=False))
            mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        else:
            self.tower = CLIPVisionModel(CLIPVisionConfig(**sizes))
            mean, std = CLIP_MEAN, CLIP_STD
        unread = [name for name, _ in self.tower.named_modules() if name.endswith("post_layernorm")]
        for name in unread:
            self.tower.set_submodule(name, nn.Identity())
        self.class_tokens = 1 if config.kind == "clip" else 0
        self.config = config
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.project = projector(config.hidden_size, language_width, language_width)

    def forward(self, images: list[Tensor]) -> Tensor:
        """Tokens [B, cameras * patches, language_width]; they meet the instruction in the language model."""
        views = []
        for image in images:
            pixels = (prepare_pixels(image, self.config, self.mean) - self.mean) / self.std
            views.append(self.tower(pixel_values=pixels).last_hidden_state[:, self.class_tokens :])
        return self.project(torch.cat(views, dim=1))


def make_vision(config: VisionConfig, cameras: int, language_width: int) -> nn.Module:
    """The vision front end that `config` names."""
    if config.kind == "conv":
        return KeypointVision(config, cameras, language_width)
    return TransformerVision(config, language_width)
