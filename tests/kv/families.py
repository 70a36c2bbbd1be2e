"""Tiny random members of the causal-LM families of transformers, one line each."""

from __future__ import annotations

import torch
import transformers

BASE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
MHA = {"num_key_value_heads": 4}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SLIDING = {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}
MLA = {
    **MHA, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
}  # fmt: skip

# Families whose own code keeps attention to itself, and those that transform cached keys.
NOT_HOSTED = {
    "GPT-J": "does not route attention",
    "Falcon": "does not route attention",
    "Falcon ALiBi": "does not route attention",
    "MPT": "does not route attention",
    "Bloom": "does not route attention",
    "DeepSeek-V2": "computes with cached keys",
    "DeepSeek-V3": "computes with cached keys",
}

# Family -> (prefix of the Config and ForCausalLM classes, settings beyond BASE).
FAMILIES: dict[str, tuple[str, dict]] = {
    "Llama": ("Llama", {}),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "Qwen2": ("Qwen2", {}),
    "Qwen2-MoE": ("Qwen2Moe", {**MOE, "shared_expert_intermediate_size": 32}),
    "Qwen3": ("Qwen3", {}),
    "Qwen3-MoE": ("Qwen3Moe", MOE),
    "Gemma": ("Gemma", {}),
    "Gemma 2": ("Gemma2", SLIDING),
    "Gemma 3": ("Gemma3", {"text": True, **SLIDING}),
    "Phi": ("Phi", MHA),
    "Phi-3": ("Phi3", {"sliding_window": None}),
    "OLMo": ("Olmo", {}),
    "OLMo 2": ("Olmo2", {}),
    "OLMoE": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "GPT-NeoX": ("GPTNeoX", MHA),
    "GPT-J": (
        "GPTJ",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 4},
    ),
    "GPT-2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "GPT-BigCode": ("GPTBigCode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "GPT-OSS": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, **SLIDING}),
    "OPT": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "Falcon": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon ALiBi": ("Falcon", {"alibi": True, "multi_query": False, "num_kv_heads": 4}),
    "MPT": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    "Bloom": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "StableLM": ("StableLm", {}),
    "Cohere": ("Cohere", {}),
    "Cohere 2": ("Cohere2", SLIDING),
    "Granite": ("Granite", {}),
    "SmolLM3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "GLM": ("Glm", {}),
    "GLM-4": ("Glm4", {}),
    "Starcoder 2": ("Starcoder2", {"sliding_window": None}),
    "Nemotron": ("Nemotron", {}),
    "Ministral": ("Ministral", SLIDING),
    "Exaone 4": ("Exaone4", SLIDING),
    "Hunyuan": ("HunYuanDenseV1", {}),
    "Ernie 4.5": ("Ernie4_5", {}),
    "Helium": ("Helium", {}),
    "DeepSeek-V2": ("DeepseekV2", {**MLA, "topk_method": "greedy"}),
    "DeepSeek-V3": ("DeepseekV3", MLA),
}


def build(family: str) -> transformers.PreTrainedModel:
    """A random model of the family, in eval mode."""
    prefix, settings = FAMILIES[family]
    settings = dict(settings)
    text = settings.pop("text", False)
    config = getattr(transformers, f"{prefix}{'Text' if text else ''}Config")
    values = {**BASE, **settings}
    if isinstance(getattr(config, "head_dim", None), property):
        del values["head_dim"]  # derived there, not set
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if prefix == "GPT2" else f"{prefix}ForCausalLM"
    return getattr(transformers, name)(config(**values)).eval()
