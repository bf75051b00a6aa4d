"""The commands with their own script: stages, quick start, benchmarks."""

from __future__ import annotations

import dataclasses

from cli.flags import Command, Flag

NOISY_STUDENT = ("noisy_student/*.py",)
METHODS = (
    *NOISY_STUDENT,
    "meta_pseudo_labels/*.py",
    "supervised/*.py",
    "uda/*.py",
    "fixmatch/*.py",
)
DIGITS = "--config=configs/noisy_student/digits.py"
PHOTOS = "--config=configs/noisy_student/image_folder.py"
MPL_DIGITS = "--config=configs/meta_pseudo_labels/digits.py"

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")
MODEL_STAGES = "run_train.sh, run_teacher.sh, run_student.sh or run_meta_pseudo_labels.sh"


def directory(name: str, text: str, **options: object) -> Flag:
    """Returns a flag that names a directory; `options` are those of `Flag`."""
    return Flag(name, text, value="DIR", **options)  # type: ignore[arg-type]


WORKDIR = directory("workdir", "Work directory to write; the same command continues in it.")
DATA = directory("data", "Prepared data: finished directory of run_prepare_data.sh.", finished=True)
SERVING_DIR = directory(
    "serving_dir", "Directory of exported models: the --workdir of run_export.sh."
)
MODEL = directory("model", "Finished training directory, or its model/.", finished=True)
TEACHER = directory("teacher", f"Teacher: finished directory of {MODEL_STAGES}.", finished=True)
DRY_RUN = Flag(
    "dry_run",
    "Print what would be done, its size, and what is missing. Do nothing else.",
    bool,
    False,
)
SUITE = "What to measure, separated by commas"

IMAGES = (
    Flag(
        "labeled",
        "Labeled images, [FORMAT:]LOCATION (docs/data.md). A folder must have the form "
        "DIR/<class>/*.jpg.",
        default=None,
    ),
    Flag(
        "unlabeled",
        "Unlabeled images, [FORMAT:]LOCATION. A folder may be nested in any way.",
        default=None,
    ),
    Flag(
        "test",
        "Test images, [FORMAT:]LOCATION. Without it, a part of the labeled ones is held out.",
        default=None,
    ),
    Flag(
        "labels",
        "List of file,label that a person corrected or added, such as an edited labels_N.csv of"
        " another run.",
        default=None,
        value="CSV",
    ),
)

INIT = Flag(
    "init",
    "Weights to start from: a name (./run_tool.sh weights lists them), a file, or a finished"
    " training directory.",
    default=None,
    value="NAME|FILE|DIR",
    finished=True,
    named=True,
    replaces="init",
)
PSEUDO_LABELED = directory(
    "pseudo_labeled", "Finished directory of run_balance.sh.", default=None, finished=True
)
SELECTION = directory(
    "selection",
    "Balanced set to use instead of all unlabeled images: finished directory of run_balance.sh.",
    default=None,
    finished=True,
)
ANSWERS = (
    Flag(
        "format",
        "Format of the answers. jsonl (or json) writes one object a line; parquet needs --output.",
        default="text",
        choices=("text", "table", "jsonl", "json", "csv", "parquet"),
    ),
    Flag(
        "output",
        "File to write instead of printing. The same command continues it.",
        default=None,
        value="FILE",
    ),
)
DEVICES = (
    Flag(
        "strategy",
        "Devices to use; auto takes all GPUs of the machine.",
        default="auto",
        choices=tuple(name for name in STRATEGIES if name != "multi_worker"),
    ),
    Flag(
        "cpu_devices", "Logical CPU devices, to try several devices without a GPU.", int, 1, least=1
    ),
    Flag("tpu", "Name or address of the TPU. Default: the local one.", default="", address=True),
)
TRAINING = (
    WORKDIR,
    DATA,
    PSEUDO_LABELED,
    SELECTION,
    directory(
        "teacher",
        "Teacher that labels within the step, for an online section.",
        default=None,
        finished=True,
    ),
    INIT,
    Flag("iteration", "Which student this is, from 1. It sets weights, order and noise.", int, 0),
    Flag("strategy", "Devices to train on.", default="auto", choices=STRATEGIES),
    Flag("cpu_devices", "Logical CPU devices, to try --strategy=mirrored.", int, 1, least=1),
    Flag("tpu", "Name or address of the TPU. Default: the local one.", default="", address=True),
    Flag(
        "replica_cores",
        "With --strategy=tpu: cores that share each image, a power of 2. Untried on hardware.",
        int,
        1,
        least=1,
    ),
    Flag("profile_steps", "Steps to profile, for TensorBoard.", default=None, value="FIRST,LAST"),
    DRY_RUN,
)


PLAN = (
    Flag(
        "devices", "With --dry_run: number of devices to plan for; each holds one replica.", int, 0
    ),
    Flag(
        "memory",
        "With --dry_run: memory of one device. Default: that of --device.",
        default=None,
        value="80GiB",
    ),
    Flag(
        "device",
        "With --dry_run: type of the devices, to estimate the hours.",
        default=None,
        value="A100|H100|v3|v5e",
    ),
)
SECTION = Flag(
    "section",
    "Section of the recipe: train, teacher, student, student_2, finetune, ….",
    default="train",
)


def _training(
    name: str, section: str, summary: str, *examples: str, recipes: tuple[str, ...] = METHODS
) -> Command:
    """Returns the command that trains one section of a recipe."""
    return Command(
        name,
        "workflow.train:main",
        summary,
        "Reads prepared data; leaves checkpoints/, metrics.jsonl, tensorboard/, model/ and, last,"
        " summary.json.",
        (*TRAINING, dataclasses.replace(SECTION, default=section)),
        tuple(f"{example} --data=runs/digits/data" for example in examples),
        recipes=recipes,
        needs=("data", "preprocessing"),
    )


STAGES = (
    Command(
        "prepare_data",
        "data.prepare:run",
        "Turn images into training records.",
        "Leaves labeled/, unlabeled/, test/ and validation/ as shards with manifests and, last,"
        " summary.json.",
        (
            WORKDIR,
            *IMAGES,
            Flag(
                "pseudo_labeled",
                "Pseudo-labeled TFRecords of the release: a folder or a pattern.",
                default=None,
            ),
            Flag("source", "digits, or the format of locations that name none.", default=None),
        ),
        (
            f"{DIGITS} --workdir=runs/digits/data",
            (
                f"{PHOTOS} --workdir=runs/photos/data --labeled=photos/labeled"
                " --unlabeled=photos/unlabeled"
            ),
        ),
        recipes=METHODS,
        needs=("seed", "data"),
        kept=("*/manifest.json", "*/*-of-*"),
        prepared=".",
    ),
    Command(
        "train",
        "workflow.one_method:main",
        "Train a classifier by the method that the recipe names.",
        "Without --data runs every stage, from images to an exported model, and leaves data/, the"
        " model, evaluation/, export/ and, last, summary.json. With --data trains on prepared data"
        " alone and leaves checkpoints/, metrics.jsonl, tensorboard/, model/ and, last,"
        " summary.json.",
        (
            WORKDIR,
            *IMAGES,
            dataclasses.replace(DATA, default=None),
            *(flag for flag in TRAINING if flag not in (WORKDIR, DATA)),
            *PLAN,
            SECTION,
        ),
        (
            (
                "--config=configs/fixmatch/image_folder.py --workdir=runs/fixmatch"
                " --labeled=photos/labeled --unlabeled=photos/unlabeled"
            ),
            "--config=configs/uda/digits.py --workdir=runs/uda --data=runs/digits/data",
        ),
        recipes=METHODS,
        needs=("data", "preprocessing"),
        prepared="data",
    ),
    _training(
        "teacher",
        "teacher",
        "Train a teacher on the labeled images.",
        f"{DIGITS} --workdir=runs/teacher",
        f"{MPL_DIGITS} --workdir=runs/teacher",
    ),
    Command(
        "pseudo_label",
        "workflow.pseudo_label:main",
        "Label the unlabeled images with a teacher.",
        "Leaves prediction shards (image key, probabilities) with a manifest and, last,"
        " summary.json.",
        (
            WORKDIR,
            DATA,
            TEACHER,
            Flag(
                "section",
                "Section of the recipe: pseudo_label, pseudo_label_1, ….",
                default="pseudo_label",
            ),
            SELECTION,
            *DEVICES,
        ),
        (
            (
                f"{DIGITS} --workdir=runs/predictions --data=runs/digits/data"
                " --teacher=runs/digits/teacher"
            ),
            (
                f"{DIGITS} --workdir=runs/predictions --data=runs/digits/data"
                " --teacher=runs/digits/teacher --direct_num_workers=2"
                " --direct_running_mode=multi_processing"
            ),
        ),
        recipes=NOISY_STUDENT,
        needs=("pseudo_label",),
        beam=True,
    ),
    Command(
        "balance",
        "workflow.balance:main",
        "Filter and balance the pseudo-labeled images.",
        "Joins predictions and images by key; leaves training shards, pseudo_labels.png and, last,"
        " summary.json.",
        (
            WORKDIR,
            DATA,
            directory("predictions", "Finished directory of run_pseudo_label.sh.", finished=True),
            directory(
                "selection",
                "Balanced set to label again, with its copies, by predictions on it; it takes no"
                " --config.balance setting.",
                default=None,
                finished=True,
                replaces="balance",
            ),
        ),
        (
            (
                f"{DIGITS} --workdir=runs/balanced --data=runs/digits/data"
                " --predictions=runs/digits/predictions_1"
            ),
            (
                f"{DIGITS} --workdir=runs/balanced --data=runs/digits/data"
                " --predictions=runs/digits/predictions_1 --config.balance.threshold=0.5"
            ),
        ),
        recipes=NOISY_STUDENT,
        needs=("balance",),
        beam=True,
    ),
    _training(
        "student",
        "student",
        "Train a student on the labeled and the pseudo-labeled images.",
        f"{DIGITS} --workdir=runs/student --pseudo_labeled=runs/balanced",
        f"{DIGITS} --workdir=runs/online --teacher=runs/teacher --config.student.online=True",
        recipes=NOISY_STUDENT,
    ),
    _training(
        "finetune",
        "finetune",
        "Fine-tune a trained model, by default at a larger resolution.",
        f"{DIGITS} --workdir=runs/finetuned --init=runs/student",
        f"{MPL_DIGITS} --workdir=runs/finetuned --init=runs/mpl",
    ),
    _training(
        "meta_pseudo_labels",
        "train",
        "Train a student by Meta Pseudo Labels.",
        f"{MPL_DIGITS} --workdir=runs/mpl",
        f"{MPL_DIGITS}:reduced --workdir=runs/reduced --pseudo_labeled=runs/balanced",
        recipes=("meta_pseudo_labels/*.py",),
    ),
    Command(
        "noisy_student",
        "workflow.loop:main",
        "Run the whole iterated loop, from images to a served student.",
        "Runs the stages one after another and prints each command; leaves data/, teacher/,"
        " student_N/, evaluation/, export/ and, last, summary.json.",
        (
            WORKDIR,
            *IMAGES,
            INIT,
            Flag(
                "strategy",
                "Devices to train, label and evaluate on.",
                default="auto",
                choices=STRATEGIES,
            ),
            Flag(
                "tpu",
                "Name or address of the TPU. Default: the local one.",
                default="",
                address=True,
            ),
            Flag(
                "iterations",
                "+N: number of iterations to add to the finished run in WORKDIR.",
                default=None,
                value="+N",
            ),
            Flag(
                "dry_run",
                "Print what would be done, its time, memory and disk, and what is missing. Do "
                "nothing else.",
                bool,
                False,
            ),
            *PLAN,
        ),
        (
            f"{DIGITS} --workdir=runs/digits",
            (
                f"{PHOTOS} --workdir=runs/photos --labeled=photos/labeled"
                " --unlabeled=photos/unlabeled --dry_run"
            ),
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
        "Leaves report.html, the answers and metrics of each model, figures/ and, last,"
        " summary.json.",
        (
            WORKDIR,
            directory(
                "model",
                "Finished training directories or SavedModels, separated by commas. The report "
                "describes the last one in detail.",
                finished=True,
            ),
            dataclasses.replace(DATA, default=None),
            Flag(
                "split",
                "Labeled split of --data. Default: the recipe's evaluate.split.",
                default=None,
            ),
            Flag("suite", f"{SUITE}: clean, real, a, c, p, adversarial.", default="clean"),
            Flag("data_real", "ReaL's real.json.", default=None, value="FILE"),
            directory("data_a", "ImageNet-A, unpacked.", default=None),
            directory(
                "data_c",
                "Unpacked ImageNet-C, with any of its tars. Default: a -C set is built from "
                "--data.",
                default=None,
            ),
            directory(
                "data_p",
                "Unpacked ImageNet-P. Default: a -P set is built from --data.",
                default=None,
            ),
            directory(
                "cache",
                "Folder that keeps the built sets for later runs. Default: WORKDIR/cache.",
                default=None,
            ),
            Flag(
                "init",
                "Weights that the models started from. Adds a linear probe on their features.",
                default=None,
            ),
            *DEVICES,
        ),
        (
            (
                "--workdir=runs/evaluation --data=runs/digits/data"
                " --model=runs/digits/teacher,runs/digits/student_2"
            ),
            (
                "--workdir=runs/robustness --data=runs/digits/data --model=runs/digits/student_2"
                " --suite=clean,c,p"
            ),
        ),
        recipes=("evaluation/*.py", *METHODS),
        recipe="configs/evaluation/default.py",
        needs=("evaluate",),
    ),
    Command(
        "export",
        "serving.export:main",
        "Export a model for TF Serving, with preprocessing inside.",
        "Leaves NAME/VERSION (SavedModel, MODEL_CARD.md), TF Serving's settings and, last,"
        " summary.json.",
        (
            directory(
                "workdir",
                "Directory of all exported models (SERVING_DIR); NAME/VERSION is written in it.",
            ),
            MODEL,
            Flag("name", "Name by which clients ask for the model.", default="classifier"),
            directory(
                "evaluation",
                "Finished directory of run_evaluate.sh, for the model card.",
                default=None,
                finished=True,
            ),
            Flag(
                "weights",
                "Type of the weights on disk. Sums stay float32.",
                default="float32",
                choices=("float32", "bfloat16", "float16"),
            ),
            Flag(
                "optimize",
                "Fold BatchNorm into the convolutions and precompute constants.",
                bool,
                False,
            ),
            Flag(
                "onnx",
                "Also write an ONNX file, and compare its answers with the model's.",
                bool,
                False,
            ),
            directory(
                "neighbors",
                "Prepared data. Thumbnails and names of up to 2,000 of its labeled images go into"
                " the export, for the page of run_serve.sh --local. Default: none.",
                default=None,
                finished=True,
            ),
            Flag(
                "license",
                "Line about the license in the model card.",
                default=None,
                address=True,
            ),
            Flag(
                "max_pixels",
                "Largest image that is decoded, in pixels (all frames of a GIF). Decoding takes up"
                " to 12 bytes a pixel.",
                int,
                25_000_000,
                least=1,
            ),
        ),
        (
            "--workdir=serving_dir --model=runs/digits/student_2",
            (
                "--workdir=serving_dir --model=runs/digits/student_2"
                " --evaluation=runs/digits/evaluation --weights=float16 --onnx"
            ),
        ),
        kept=("*/*/*", "*/*/*/*", "*.config", "batching_parameters.txt"),
    ),
    Command(
        "serve",
        "serving.serve:main",
        "Serve exported models over REST and gRPC.",
        "Starts TF Serving, bare or in a container, or with --local a server for development.",
        (
            SERVING_DIR,
            Flag(
                "host",
                "Address to listen on: 127.0.0.1 is this machine, 0.0.0.0 everywhere.",
                default="127.0.0.1",
            ),
            Flag(
                "rest_port",
                "Port of the REST protocol; with --local 0 takes a free one.",
                int,
                8501,
            ),
            Flag(
                "grpc_port",
                "Port of the gRPC protocol; with --local 0 takes a free one.",
                int,
                8500,
            ),
            Flag(
                "image",
                "Container image of TF Serving.",
                default="docker.io/tensorflow/serving:2.15.1",
                address=True,
            ),
            Flag("local", "Start the development server instead of TF Serving.", bool, False),
            Flag(
                "nobatching",
                "Compute each request by itself, not in a batch with others.",
                bool,
                False,
            ),
            Flag("cors", "Allow web pages of any origin to send REST requests.", bool, False),
            Flag(
                "log_requests",
                "With --local: folder for requests and answers (PredictionLog).",
                default=None,
            ),
        ),
        ("--serving_dir=serving_dir --local", "--serving_dir=serving_dir --host=0.0.0.0"),
    ),
    Command(
        "predict",
        "serving.predict:main",
        "Classify image files with an exported model.",
        "Prints one line for each image: file, class, probability.",
        (
            directory("model", "Exported model: a version, or a folder that holds one."),
            *ANSWERS,
            *DEVICES,
        ),
        (
            "--model=serving_dir photos/dog.jpg",
            "--model=serving_dir --format=csv --output=answers.csv photos",
        ),
        words="FILE|DIR|GLOB|CSV|-…",
    ),
    Command(
        "quickstart",
        "workflow.quickstart:main",
        "Run the main job on the embedded digits, from images to a prediction.",
        "Runs the loop and classifies one image; with --seeds prints a table over seeds.",
        (
            directory(
                "workdir",
                "Directory for all results. Default: runs/quickstart in the checkout.",
                default=None,
            ),
            Flag(
                "seeds", "Number of seeds. Each has its own directory in WORKDIR.", int, 1, least=1
            ),
        ),
        ("", "--seeds=5 --workdir=runs/five_seeds"),
    ),
    Command(
        "benchmarks",
        "benchmarks.run:main",
        "Measure the project against its peers.",
        "Prints one JSON object a line. PEERS=DIR in the environment names a folder with peer "
        "libraries, which the project does not depend on.",
        (
            Flag(
                "records",
                "balance, relabel: prediction records, and records of the set.",
                int,
                None,
                least=1,
            ),
            Flag(
                "images",
                "look_alikes: photographs; buckets, file_checks, input_pipeline, labels_beside,"
                " pseudo_label, several_*: JPEG files.",
                int,
                None,
                least=1,
            ),
            Flag("photos", "look_alikes: a folder or a tar archive of photographs.", default=None),
            Flag(
                "rounds",
                "formats, meta_pseudo_labels, processor, train_step: number of times to measure "
                "each case.",
                int,
                None,
                least=1,
            ),
            Flag(
                "model",
                "serving: SERVING_DIR of run_export.sh. Default: an untrained model.",
                default=None,
            ),
            Flag(
                "trained", "formats: training directory. Default: an untrained model.", default=None
            ),
            Flag(
                "requests",
                "serving: requests of one image each, to each server; rollover: mixed ones.",
                int,
                None,
                least=1,
            ),
            Flag(
                "clients",
                "rollover, serving: number of simultaneous connections. Default: 16; serving also "
                "measures 64.",
                int,
                None,
                least=1,
            ),
            Flag(
                "image_size",
                "rollover: pixels of the model's images; from 64 on the model is B0. Default: 32.",
                int,
                None,
                least=8,
            ),
            Flag("sweep", "serving: try other batching parameters.", bool, None),
            Flag("jax", "planned_memory: Python interpreter that has JAX.", default=None),
            Flag(
                "topology",
                "planned_memory: TPU to compile for, such as v5e:2x2; --jax needs libtpu.",
                default=None,
            ),
            Flag(
                "networks",
                "step_memory: any of b0, b4, l2; xla_steps, planned_memory: any of b0, resnet50, "
                "wrn_28_2; separated by commas.",
                default=None,
            ),
            Flag(
                "methods",
                "xla_steps: any of supervised, noisy_student, uda, fixmatch, meta_pseudo_labels.",
                default=None,
            ),
            Flag(
                "batch",
                "step_memory: images a step, 16 by default, 4 of l2; xla_steps: labeled ones, 4;"
                " planned_memory: 32.",
                int,
                None,
                least=1,
            ),
            Flag(
                "cases",
                "train_step: any of start, steps, loops, swish, separated by commas.",
                default=None,
            ),
            Flag(
                "parts",
                "step_memory: number of parts of such a batch. Default: 4.",
                int,
                None,
                least=1,
            ),
        ),
        ("balance --records=100000", "train_step serving"),
        words="NAME…",
    ),
)
