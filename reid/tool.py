"""The re-identification tool, for planning and report."""

from __future__ import annotations

from keepaug.runs.config import load_config, precision_of, recipe_of, recorded_settings
from keepaug.runs.planning import Tool, origin_of, settings_arguments
from reid.config import ReidConfig, check, in_todays_names, resolve

TOOL = Tool(
    "train_reid",
    "reid",
    lambda path, given: resolve(load_config(ReidConfig, path, given)),
    lambda content: recorded_settings(ReidConfig, in_todays_names(content)),
    recipe_of,
    precision_of,
    check,
    settings_arguments,
    {
        "max_steps": 2,
        "epochs": 1,
        "height": 64,
        "width": 32,
        "identities": 2,
        "images": 2,
        "limit_identities": 4,
        "ranked": 2,
        "padding": 2,
    },
    origin=lambda settings: origin_of(settings.weights),
    loop="reid.training.loop",
)
