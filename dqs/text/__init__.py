"""Text as columns: one decode and one segmentation per batch, shared by every scorer."""

from dqs.text.batch import CharClass, TextBatch

__all__ = ["CharClass", "TextBatch"]
