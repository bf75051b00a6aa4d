"""The table of commands: what each is called, what it takes and what it runs.

The table names functions as text, so that reading it imports neither TensorFlow nor a room above this one.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from cli.flags import Flag, nearest

BEAM_OPTIONS = "workflow.shard_jobs:unknown_options"
"""Tells which of some flags are no options of Apache Beam."""

IMAGES_UNCHANGED = "data.fingerprint:unchanged"
"""Tells whether prepared data still have their source images."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      name: `./run_NAME.sh`, or the name after `./run_GROUP.sh`.
      target: `module:function` that gets the flags' values by name; imported after they are read.
      summary: what it does, one line.
      does: what it reads and leaves, for `--help`.
      flags: its own.
      examples: command lines without the script, ready to paste; two, where there are flags.
      group: "", "experiment" or "tool".
      recipes: patterns, below configs/, of the recipes that fit; () if it takes no `--config`.
      recipe: the recipe without `--config`; "" if one must be named.
      needs: keys that its recipe must have.
      words: what its words without dashes are, such as "IMAGE…"; "" if it takes none.
      beam: takes the options of Apache Beam, too.
      kept: patterns, below `--workdir`, of the files that a finished directory keeps; see `cli.again`.
      prepared: where, below `--workdir`, data are that must still have their source images; "" if nowhere.
    """

    name: str
    target: str
    summary: str
    does: str
    flags: tuple[Flag, ...]
    examples: tuple[str, ...]
    group: str = ""
    recipes: tuple[str, ...] = ()
    recipe: str = ""
    needs: tuple[str, ...] = ()
    words: str = ""
    beam: bool = False
    kept: tuple[str, ...] = ()
    prepared: str = ""

    @property
    def script(self) -> str:
        """How a user starts it from the checkout."""
        return f"./run_{self.group}.sh {self.name}" if self.group else f"./run_{self.name}.sh"


NOISY_STUDENT = ("noisy_student/*.py",)
METHODS = (*NOISY_STUDENT, "meta_pseudo_labels/*.py")
DIGITS = "--config=configs/noisy_student/digits.py"
PHOTOS = "--config=configs/noisy_student/image_folder.py"
MPL_DIGITS = "--config=configs/meta_pseudo_labels/digits.py"

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")
MODEL_STAGES = "run_teacher.sh, run_student.sh or run_meta_pseudo_labels.sh"


def _directory(name: str, text: str, **options: object) -> Flag:
    return Flag(name, text, value="DIR", **options)  # type: ignore[arg-type]


WORKDIR = _directory("workdir", "Work directory to write; the same command continues in it.")
DATA = _directory("data", "Prepared data: finished directory of run_prepare_data.sh.", finished=True)
MODEL = _directory("model", "Finished training directory, or its model/.", finished=True)
TEACHER = _directory("teacher", f"Teacher: finished directory of {MODEL_STAGES}.", finished=True)
DRY_RUN = Flag("dry_run", "Print what would be done, its size, and what is missing; do nothing.", bool, False)
SUITE = "What to measure, separated by commas"

IMAGES = (
    Flag("labeled", "Labelled images, [FORMAT:]LOCATION (docs/data.md); a folder has DIR/<class>/*.jpg.", default=None),
    Flag("unlabeled", "Unlabelled images, [FORMAT:]LOCATION; a folder, nested as you like.", default=None),
    Flag("test", "Test images, [FORMAT:]LOCATION. Without it, a part of the labelled ones is held out.", default=None),
)

TRAINING = (
    WORKDIR,
    DATA,
    Flag("strategy", "Devices to train on.", default="auto", choices=STRATEGIES),
    Flag("cpu_devices", "Logical CPU devices, to try --strategy=mirrored.", int, 1, least=1),
    Flag("tpu", "Name or address of the TPU; without it the local one.", default=""),
    Flag("profile_steps", "Steps to profile, for TensorBoard.", default=None, value="FIRST,LAST"),
)

PSEUDO_LABELED = _directory("pseudo_labeled", "Finished directory of run_balance.sh; none for a teacher.", default=None, finished=True)


def _training(name: str, summary: str, example: str) -> Command:
    """A training of one section of a recipe."""
    return Command(
        name,
        "workflow.train:main",
        summary,
        "Reads prepared data; leaves checkpoints/, metrics.jsonl, tensorboard/, model/ and, last, summary.json.",
        (
            *TRAINING,
            Flag("section", "Section of the recipe: teacher, student, student_2, finetune, ….", default=name),
            Flag("iteration", "Which student this is, from 1. It sets weights, order and noise.", int, 0),
            PSEUDO_LABELED,
            _directory("teacher", "Teacher that labels within the step, for an online section.", default=None, finished=True),
            _directory("init", "Trained model to start from: its architecture and weights.", default=None, finished=True),
        ),
        (f"{DIGITS} --data=runs/digits/data {example}", f"{PHOTOS} --data=runs/photos/data {example}"),
        recipes=NOISY_STUDENT,
        needs=("data", "preprocessing"),
    )


STAGES = (
    Command(
        "prepare_data",
        "data.prepare:run",
        "Turn images into training records.",
        "Leaves labeled/, unlabeled/, test/ and validation/ as shards with manifests and, last, summary.json.",
        (
            WORKDIR,
            *IMAGES,
            Flag("pseudo_labeled", "Pseudo-labelled TFRecords of the release: a folder or a pattern.", default=None),
            Flag("source", "digits, or the format of locations that name none.", default=None),
        ),
        (
            f"{DIGITS} --workdir=runs/digits/data",
            f"{PHOTOS} --workdir=runs/photos/data --labeled=photos/labeled --unlabeled=photos/unlabeled",
        ),
        recipes=METHODS,
        needs=("seed", "data"),
        kept=("*/manifest.json", "*/*-of-*"),
        prepared=".",
    ),
    _training("teacher", "Train a teacher on the labelled images.", "--workdir=runs/teacher"),
    Command(
        "pseudo_label",
        "workflow.pseudo_label:main",
        "Label the unlabelled images with a teacher.",
        "Leaves prediction shards (image key, probabilities) with a manifest and, last, summary.json.",
        (
            WORKDIR,
            DATA,
            TEACHER,
            Flag("section", "Section of the recipe: pseudo_label, pseudo_label_1, ….", default="pseudo_label"),
        ),
        (
            f"{DIGITS} --workdir=runs/predictions --data=runs/digits/data --teacher=runs/digits/teacher",
            f"{DIGITS} --workdir=runs/predictions --data=runs/digits/data --teacher=runs/digits/teacher "
            "--direct_num_workers=2 --direct_running_mode=multi_processing",
        ),
        recipes=NOISY_STUDENT,
        needs=("pseudo_label",),
        beam=True,
    ),
    Command(
        "balance",
        "workflow.balance:main",
        "Filter and balance the pseudo-labelled images.",
        "Joins predictions and images by key; leaves training shards, pseudo_labels.png and, last, summary.json.",
        (
            WORKDIR,
            DATA,
            _directory("predictions", "Finished directory of run_pseudo_label.sh.", finished=True),
        ),
        (
            f"{DIGITS} --workdir=runs/balanced --data=runs/digits/data --predictions=runs/digits/predictions_1",
            f"{DIGITS} --workdir=runs/balanced --data=runs/digits/data --predictions=runs/digits/predictions_1 "
            "--config.balance.threshold=0.5",
        ),
        recipes=NOISY_STUDENT,
        needs=("balance",),
        beam=True,
    ),
    _training(
        "student",
        "Train a student on the labelled and the pseudo-labelled images.",
        "--workdir=runs/student --pseudo_labeled=runs/balanced",
    ),
    _training(
        "finetune",
        "Fine-tune a trained model, by default at a larger resolution.",
        "--workdir=runs/finetuned --init=runs/student",
    ),
    Command(
        "meta_pseudo_labels",
        "meta_pseudo_labels.train:main",
        "Train a student by Meta Pseudo Labels.",
        "Reads prepared data; leaves checkpoints/, metrics.jsonl, tensorboard/, model/ and, last, summary.json.",
        (
            *TRAINING,
            _directory(
                "pseudo_labeled",
                "Finished directory of run_balance.sh, for the method reduced.",
                default=None,
                finished=True,
            ),
            DRY_RUN,
        ),
        (
            f"{MPL_DIGITS} --workdir=runs/mpl --data=runs/digits/data",
            f"{MPL_DIGITS} --workdir=runs/uda --data=runs/digits/data --config.meta_pseudo_labels.method=uda",
        ),
        recipes=("meta_pseudo_labels/*.py",),
        needs=("data", "preprocessing", "meta_pseudo_labels"),
    ),
    Command(
        "noisy_student",
        "workflow.loop:main",
        "Run the whole iterated loop, from images to a served student.",
        "Runs the stages one after another and prints each command; leaves data/, teacher/, student_N/, evaluation/, "
        "export/ and, last, summary.json.",
        (
            WORKDIR,
            *IMAGES,
            Flag(
                "strategy",
                "Devices of the training stages.",
                default="auto",
                choices=STRATEGIES,
                value="auto|one_device|mirrored|tpu",
            ),
            Flag("tpu", "Name or address of the TPU; without it the local one.", default=""),
            Flag("iterations", "So many more iterations than the finished run in WORKDIR had.", default=None, value="+N"),
            DRY_RUN,
        ),
        (
            f"{DIGITS} --workdir=runs/digits",
            f"{PHOTOS} --workdir=runs/photos --labeled=photos/labeled --unlabeled=photos/unlabeled",
        ),
        recipes=NOISY_STUDENT,
        needs=("data", "teacher", "iterations", "finetune_last"),
        beam=True,
        prepared="data",
    ),
    Command(
        "evaluate",
        "evaluation.evaluate:main",
        "Measure accuracy, calibration and robustness of models.",
        "Leaves report.html, the answers and metrics of each model, figures/ and, last, summary.json.",
        (
            WORKDIR,
            _directory(
                "model",
                "Finished training directories or SavedModels, separated by commas; the last one is the one of interest.",
                finished=True,
            ),
            dataclasses.replace(DATA, default=None),
            Flag("split", "Labelled split of --data. Default: the recipe's evaluate.split.", default=None),
            Flag("suite", f"{SUITE}: clean, real, a, c, p, adversarial.", default="clean"),
            Flag("data_real", "ReaL's real.json.", default=None, value="FILE"),
            _directory("data_a", "ImageNet-A, unpacked.", default=None),
            _directory("data_c", "ImageNet-C, unpacked, any of its tars. Without it a -C of --data is built.", default=None),
            _directory("data_p", "ImageNet-P, unpacked. Without it a -P of --data is built.", default=None),
            _directory("cache", "Where built sets are kept for later runs. Default: WORKDIR/cache.", default=None),
        ),
        (
            "--workdir=runs/evaluation --data=runs/digits/data --model=runs/digits/teacher,runs/digits/student_2",
            "--workdir=runs/robustness --data=runs/digits/data --model=runs/digits/student_2 --suite=clean,c,p",
        ),
        recipes=("evaluation/*.py", *METHODS),
        recipe="configs/evaluation/default.py",
        needs=("evaluate",),
    ),
    Command(
        "export",
        "serving.export:main",
        "Export a model for TF Serving, with preprocessing inside.",
        "Leaves NAME/VERSION (SavedModel, MODEL_CARD.md), TF Serving's settings and, last, summary.json.",
        (
            _directory("workdir", "Directory of all exported models (SERVING_DIR); NAME/VERSION is written in it."),
            MODEL,
            Flag("name", "Name of the model, by which clients ask for it.", default="classifier"),
            _directory("evaluation", "Finished directory of run_evaluate.sh, for the card.", default=None, finished=True),
            Flag(
                "weights",
                "Type of the weights on disk. Sums stay float32.",
                default="float32",
                choices=("float32", "bfloat16", "float16"),
            ),
            Flag("optimize", "Fold BatchNorm into the convolutions and compute what is constant.", bool, False),
            Flag("license", "The line about the licence in the card.", default=None),
            Flag(
                "max_pixels",
                "Largest image that is decoded, in pixels (all frames of a GIF). Decoding takes up to 12 bytes a pixel.",
                int,
                25_000_000,
                least=1,
            ),
        ),
        (
            "--workdir=serving_dir --model=runs/digits/student_2",
            "--workdir=serving_dir --model=runs/digits/student_2 --evaluation=runs/digits/evaluation --weights=float16",
        ),
        kept=("*/*/*", "*/*/*/*"),
    ),
    Command(
        "serve",
        "serving.serve:main",
        "Serve exported models over REST and gRPC.",
        "Starts TF Serving, bare or in a container, or with --local a server for development.",
        (
            _directory("serving_dir", "Directory of exported models: the --workdir of run_export.sh."),
            Flag("host", "Address to listen on: 127.0.0.1 is this machine, 0.0.0.0 everywhere.", default="127.0.0.1"),
            Flag("rest_port", "Port of the REST protocol; with --local 0 takes a free one.", int, 8501),
            Flag("grpc_port", "Port of the gRPC protocol; with --local 0 takes a free one.", int, 8500),
            Flag("image", "Container image of TF Serving.", default="docker.io/tensorflow/serving:2.15.1"),
            Flag("local", "Start the server for development in place of TF Serving.", bool, False),
            Flag("nobatching", "Requests don't wait for each other.", bool, False),
        ),
        ("--serving_dir=serving_dir --local", "--serving_dir=serving_dir --host=0.0.0.0"),
    ),
    Command(
        "predict",
        "serving.predict:main",
        "Classify image files with an exported model.",
        "Prints one line for each image: file, class, probability.",
        (
            _directory("model", "Exported model: a version, or a folder that holds one."),
            Flag("format", "How to print the answers.", default="text", choices=("text", "json", "table")),
        ),
        ("--model=serving_dir photos/dog.jpg", "--model=serving_dir --format=json photos/*.jpg"),
        words="IMAGE…",
    ),
    Command(
        "quickstart",
        "workflow.quickstart:main",
        "Run the main job on the embedded digits, from images to a prediction.",
        "Runs the loop and classifies one image; with --seeds prints a table over seeds.",
        (
            _directory("workdir", "Where everything goes. Default: runs/quickstart in the checkout.", default=None),
            Flag("seeds", "Number of seeds; each has its own directory in WORKDIR.", int, 1, least=1),
        ),
        ("", "--seeds=5 --workdir=runs/five_seeds"),
    ),
    Command(
        "benchmarks",
        "benchmarks.run:main",
        "Measure the project against its peers.",
        "Prints one JSON object a line. PEERS=DIR in the environment holds peers that are no dependencies.",
        (
            Flag("records", "balance: prediction records.", int, None, least=1),
            Flag("images", "look_alikes: photographs; file_checks, input_pipeline, pseudo_label: JPEG files.", int, None, least=1),
            Flag("photos", "look_alikes: a folder or a tar archive of photographs.", default=None),
            Flag("rounds", "meta_pseudo_labels, train_step: times that everything is measured.", int, None, least=1),
            Flag("model", "serving: SERVING_DIR of run_export.sh. Default: an untrained model.", default=None),
            Flag("requests", "serving: requests of one image each, to each server.", int, None, least=1),
            Flag("clients", "serving: connections at the same time.", int, None, least=1),
            Flag("networks", "step_memory: some of b0, b4, l2, separated by commas.", default=None),
            Flag("batch", "step_memory: images a step. Default: 16, and 4 of l2.", int, None, least=1),
            Flag("cases", "train_step: some of start, steps, loops, swish, separated by commas.", default=None),
            Flag("parts", "step_memory: parts of such a batch. Default: 4.", int, None, least=1),
        ),
        ("balance --records=100000", "train_step serving"),
        words="NAME…",
    ),
)

EXPERIMENTS = (
    Command(
        "study",
        "experiments.study:main",
        "Run one recipe under several conditions and seeds, and compare.",
        "Leaves each run's directory, results.json, results.md, results.png and, last, summary.json.",
        (
            WORKDIR,
            Flag("jobs", "Seeds to run at the same time; they share the processor's cores.", int, 1, least=1),
            Flag("dry_run", "Print how many trainings, steps and images the study takes; do nothing.", bool, False),
        ),
        (
            "--config=configs/studies/ratio.py --workdir=runs/ratio",
            "--config=configs/studies/noise.py --workdir=runs/noise --dry_run",
        ),
        group="experiment",
        recipes=("studies/*.py",),
        needs=("runs", "readings", "claims"),
    ),
    Command(
        "two_moons",
        "experiments.two_moons:main",
        "Repeat the paper's toy experiment over many seeds at once.",
        "Leaves results.json, figure.png with decision regions and, last, summary.json.",
        (WORKDIR,),
        (
            "--config=configs/experiments/two_moons.py --workdir=runs/two_moons",
            "--config=configs/experiments/two_moons.py:paper --workdir=runs/two_moons_paper",
        ),
        group="experiment",
        recipes=("experiments/two_moons.py",),
        needs=("run", "methods"),
    ),
    Command(
        "feedback_study",
        "experiments.feedback_study:main",
        "Measure signal and noise of each estimator of the feedback.",
        "Leaves results.json, figure.png and, last, summary.json.",
        (WORKDIR,),
        (
            "--config=configs/experiments/feedback_study.py --workdir=runs/feedback_study",
            "--config=configs/experiments/feedback_study.py --workdir=runs/feedback_short --config.draws=50",
        ),
        group="experiment",
        recipes=("experiments/feedback_study.py",),
        needs=("draws", "batch_sizes"),
    ),
)

TOOLS = (
    Command(
        "compare",
        "evaluation.compare:main",
        "Put several seeds of one experiment together, clean and robust.",
        "Evaluates each run; leaves report.html over seeds and, last, summary.json.",
        (
            WORKDIR,
            Flag("runs", "Finished runs of run_noisy_student.sh, separated by commas; * stands for anything.", value="DIRS"),
            Flag("models", "Models to compare, separated by commas, the baseline first. Default: all.", default=None),
            Flag("suite", f"{SUITE}: clean, c, p, adversarial.", default="clean,c,p,adversarial"),
        ),
        (
            "--workdir=runs/compared --runs='runs/quickstart/seed_*'",
            "--workdir=runs/compared --runs='runs/quickstart/seed_*' --models=teacher,student_2 --suite=clean",
        ),
        group="tool",
        recipes=("evaluation/*.py", *METHODS),
        recipe="configs/evaluation/default.py",
        needs=("evaluate",),
    ),
    Command(
        "import_weights",
        "weights.import_weights:main",
        "Read published weights into a model directory.",
        "Leaves model/ and, last, summary.json; the directory serves as --teacher, --init or --model.",
        (
            Flag(
                "source",
                "TensorFlow 1 checkpoint (prefix or directory), .h5, .keras, .safetensors, or timm's directory with config.json.",
                value="FILE",
            ),
            Flag("model", "EfficientNet variant: b0 ... b8, l2, l2_475, ….", value="NAME"),
            _directory("output", "Directory to write."),
            Flag(
                "weights",
                "Of a TensorFlow 1 checkpoint: moving averages, or raw.",
                default="ema",
                choices=("ema", "raw"),
            ),
            Flag(
                "labels",
                "Names of the classes in order: a text file, one a line, or prepared data. Default: their numbers.",
                default=None,
                value="FILE|DIR",
            ),
            Flag("head", "fresh: a new classifier for --labels, to be trained.", default="keep", choices=("keep", "fresh")),
            Flag(
                "preprocessing",
                "Normalisation: as the file says, else ImageNet's; advprop is x / 127.5 - 1.",
                default="auto",
                choices=("auto", "imagenet", "advprop"),
            ),
            Flag("image_size", "Side of the network's images, in pixels. Default: the variant's.", int, None, least=1),
        ),
        (
            "--source=noisy_student_efficientnet-b7/model.ckpt --model=b7 --output=models/b7",
            "--source=efficientnetb0.h5 --model=b0 --output=models/b0",
        ),
        group="tool",
    ),
    Command(
        "export_weights",
        "weights.export_weights:main",
        "Write a model as weights for timm or tf.keras.applications.",
        "Leaves FILE and, for timm, config.json beside it.",
        (
            MODEL,
            Flag("output", "FILE.safetensors for timm, FILE.h5 for tf.keras.applications.", value="FILE"),
        ),
        (
            "--model=runs/photos/student_2 --output=out/model.safetensors",
            "--model=runs/photos/student_2 --output=out/student.h5",
        ),
        group="tool",
    ),
    Command(
        "fixres",
        "training.fixres:main",
        "Feed a trained model larger images, without training it.",
        "Leaves model/ and, last, summary.json.",
        (
            MODEL,
            _directory("output", "Directory to write."),
            Flag("image_size", "Side of the images that the network is to read, in pixels.", int, least=1),
        ),
        (
            "--model=runs/photos/student_2 --output=runs/larger --image_size=300",
            "--model=models/b7 --output=models/b7_large --image_size=664",
        ),
        group="tool",
    ),
    Command(
        "tflite",
        "serving.lite:main",
        "Convert a model to TFLite files, float16 and int8.",
        "Leaves float16.tflite, int8.tflite, table.md with their accuracy and, last, summary.json.",
        (
            WORKDIR,
            MODEL,
            DATA,
            Flag("split", "Labelled split to measure on.", default="test"),
            Flag("calibration", "Labelled images that set the scales of int8.", int, 200, least=1),
        ),
        (
            "--workdir=runs/tflite --model=runs/digits/student_2 --data=runs/digits/data",
            "--workdir=runs/tflite --model=runs/digits/student_2 --data=runs/digits/data --calibration=40",
        ),
        group="tool",
        kept=("*.tflite",),
    ),
    Command(
        "client",
        "serving.client:main",
        "Ask a running server about image files.",
        "Prints one line for each image: file, class, probability.",
        (
            Flag(
                "url",
                "http://HOST:PORT (REST) or grpc://HOST:PORT.",
                default="http://127.0.0.1:8501",
                value="URL",
            ),
            Flag("model", "The model's name on the server.", default="classifier"),
            Flag("version", "Its version. Without it and --label, the newest.", int, None, least=1),
            Flag("label", "stable or canary, in place of a version.", default=None),
            Flag("format", "How to print the answers.", default="text", choices=("text", "json", "table")),
            Flag("batch_size", "Images in one request.", int, 32, least=1),
            Flag("timeout", "Seconds for each attempt.", float, 10.0),
            Flag("retries", "Attempts after the first.", int, 3),
        ),
        ("photos/dog.jpg", "--url=grpc://127.0.0.1:8500 --label=canary --format=json 'photos/**/*.jpg'"),
        group="tool",
        words="IMAGE…",
    ),
    Command(
        "c_api",
        "serving.c_api:main",
        "Classify image files through TensorFlow's C library.",
        "Prints one line for each image: file, class, probability.",
        (
            _directory("model", "Exported model: a version, or a folder that holds one."),
            Flag("format", "How to print the answers.", default="text", choices=("text", "json", "table")),
        ),
        ("--model=serving_dir photos/dog.jpg", "--model=serving_dir --format=json photos/*.jpg"),
        group="tool",
        words="IMAGE…",
    ),
    Command(
        "fidelity",
        "workflow.fidelity:main",
        "Compare stored and sped-up predictions with the teacher's own.",
        "Prints a table of divergences and record sizes.",
        (DATA, TEACHER, Flag("images", "Images to use, at most.", int, 10_000, least=1)),
        (
            "--data=runs/digits/data --teacher=runs/digits/teacher",
            "--data=runs/digits/data --teacher=runs/digits/teacher --images=500",
        ),
        group="tool",
    ),
    Command(
        "plot_schedules",
        "training.plot_schedules:main",
        "Draw the learning rates of a recipe.",
        "Leaves a picture with one panel for each training.",
        (
            Flag("output", "Picture to write.", value="PNG"),
            dataclasses.replace(DATA, default=None),
        ),
        (
            "--config=configs/noisy_student/imagenet.py:l2 --output=rates.png",
            f"{DIGITS} --output=rates.png --data=runs/digits/data",
        ),
        group="tool",
        recipes=METHODS,
        needs=("data", "expected"),
    ),
    Command(
        "contact_sheet",
        "data.contact_sheet:main",
        "Draw every operation of RandAugment on one photograph.",
        "Leaves a picture.",
        (),
        ("docs/randaugment.jpg",),
        group="tool",
        words="JPG",
    ),
    Command(
        "check_models",
        "benchmarks.models.check:main",
        "Check the networks against independent implementations.",
        "Leaves results and a table; fails where a number is past its bound.",
        (
            _directory("workdir", "Directory for the results."),
            Flag("only", "Checks, separated by commas. Default: all.", default=None),
            Flag("run", "One check, in this process.", default=None),
        ),
        ("--workdir=runs/check_models", "--workdir=runs/check_models --only=timm:b0,keras:b7"),
        group="tool",
    ),
    Command(
        "model_card",
        "benchmarks.models.card:main",
        "Count and time the networks.",
        "Leaves one result for each network and measurement, and a table.",
        (
            _directory("workdir", "Directory for the results."),
            Flag("models", "Networks, separated by commas. Default: all.", default=None),
            Flag("passes", "Measurements, separated by commas.", default="graph,forward,train"),
            Flag("memory", "GiB of a measurement's process at which it is stopped.", float, 12.0),
            Flag("seconds", "Seconds at which it is stopped.", float, 300.0),
            Flag("run", "One measurement, NAME:graph|forward|train, in this process.", default=None),
        ),
        ("--workdir=runs/model_card", "--workdir=runs/model_card --models=b0,b7 --passes=graph"),
        group="tool",
    ),
    Command(
        "kill_at_random",
        "scripts.kill_at_random:main",
        "Kill a training at random moments; compare with an undisturbed one.",
        "Leaves whole/ and killed/; exit code 1 where weights or losses differ in a bit.",
        (
            _directory("workdir", "Directory for the trainings."),
            Flag("kills", "Times to send SIGKILL.", int, 20),
            Flag("seed", "Seed of the moments.", int, 0),
            Flag("workers", "Processes of each training; one of them is killed.", int, 1, least=1),
            Flag("steps", "Steps of the training.", int, 800, least=1),
        ),
        ("--workdir=runs/kills", "--workdir=runs/kills --kills=2 --workers=2"),
        group="tool",
    ),
    Command(
        "compare_with_peers",
        "scripts.compare_with_peers:main",
        "Compare attacks and corruptions with established libraries.",
        "Prints how far the images are apart. The libraries are no dependencies: PEERS=DIR in the environment.",
        (
            _directory("run", "Finished directory of run_noisy_student.sh."),
            Flag("images", "Test images to attack.", int, 100, least=1),
        ),
        ("--run=runs/digits", "--run=runs/digits --images=20"),
        group="tool",
    ),
    Command(
        "try_dtensor",
        "scripts.try_dtensor:main",
        "Try which layers DTensor can split over virtual devices.",
        "Prints one line for each layer and split.",
        (),
        ("",),
        group="tool",
    ),
)

TABLE = {command.name: command for command in (*STAGES, *EXPERIMENTS, *TOOLS)}
"""Every command by its name."""

GROUPS = {"experiment": EXPERIMENTS, "tool": TOOLS}
"""The scripts that take a name before the flags: `./run_GROUP.sh NAME`."""


def find(words: list[str]) -> tuple[Command | None, list[str], str]:
    """Finds the command that a line of words begins with.

    Args:
      words: NAME or GROUP NAME, then flags.

    Returns:
      (command, the words after its name, ""); (None, the words, what is wrong with the name).
    """
    group = words[0] if words and words[0] in GROUPS else ""
    rest = words[1:] if group else words
    table = {command.name: command for command in (GROUPS[group] if group else STAGES)}
    if rest and rest[0] in table:
        return table[rest[0]], rest[1:], ""
    if not rest or rest[0].startswith("-"):
        return None, rest, f"no {group or 'command'} is named; there are {', '.join(table)}"
    near = nearest(rest[0], table, "")
    return None, rest, f"no {group or 'command'} {rest[0]!r}; {near or '--help lists them'}"


def load(target: str) -> Callable[..., Any]:
    """Imports `module:function`."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
