"""Images to batches: sources, training records, preprocessing, augmentation, input pipelines.

records.py         the shards of `tf.train.Example`s
manifest.py        the manifest of a directory of shards
verification.py    compares shards with their manifest when they are read
sources.py         what a data set offers: label names and splits of images; the formats by name
digits.py          a source: the embedded handwritten digits
image_folder.py, tfrecords.py, archives.py, tfds_source.py, imagenet.py, small_images.py
                   formats: which images there are, and where
image_list.py      a format: CSV and JSON lists of image files
label_studio.py    Label Studio's JSON, in and out
corrections.py     labels that a person corrected
convert.py         WebP, TIFF, HEIC and others to PNG
formats.py         kinds of files by their first bytes and names
split_names.py     notices folders of splits where classes are expected
examine.py         whether an image is usable, and whether it is one of the held-out images
splits.py          from formats to a source: labeled, unlabeled, test and validation images
survey.py          counts and measures the images of folders before a run
protos.py          what a record holds
pipeline.py        shards to endless batches, from any step on
transparency.py    PNG and GIF over white
remarks.py         counts images that show nothing or too little
preprocessing.py   an encoded image to pixels, with the noise of training or without
image_ops.py, randaugment.py, autoaugment.py, mixing.py
                   the noise of training
contact_sheet.py   a picture of every operation of RandAugment
prepare.py         the stage that writes a source's splits as shards
"""

import cli  # noqa: F401  (sets TensorFlow's log level, before TensorFlow is imported)
