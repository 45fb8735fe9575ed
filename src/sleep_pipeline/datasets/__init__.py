"""Kedro data sets of this project."""

from sleep_pipeline.datasets.file import FileDataset
from sleep_pipeline.datasets.folder import FolderDataset
from sleep_pipeline.datasets.pretrained import Pretrained, PretrainedDataset

__all__ = ["FileDataset", "FolderDataset", "Pretrained", "PretrainedDataset"]
