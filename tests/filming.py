"""Videos for tests, written with the codecs people's videos have; a picture holds a number that survives coding."""

from fractions import Fraction

import av
import numpy as np

from reverie.data.sources.videos import VideosConfig

CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9", ".mkv": "ffv1", ".avi": "mpeg4", ".mov": "mjpeg", ".gif": "gif"}
CODECS[".h264"] = "libx264"
FORMATS = {"mjpeg": "yuvj420p", "gif": "rgb8"}


def coded(index, size=(64, 64)):
    """A picture (H,W,3) that holds a number: 4 x 4 squares, one for each of its 16 bits."""
    bits = (index >> np.arange(16) & 1).reshape(4, 4)
    rows, columns = (np.arange(side) * 4 // side for side in size)
    return np.repeat((bits[rows][:, columns] * 255).astype(np.uint8)[..., None], 3, axis=-1)


def number(picture):
    """The number that ``coded`` put into a picture."""
    side = picture.shape[0] // 4
    middle = picture.mean(-1)[side // 2 :: side, side // 2 :: side]
    return int(((middle > 127).ravel() << np.arange(16)).sum())


def numbers(episodes):
    return [[number(picture) for picture in episode.frames] for episode in episodes]


def write(path, pictures, rate=30, times=None, **options):
    """Write a video; times: seconds of each frame, to the millisecond, where the rate varies."""
    codec = CODECS[path.suffix]
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1  # the same file whatever the number of cores
        for index, picture in enumerate(pictures):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = FORMATS.get(codec, "yuv420p")
                stream.gop_size = 10
                if codec == "libvpx-vp9":
                    stream.options = {"deadline": "realtime", "cpu-used": "8"}
                if times is not None:
                    stream.codec_context.time_base = Fraction(1, 1000)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts = index if times is None else round(times[index] * 1000)
            frame.time_base = 1 / Fraction(rate).limit_denominator(1001) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def config(path, **changes):
    return VideosConfig(path=str(path), **({"cuts": 0.0, "shortest": 2} | changes))


def expected(times, rate, fps):
    """Which frame each sample shows, by the formula at the head of film.py."""
    slack = 0.3 * min(1 / rate, 1 / fps)
    shown = []
    while times[0] + len(shown) / fps + slack < times[-1] + 1 / rate:
        moment = times[0] + len(shown) / fps + slack
        shown.append(max(i for i, time in enumerate(times) if time <= moment))
    return shown
