"""Configuration of a Talking-NSQ build."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ft2.config import ClipFormat, Config


class Thresholds(Config):
    """P(yes) from which an answer counts as Yes, per dimension."""

    motion: float = Field(0.5, gt=0, lt=1)
    """Threshold of motion naturalness, in (0, 1)."""
    lip: float = Field(0.5, gt=0, lt=1)
    """Threshold of lip synchronisation, in (0, 1)."""
    quality: float = Field(0.5, gt=0, lt=1)
    """Threshold of visual quality, in (0, 1)."""

    def as_tuple(self) -> tuple[float, float, float]:
        """Return (motion, lip, quality)."""
        return (self.motion, self.lip, self.quality)


class PairingConfig(Config):
    """How scored candidates of one condition become pairs."""

    by: Literal["answers", "margin"] = "answers"
    """``answers``: on a dimension Yes beats No, as in the paper; ``margin``: the higher P(yes)
    wins where it is higher by `min_margin`, whatever the answers."""
    pairs: Literal["all", "best_worst"] = "all"
    """``all``: every pair with a winner, up to the cap; ``best_worst``: of each condition and
    store only the best clip against the worst."""
    thresholds: Thresholds = Thresholds()
    """Where Yes begins; tune on a held-out split of ratings."""
    yes_from: Literal["threshold", "median"] = "threshold"
    """``threshold``: Yes begins at `thresholds`; ``median``: at the median score of a split's
    clips, for a critic that finds nearly all clips good, or bad, but still ranks them."""
    min_margin: float = Field(0.0, ge=0, lt=1)
    """Least difference in P(yes) between chosen and rejected."""
    max_per_condition: int = Field(4, ge=1)
    """Most pairs that one condition gives to one store."""
    prefer: Literal["random", "margin"] = "random"
    """Which pairs stay where the cap cuts: a seeded choice, or the clearest."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.by == "margin" and self.yes_from == "median":
            raise ValueError("yes_from: median has no meaning with by: margin, which asks no Yes")
        if self.by == "margin" and self.min_margin == 0:
            raise ValueError("by: margin needs a min_margin above 0")
        return self


class FilterConfig(Config):
    """What a clip must have before a critic sees it; null or false switches a filter off."""

    min_sound_db: float | None = Field(-60.0, le=0)
    """Least level of the sound in dB below full scale."""
    need_speech: bool = False
    """Drop clips without a tenth of a second of speech-like sound."""
    min_face_confidence: float | None = Field(None, gt=0, lt=1)
    """Every looked-at frame shows one face, with at least this confidence of the detector."""
    face_frames: int = Field(3, ge=1)
    """Frames that are looked at for a face, evenly spaced."""
    max_duplicate_bits: int | None = Field(None, ge=0, le=128)
    """A clip whose perceptual hash (256 bits a frame) differs by at most this from an earlier clip
    of its condition is a near-duplicate and dropped; equal files always are. Clips of two splits
    that are as near are refused."""
    portrait_bits: int = Field(10, ge=0, le=128)
    """Portraits of two splits whose hashes differ by at most this are refused as the same."""


class WorkersConfig(Config):
    """Where clips are inspected and judged."""

    kind: Literal["local", "ray"] = "local"
    """``local``: processes of this machine; ``ray``: actors of a Ray cluster (extra ``ray``)."""
    count: int = Field(0, ge=0)
    """Worker processes or actors; 0 works in the command's own process."""
    queue: int = Field(2, ge=1)
    """Batches that wait for each worker: what bounds the memory."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of each Ray actor."""
    address: str | None = None
    """Address of the Ray cluster; null joins the running one or starts one here."""


class CardConfig(Config):
    """Facts for the dataset card that no file can tell; a push refuses to go without them."""

    pretty_name: str = "Talking-NSQ"
    """Title of the card."""
    license: str = ""
    """Licence identifier of the Hugging Face Hub, such as ``cc-by-4.0``."""
    language: tuple[str, ...] = ("en",)
    """Languages of the speech, BCP-47."""
    consent: str = ""
    """Who is shown and heard, and under which permission."""
    portraits_license: str = ""
    """Where the portraits come from and under which licence."""
    voices_license: str = ""
    """Where the voices come from and under which licence."""
    critic_accuracy: str = ""
    """The critic's measured accuracy per dimension, with the data and the command."""
    biases: str = ""
    """What the data leaves out or has too much of."""


class NsqConfig(Config):
    """Everything that `ft2 nsq build` needs: conditions, generator, critic, pairing, files."""

    conditions: str
    """Path of conditions.jsonl: what to generate from, with splits (see `ft2 nsq plan`)."""
    generator: str | None = None
    """Preset or YAML file of the generate config that makes the candidates; null makes none and
    takes the clips of `folders`."""
    policy: str | None = None
    """Directory of the policy that generates; null is the base model."""
    more_policies: tuple[str, ...] = ()
    """Directories of further policies; each makes `num_candidates` clips of every condition."""
    folders: tuple[str, ...] = ()
    """Manifests (JSON lines: file, condition_id, model, seed) of clips that other models made."""
    critic: str
    """Directory of a trained critic (the output of `ft2 critic train`); ``store`` asks none and
    takes the scores in `store`, of its only critic or of the named one: ``store:NAME``."""
    critic_batch_size: int = Field(16, ge=1)
    """Clips that the critic judges together."""
    critic_device: str = "cpu"
    """Where the critic runs: ``cpu``, ``cuda``, ``cuda:1``."""
    store: str | None = None
    """Score store shared between builds; null keeps one in the output."""
    retry_errors: bool = False
    """Judge clips again whose judging failed before."""
    max_failed_fraction: float = Field(0.05, ge=0, le=1)
    """More clips than this that are missing, broken or could not be judged fail the build."""
    workers: WorkersConfig = WorkersConfig()
    """Where clips are inspected and judged."""
    clip: ClipFormat = ClipFormat()
    """Format that every candidate must have; others are dropped and counted."""
    filters: FilterConfig = FilterConfig()
    """What else a clip must have."""
    num_candidates: int = Field(8, ge=2)
    """Clips generated for each condition, seeds `seed`, `seed + 1`, ..."""
    seed: int = Field(0, ge=0)
    """First generation seed; also seeds the pairing."""
    chunk_conditions: int = Field(16, ge=1)
    """Conditions generated and scored between two saves: what an interruption can cost."""
    pairing: PairingConfig = PairingConfig()
    """From scores to pairs."""
    train_shards: int = Field(32, ge=1)
    """Least number of Arrow files of a table's train split; shuffled streams want some dozens."""
    shard_bytes: int = Field(450_000_000, ge=1)
    """About how many bytes an Arrow file may have."""
    seconds_per_clip: float | None = Field(None, gt=0)
    """Measured seconds that one GPU takes to generate a clip, for the plan's GPU hours."""
    created_at: str | None = None
    """Date written into every row; null leaves it out, and equal inputs give equal bytes."""
    card: CardConfig = CardConfig()
    """Facts for the dataset card."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.generator is None and not self.folders:
            raise ValueError("generator and folders: one of them must give clips")
        if self.generator is None and (self.policy is not None or self.more_policies):
            raise ValueError("policy and more_policies need a generator")
        total = self.num_candidates * (1 + len(self.more_policies))
        possible = (total // 2) * ((total + 1) // 2)
        if not self.folders and self.pairing.max_per_condition > possible:
            raise ValueError(
                f"pairing.max_per_condition {self.pairing.max_per_condition} is out of reach: "
                f"{total} candidates give at most {possible} decided pairs; "
                f"set it to {possible}, or num_candidates higher"
            )
        return self
