"""Vision-language models of random weights, a few hundred kilobytes each, saved as a hub repository would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

IMAGE = 28
WORDS = ["open", "close", "the", "drawer", "push", "button", "and", "then", "slowly"]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def _tokenizer(special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>", *special, "\n", "user", "assistant", ":", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", *special],
    )


def paligemma(folder: Path, seed: int = 0) -> Path:
    """SigLIP of four patches and Gemma: pictures and prompt see one another."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    pictures = SiglipImageProcessorPil(
        size={"height": IMAGE, "width": IMAGE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    pictures.image_seq_length = 4
    processor = PaliGemmaProcessor(pictures, _tokenizer([]))
    torch.manual_seed(seed)
    config = PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "patch_size": 14, "image_size": IMAGE, "vision_use_head": False,
        },
        text_config={
            "model_type": "gemma", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 1280,
        },
        image_token_index=processor.image_token_id, vocab_size=1280, projection_dim=32, hidden_size=32,
    )  # fmt: skip
    return _saved(folder, PaliGemmaForConditionalGeneration(config), processor)


def idefics3(folder: Path, seed: int = 0, smol: bool = False) -> Path:
    """SigLIP, a pixel shuffle and Llama, with a chat template, as Idefics3 and (``smol``) SmolVLM."""
    import transformers
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = _tokenizer(["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"])
    size = {"size": {"longest_edge": 2 * IMAGE}, "max_image_size": {"longest_edge": IMAGE}}
    name, more = "Idefics3", ()
    if smol:
        name, more = "SmolVLM", (transformers.SmolVLMVideoProcessor(),)
        pictures: Any = transformers.SmolVLMImageProcessor(**size)
    else:
        pictures = Idefics3ImageProcessorPil(**size)
    processor = getattr(transformers, f"{name}Processor")(
        pictures, tokenizer, *more, image_seq_len=1, chat_template=TEMPLATE
    )
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14,
            "image_size": IMAGE,
        },
        text_config={
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    return _saved(folder, getattr(transformers, f"{name}ForConditionalGeneration")(config), processor)


def smolvlm(folder: Path, seed: int = 0) -> Path:
    """:func:`idefics3` as SmolVLM2 has it."""
    return idefics3(folder, seed, smol=True)


def _saved(folder: Path, model: Any, processor: Any) -> Path:
    for parameter in model.parameters():  # the usual deviation, 0.02, makes so small a model almost a constant
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
