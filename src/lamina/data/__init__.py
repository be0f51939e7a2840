"""Video and LeRobot datasets in, batches of frame tuples out; labels and collected episodes back to disk."""

from lamina.data.dataset import Data, Dataset
from lamina.data.episodes import DecodeError, Episode, split_episodes
from lamina.data.lerobot.labels import write_labels
from lamina.data.lerobot.reader import LeRobotDataset
from lamina.data.lerobot.writer import LeRobotWriter, VideoEncoding
from lamina.data.memory import InMemoryDataset
from lamina.data.read_ahead import ReadAhead
from lamina.data.sampling import DataConfig, count_transitions, feature_width, open_source, parse_data, source_camera
from lamina.data.stream import ClipStream, sample_split
from lamina.data.video import VideoFolder

__all__ = [
    "ClipStream",
    "Data",
    "DataConfig",
    "Dataset",
    "DecodeError",
    "Episode",
    "InMemoryDataset",
    "LeRobotDataset",
    "LeRobotWriter",
    "ReadAhead",
    "VideoEncoding",
    "VideoFolder",
    "count_transitions",
    "feature_width",
    "open_source",
    "parse_data",
    "sample_split",
    "source_camera",
    "split_episodes",
    "write_labels",
]
