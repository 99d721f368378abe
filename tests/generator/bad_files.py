"""Pictures and sounds that people really give, whole and broken, made from a seed."""

import io
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ft2 import media


def sound(seconds: float = 0.6, rate: int = 16000) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    voiced = np.sin(2 * np.pi * 140 * time) + 0.5 * np.sin(2 * np.pi * 700 * time)
    return (0.2 * voiced * (1 + np.sin(2 * np.pi * 4 * time)) / 2).astype(np.float32)


def write_wave(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    """Write float32 samples [N] or [N, C] as they are, NaN included."""
    import soundfile

    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def write_encoded(path: Path, codec: str, rate: int = 44100) -> Path:
    """Write stereo sound in a container that the suffix names."""
    both = np.stack([sound(rate=rate), 0.5 * sound(rate=rate)])
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(both, format="fltp", layout="stereo")
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.format,
            layout="stereo",
            rate=rate,
            frame_size=stream.codec_context.frame_size or 1024,
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def write_video(path: Path) -> Path:
    frames = np.full((8, 64, 64, 3), 100, np.uint8)
    media.write_video(path, frames, 12.5, sound(0.64))
    return path


def variants(picture: np.ndarray, folder: Path) -> dict[str, Path]:
    """Write one face in every kind of file that a person may have."""
    image = Image.fromarray(picture)
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.uint8(255), picture.shape[:2])))
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    turned = image.rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    files: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "alpha": (clear, "png", {}),
        "palette": (image.quantize(128), "png", {}),
        "deep": (deep, "png", {}),
        "cmyk": (image.convert("CMYK"), "jpg", {"quality": 95}),
        "grey": (image.convert("L"), "jpg", {"quality": 95}),
        "turned": (turned, "jpg", {"quality": 95, "exif": exif}),
        "animated": (image, "webp", {"save_all": True, "append_images": [turned.resize(image.size)],
                                     "lossless": True}),
        "webp": (image, "webp", {"lossless": True}),
    }  # fmt: skip
    found = {}
    for name, (made, suffix, options) in files.items():
        found[name] = folder / f"{name}.{suffix}"
        made.save(found[name], **options)
    return found


def malformed(count: int, folder: Path, picture: np.ndarray) -> list[tuple[str, Path]]:
    """Write ``count`` broken files; return (``portrait`` or ``audio``, path) of each."""
    rng = np.random.default_rng(2026)
    blobs = {"portrait": [], "audio": []}
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, kind)
        blobs["portrait"].append((kind.lower(), buffer.getvalue()))
    for name, codec in (("a.mp3", "mp3"), ("a.m4a", "aac"), ("a.flac", "flac")):
        path = write_encoded(folder / name, codec)
        blobs["audio"].append((path.suffix[1:], path.read_bytes()))
    blobs["audio"].append(("wav", write_wave(folder / "a.wav", sound()).read_bytes()))
    blobs["audio"].append(("mp4", write_video(folder / "a.mp4").read_bytes()))
    made = []
    for number in range(count):
        role = ("portrait", "audio")[number % 2]
        suffix, blob = blobs[role][rng.integers(len(blobs[role]))]
        data = bytearray(blob)
        match number // 2 % 6:
            case 0:
                data = data[: rng.integers(1, len(data))]
            case 1:
                for place in rng.integers(0, len(data), 30):
                    data[place] = rng.integers(256)
            case 2:
                data = bytearray()
            case 3:
                other = blobs[("audio", "portrait")[number % 2]]
                data = bytearray(other[rng.integers(len(other))][1])
            case 4:
                data[: min(64, len(data))] = rng.integers(0, 256, min(64, len(data))).tobytes()
            case 5:
                data = bytearray(rng.integers(0, 256, 4000, np.uint8).tobytes())
        path = folder / f"bad-{number:03}.{suffix}"
        path.write_bytes(data)
        made.append((role, path))
    return made
