"""The algorithms, a file each. To add one: its file, its line here, and the settings of its own in
`ssl_uda/config.py`.
"""

from ssl_uda.algorithms.common import Algorithm, LossParts, Outputs
from ssl_uda.algorithms.fixmatch import fixmatch_loss
from ssl_uda.algorithms.supervised import supervised_loss
from ssl_uda.algorithms.uda import uda_loss

__all__ = ["ALGORITHMS", "Algorithm", "LossParts", "Outputs"]

ALGORITHMS = {
    "supervised": Algorithm(supervised_loss, unlabelled=False),
    "uda": Algorithm(uda_loss),
    "fixmatch": Algorithm(fixmatch_loss),
}
