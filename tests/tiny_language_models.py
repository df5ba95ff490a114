"""Random language models of a few thousand weights with Qwen's structure, and a tokenizer with Qwen's special tokens."""

import re
from pathlib import Path
from typing import Any

import torch

from alignsr.core.compat import import_third_party
from alignsr.core.conditioning import strsr_prompt

PROMPT_TOKENS = 58  # as many as Qwen's own tokenizer makes of the prompt
CUTS = {
    "Descibe": 3, " especially": 6, " Cinematic": 6, " sharpness": 6,
    " perfect": 4, " deformations": 7, " extreme": 4, " meticulous": 6,
}  # fmt: skip
SPECIAL = [
    "<|endoftext|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>",
    "<|vision_end|>", "<|im_start|>", "<|im_end|>",
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def prompt_pieces() -> list[str]:
    """The prompt in 58 pieces that stand in for Qwen's tokens: words and marks, eight words cut in two."""
    pieces = re.findall(r"\s?\w+|[^\w\s]", strsr_prompt())
    for word, edge in CUTS.items():
        place = pieces.index(word)
        pieces[place : place + 1] = [word[:edge], word[edge:]]
    assert len(pieces) == PROMPT_TOKENS
    return pieces


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = import_third_party("transformers").PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=SPECIAL
    )
    fast.add_tokens(["user", "assistant", *dict.fromkeys(prompt_pieces())])
    fast.chat_template = TEMPLATE
    return fast


def make_vlm(tokenizer: Any) -> Any:
    """`Qwen3VLForConditionalGeneration`, 0.2 million random weights."""
    transformers = import_third_party("transformers")
    number = tokenizer.convert_tokens_to_ids
    config = transformers.Qwen3VLConfig(
        text_config=dict(
            vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=8192,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 2], mrope_interleaved=True),
        ),
        vision_config=dict(
            depth=2, hidden_size=32, intermediate_size=64, num_heads=4, in_channels=3, patch_size=16, spatial_merge_size=2,
            temporal_patch_size=2, out_hidden_size=32, num_position_embeddings=64, deepstack_visual_indexes=[0, 1],
        ),
        image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"), vision_end_token_id=number("<|vision_end|>"),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.Qwen3VLForConditionalGeneration(config).eval()


def make_text_model(layers: int = 28) -> Any:
    """`Qwen3ForCausalLM`, tiny but deep enough for the layers that FLUX.2 [klein] reads."""
    transformers = import_third_party("transformers")
    config = transformers.Qwen3Config(
        vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.Qwen3ForCausalLM(config).eval()


def save_vlm(folder: Path) -> None:
    tokenizer = make_tokenizer()
    make_vlm(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_text_model(folder: Path) -> None:
    make_text_model().save_pretrained(folder / "text_encoder")
    make_tokenizer().save_pretrained(folder / "tokenizer")
