"""What requests may say beside what is done here: tables as data, and how numbers and bounds are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

__all__ = [
    "BOUNDS",
    "ECHOED",
    "HINTS",
    "NEUTRAL",
    "UNTOLD",
    "Count",
    "Penalty",
    "Repetition",
    "Seed",
    "Share",
    "Stop",
    "Temperature",
    "TopK",
    "Whole",
    "bound",
    "drawn",
    "is_neutral",
    "is_off",
]

# what a request says for a service's own books: no answer depends on it
UNTOLD = frozenset((
    "access_programs", "add_generation_prompt", "api_server", "api_type", "backend_sampling", "background",
    "background_options", "betas", "billing_policy", "cache_control", "cache_prompt", "cache_salt", "chat_id",
    "client_metadata", "container", "conversation_id", "custom_model", "diagnostics", "draft_model",
    "ec_transfer_params", "fallback_credit_token", "genkey", "id_slot", "include", "inference_geo", "keep_alive",
    "kv_transfer_params", "metadata", "n_discard", "n_keep", "obfuscation", "parallel_tool_calls", "parse_tool_calls",
    "prediction", "preserved_tokens", "priority", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "prompt_lookup_num_tokens", "quiet", "request_id", "return_mm_kwargs",
    "return_progress", "return_token_offsets", "rid", "routed_experts_prompt_start", "safety_identifier",
    "sampler_order", "sampler_priority", "samplers", "service_tier", "session_id", "speculative.n_max",
    "speculative.n_min", "speculative.p_min", "store", "stream_interval", "timings_per_token", "trace_id",
    "truncation_side", "ttl", "usage", "user", "user_id", "user_profile_id", "workspace_id",
    # how something that is off would be done
    "adaptive_decay", "dry_allowed_length", "dry_base", "dry_penalty_last_n", "dry_sequence_breakers",
    "dynatemp_exponent", "dynatemp_high", "dynatemp_low", "early_stopping", "length_penalty", "mirostat_eta",
    "mirostat_tau", "negative_prompt", "smoothing_curve", "xtc_threshold",
))  # fmt: skip

# what answers hold and clients send back in a message or a part of one, and what they say of pictures and caching
ECHOED = frozenset((
    "annotations", "async", "cache_control", "caller", "citations", "container", "context_management", "created_at",
    "detail", "diagnostics", "finish_reason", "format", "id", "image_sizes", "index", "logprobs", "model", "parsed",
    "partial", "phase", "prefix", "prompt_cache_breakpoint", "provider_metadata", "provider_specific_fields",
    "reasoning", "reasoning_content", "reasoning_details", "signature", "status", "stop_details", "stop_reason",
    "stop_sequence", "strict", "thinking", "transformations", "usage",
))  # fmt: skip

# how much to think, how to say it, how to load: there is nothing here that could follow them, and the answer says so
HINTS = frozenset((
    "add_special_tokens", "chat_template_kwargs", "context_management", "enable_thinking", "fallbacks",
    "include_reasoning", "media_io_kwargs", "models", "moderation", "n_probs", "penalize_nl", "penalty_last_n",
    "personality", "post_sampling_probs", "prompt_mode", "provider", "reasoning", "reasoning_budget",
    "reasoning_budget_tokens", "reasoning_effort", "reasoning_format", "reasoning_in_content", "rep_pen_range",
    "rep_pen_slope", "repeat_last_n", "repetition_detection", "repetition_penalty_range", "response_fields",
    "return_prompt_text", "return_tokens", "route", "separate_reasoning", "speed", "stream_reasoning",
    "t_max_predict_ms", "t_max_prompt_ms", "task_budget", "think", "thinking", "thinking_budget",
    "thinking_token_budget", "transforms", "truncation_strategy", "verbosity",
))  # fmt: skip

# of what several names say of these, the smallest holds
BOUNDS = frozenset(("max_tokens", "truncation_length"))

# what would change an answer, with the values at which it changes none; empty lists, texts and objects never do
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "adaptive_target": (0, -1, -0.01),
    "add_bos_token": (True,),
    "allowed_token_ids": (),
    "audio": (),
    "auto_max_new_tokens": (False,),
    "bad_words": (),
    "ban_eos_token": (False,),
    "banned_strings": (),
    "banned_tokens": (),
    "best_of": (1,),
    "bypass_eos": (False,),
    "character": ("None",),
    "chat_template": (),
    "compaction": (),
    "continue_": (False,),
    "continue_final_message": (False,),
    "conversation": (),
    "custom_token_bans": (),
    "documents": (),
    "dry_multiplier": (0,),
    "dynamic_temperature": (False,),
    "dynatemp_range": (0,),
    "ebnf": (),
    "echo": (False,),
    "enable_search": (False,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "extra_body": (),
    "function_call": ("none", "auto"),
    "functions": (),
    "grammar": (),
    "grammar_string": (),
    "guidance_scale": (1,),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "image": (),
    "image_data": (),
    "image_url": (),
    "image_urls": (),
    "images": (),
    "include_stop_str_in_output": (False,),
    "instruction_template": ("None",),
    "json_schema": (),
    "logit_bias": (),
    "logits_processors": (),
    "logprob_token_ids": (),
    "logprobs": (False,),
    "lora": (),
    "max_tokens_second": (0,),
    "mcp_servers": (),
    "memory": (),
    "min_keep": (0,),
    "min_length": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "mm_processor_kwargs": (),
    "modalities": (["text"],),
    "mode": ("instruct", "chat", "chat-instruct"),
    "n": (1,),
    "n_indent": (0,),
    "no_repeat_ngram_size": (0,),
    "no_stop_trim": (False,),
    "nsigma": (0, -1),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "plugins": (),
    "preset": ("None",),
    "prompt": (),
    "prompt_logprobs": (False,),
    "regex": (),
    "render_special": (False,),
    "return_hidden_states": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "safe_prompt": (False,),
    "skew": (0,),
    "skip_special_tokens": (True,),
    "smoothing_factor": (0,),
    "spaces_between_special_tokens": (True,),
    "stop_regex": (),
    "stop_token_ids": (),
    "structured_outputs": (),
    "suffix": (),
    "temperature_last": (False,),
    "tfs": (1,),
    "tfs_z": (1,),
    "thread": (),
    "top_a": (0,),
    "top_n_sigma": (0, -1),
    "trim_stop": (True,),
    "truncate_prompt_tokens": (-1,),
    "typ_p": (1,),
    "typical": (1,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "use_default_badwordsids": (False,),
    "video": (),
    "videos": (),
    "vllm_xargs": (),
    "watermarking": (False,),
    "web_search": (False,),
    "web_search_options": (),
    "xtc_probability": (0,),
}


def is_neutral(name: str, value: Any) -> bool:
    """Whether a parameter of `NEUTRAL` is at a value that changes no answer."""
    if value is None or (isinstance(value, (str, list, dict)) and not value):
        return True
    if name == "logit_bias" and isinstance(value, dict):
        return all(weight == 0 for weight in value.values())
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in NEUTRAL[name])


def is_off(value: Any) -> bool:
    """Whether a hint asks for nothing: switched off in any of the ways that there are."""
    kind = value.get("type") if isinstance(value, dict) else value
    return not value or kind in ("none", "disabled", "off", "auto", "standard", "default")


def _whole(value: Any) -> Any:
    """``5.0`` is a whole number, as JSON has only one kind."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=-1)]  # of tokens; -1 is as many as fit
Temperature = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
TopK = Annotated[Whole, Field(ge=-1)]
Repetition = Annotated[float, Field(gt=0, le=10)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[Whole, Field(ge=-(2**63), lt=2**63)]
Stop = str | list[str]


def bound(*asked: int | None) -> int | None:
    """The smallest bound that was named; -1 names none."""
    return min((count for count in asked if count is not None and count > 0), default=None)


def drawn(stop: str | Sequence[str] | None = None, **options: Any) -> dict[str, Any]:
    """Options of a request as those of a `Sampling`: what was not said is left out, and each dialect's "off" is ours.

    ``top_p=0`` leaves only the likeliest token, ``top_k=-1`` all, ``seed=-1`` is any, an empty stop string is none.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("top_p") == 0:
        given |= {"top_p": 1.0, "temperature": 0.0}
    if given.get("top_k") == -1:
        given["top_k"] = 0
    if given.get("seed") == -1:
        del given["seed"]
    stops = [stop] if isinstance(stop, str) else stop or ()
    return {**given, "stop": tuple(text for text in stops if text)}
