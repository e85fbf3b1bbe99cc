"""Reports of a run and of a comparison: one HTML file each, with tables and plots, readable without a network."""

from radgaze.report.comparison import write_comparison
from radgaze.report.gallery import GalleryItem
from radgaze.report.html import write_report

__all__ = ["GalleryItem", "write_comparison", "write_report"]
