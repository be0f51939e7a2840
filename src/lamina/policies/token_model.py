"""The latent-token sequence model (FlexLAM §4.3, App. B): frames and code blocks in, the codes of the next transition out.

Layout. Frame t of an episode has P observation tokens x_t (continuous patch embeddings) and the block c_t of K codes of the transition
(o_t, o_{t+1}). They stand at positions t (P + K) + [0, P) and t (P + K) + P + [0, K), whether or not x_t stays in the context. The first
code of c_t is predicted from the last token of x_t, code j + 1 from code j.

Attention mask. The context of frame t is the last ``context`` frames, u in (t - context, t]. x_t and c_t attend to all blocks c_u with
u < t, to the observations x_u with u a multiple of ``stride`` (counted from the episode's start), and to all of x_t ("the latest frame is
always included", B.1). A code also attends to the earlier codes of its own block. An observation that is not retained is therefore read by
its own block only; one sequence with all observations trains every decision under the mask of inference, and no token has to be
encoded twice.

Deviations from the paper, which gives neither code nor the table of hyperparameters in our copy:
- B.1 states the tokens of a context, not those that a past block attended to. Here the hidden states of c_u attended to x_u, the latest
  frame at that time.
- ``local`` (off by default) restricts two layers of three to the last frames, as in Gemma: attention dominates the cost of a decision.
- "Subsampled at stride 8" counts from the episode's start here. Counted back from t, the retained frames would change with every
  decision, and no cache could be kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Complex, Float, Int, UInt8
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.images import to_float
from lamina.models.config import SizeName
from lamina.models.layers import ConvBlock, position_embedding
from lamina.options import check_options
from lamina.policies.qwen import ChunkedMask, Qwen, QwenConfig
from lamina.policies.windows import Window

STEM_STRIDE = 4  # stride of the convolution before the patches
MOST_TOKENS = 65_536  # of a decision's context, whose keys and values are kept in memory
MASK_CHUNK_FRAMES = 8  # frames of a chunk of an attention plan


@dataclass(frozen=True)
class TokenSize:
    """What ``--size`` means for the token model."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    channels: int  # of the convolutional stem


TOKEN_SIZES: dict[str, TokenSize] = {
    "debug": TokenSize(width=32, layers=2, heads=2, kv_heads=1, channels=8),
    "tiny": TokenSize(width=128, layers=3, heads=4, kv_heads=2, channels=16),
    "small": TokenSize(width=384, layers=6, heads=6, kv_heads=2, channels=32),
    "base": TokenSize(width=768, layers=12, heads=12, kv_heads=4, channels=64),
}


@dataclass(frozen=True)
class TokenConfig:
    """The token model's shape. None means: derived from ``size``."""

    size: SizeName = "tiny"
    context: int = 34
    """frames that a decision sees, the latest included"""
    stride: int = 8
    """observation stride: only every stride-th observation stays in the context"""
    grid: int = 4
    """patches along each side of a frame, where the picture can be cut that way; else the nearest number"""
    local: int | None = None
    """frames that a layer sees, but for every third one, the last included; none: every layer sees the whole context"""
    window: int | None = None
    """frames of a training sample, at least the stride; derived: the context"""
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    hidden: int | None = None
    """of the SwiGLU; derived: three times the width"""
    channels: int | None = None
    """of the convolutional stem"""
    theta: float = 10_000.0
    """base of the rotary positions"""
    shift: float = 0.0
    """augmentation: largest random shift of a window's pictures, as a share of their side; 0: none"""

    def __post_init__(self) -> None:
        if self.size not in TOKEN_SIZES:
            raise LaminaError(f"unknown size {self.size!r}: choose {', '.join(TOKEN_SIZES)}")
        check_options(self)

    @property
    def length(self) -> int:
        """Frames of a training sample. Samples begin at multiples of the stride, so shorter ones would miss some frames."""
        return max(self.window or self.context, self.stride)

    @property
    def spans(self) -> tuple[int, ...]:
        """How many frames each layer sees."""
        layers = self.core().layers
        near = min(self.local or self.context, self.context)
        return tuple(self.context if (layers - 1 - layer) % 3 == 0 else near for layer in range(layers))

    def core(self) -> QwenConfig:
        size = TOKEN_SIZES[self.size]
        width = self.width or size.width
        heads = self.heads or size.heads
        return QwenConfig(
            width,
            self.layers or size.layers,
            heads,
            self.kv_heads or size.kv_heads,
            self.hidden or 3 * width,
            self.theta,
        )


def patch_grid(image: tuple[int, int, int], wanted: int) -> tuple[int, int]:
    """Rows and columns of patches: the divisors of the stem's map nearest to ``wanted``.

    Raises LaminaError for a picture whose sides are no multiple of the stem's stride.
    """
    _, high, wide = image
    if high % STEM_STRIDE or wide % STEM_STRIDE:
        raise LaminaError(
            f"the token model needs pictures whose sides are multiples of {STEM_STRIDE}, got {high}x{wide}; set --image"
        )

    def nearest(side: int) -> int:
        return min((n for n in range(1, side + 1) if side % n == 0), key=lambda n: (abs(n - wanted), n))

    return nearest(high // STEM_STRIDE), nearest(wide // STEM_STRIDE)


def visible(frames: int, patches: int, slots: int, context: int, stride: int) -> Bool[Tensor, "n n"]:
    """Which token (column) each token (row) of an episode's first ``frames`` frames may attend to; n = frames (patches + slots)."""
    each = patches + slots
    place = torch.arange(frames * each)
    frame, code = place // each, place % each >= patches
    u, t = frame[None], frame[:, None]
    past = (u < t) & (u > t - context) & (code | (frame % stride == 0))[None]
    own = (u == t) & (~code[None] | (code[:, None] & (place[None] <= place[:, None])))
    return past | own


class CodeTable(nn.Module):
    """One vector of ``width`` numbers for each of ``size`` codebook entries.

    With the ``levels`` of an FSQ, an entry's vector is its own (which begins at 0) plus one for each of its digits: what is learned
    of a digit serves all entries that share it, and thousands of entries are learned from few data.
    """

    entries: Tensor

    def __init__(self, size: int, width: int, levels: tuple[int, ...] = ()):
        super().__init__()
        if levels and math.prod(levels) != size:
            raise LaminaError(f"levels {levels} make {math.prod(levels)} codebook entries, not {size}")
        if not levels:
            self.own = nn.Parameter(torch.randn(size, width) * 0.02)
            self.digits = None
            return
        self.own = nn.Parameter(torch.zeros(size, width))
        self.digits = nn.Parameter(torch.randn(sum(levels), width) * 0.02)
        # FSQ's digits, the first one changing fastest, as its index_to_codes reads them.
        digits = [F.one_hot(torch.arange(size) // math.prod(levels[:i]) % n, n) for i, n in enumerate(levels)]
        self.register_buffer("entries", torch.cat(digits, 1).float(), persistent=False)

    @property
    def weight(self) -> Float[Tensor, "n d"]:
        """The table, computed anew at each call."""
        return self.own if self.digits is None else torch.addmm(self.own, self.entries, self.digits)


class TokenModel(nn.Module):
    """p(c_t | frames and codes so far). Frames uint8 [... h w 3]; codes [... k] are the LAM's codebook entries.

    ``levels``: of the codebook, where it is an FSQ's. ``fingerprint`` says which LAM's codes these are (:func:`fingerprint`); "" = any
    (a model that was never trained). ``camera``: whose frames these are; None = the first.
    """

    def __init__(
        self,
        config: TokenConfig,
        image: tuple[int, int, int],
        slots: int,
        codebook_size: int,
        fingerprint: str = "",
        decision_seconds: float | None = None,
        levels: tuple[int, ...] = (),
        camera: str | None = None,
    ):
        super().__init__()
        self.config, self.image, self.slots, self.codebook_size = config, image, slots, codebook_size
        self.levels, self.camera = levels, camera
        self.fingerprint, self.decision_seconds = fingerprint, decision_seconds
        channels = config.channels or TOKEN_SIZES[config.size].channels
        self.grid = patch_grid(image, config.grid)
        self.patches = self.grid[0] * self.grid[1]
        seen = config.context * slots + (config.context // config.stride + 1) * self.patches
        if seen > MOST_TOKENS:
            raise LaminaError(
                f"a decision would see {seen} tokens, at most {MOST_TOKENS} can be; set --context or --stride"
            )
        core = config.core()
        self.core = Qwen(core)
        self.stem = nn.Sequential(
            nn.Conv2d(image[0], channels, 2 * STEM_STRIDE, stride=STEM_STRIDE, padding=STEM_STRIDE // 2),
            ConvBlock(channels),
        )
        cell = (image[1] // STEM_STRIDE // self.grid[0], image[2] // STEM_STRIDE // self.grid[1])
        self.cell = cell
        self.patch = nn.Linear(channels * cell[0] * cell[1], core.width)
        self.place = position_embedding(self.patches, core.width)
        self.code = CodeTable(codebook_size, core.width, levels)
        self.slot = position_embedding(slots, core.width)
        self.head = CodeTable(codebook_size, core.width, levels)
        self._plans: dict[tuple[int, str], tuple[list[ChunkedMask], Tensor, Tensor]] = {}

    @property
    def each(self) -> int:
        """Tokens of one frame."""
        return self.patches + self.slots

    def observe(self, frames: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n p d"]:
        """The observation tokens of single frames."""
        maps = self.stem(to_float(frames.permute(0, 3, 1, 2)))
        y, x = self.cell
        return self.patch(rearrange(maps, "n c (h y) (w x) -> n (h w) (c y x)", y=y, x=x)) + self.place

    def embed(self, codes: Int[Tensor, "*b k"]) -> Float[Tensor, "*b k d"]:
        """The tokens of whole code blocks."""
        return F.embedding(codes, self.code.weight) + self.slot

    def plans(self, frames: int) -> tuple[list[ChunkedMask], Int[Tensor, "n"], Complex[Tensor, "m 1 e2"]]:
        """Of a sequence of ``frames`` frames: each layer's plan, the places of the tokens that predict, and the rotation.

        In the last layer these are the only queries.
        """
        device = self.place.device
        key = (frames, str(device))
        if key not in self._plans:
            spans, stride = self.config.spans, self.config.stride
            masks = {span: visible(frames, self.patches, self.slots, span, stride).to(device) for span in set(spans)}
            first = torch.arange(frames, device=device)[:, None] * self.each + self.patches - 1
            rows = (first + torch.arange(self.slots, device=device)).flatten()
            made = {span: ChunkedMask.of(mask, MASK_CHUNK_FRAMES * self.each) for span, mask in masks.items()}
            last = ChunkedMask.of(masks[spans[-1]][rows], MASK_CHUNK_FRAMES * self.slots)
            rotation = self.core.rotation(torch.arange(frames * self.each))
            self._plans[key] = ([*(made[span] for span in spans[:-1]), last], rows, rotation)
        return self._plans[key]

    def forward(self, frames: UInt8[Tensor, "b t h w 3"], codes: Int[Tensor, "b t k"]) -> Float[Tensor, "b t k d"]:
        """The hidden state that predicts each code, for episodes (or windows of them) from a multiple of the stride on."""
        b, t = codes.shape[:2]
        x = torch.cat([self.observe(frames.flatten(0, 1)).unflatten(0, (b, t)), self.embed(codes)], dim=2).flatten(1, 2)
        plans, rows, rotation = self.plans(t)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return plans[layer](q, k, v)

        return self.core(x, rotation, attend, rows).unflatten(1, (t, self.slots))

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b n"]:
        """Of every codebook entry, unnormalised."""
        return F.linear(hidden, self.head.weight)

    def cross_entropy(self, window: Window) -> Float[Tensor, "b t k"]:
        """-log p of each code, nats; 0 where the window is not valid."""
        hidden = self(window.frames, window.codes)[window.valid]
        nats = F.cross_entropy(
            self.logits(hidden).float().flatten(0, 1), window.codes[window.valid].flatten(), reduction="none"
        )
        every = nats.new_zeros(window.codes.shape)
        every[window.valid] = nats.view(-1, self.slots)
        return every
