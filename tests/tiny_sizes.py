"""Sizes of a tiny transformer and its encoders, for toys of several test folders."""

from ft2.wan.spec import DitSpec, ImageSpec, TextSpec

DIT = DitSpec(
    num_attention_heads=2,
    attention_head_dim=12,
    ffn_dim=32,
    num_layers=2,
    freq_dim=16,
    audio_dim=16,
)
TEXT = TextSpec(
    d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=280, max_tokens=24
)
IMAGE = ImageSpec(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=32,
    patch_size=16,
)
