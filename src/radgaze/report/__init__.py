"""Reports of a run, of a comparison and of redundancy: one HTML file each, readable without a network."""

from radgaze.report.comparison import write_comparison
from radgaze.report.gallery import GalleryItem
from radgaze.report.html import write_report
from radgaze.report.kernels import LayerPictures, thirds
from radgaze.report.redundancy import write_redundancy

__all__ = ["GalleryItem", "LayerPictures", "thirds", "write_comparison", "write_redundancy", "write_report"]
