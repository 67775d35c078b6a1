"""The semi-supervised classifier's tool, for planning and report."""

from __future__ import annotations

from keepaug.runs.config import load_config, precision_of, recipe_of, recorded_settings
from keepaug.runs.planning import Tool, settings_arguments
from ssl_uda.config import UdaConfig, check, in_todays_names

TOOL = Tool(
    "train_uda",
    "ssl_uda",
    lambda path, given: load_config(UdaConfig, path, given),
    lambda content: recorded_settings(UdaConfig, in_todays_names(content)),
    recipe_of,
    precision_of,
    check,
    settings_arguments,
    {
        "steps": 2,
        "batch_size": 4,
        "unlabelled_ratio": 2,
        "num_labels": 20,
        "split": "balanced",
        "limit_train": 40,
        "limit_val": 20,
        "arch": "wrn10_1",
    },
    loop="ssl_uda.loop",
)
