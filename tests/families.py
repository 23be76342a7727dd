# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints of the model families that a build promises to read: nothing is downloaded, all is made here.

`FAMILIES[name](folder)` writes one. Each is as odd as its family gets: windows and original contexts shorter than a
proof, so that what a long text changes is seen; no weight that is all zeros or ones; heads, sizes and counts that
differ, so that none is mistaken for another.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = ["<unk>", "<s>", "</s>"]

BASE: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

WINDOW = 12
"""Of the models with a window: the prompts of a proof and its cached steps go beyond it."""


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, after the special ones: 259 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_text_files(path: Path) -> None:
    byte_tokenizer().save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write_json(path / "tokenizer_config.json", settings)


def save(
    model: Any, path: Path, *, dtype: str = "float32", std: float = 0.15, biased: bool = True, **options: Any
) -> None:
    """Write `model` with random weights, norms around one and biases included: zeros would hide a missing one.

    Biases are around one too, or, if not `biased`, around zero: else a model that ends with a norm says one word only.
    """
    import torch

    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shifted = parameter.dim() == 1 and (biased or not name.endswith("bias"))
            parameter.normal_(std=std).add_(1.0 if shifted else 0.0)
        for name in model.state_dict().keys() - dict(model.named_parameters(remove_duplicate=False)).keys():
            model.get_buffer(name).normal_(std=std)
    path.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(path, **options)


def causal(name: str, **config: Any) -> Callable[[Path], None]:
    """A maker of a causal language model whose config class is transformers' `{name}Config`, with a byte tokenizer."""

    def make(path: Path) -> None:
        import transformers

        made = getattr(transformers, f"{name}Config")(**(BASE | config))
        save(transformers.AutoModelForCausalLM.from_config(made), path)
        write_text_files(path)

    return make


def seq2seq(name: str, generation: dict[str, Any], **config: Any) -> Callable[[Path], None]:
    """A maker of an encoder-decoder, with a byte tokenizer that ends a text with </s>."""

    def make(path: Path) -> None:
        import transformers

        ids = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
        made = getattr(transformers, f"{name}Config")(**({"vocab_size": 260} | ids | config))
        save(transformers.AutoModelForSeq2SeqLM.from_config(made), path, std=0.3, biased=False)
        write_json(path / "generation_config.json", ids | generation)
        write_text_files(path)
        tokenizer = byte_tokenizer()
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
        tokenizer.save(str(path / "tokenizer.json"))

    return make


TWO_SIDES: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def encoder(
    name: str, head: str = "Model", pooling: dict[str, Any] | None = None, **config: Any
) -> Callable[[Path], None]:
    """A maker of a text encoder: with a head, or with the files that sentence-transformers writes."""

    def make(path: Path) -> None:
        import transformers

        made = getattr(transformers, f"{name}Config")(**(BASE | {"type_vocab_size": 2} | config))
        auto = getattr(transformers, f"AutoModel{head.removeprefix('Model')}")
        save(auto.from_config(made), path)
        write_text_files(path)
        tokenizer = byte_tokenizer()
        ends = [("<s>", 1), ("</s>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
        tokenizer.save(str(path / "tokenizer.json"))
        if pooling is not None:
            kinds = ["Transformer", "Pooling", "Normalize"]
            modules = [{"idx": i, "path": f"{i}_{kind}", "type": f"x.models.{kind}"} for i, kind in enumerate(kinds)]
            write_json(path / "modules.json", modules)
            (path / "1_Pooling").mkdir()
            write_json(path / "1_Pooling" / "config.json", pooling)

    return make


def clip(path: Path) -> None:
    """Two towers of different width, pictures of 32 by 32, and a tokenizer that ends a text with the last id."""
    import transformers

    shared = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = shared | {"vocab_size": 260, "max_position_embeddings": 64, "eos_token_id": 258, "bos_token_id": 1}
    vision = shared | {"hidden_size": 24, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    save(transformers.CLIPModel(config), path)
    write_text_files(path)
    tokenizer = byte_tokenizer()
    last = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])[-1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {last[0]}", special_tokens=[("<s>", 1), last]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "resample": 3,
        "crop_size": {"height": 32, "width": 32}, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
    }  # fmt: skip
    write_json(path / "preprocessor_config.json", settings)


def whisper(path: Path) -> None:
    """A speech model of two seconds of sound, two languages and two tasks, with suppressed tokens."""
    import transformers

    made = {"vocab_size": 270, "num_mel_bins": 16, "max_source_positions": 100, "max_target_positions": 64}
    ids = {"pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 2, "decoder_start_token_id": 259}
    config = transformers.WhisperConfig(**(TWO_SIDES | made | ids | {"max_length": 64}))
    save(transformers.WhisperForConditionalGeneration(config), path, std=0.3, biased=False)
    write_text_files(path)
    tokenizer = byte_tokenizer()
    special = ["startoftranscript", "en", "de", "transcribe", "translate", "notimestamps"]
    tokenizer.add_special_tokens([f"<|{name}|>" for name in special])
    tokenizer.save(str(path / "tokenizer.json"))
    asked = {
        "lang_to_id": {"<|en|>": 260, "<|de|>": 261}, "task_to_id": {"transcribe": 262, "translate": 263},
        "no_timestamps_token_id": 264, "is_multilingual": True, "max_length": 64,
        "suppress_tokens": [5, 6, 259, 260, 261, 262, 263], "begin_suppress_tokens": [2, 40],
    }  # fmt: skip
    write_json(path / "generation_config.json", ids | asked)
    features = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 16, "chunk_length": 2}
    write_json(path / "preprocessor_config.json", features)


def gemma3_vision(path: Path) -> None:
    """A model of texts and pictures, of which its language model is built."""
    import transformers

    text = BASE | {"head_dim": 16, "sliding_window": WINDOW, "layer_types": MIXED}
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 32, "patch_size": 8}, mm_tokens_per_image=4,
        image_token_index=259, boi_token_index=257, eoi_token_index=258,
    )  # fmt: skip
    save(transformers.Gemma3ForConditionalGeneration(config), path)
    write_text_files(path)


MIXED = ["sliding_attention", "full_attention"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
LINEAR = ["linear_attention", "full_attention"]
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.05, 1.1, 1.2], "long_factor": [1.0, 2.0, 3.0, 5.0],
}  # fmt: skip

FAMILIES: dict[str, Callable[[Path], None]] = {
    "llama": causal("Llama"),
    "llama-llama3-rope": causal("Llama", rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama-yarn": causal("Llama", rope_parameters=YARN, attention_bias=True),
    "llama-dynamic-rope": causal("Llama", rope_parameters=DYNAMIC, max_position_embeddings=48),
    "mistral": causal("Mistral", sliding_window=40),
    "qwen2": causal("Qwen2"),
    "qwen2-window": causal("Qwen2", use_sliding_window=True, sliding_window=WINDOW, layer_types=MIXED),
    "qwen3": causal("Qwen3", head_dim=16, tie_word_embeddings=True),
    "phi3": causal("Phi3", sliding_window=WINDOW),
    "phi3-longrope": causal("Phi3", rope_parameters=LONGROPE, original_max_position_embeddings=32),
    "gemma2": causal("Gemma2", head_dim=16, sliding_window=WINDOW, layer_types=MIXED, query_pre_attn_scalar=20),
    "gemma3": causal("Gemma3Text", head_dim=16, sliding_window=WINDOW, layer_types=MIXED),
    "gemma3-vision": gemma3_vision,
    "gpt2": causal("GPT2", n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "gpt-neox": causal("GPTNeoX", rotary_pct=0.5),
    "granite": causal(
        "Granite", embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.25
    ),
    "smollm3": causal("SmolLM3", num_hidden_layers=4),
    "olmoe": causal("Olmoe", num_experts=4, num_experts_per_tok=2),
    "mixtral": causal("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen3-moe": causal("Qwen3Moe", head_dim=16, **EXPERTS),
    "gpt-oss": causal(
        "GptOss", head_dim=16, sliding_window=WINDOW, layer_types=MIXED, num_local_experts=4, num_experts_per_tok=2,
        rope_parameters=YARN | {"truncate": False},
    ),
    "deepseek-v3": causal(
        "DeepseekV3", num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=8, num_experts_per_tok=2,
        n_group=2, topk_group=1, moe_intermediate_size=24, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=12, num_key_value_heads=4, rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "mamba": causal("Mamba", state_size=8, intermediate_size=64, time_step_rank=4),
    "mamba2": causal("Mamba2", state_size=8, head_dim=16, num_heads=4, n_groups=2, chunk_size=8),
    "qwen3-next": causal(
        "Qwen3Next", head_dim=16, layer_types=LINEAR, **DELTA, **EXPERTS, shared_expert_intermediate_size=24,
    ),
    "qwen3.5": causal("Qwen3_5Text", head_dim=16, layer_types=LINEAR, **DELTA),
    "lfm2": causal("Lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3, block_auto_adjust_ff_dim=False),
    "jamba": causal(
        "Jamba", num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=4, num_experts_per_tok=2, mamba_d_state=8, mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "t5": seq2seq(
        "T5", {"max_length": 40}, d_model=32, d_kv=12, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=16,
    ),
    "t5-gated": seq2seq(
        "T5", {"min_length": 6, "num_beams": 4}, d_model=32, d_kv=12, d_ff=48, num_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=16, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    ),
    "bart": seq2seq("Bart", {"forced_bos_token_id": 1, "no_repeat_ngram_size": 3}, **TWO_SIDES),
    "marian": seq2seq(
        "Marian", {"bad_words_ids": [[0]], "num_beams": 6}, **TWO_SIDES, decoder_vocab_size=260, scale_embedding=True
    ),
    "bert": encoder("Bert", pooling={"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}),
    "bert-classifier": encoder("Bert", "ForSequenceClassification", num_labels=3),
    "bert-masked": encoder("Bert", "ForMaskedLM"),
    "roberta-tokens": encoder("Roberta", "ForTokenClassification", num_labels=5),
    "distilbert": encoder("DistilBert", dim=32, hidden_dim=48, n_layers=2, n_heads=4),
    "mpnet": encoder("MPNet", pooling={"pooling_mode": "cls"}),
    "clip": clip,
    "whisper": whisper,
}  # fmt: skip
