"""What the settings may name, without torch; see `keepaug.choices`."""

from __future__ import annotations

# split: which images keep their labels, and which are used without one
SPLITS = ("first", "balanced_first", "balanced")
USES = ("all", "rest", "extra")
# policy: whose operations the strong view draws from
POLICIES = ("uda", "fixmatch")
# algorithms: distance of the views, training signal annealing
CONSISTENCY = ("kl", "cross_entropy")
TSA = ("off", "linear", "log", "exp")
