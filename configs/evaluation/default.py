"""Default recipe of `run_evaluate.sh`: how models are evaluated.

    ./run_evaluate.sh --workdir=W --data=runs/quickstart/data \
        --model=runs/quickstart/teacher,runs/quickstart/student_2 \
        --suite=clean,c,p,adversarial

Recipes of the methods serve as well. Their `config.evaluate` has `batch_size` and `split`; the
other values are these.
"""

from ml_collections import ConfigDict

from cli.settings import make
from evaluation.settings import EVALUATE


def get_config() -> ConfigDict:
    """Returns the recipe; docs/settings.md has the meaning of each value."""
    return ConfigDict({"evaluate": make(EVALUATE)})
