"""`keepaug train-uda`, from a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from keepaug.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train-uda", *sys.argv[1:]]))
