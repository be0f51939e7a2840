"""The token model's transformer as transformers' Qwen3: a reference for its logits and its speed."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from lamina.policies.qwen import Qwen


def qwen3(core: Qwen, table: Tensor, head: Tensor, attention: str = "eager") -> Qwen3ForCausalLM:
    """The same weights in transformers' Qwen3, whose RoPE turns channels (i, i + e/2) where ours turns (2i, 2i + 1)."""
    c = core.config
    config = Qwen3Config(
        vocab_size=len(table), hidden_size=c.width, intermediate_size=c.hidden, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim, rms_norm_eps=c.eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.theta}, tie_word_embeddings=False,
        attn_implementation=attention,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    apart = torch.cat([torch.arange(0, c.head_dim, 2), torch.arange(1, c.head_dim, 2)])

    def reorder(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, c.head_dim))[:, apart].flatten(0, 1)

    state = {"model.embed_tokens.weight": table, "lm_head.weight": head, "model.norm.weight": core.norm.weight}
    for n, block in enumerate(core.blocks):
        sizes = [c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim]
        q, k, v = block.qkv.weight.split(sizes)
        gate, up = block.gate_up.weight.chunk(2)
        state |= {
            f"model.layers.{n}.{name}.weight": value
            for name, value in {
                "self_attn.q_proj": reorder(q),
                "self_attn.k_proj": reorder(k),
                "self_attn.v_proj": v,
                "self_attn.o_proj": block.out.weight,
                "self_attn.q_norm": block.q_norm.weight[apart],
                "self_attn.k_norm": block.k_norm.weight[apart],
                "mlp.gate_proj": gate,
                "mlp.up_proj": up,
                "mlp.down_proj": block.down.weight,
                "input_layernorm": block.norm1.weight,
                "post_attention_layernorm": block.norm2.weight,
            }.items()
        }
    model.load_state_dict(state)
    return model
