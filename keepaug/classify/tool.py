"""The classifier's tool, for planning and report."""

from __future__ import annotations

from keepaug.classify.config import ClassifyConfig, check
from keepaug.runs.config import load_config, precision_of, recipe_of, recorded_settings
from keepaug.runs.planning import Tool, origin_of, settings_arguments

TOOL = Tool(
    "train_classifier",
    "classify",
    lambda path, given: load_config(ClassifyConfig, path, given),
    lambda content: recorded_settings(ClassifyConfig, content),
    recipe_of,
    precision_of,
    check,
    settings_arguments,
    {
        "epochs": 1,
        "max_steps": 2,
        "batch_size": 4,
        "limit_train": 4,
        "limit_val": 4,
        "image_size": 48,
        "num_workers": 0,
        "lr": 0.001,
    },
    origin=lambda config: origin_of(config.teacher),
    loop="keepaug.classify.loop",
    spent=("checkpoint*.pt",),  # detectors and re-identification start from the weights
)
