"""What `ft2 weights build` runs: the recipe of the shipped nano weights.

The same data and stages, not the same bytes: the shipped weights were trained while parts of the
code still changed; ``provenance.json`` beside them lists the very commands.
"""

from pydantic import Field

from ft2.config import Config


class WeightsConfig(Config):
    """Sizes of the puppet data, and changes of the presets, stage by stage."""

    train_clips: int = Field(19200, ge=24)
    """Puppet clips to train on: faces and sentences of the split ``train``. Of the shipped weights
    only the Thinker's last run saw so many, the others 8,400 or fewer."""
    dev_clips: int = Field(600, ge=1)
    """Puppet clips for held-out losses: other faces and sentences."""
    workers: int = Field(2, ge=1)
    """Processes that render."""
    generator_clip: tuple[str, ...] = ()
    """KEY=VALUE changes of ``nano/generator-clip``."""
    generator_frame: tuple[str, ...] = ()
    """KEY=VALUE changes of ``nano/generator-frame``."""
    thinker: tuple[tuple[str, ...], ...] = (
        ("towers_steps=1000", "model_steps=0"),
        ("towers_steps=700", "model_steps=1460"),
        ("towers_steps=0", "model_steps=2400", "learning_rate=1.3e-3", "seed=1"),
        ("towers_steps=0", "model_steps=1800", "learning_rate=1.0e-3", "texture=0.7", "seed=2"),
        ("towers_steps=0", "model_steps=4800", "learning_rate=1.0e-3", "texture=0.7", "seed=3"),
    )
    """KEY=VALUE settings of the runs of ``ft2 critic pretrain``; each starts from the last."""
