"""Qwen's real tokenizer, of which ComfyUI brings a copy: what the tiny ones of the other tests stand in for."""

import os
from pathlib import Path

import pytest

from alignsr.core.conditioning import strsr_prompt
from alignsr.core.conditioning.single_file import find_tokenizer, read_tokenizer

pytestmark = pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="needs a ComfyUI checkout at COMFYUI_PATH")


def test_19_the_prompt_of_strsr_is_58_tokens_and_68_are_kept() -> None:
    tokenizer = read_tokenizer(find_tokenizer([Path(os.environ["COMFYUI_PATH"]).expanduser() / "comfy" / "text_encoders"]))
    prompt = strsr_prompt()
    assert len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) == 58
    turn = f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * 64}<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(turn, add_special_tokens=False)["input_ids"]
    assert ids.count(151_655) == 64 and len(ids) == 64 + 68
    assert ids[:4] == [151_644, 872, 198, 151_652]


def test_turns_of_text_are_those_of_qwen3() -> None:
    tokenizer = read_tokenizer(find_tokenizer([Path(os.environ["COMFYUI_PATH"]).expanduser() / "comfy" / "text_encoders"]))
    turn = [{"role": "user", "content": "a cat"}]
    texts = [
        tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=thinks)
        for thinks in (True, False)
    ]
    plain = "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n"
    assert texts == [plain, plain + "<think>\n\n</think>\n\n"]
    assert tokenizer("<think>")["input_ids"] == [151_667] and tokenizer.pad_token == "<|endoftext|>"
