"""The commands behind `run_experiment.sh` and `run_tool.sh`."""

from __future__ import annotations

import dataclasses

from cli.flags import Command, Flag
from cli.stage_commands import (
    ANSWERS,
    DATA,
    DIGITS,
    IMAGES,
    METHODS,
    MODEL,
    SERVING_DIR,
    SUITE,
    TEACHER,
    WORKDIR,
    directory,
)

EXPERIMENTS = (
    Command(
        "study",
        "experiments.study:main",
        "Run one recipe under several conditions and seeds, and compare.",
        "Leaves each run's directory, readings.jsonl (a line for each finished run), results.json,"
        " results.md, results.png and, last, summary.json.",
        (
            WORKDIR,
            *(image for image in IMAGES if image.name != "labels"),
            Flag(
                "only",
                "Runs of the study to do now, as NAME or NAME:SEED, separated by commas. Default:"
                " all.",
                default=None,
            ),
            Flag(
                "jobs",
                "Number of seeds to run at the same time. They share the processor's cores.",
                int,
                1,
                least=1,
            ),
            Flag(
                "dry_run",
                "Print how many trainings, steps and images the study takes. Do nothing else.",
                bool,
                False,
            ),
        ),
        (
            "--config=configs/studies/ratio.py --workdir=runs/ratio",
            (
                "--config=configs/studies/photographs.py --labeled=photos"
                " --workdir=runs/photographs --only=uda:0,mpl:0"
            ),
        ),
        group="experiment",
        settings="",
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
        settings="",
        recipes=("experiments/two_moons.py",),
        needs=("run", "methods"),
    ),
    Command(
        "biased_teacher",
        "experiments.biased_teacher:main",
        "Test whether the feedback mends a biased teacher, where the best answer is known.",
        "Leaves results.json, results.md, figure.png and, last, summary.json.",
        (WORKDIR,),
        (
            "--config=configs/experiments/biased_teacher.py --workdir=runs/biased_teacher",
            (
                "--config=configs/experiments/biased_teacher.py --workdir=runs/unbiased_teacher"
                " --config.bias=False"
            ),
        ),
        group="experiment",
        settings="",
        recipes=("experiments/biased_teacher.py",),
        needs=("memories", "claims"),
    ),
    Command(
        "feedback_study",
        "experiments.feedback_study:main",
        "Measure signal and noise of each estimator of the feedback.",
        "Leaves results.json, figure.png and, last, summary.json.",
        (WORKDIR,),
        (
            "--config=configs/experiments/feedback_study.py --workdir=runs/feedback_study",
            (
                "--config=configs/experiments/feedback_study.py --workdir=runs/feedback_short"
                " --config.draws=50"
            ),
        ),
        group="experiment",
        settings="",
        recipes=("experiments/feedback_study.py",),
        needs=("draws", "batch_sizes"),
    ),
    Command(
        "study_table",
        "experiments.study_table:main",
        "Print the readings of a study as tables. The study may be unfinished.",
        "Prints Markdown. A missing reading is shown as `not run yet`.",
        (Flag("readings", "File readings.jsonl of the study's directory, or a copy of it."),),
        (
            (
                "--config=configs/studies/photographs.py"
                " --readings=runs/studies/photographs/readings.jsonl"
            ),
            "--config=configs/studies/long_tail.py --readings=docs/readings/long_tail.jsonl",
        ),
        group="experiment",
        settings="",
        recipes=("studies/*.py",),
        needs=("runs", "readings", "claims"),
    ),
    Command(
        "audit",
        "experiments.audit:main",
        "Compare every command of the papers' map with the papers' numbers.",
        "Plans the commands of docs/paper_map.md and trains nothing. Exits with code 1 where a "
        "number, recipe or file differs.",
        (),
        ("",),
        group="experiment",
    ),
)

TOOLS = (
    Command(
        "weights",
        "evaluation.published:main",
        "List the published weights that --init can name, or check some on photographs.",
        "Prints a table, or top-1 and top-5 of the photographs.",
        (
            Flag(
                "name",
                "Weights to check: NAME, or NAME:NETWORK where it has several.",
                default=None,
            ),
            directory(
                "check", "Photographs of ImageNet's classes: DIR/<WordNet id>/*.", default=None
            ),
        ),
        ("", "--name=efficientnet-lite0 --check=imagenette2/val"),
        group="tool",
    ),
    Command(
        "reproduce",
        "evaluation.reproduce:main",
        "Measure released checkpoints, and compare with the published numbers.",
        "Without --name prints the checkpoints. Otherwise leaves the model, evaluation/ and "
        "comparison.json. Exits with code 1 where a published number is outside the measured "
        "interval.",
        (
            Flag("name", "Checkpoint, NAME:NETWORK.", default=None),
            directory("imagenet", "ImageNet's TFRecords or official tar files.", default=None),
            directory(
                "workdir",
                "Work directory to write; the same command continues in it.",
                default=None,
            ),
            Flag("data_real", "ReaL's real.json.", default=None, value="FILE"),
            directory("data_a", "ImageNet-A, unpacked.", default=None),
            directory("data_c", "Unpacked ImageNet-C, with any of its tars.", default=None),
            directory("data_p", "ImageNet-P, unpacked.", default=None),
        ),
        ("", "--name=noisy_student:b7 --imagenet=imagenet --workdir=runs/b7"),
        group="tool",
        recipes=("evaluation/*.py",),
        recipe="configs/evaluation/default.py",
        needs=("evaluate",),
    ),
    Command(
        "compare",
        "evaluation.compare:main",
        "Compare several seeds of one experiment, on clean and corrupted images.",
        "Evaluates each run; leaves report.html over seeds and, last, summary.json.",
        (
            WORKDIR,
            Flag(
                "runs",
                "Finished runs of run_noisy_student.sh, separated by commas; * stands for"
                " anything.",
                value="DIRS",
            ),
            Flag(
                "models",
                "Models to compare, separated by commas, with the baseline first. Default: all.",
                default=None,
            ),
            Flag("suite", f"{SUITE}: clean, c, p, adversarial.", default="clean,c,p,adversarial"),
        ),
        (
            "--workdir=runs/compared --runs='runs/quickstart/seed_*'",
            (
                "--workdir=runs/compared --runs='runs/quickstart/seed_*' --models=teacher,student_2"
                " --suite=clean"
            ),
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
        "Leaves model/ and, last, summary.json; the directory serves as --teacher, --init or"
        " --model.",
        (
            Flag(
                "source",
                "TensorFlow 1 checkpoint (prefix or directory), .h5, .keras, .safetensors, or"
                " timm's directory with config.json.",
                value="FILE",
            ),
            Flag("model", "EfficientNet variant: b0 ... b8, l2, l2_475, lite0, ….", value="NAME"),
            directory("output", "Directory to write."),
            Flag(
                "weights",
                "Which weights of a TensorFlow 1 checkpoint to read: moving averages, or raw.",
                default="ema",
                choices=("ema", "raw"),
            ),
            Flag(
                "labels",
                "Names of the classes in order: a text file with one name a line, or prepared "
                "data. Default: numbers.",
                default=None,
                value="FILE|DIR",
            ),
            Flag(
                "head",
                "fresh: attach a new, untrained classifier for --labels.",
                default="keep",
                choices=("keep", "fresh"),
            ),
            Flag(
                "preprocessing",
                "Normalization. Default: what the file says, else ImageNet's; advprop is x / "
                "127.5 - 1, lite is (x - 127) / 128.",
                default="auto",
                choices=("auto", "imagenet", "advprop", "lite"),
            ),
            Flag(
                "image_size",
                "Side of the network's images, in pixels. Default: the variant's own.",
                int,
                None,
                least=1,
            ),
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
            Flag(
                "output",
                "FILE.safetensors for timm, FILE.h5 for tf.keras.applications.",
                value="FILE",
            ),
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
        "Change a trained model's input to larger images, without training it.",
        "Leaves model/ and, last, summary.json.",
        (
            MODEL,
            directory("output", "Directory to write."),
            Flag(
                "image_size",
                "Side of the network's new input images, in pixels.",
                int,
                least=1,
            ),
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
            Flag("split", "Labeled split to measure on.", default="test"),
            Flag("calibration", "Number of labeled images that calibrate int8.", int, 200, least=1),
        ),
        (
            "--workdir=runs/tflite --model=runs/digits/student_2 --data=runs/digits/data",
            (
                "--workdir=runs/tflite --model=runs/digits/student_2 --data=runs/digits/data"
                " --calibration=40"
            ),
        ),
        group="tool",
        kept=("*.tflite",),
    ),
    Command(
        "promote",
        "serving.promotion:promote",
        "Make another exported version the stable one, after a check on held-out images.",
        "Prints accuracy, agreement and time; replaces models.config where they are within the"
        " limits.",
        (
            SERVING_DIR,
            DATA,
            Flag("split", "Labeled split that the models were not trained on.", default="test"),
            Flag("name", "The model.", default="classifier"),
            Flag("version", "Version to promote. Default: the newest.", int, None, least=1),
            Flag(
                "drop", "Largest accepted fall of the accuracy, in percentage points.", float, 1.0
            ),
            Flag(
                "agreement",
                "Percentage of images to which both versions must give the same class.",
                float,
                70.0,
            ),
            Flag(
                "slower",
                "Largest accepted time of a request, as a multiple of the stable version's time.",
                float,
                1.5,
            ),
        ),
        (
            "--serving_dir=serving_dir --data=runs/digits/data",
            "--serving_dir=serving_dir --data=runs/digits/data --version=2 --drop=0.5",
        ),
        group="tool",
    ),
    Command(
        "rollback",
        "serving.promotion:rollback",
        "Return to the version that was stable before the last promotion.",
        "Replaces models.config.",
        (
            SERVING_DIR,
            Flag("name", "The model.", default="classifier"),
            Flag(
                "version",
                "Version to return to. Default: the one before the last promotion.",
                int,
                None,
                least=1,
            ),
        ),
        ("--serving_dir=serving_dir", "--serving_dir=serving_dir --version=1"),
        group="tool",
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
                address=True,
            ),
            Flag(
                "model",
                "The model's name on the server; NAME-canary is the newest export.",
                default="classifier",
            ),
            Flag(
                "version",
                "Version of the model. Default without --label: the newest one served under the "
                "name.",
                int,
                None,
                least=1,
            ),
            Flag("label", "A version label of models.config, instead of a version.", default=None),
            *ANSWERS,
            Flag("batch_size", "Number of images in one request.", int, 32, least=1),
            Flag("timeout", "Limit of each attempt, in seconds.", float, 10.0),
            Flag("retries", "Number of attempts after the first.", int, 3),
        ),
        (
            "photos/dog.jpg",
            (
                "--url=grpc://127.0.0.1:8500 --model=classifier-canary --format=jsonl"
                " 'photos/**/*.jpg'"
            ),
        ),
        group="tool",
        words="FILE|DIR|GLOB|CSV|-…",
    ),
    Command(
        "logged_images",
        "serving.request_log:images_main",
        "Collect the images of logged requests, as unlabeled images for the next run.",
        "Puts each image into OUTPUT once. The same command adds what is new.",
        (
            Flag("logs", "The folder of run_serve.sh --local --log_requests.", value="DIR"),
            Flag("output", "Folder for the images.", value="DIR"),
        ),
        (
            "--logs=requests --output=photos/served",
            "--logs=/var/log/classifier --output=photos/unlabeled/served",
        ),
        group="tool",
    ),
    Command(
        "drift",
        "workflow.drift:main",
        "Compare logged requests with the training images, and name images to label next.",
        "Leaves OUTPUT/images, labels_next.csv, drift.md and, last, drift.json.",
        (
            Flag("requests", "The folder of run_serve.sh --local --log_requests.", value="DIR"),
            Flag(
                "reference",
                "Images that the model was trained on: a folder, a list, or a split of a data"
                " directory.",
                value="DIR",
            ),
            Flag("model", "Directory of exported models, or one version.", value="DIR"),
            Flag("output", "Directory to write. The same command adds what is new.", value="DIR"),
            Flag("ask", "Largest number of images of each kind to label next.", int, 20, least=1),
        ),
        (
            "--requests=requests --reference=photos/labeled --model=serving_dir --output=served",
            (
                "--requests=requests --reference=runs/digits/data/labeled --model=serving_dir"
                " --output=served"
            ),
        ),
        group="tool",
    ),
    Command(
        "labels",
        "workflow.labels:main",
        "List the teacher's and the student's answer to each image, for a person to correct.",
        "Leaves WORKDIR/labels_N.csv, the images to look at first; --labels of run_noisy_student.sh"
        " takes it back.",
        (
            directory("workdir", "Work directory of run_noisy_student.sh."),
            Flag(
                "iteration",
                "Number of the iteration, from 1. Default: the last finished one.",
                int,
                None,
                least=1,
            ),
            Flag("ask", "Largest number of images of each kind to look at.", int, 20),
            Flag(
                "tasks",
                "File to write: tasks for Label Studio with the images to look at.",
                default=None,
                value="FILE.json",
            ),
        ),
        ("--workdir=runs/photos", "--workdir=runs/photos --iteration=1 --ask=50"),
        group="tool",
    ),
    Command(
        "fidelity",
        "workflow.fidelity:main",
        "Compare stored and sped-up predictions with the teacher's own.",
        "Prints a table of divergences and record sizes.",
        (DATA, TEACHER, Flag("images", "Largest number of images to use.", int, 10_000, least=1)),
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
            directory("workdir", "Directory for the results."),
            Flag("only", "Checks, separated by commas. Default: all.", default=None),
            Flag("run", "Run this one check, in this process.", default=None),
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
            directory("workdir", "Directory for the results."),
            Flag("models", "Networks, separated by commas. Default: all.", default=None),
            Flag("passes", "Measurements, separated by commas.", default="graph,forward,train"),
            Flag("memory", "Memory limit of a measurement's process, in GiB.", float, 12.0),
            Flag("seconds", "Time limit of a measurement, in seconds.", float, 300.0),
            Flag(
                "run",
                "Run one measurement, NAME:graph|forward|train, in this process.",
                default=None,
            ),
        ),
        ("--workdir=runs/model_card", "--workdir=runs/model_card --models=b0,b7 --passes=graph"),
        group="tool",
    ),
    Command(
        "kill_at_random",
        "scripts.kill_at_random:main",
        "Kill a training at random moments, and compare it with an undisturbed one.",
        "Leaves whole/ and killed/. Exits with code 1 where weights or losses differ in a bit.",
        (
            directory("workdir", "Directory for the trainings."),
            Flag("kills", "Number of times to send SIGKILL.", int, 20),
            Flag("seed", "Seed of the moments at which to kill.", int, 0),
            Flag(
                "workers",
                "Number of processes of each training. One of them is killed.",
                int,
                1,
                least=1,
            ),
            Flag("steps", "Number of steps of the training.", int, 800, least=1),
        ),
        ("--workdir=runs/kills", "--workdir=runs/kills --kills=2 --workers=2"),
        group="tool",
    ),
    Command(
        "kill_hosts",
        "scripts.kill_hosts:main",
        "Kill one of two hosts in every stage of the loop, and compare with an undisturbed run.",
        "Leaves whole/, killed/ and the hosts' output. Exits with code 1 where weights differ.",
        (directory("workdir", "Directory for the two runs."),),
        ("--workdir=runs/hosts", "--workdir=/tmp/hosts"),
        group="tool",
    ),
    Command(
        "compare_with_peers",
        "scripts.compare_with_peers:main",
        "Compare attacks and corruptions with established libraries.",
        "Prints how far the images are apart. PEERS=DIR in the environment names a folder with "
        "the libraries, which the project does not depend on.",
        (
            directory("run", "Finished directory of run_noisy_student.sh."),
            Flag("images", "Number of test images to attack.", int, 100, least=1),
        ),
        ("--run=runs/digits", "--run=runs/digits --images=20"),
        group="tool",
    ),
    Command(
        "compare_stacks",
        "scripts.compare_stacks:main",
        "Compare a step, the data and an export with those of another TensorFlow.",
        "Prints the differences. Exits with code 1 where a difference is above its limit.",
        (
            Flag(
                "other",
                "Python of an environment with the other stack, such as VENV/bin/python.",
                value="PYTHON",
            ),
            directory("workdir", "Directory for what both sides compute."),
        ),
        (
            "--other=.venv-classic/bin/python --workdir=runs/stacks",
            "--other=$HOME/tensorflow-2.15/bin/python --workdir=runs/classic",
        ),
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
