"""The report of a run: one HTML file with tables, curves and studies, readable anywhere without a network."""

from radgaze.report.gallery import GalleryItem
from radgaze.report.html import write_report

__all__ = ["GalleryItem", "write_report"]
