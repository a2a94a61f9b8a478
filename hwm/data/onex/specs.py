"""What 1X's data sets hold, known before any file is at hand."""

from __future__ import annotations

from hwm.types import ActionSpec, DataSpec, LatentSpec

EMBODIMENT_1X = "1x_eve"
#: the 25 dimensions of 1X's humanoid, in the order of its data sets v1.1 and v2.0; the simulator has the same
ACTIONS_1X = (
    "HIP_YAW", "HIP_ROLL", "HIP_PITCH", "KNEE_PITCH", "ANKLE_ROLL", "ANKLE_PITCH",
    "LEFT_SHOULDER_PITCH", "LEFT_SHOULDER_ROLL", "LEFT_SHOULDER_YAW", "LEFT_ELBOW_PITCH", "LEFT_ELBOW_YAW",
    "LEFT_WRIST_PITCH", "LEFT_WRIST_ROLL",
    "RIGHT_SHOULDER_PITCH", "RIGHT_SHOULDER_ROLL", "RIGHT_SHOULDER_YAW", "RIGHT_ELBOW_PITCH", "RIGHT_ELBOW_YAW",
    "RIGHT_WRIST_PITCH", "RIGHT_WRIST_ROLL",
    "NECK_PITCH", "LEFT_HAND_CLOSURE", "RIGHT_HAND_CLOSURE", "LINEAR_VELOCITY", "ANGULAR_VELOCITY",
)  # fmt: skip
COSMOS_LEVELS = (8, 8, 8, 5, 5, 5)
MAGVIT2_LEVELS = (512, 512)


def actions_1x(per_step: int) -> ActionSpec:
    """The 1X layout before any statistics are known (mean 0, deviation 1)."""
    n = len(ACTIONS_1X)
    return ActionSpec(per_step, ACTIONS_1X, (0.0,) * n, (1.0,) * n)


def onex_v1(tokenizer: str = "magvit2", stride: int = 15) -> DataSpec:
    """1X v1.1: every `stride`-th of 30 pictures a second as 16x16 MAGVIT2 ids of 2^18, low nine bits first."""
    latent = LatentSpec((16, 16), 512**2, levels=MAGVIT2_LEVELS)
    return DataSpec(latent, {EMBODIMENT_1X: actions_1x(stride)}, tokenizer, 30 / stride)


def onex_v2(tokenizer: str = "cosmos-dv8x8x8") -> DataSpec:
    """1X v2.0: 17 frames of 256x256 at 30 Hz as three latent steps (1, 8, 8 frames) of Cosmos DV 8x8x8."""
    latent = LatentSpec((32, 32), 64_000, stride=8, levels=COSMOS_LEVELS)
    return DataSpec(latent, {EMBODIMENT_1X: actions_1x(8)}, tokenizer, 30 / 8)
