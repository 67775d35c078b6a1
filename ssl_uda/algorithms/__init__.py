"""The algorithms, a file each. To add one: its file, its line here, its settings in `ssl_uda/config.py`."""

from ssl_uda.algorithms.common import Algorithm, LossParts, Outputs

__all__ = ["ALGORITHMS", "Algorithm", "LossParts", "Outputs"]

ALGORITHMS = {
    "supervised": Algorithm("ssl_uda.algorithms.supervised:supervised_loss", unlabelled=False),
    "uda": Algorithm("ssl_uda.algorithms.uda:uda_loss"),
    "fixmatch": Algorithm("ssl_uda.algorithms.fixmatch:fixmatch_loss"),
}
