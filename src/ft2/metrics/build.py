"""Metrics by their names, with the settings that each takes; the only place that knows them all."""

from __future__ import annotations

from functools import partial

from ft2.metrics.config import EvaluateConfig
from ft2.metrics.face import Face
from ft2.metrics.lips import LipSync
from ft2.metrics.measure import Metric
from ft2.metrics.motion import Motion
from ft2.metrics.picture import Picture


def build(name: str, settings: EvaluateConfig) -> Metric:
    """Return the metric of a name; its network, if it has one, loads with the first clip.

    What its weights need must be given (`ft2.metrics.evaluate.choose` sees to it).
    """
    light: dict[str, Metric] = {
        "face": Face(),
        "lips": LipSync(settings.max_shift_seconds),
        "motion": Motion(),
        "picture": Picture(),
    }
    return light[name] if name in light else _with_network(name, settings)


def _with_network(name: str, settings: EvaluateConfig) -> Metric:
    """Return a metric that runs a network; torch is imported here and not before."""
    from ft2.metrics import aesthetic, dynamics, expression, fid, fvd, identity, imaging, sync

    given, device, size = settings.weights, settings.device, settings.batch_size
    if name == "fid" and (path := given.inception):
        return fid.FrameFeatures(partial(fid.load_inception, path), device, size)
    if name == "fvd" and (path := given.i3d):
        return fvd.ClipFeatures(partial(fvd.load_i3d, path), device, size)
    if name == "expression" and (path := given.arcface):
        return expression.Expression(partial(expression.load_arcface, path), device, size)
    if name == "dynamics" and (path := given.raft):
        side = settings.flow_side
        return dynamics.Dynamics(partial(dynamics.load_raft, path), device, size, side)
    if name == "sync" and (path := given.syncnet):
        shift, track = settings.max_shift_frames, settings.min_track
        return sync.Sync(partial(sync.load_syncnet, path), device, size, shift, track)
    if name == "identity" and (model := given.dino):
        return identity.Identity(partial(identity.load_dino, model), device, size)
    if name == "imaging" and (path := given.musiq):
        return imaging.Imaging(partial(imaging.load_musiq, path), device, size)
    if name == "aesthetic" and (clip := given.clip) and (head := given.aesthetic):
        return aesthetic.Aesthetic(partial(aesthetic.load_aesthetic, clip, head), device, size)
    raise KeyError(f"no metric '{name}' with its weights")
