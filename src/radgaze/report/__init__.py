"""Pages about a run, a comparison and a simplification: one HTML file each, readable without a network."""

from radgaze.report.comparison import write_comparison
from radgaze.report.gallery import GalleryItem
from radgaze.report.html import write_report
from radgaze.report.simplification import write_simplification

__all__ = ["GalleryItem", "write_comparison", "write_report", "write_simplification"]
