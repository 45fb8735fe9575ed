"""Kedro data sets of the project."""

from sleep_pipeline.datasets.folder import FolderDataset
from sleep_pipeline.datasets.pretrained import Pretrained, PretrainedDataset

__all__ = ["FolderDataset", "Pretrained", "PretrainedDataset"]
