"""Trained weights scored on test sets, without training."""

from __future__ import annotations

from pathlib import Path

from keepaug.runs.config import to_dict
from keepaug.runs.distributed import setup
from keepaug.runs.files import write_json_atomic
from reid.config import ReidConfig, check, resolve
from reid.data.manager import open_test_sets
from reid.evaluation.artifacts import write_artifacts
from reid.evaluation.scores import rerank_scores, score
from reid.models.weights import load_network

EVALUATION = "evaluation.json"


def evaluate_weights(
    config: ReidConfig, weights: str | Path, output: str | Path
) -> dict[str, dict[str, float]]:
    """Score trained weights on the config's test sets; writes evaluation.json and pictures, no result.json.

    What the weights say about the network (architecture, neck, image size, normalization) goes before the
    config; of another program's weights, which say nothing, the config holds.

    Args:
        config: settings of data and evaluation.
        weights: a run's weights.pt, best.pt or checkpoint.pt, or Bag of Tricks', torchreid's, ImageNet's.
        output: folder.

    Returns:
        Metrics in percent by name of the test set.

    Raises:
        FileNotFoundError: no weights, no data.
        ValueError: unusable settings, weights or data.
    """
    config.weights, config.recipe = "", "custom"
    network, content = load_network(weights, resolve(config))
    for key in ("arch", "last_stride", "neck", "first_relu", "height", "width", "mean", "std"):
        setattr(config, key, content[key])
    check(resolve(config))
    world = setup(config.device)
    try:
        sets = open_test_sets(config)
        network.to(world.device)
        scored = {one.name: score(network, one, config, world) for one in sets}
        if not world.is_main:
            return {}
        metrics, extra = {}, {}
        for one in sets:
            if (found := scored[one.name]) is None:
                continue
            metrics[one.name] = dict(found.metrics)
            if config.rerank:
                metrics[one.name] |= rerank_scores(found, one, config)
        output = Path(output)
        if (first := scored[sets[0].name]) is not None:
            extra = write_artifacts(output, config, network, sets[0], first, None, world.device)
        write_json_atomic(
            output / EVALUATION,
            {"weights": str(weights), "metrics": metrics, "artifacts": extra, "config": to_dict(config)},
        )
        return metrics
    finally:
        world.close()
