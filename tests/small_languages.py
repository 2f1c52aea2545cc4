"""Small language models of the LLaMA family: the sizes and the kinds that several engines are held to."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, stretched evenly": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama 3": {"model_type": "llama", "num_key_value_heads": 2, "rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None},
    "qwen2, tied": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "phi3": {"model_type": "phi3", "num_key_value_heads": 2},
}
