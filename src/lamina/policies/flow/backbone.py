"""A pretrained vision-language model of the transformers library as the policy's observation encoder.

Any image-text-to-text model whose processor makes one normalised picture of one fixed size from a frame: PaliGemma, SmolVLM, Idefics3, and
others alike. A model of another kind (tiles, patches of the picture's own size) is refused when it is opened.

    pictures   every camera in order, of each the frames of its history, oldest first: all are pictures of one prompt, so their tokens lie
               one after the other, as in pi0 (Black et al. 2024, §IV)
    words      the task, in the model's own form: its chat template, or image tokens and then the text (PaliGemma)
    tokens     the last hidden states of the language model, and one projected token for the proprioception

``tune`` says what is trained: nothing of the model (frozen), low-rank adapters of all its linear layers (lora: Hu et al. 2021; all layers
as in QLoRA, Dettmers et al. 2023), or all of it (whole). Weights that are not trained are in no checkpoint: it has their fingerprint,
and is refused where another model lies in their place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.files import reason
from lamina.images import resize
from lamina.models.pretrained import quiet
from lamina.policies.flow.config import FlowConfig, FlowShapes
from lamina.policies.flow.context import Context
from lamina.weights import digest

#: What a processor may return beside the pixels of an unpadded picture. ``labels``: PaliGemma's, for its own training.
TEXT = ("input_ids", "token_type_ids")
IGNORED = ("attention_mask", "pixel_attention_mask", "labels")

#: Dimensions of models that the hub gives only to those who accept a licence: a plan needs no more.
PUBLISHED: dict[str, dict[str, Any]] = {
    # Beyer et al. 2024, PaliGemma: SigLIP-So400m/14 at 224 and Gemma-2B
    "google/paligemma-3b-pt-224": {
        "model_type": "paligemma",
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "patch_size": 14, "image_size": 224, "vision_use_head": False,
        },
        "text_config": {
            "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
            "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216,
        },
        "projection_dim": 2048, "hidden_size": 2048, "vocab_size": 257216,
    },
}  # fmt: skip


@contextmanager
def _opening(name: str) -> Iterator[None]:
    """Within, the transformers library opens the model ``name``: its errors become one line, and it prints no progress."""
    try:
        if Path(name).expanduser().is_absolute() and not Path(name).is_dir():
            raise LaminaError(f"--backbone {name}: no such folder")
        with quiet():
            yield
    except LaminaError:
        raise
    except ImportError as error:
        raise LaminaError(
            f"--backbone {name} needs the transformers library: pip install lamina[vla] ({reason(error)})"
        ) from error
    except Exception as error:  # transformers raises many types for a missing or damaged model
        where = "cannot be opened" if Path(name).is_dir() else "no such folder, and not to be had from the hub"
        raise LaminaError(f"--backbone {name}: {where}: {reason(error)}") from error


def read_settings(name: str) -> Any:
    """The transformers config of a local folder or a hub id. Raises LaminaError if there is none, or it is of no such model."""
    with _opening(name):
        from transformers import AutoConfig

        if name in PUBLISHED and not Path(name).is_dir():
            return AutoConfig.for_model(**PUBLISHED[name])
        settings = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if not hasattr(settings, "vision_config") or not hasattr(settings, "text_config"):
        raise LaminaError(f"--backbone {name}: a {settings.model_type} model does not read pictures and words")
    return settings


def picture_size(settings: Any) -> tuple[int, int]:
    """Height and width of the pictures that a model reads. Raises LaminaError for a model of pictures of any size."""
    size = getattr(settings.vision_config, "image_size", None)
    if size is None:
        raise LaminaError(
            f"--backbone {settings.name_or_path}: a {settings.model_type} model has no fixed size of pictures, which is needed here"
        )
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Prompts:
    """Words and pictures as a model's own processor prepares them: ``views`` pictures, and one task."""

    def __init__(self, name: str, size: tuple[int, int], views: int):
        with _opening(name):
            from transformers import AutoProcessor

            self.name, self.size, self.views = name, size, views
            self.known: dict[str, dict[str, Int[Tensor, "n"]]] = {}
            self.processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
            pictures = self.processor.image_processor
            # One picture a frame, as in SmolVLA (Shukor et al. 2025, §3.1): no tiles of an enlarged picture.
            tiles = {"do_image_splitting": False, "size": {"longest_edge": max(size)}}
            self.options = tiles if hasattr(pictures, "do_image_splitting") else {}
            self.scale = float(pictures.rescale_factor) if pictures.do_rescale else 1.0
            mean, std = (pictures.image_mean, pictures.image_std) if pictures.do_normalize else (0.0, 1.0)
            self.mean, self.std = torch.tensor(mean).reshape(-1, 1, 1), torch.tensor(std).reshape(-1, 1, 1)
            self._check()

    def __call__(self, words: str) -> dict[str, Int[Tensor, "n"]]:
        """The prompt's tokens, unpadded: what the model takes by the name of its argument."""
        if words not in self.known:
            prepared = self._prepare(words, np.zeros((self.views, *self.size, 3), np.uint8))
            self.known[words] = {name: torch.from_numpy(prepared[name][0]).long() for name in TEXT if name in prepared}
        return self.known[words]

    def padded(self, words: tuple[str, ...], length: int) -> tuple[dict[str, Int[Tensor, "b n"]], Bool[Tensor, "b n"]]:
        """Several prompts, filled up behind their end to ``length`` tokens (more where one is longer), and which tokens are real."""
        prompts = [self(text) for text in words]
        lengths = torch.tensor([len(prompt["input_ids"]) for prompt in prompts])
        length = max(length, int(lengths.max()))
        filler = {"input_ids": self.processor.tokenizer.pad_token_id or 0}
        tokens = {
            name: torch.stack([F.pad(p[name], (0, length - len(p[name])), value=filler.get(name, 0)) for p in prompts])
            for name in prompts[0]
        }
        return tokens, torch.arange(length) < lengths[:, None]

    def pixels(self, frames: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Frames at the model's size, normalised by its processor's mean and deviation."""
        mean, std = self.mean.to(frames.device), self.std.to(frames.device)
        return (resize(frames, self.size).float() * self.scale - mean) / std

    def _prepare(self, words: str, pictures: UInt8[np.ndarray, "v h w 3"]) -> Mapping[str, np.ndarray]:
        """What the processor makes of one prompt."""
        with _opening(self.name):
            if self.processor.chat_template:
                parts = [*({"type": "image"} for _ in pictures), {"type": "text", "text": words}]
                text = self.processor.apply_chat_template(
                    [{"role": "user", "content": parts}], add_generation_prompt=True
                )
            else:
                text = self.processor.image_token * self.views + words
            return self.processor(text=[text], images=[list(pictures)], return_tensors="np", **self.options)

    def _check(self) -> None:
        """Refuse a processor that does anything to a picture of the model's size beside normalising it."""
        shape = (self.views, *self.size, 3)
        pictures = (np.arange(math.prod(shape)) * 37 % 251).astype(np.uint8).reshape(shape)
        prepared = self._prepare("", pictures)
        own = self.pixels(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        other = sorted(set(prepared) - {*TEXT, *IGNORED, "pixel_values"})
        found = torch.from_numpy(np.asarray(prepared["pixel_values"]))
        if other or found.numel() != own.numel() or not torch.allclose(found.reshape(own.shape), own, atol=1e-4):
            raise LaminaError(
                f"--backbone {self.name}: its processor does more than normalise one picture of {self.size[0]}x{self.size[1]} for each "
                f"frame{' (' + ', '.join(other) + ')' if other else ''}; such a model cannot be a policy's backbone here"
            )
        self.nested = found.ndim == 5  # pictures of a prompt have an axis of their own


class VisionLanguageEncoder(nn.Module):
    """The language model's last hidden states over pictures and task, and a token for the proprioception. [b n d].

    On the meta device it is built from the model's config alone, without weights or processor. Raises LaminaError for a model that cannot
    be opened, lacks weights, or is of another kind; a library that is missing.
    """

    fingerprint: Tensor

    def __init__(self, config: FlowConfig, shapes: FlowShapes):
        super().__init__()
        self.name, self.tune, self.reads_task = config.backbone, config.tune, config.task
        self.settings = read_settings(self.name)
        size, views = picture_size(self.settings), config.context * len(shapes.cameras)
        if shapes.image[0] != 3:
            raise LaminaError(f"--backbone {self.name} reads RGB frames, these have {shapes.image[0]} channels")
        planned = torch.get_default_device().type == "meta"
        self.prompts = None if planned else Prompts(self.name, size, views)
        self.model = self._planned() if planned else self._opened()
        self.width = int(self.settings.get_text_config().hidden_size)
        self.model.requires_grad_(self.tune == "whole")
        frozen = {} if self.tune == "whole" else dict(self.model.state_dict())
        mark = torch.zeros(32, dtype=torch.uint8)
        tasks = shapes.tasks if self.reads_task else ()
        self.length = 0  # of the longest prompt, tokens
        if self.prompts is not None:
            prompts = {text: self.prompts(text)["input_ids"].tolist() for text in ("", *tasks)}
            self.length = max(len(prompts[text]) for text in tasks or ("",))
            read = {"config": _config_file(self.name), "prompts": prompts, "size": size}
            read |= {"mean": self.prompts.mean.flatten().tolist(), "std": self.prompts.std.flatten().tolist()}
            mark = torch.tensor(list(bytes.fromhex(digest(frozen, read))), dtype=torch.uint8)
        self.register_buffer("fingerprint", mark)
        if self.tune == "lora":
            self._adapt(config.lora_rank)
        self.proprio = nn.Linear(config.context * shapes.proprio, self.width) if shapes.proprio else None
        self.norm = nn.LayerNorm(self.width)  # one scale for both kinds of tokens
        adapters = {name for name, value in self.model.named_parameters() if value.requires_grad}
        #: Tensors that are in no checkpoint.
        self.elsewhere = () if self.tune == "whole" else tuple(
            f"model.{name}" for name in self.model.state_dict() if name not in adapters
        )  # fmt: skip
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_put_back)

    def _planned(self) -> nn.Module:
        with _opening(self.name):
            from transformers import AutoModelForImageTextToText

            kind = torch.float32 if self.tune == "whole" else self.settings.dtype or torch.float32
            return AutoModelForImageTextToText.from_config(self.settings, dtype=kind).model

    def _opened(self) -> nn.Module:
        """The model without its head. Weights that are trained are float32, others stay as they are stored."""
        kind: Any = torch.float32 if self.tune == "whole" else "auto"
        with _opening(self.name):
            from transformers import AutoModelForImageTextToText

            opened: Any = AutoModelForImageTextToText.from_pretrained(
                self.name, dtype=kind, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        model, told = opened
        if lost := sorted(told["missing_keys"]) or sorted(str(key) for key in told["mismatched_keys"]):
            raise LaminaError(f"--backbone {self.name}: its weights are not those of its config: '{lost[0]}'")
        return model.model

    def _adapt(self, rank: int) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise LaminaError("--tune lora needs the peft library: pip install lamina[vla]") from error
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear"), self.model)
        for value in self.model.parameters():
            if value.requires_grad:
                value.data = value.data.float()  # they take the type of the layers that they adapt

    @property
    def parts(self) -> dict[str, list[nn.Module]]:
        """The model's modules, by what they are for."""
        parts: dict[str, list[nn.Module]] = {"vision": [], "connector": [], "language": []}
        for name, child in self.model.named_children():
            parts["vision" if "vision" in name else "language" if child is self.language else "connector"].append(child)
        return parts

    @property
    def language(self) -> nn.Module:
        """The module with the embedding of words."""
        table = self.model.get_input_embeddings()  # type: ignore[operator]
        return next(child for child in self.model.children() if any(part is table for part in child.modules()))

    def train(self, mode: bool = True) -> VisionLanguageEncoder:
        """A model that is not trained as a whole stays in evaluation mode."""
        super().train(mode)
        if self.tune != "whole":
            self.model.eval()
        return self

    def read(self, context: Context) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """The model's last hidden states, and which of them are of the prompt: the rest fills it up."""
        assert self.prompts is not None, "a planned encoder reads nothing"
        words = context.words if self.reads_task else ("",) * len(context)
        tokens, valid = self.prompts.padded(words, self.length)
        frames = context.frames.flatten(0, 2)
        pixels = self.prompts.pixels(frames).to(next(self.model.parameters()).dtype)
        if self.prompts.nested:
            pixels = pixels.unflatten(0, (len(context), -1))
        place = frames.device
        tokens, valid = {name: value.to(place) for name, value in tokens.items()}, valid.to(place)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tune != "frozen"):
            states = self.model(**tokens, attention_mask=valid.long(), pixel_values=pixels, use_cache=False)
        return states.last_hidden_state.float(), valid

    def forward(self, context: Context) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """See :class:`lamina.policies.flow.context.ObservationEncoder`."""
        tokens, valid = self.read(context)
        if self.proprio is not None:
            assert context.proprio is not None
            tokens = torch.cat([tokens, self.proprio(context.proprio.flatten(1)).unsqueeze(1)], dim=1)
            valid = F.pad(valid, (0, 1), value=True)
        return self.norm(tokens), valid


def _config_file(name: str) -> str:
    """The text of a model's config.json."""
    with _opening(name):
        from transformers.utils import cached_file

        return Path(str(cached_file(name, "config.json"))).read_text()


def _leave_out(encoder: VisionLanguageEncoder, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A checkpoint has no weights that are not trained."""
    for name in encoder.elsewhere:
        del state[prefix + name]


def _put_back(encoder: VisionLanguageEncoder, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """What a checkpoint leaves out is here already. Raises LaminaError if it is not what the checkpoint was made with."""
    mark = state.get(f"{prefix}fingerprint")
    if mark is not None and not torch.equal(mark.cpu(), encoder.fingerprint.cpu()):
        raise LaminaError(
            f"the backbone {encoder.name} is not the model that this policy was trained with (its weights, config or prompts differ)"
        )
    here = {
        **dict(encoder.named_parameters(remove_duplicate=False)),
        **dict(encoder.named_buffers(remove_duplicate=False)),
    }
    for name in encoder.elsewhere:
        state[prefix + name] = here[name].detach()
