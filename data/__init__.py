"""From images to batches: sources, training records, preprocessing, augmentation, input pipelines.

May import `stages` only; every other package may import this one.

    records.py         the shards of `tf.train.Example`s and their manifest
    sources.py         what a data set offers: label names and splits of images
    digits.py          a source: the embedded handwritten digits
    image_folder.py    a source: a person's own folders
    prepare.py         the stage that writes a source's splits as shards
"""

import stages  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)
