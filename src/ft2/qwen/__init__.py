"""The Qwen2.5-Omni Thinker as a judge of talking clips: model, processor, view, packed questions.

The classes are transformers' own at every size; `QwenSpec` alone decides between the nano model
whose weights ship with ft2 and Qwen2.5-Omni-7B. Importing this package imports no torch.
"""
