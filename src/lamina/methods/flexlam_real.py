"""FlexLAM for real video: pretrained encoder, pretrained decoder, retained prefixes (arXiv 2606.19408, §5.4, App. E).

    lamina train flexlam_real --data DATASET --out RUN

The encoder is VideoMAE-v2 Large over the pair with K = 80 query slots, the bottleneck FSQ 7-5-5-5-5 with retained prefixes, and the decoder
Stable Diffusion 3.5 medium, which reads the latent of o_t beside the noisy one and the null-filled prefix in the place of a text. Published
weights enter by `--encoder-init`, `--decoder-init` and `--vae`, each a folder or a repository on the hub:

    --encoder-init OpenGVLab/VideoMAEv2-Large --decoder-init stabilityai/stable-diffusion-3.5-medium
    --vae stabilityai/stable-diffusion-3.5-medium --gap 0.625 0.625 --batch 1024 --steps 200000 --lr 3e-5 --precision bf16

`lamina train flexlam_real --plan 8xH100` says what that costs. `--size debug|tiny|small|base` builds the same classes small, from scratch.

Deviations and what the paper does not say: the prefix enters as the joint attention's context and as the pooled projection, through one
linear layer each, with learned positions of the slots; o_t's latent is stacked onto the noisy one; the position embeddings of VideoMAE's
first tubelet are interpolated bicubically; latents are the mean of the autoencoder's distribution; times are logit-normal with Stable
Diffusion's shift of 3, and samples take 28 Euler steps; every weight but the autoencoder's is trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lamina.errors import LaminaError
from lamina.methods.base import DecoderName, EncoderName, MethodConfig, MethodLosses, pair_losses
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.bottlenecks.prefix import PrefixDistribution
from lamina.models.config import LAMConfig, SizeName
from lamina.models.decoders import autoencoder, sd3
from lamina.models.decoders.sd3 import SD3Decoder
from lamina.models.encoders import videomae
from lamina.models.encoders.videomae import VideoMAEEncoder
from lamina.models.feature_cache import FeatureCache
from lamina.models.lam import LAM
from lamina.models.published import Pretrained

#: Of the paper (Tab. 11), what `--plan` assumes where nothing else is asked for; FSDP2 and four parts a step are what fits cards of 80 GB.
TRAINING = {
    "steps": 200_000, "batch": 1024, "lr": 3e-5, "precision": "bf16", "parallel": "fsdp2", "accumulate": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Config(MethodConfig):
    size: Literal[SizeName, "paper"] = "paper"  # type: ignore[assignment]
    """paper: VideoMAE-v2 Large and Stable Diffusion 3.5 medium; the others: the same classes, smaller"""
    image: tuple[int, int] = (224, 304)
    """height and width that frames are resized to, pixels"""
    encoder: EncoderName = "videomae"
    decoder: DecoderName = "sd3"
    slots: int = 80
    """K, tokens of a latent action"""
    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    """FSQ levels of one slot's channels"""
    prefix: PrefixDistribution = "uniform"
    """p(k) of the retained prefix"""
    flow_steps: int = 28
    """Euler steps of one sample"""
    encoder_init: str | None = None
    """VideoMAE weights to start from: a folder (config.json and safetensors of transformers, or OpenGVLab's VideoMAE-v2) or a hub id"""
    decoder_init: str | None = None
    """Stable Diffusion 3 or 3.5 to start from: diffusers' folder (of the pipeline, or of its transformer) or a hub id"""
    vae: str | None = None
    """the frozen autoencoder: diffusers' AutoencoderKL (folder of the pipeline, or of its vae) or a hub id; needed, but for --size debug"""
    vae_cache: str | None = None
    """folder to keep the autoencoder's latents of frames in; of use without random crops (--augment 0)"""

    @property
    def pretrained(self) -> dict[str, Pretrained]:
        """Published weights that are asked for, by the part that they are for."""
        named = {
            "encoder": ("--encoder-init", self.encoder_init, ""), "decoder": ("--decoder-init", self.decoder_init, "transformer"),
            "vae": ("--vae", self.vae, "vae"),
        }  # fmt: skip
        return {part: Pretrained(option, name, folder) for part, (option, name, folder) in named.items() if name}


def build(config: Config) -> LAMConfig:
    given = config.pretrained
    for part, option, kind in (
        ("encoder", "encoder", "videomae"),
        ("decoder", "decoder", "sd3"),
        ("vae", "decoder", "sd3"),
    ):
        if part in given and getattr(config, option) != kind:
            raise LaminaError(f"{given[part].option} is for --{option} {kind}, not for {getattr(config, option)}")
    paper = config.size == "paper"
    if paper and (config.encoder, config.decoder) != ("videomae", "sd3"):
        raise LaminaError(
            "--size paper has the encoder videomae and the decoder sd3; choose --size tiny, small or base"
        )
    parts = (replace(config, size="base") if paper else config).parts()
    if config.encoder == "videomae" and ("encoder" in given or paper):
        parts["encoder"] = videomae.read_config(given["encoder"]) if "encoder" in given else VideoMAEEncoder.Config()
    if config.decoder == "sd3":
        decoder = parts["decoder"]
        vae = decoder.autoencoder
        if "decoder" in given or paper:
            decoder = sd3.read_config(given["decoder"]) if "decoder" in given else SD3Decoder.Config()
            vae = decoder.autoencoder
        if "vae" in given:
            vae = autoencoder.read_config(given["vae"])
        parts["decoder"] = replace(decoder, autoencoder=vae, steps=config.flow_steps)
    return LAMConfig(**parts, bottleneck=FSQ.Config(config.levels), prefix=config.prefix)


def initialise(config: Config, lam: LAM) -> None:
    """Fill a new LAM with the published weights. Raises LaminaError for weights of another architecture, and without an autoencoder."""
    given = config.pretrained
    encoder, decoder = lam.encoder, lam.decoder
    if isinstance(decoder, SD3Decoder):
        if "vae" in given:
            autoencoder.load(decoder.autoencoder, given["vae"])
        elif config.size != "debug":
            raise LaminaError(
                "flexlam_real predicts in the latents of a trained autoencoder: give one by --vae (a folder of diffusers' AutoencoderKL, "
                "or stabilityai/stable-diffusion-3.5-medium)"
            )
        if "decoder" in given:
            sd3.load(decoder, given["decoder"])
        if config.vae_cache:
            folder = Path(config.vae_cache) / decoder.autoencoder.fingerprint()[:32]
            decoder.autoencoder.cache = FeatureCache(folder, decoder.shape, "float32", "choose another --vae-cache")
    if "encoder" in given:
        assert isinstance(encoder, VideoMAEEncoder)
        videomae.load(encoder, given["encoder"])


def weights(config: Config) -> dict[str, float]:
    return {"reconstruction": 1.0}


def losses(config: Config) -> MethodLosses:
    return pair_losses
