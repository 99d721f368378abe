"""Which of the 478 face-mesh landmarks form which part of the face.

Indices are those of MediaPipe's face mesh (google-ai-edge/mediapipe, `face_mesh.py` connections).
"Left" and "right" are sides of the picture. All rings run from the left corner to the right one.
"""

from __future__ import annotations

LEFT_CORNER, RIGHT_CORNER = 61, 291
INNER_LEFT, INNER_RIGHT = 78, 308

UPPER_INNER = [191, 80, 81, 82, 13, 312, 311, 310, 415]
LOWER_INNER = [95, 88, 178, 87, 14, 317, 402, 318, 324]
UPPER_OUTER = [185, 40, 39, 37, 0, 267, 269, 270, 409]
LOWER_OUTER = [146, 91, 181, 84, 17, 314, 405, 321, 375]

CHIN = [152, 175, 199, 200, 18]
JAW = [172, 136, 150, 149, 176, 148, 377, 400, 378, 379, 365, 397]
JAW_BACK = [58, 132, 93, 234, 288, 361, 323, 454]

STILL = [1, 2, 4, 6, 98, 327, 129, 358, 50, 280, 117, 346, 123, 352, 33, 133, 362, 263, 10]
STILL += [21, 251, 109, 338, 168]
CHEEKS = [205, 425, 187, 411]

LEFT_BROW = [70, 63, 105, 66, 107, 46, 53, 52, 65, 55]
RIGHT_BROW = [336, 296, 334, 293, 300, 285, 295, 282, 283, 276]

LEFT_UPPER_LID = [33, 246, 161, 160, 159, 158, 157, 173, 133]
LEFT_LOWER_LID = [33, 7, 163, 144, 145, 153, 154, 155, 133]
RIGHT_UPPER_LID = [362, 398, 384, 385, 386, 387, 388, 466, 263]
RIGHT_LOWER_LID = [362, 382, 381, 380, 374, 373, 390, 249, 263]

NOSE = [1, 2, 4, 5, 98, 327, 129, 358, 48, 278, 64, 294]
OVAL = [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377]
OVAL += [152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]

MIRRORED = [
    *zip(UPPER_INNER, UPPER_INNER[::-1], strict=True),
    *zip(LOWER_INNER, LOWER_INNER[::-1], strict=True),
    *zip(UPPER_OUTER, UPPER_OUTER[::-1], strict=True),
    *zip(LOWER_OUTER, LOWER_OUTER[::-1], strict=True),
    *zip(LEFT_UPPER_LID, RIGHT_UPPER_LID[::-1], strict=True),
    *zip(LEFT_LOWER_LID[1:-1], RIGHT_LOWER_LID[-2:0:-1], strict=True),
    *zip(OVAL[1:], OVAL[:0:-1], strict=True),
    *((LEFT_CORNER, RIGHT_CORNER), (INNER_LEFT, INNER_RIGHT), (468, 473)),
]
"""Pairs (a, b): b is a's mirror image. Landmarks that nearly coincide cannot be paired by place."""
