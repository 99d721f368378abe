"""Sizes that the critic tests share."""

from ft2.config import ClipFormat
from ft2.qwen.spec import QwenSpec, TextSpec, VisionSpec

CLIP = ClipFormat(num_frames=9)
SMALL = QwenSpec(
    text=TextSpec(hidden_size=64, num_heads=2, num_kv_heads=1, num_layers=2, ffn_size=96),
    vision=VisionSpec(hidden_size=32, num_heads=2, num_layers=1, full_attention_layers=(0,)),
    clip=CLIP,
)
