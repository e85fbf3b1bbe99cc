"""Pages about a run, a comparison, redundancy and a simplification: one HTML file each, readable without a network."""

from radgaze.report.comparison import write_comparison
from radgaze.report.gallery import GalleryItem
from radgaze.report.html import write_report
from radgaze.report.kernels import LayerPictures, thirds
from radgaze.report.redundancy import write_redundancy
from radgaze.report.simplification import write_simplification

__all__ = [
    "GalleryItem",
    "LayerPictures",
    "thirds",
    "write_comparison",
    "write_redundancy",
    "write_report",
    "write_simplification",
]
