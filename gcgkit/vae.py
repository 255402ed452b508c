"""The mini profile's autoencoder: luma and chroma in separate latent channels (the latent space of §3.2).

The paper uses Stable Diffusion's ``AutoencoderKL``. At a hundredth of its size, such a network spends all four channels
on luma. This one gives two to luma alone and two to chroma, which are exactly zero for gray frames. It keeps the
interface of ``AutoencoderKL`` (``encode(x).latent_dist``, ``decode(z).sample``, ``config.scaling_factor``) and its
geometry (factor 8).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

LUMA = (0.299, 0.587, 0.114)  # the weights of cv2.cvtColor's RGB2GRAY
PATCH = 4  # side in pixels of the first layer's blocks: layers at full resolution cost most and add least


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


def _encoder(in_channels: int, out_channels: int, width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        nn.PixelUnshuffle(PATCH),  # (B, in, H, W) -> (B, in*16, H/4, W/4)
        nn.Conv2d(in_channels * PATCH**2, width, 3, padding=1),
        *[ResidualBlock(width) for _ in range(depth)],
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),  # (B, 2w, H/8, W/8)
        *[ResidualBlock(2 * width) for _ in range(depth)],
        nn.SiLU(),
        nn.Conv2d(2 * width, out_channels, 3, padding=1),
    )


class LumaChromaAutoencoder(ModelMixin, ConfigMixin):
    """Autoencoder with factor 8 whose first ``luma_channels`` latents see luma only and whose others vanish on gray.

    Frames are ``(B, 3, H, W)`` RGB in [-1, 1], H and W multiples of 8 (or ValueError), latents ``(B, 4, H/8, W/8)``.

    Args:
        luma_channels, chroma_channels: latent channels of each kind; two chroma channels start as 8x8 means.
        width: channels at a quarter of the resolution; twice as many at an eighth.
        depth: residual blocks per resolution.
        latent_std: standard deviation of each raw latent channel over the training footage; latents are divided
            by it, so that every channel reaches the scheduler with unit variance.
        posterior_std: standard deviation of the posterior, the same everywhere (a fixed-variance VAE).
        scaling_factor: the pipeline multiplies latents by it, as in ``AutoencoderKL``.
    """

    @register_to_config
    def __init__(
        self,
        luma_channels: int = 2,
        chroma_channels: int = 2,
        width: int = 48,
        depth: int = 2,
        latent_std: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
        posterior_std: float = 0.03,
        scaling_factor: float = 1.0,
    ):
        super().__init__()
        channels = luma_channels + chroma_channels
        self.luma_encoder = _encoder(1, luma_channels, width, depth)
        self.chroma_encoder = _encoder(3, chroma_channels, width, depth)
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, 2 * width, 3, padding=1),
            *[ResidualBlock(2 * width) for _ in range(depth + 1)],
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.PixelShuffle(2),  # (B, 4w, h, w) -> (B, w, 2h, 2w)
            *[ResidualBlock(width) for _ in range(depth + 1)],
            nn.SiLU(),
            nn.Conv2d(width, 3 * PATCH**2, 3, padding=1),
            nn.PixelShuffle(PATCH),  # -> (B, 3, H, W): luma and two chroma residuals
        )
        # Start as a block-mean codec: the learned parts of the chroma code and of the picture begin at zero.
        for last in (self.chroma_encoder[-1], self.decoder[-2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent on a side."""
        return 2 * PATCH

    def _std(self, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.config.latent_std, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Latent distribution of frames: ``(B, 3, H, W)`` in [-1, 1] -> ``latent_dist`` over ``(B, 4, H/8, W/8)``."""
        ratio = self.spatial_compression_ratio
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % ratio or x.shape[3] % ratio:
            raise ValueError(f"frames must be (B, 3, H, W) with H and W multiples of {ratio}, not {tuple(x.shape)}")
        y, c = rgb_to_luma_chroma(x)
        luma = self.luma_encoder(y)  # (B, 2, H/8, W/8)
        # Subtract the code of the same frame in gray: a gray frame then has exactly zero, whatever was learned.
        with_color, without = self.chroma_encoder(torch.cat([torch.cat([y, c], 1), torch.cat([y, c * 0], 1)])).chunk(2)
        chroma = with_color - without
        means = F.avg_pool2d(c, ratio)  # (B, 2, H/8, W/8)
        chroma = chroma + F.pad(means, (0, 0, 0, 0, 0, self.config.chroma_channels - 2))
        mean = torch.cat([luma, chroma], 1) / self._std(x)
        log_variance = torch.full_like(mean, self.config.posterior_std).log() * 2
        posterior = DiagonalGaussianDistribution(torch.cat([mean, log_variance], 1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator=None) -> DecoderOutput | tuple:
        """Frames of latents: ``(B, 4, h, w)`` -> ``sample`` ``(B, 3, 8h, 8w)``, about [-1, 1]."""
        z = z * self._std(z)
        luma = self.config.luma_channels
        residual = self.decoder(z)  # (B, 3, 8h, 8w)
        base = F.interpolate(z[:, luma : luma + 2], scale_factor=self.spatial_compression_ratio, mode="bicubic")
        frame = luma_chroma_to_rgb(residual[:, :1], base + residual[:, 1:])
        return DecoderOutput(sample=frame) if return_dict else (frame,)

    def forward(self, sample: torch.Tensor, sample_posterior: bool = False, generator=None) -> DecoderOutput:
        """Encode, then decode: ``(B, 3, H, W)`` -> ``sample`` of the same shape."""
        posterior = self.encode(sample).latent_dist
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode())


def rgb_to_luma_chroma(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split RGB ``(B, 3, H, W)`` into luma Y ``(B, 1, H, W)`` and chroma (R-Y, B-Y) ``(B, 2, H, W)``."""
    y = (x * torch.tensor(LUMA, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)).sum(1, keepdim=True)
    # For a gray frame the three products do not add up exactly to the common value; the difference is only rounding.
    c = torch.cat([x[:, :1] - y, x[:, 2:] - y], 1)
    gray = (x[:, :1] == x[:, 1:2]) & (x[:, 1:2] == x[:, 2:])
    return y, torch.where(gray, torch.zeros_like(c), c)


def luma_chroma_to_rgb(y: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Join luma ``(B, 1, H, W)`` and chroma (R-Y, B-Y) ``(B, 2, H, W)`` into RGB ``(B, 3, H, W)``."""
    r, b = y + c[:, :1], y + c[:, 1:]
    g = (y - LUMA[0] * r - LUMA[2] * b) / LUMA[1]
    return torch.cat([r, g, b], 1)
