"""Video and LeRobot datasets in, batches of frame tuples out; labels and collected episodes back to disk."""

from lamina.data.clips import ClipStream, gather
from lamina.data.episodes import DecodeError, Episode, Source
from lamina.data.labels import ReadAhead, write_labels
from lamina.data.lerobot import LeRobotDataset
from lamina.data.plan import DataConfig, count_transitions, feature_width, open_source, parse_data, source_camera
from lamina.data.video import VideoFolder
from lamina.data.writer import LeRobotWriter, VideoEncoding

__all__ = [
    "ClipStream",
    "DataConfig",
    "DecodeError",
    "Episode",
    "LeRobotDataset",
    "LeRobotWriter",
    "ReadAhead",
    "Source",
    "VideoEncoding",
    "VideoFolder",
    "count_transitions",
    "feature_width",
    "gather",
    "open_source",
    "parse_data",
    "source_camera",
    "write_labels",
]
