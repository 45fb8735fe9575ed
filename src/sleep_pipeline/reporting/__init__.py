"""What people read of a night: the report, the dreams, the model card. Plain data in, one text out."""

from sleep_pipeline.reporting.data import DreamSample, Example, Memories, NightPoint, NightReport
from sleep_pipeline.reporting.dreams import DreamRow, render_dreams
from sleep_pipeline.reporting.model_card import model_card
from sleep_pipeline.reporting.report import render

__all__ = [
    "DreamRow",
    "DreamSample",
    "Example",
    "Memories",
    "NightPoint",
    "NightReport",
    "model_card",
    "render",
    "render_dreams",
]
