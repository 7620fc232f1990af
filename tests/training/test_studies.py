"""The paper's studies, on tiny models."""

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import tensorflow as tf

from keras_cait.baselines import ViT
from tests.helpers.commands import exit_status
from tests.helpers.models import without_values
from tests.helpers.run_training import noise
from training import studies
from training.loop.stacking import stacked
from training.studies import run_study
from training.study import trainings
from training.study.cells import PAPER, SCALES, STUDIES
from training.study.tables import table
from training.study.trainings import train


def shrunk():
    """The digits' scale, shrunk to 8 steps of models of one or two blocks."""
    recipe = dataclasses.replace(
        SCALES["digits"].recipe,
        epochs=2,
        global_batch_size=24,
        warmup_epochs=0.5,
        evaluation_epochs=2,
        xla=False,
    )
    return dataclasses.replace(
        SCALES["digits"],
        recipe=recipe,
        model={**SCALES["digits"].model, "embed_dim": 8, "num_heads": 2},
        depths={1: 0.0, 2: 0.0},
        paper={"LayerScale": (80.5, 82.4)},
        seeds=2,
    )


def of_study(scale, row):
    return next(c for c in STUDIES["depth"](scale) if c.row == row)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(trainings, "load", noise)
    return shrunk()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder and the result of a training of LayerScale."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "load", noise)
        return folder, train(of_study(shrunk(), "LayerScale"), 0, folder)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("study", STUDIES)
def test_every_cell_is_a_model(study, scale):
    """Names are files: no two cells share one."""
    cells = STUDIES[study](SCALES[scale])
    assert len({cell.name for cell in cells}) == len(cells)
    assert len({(cell.row, cell.column) for cell in cells}) == len(cells)
    seen = []
    for cell in cells:
        # Of 36 blocks of a kind one is as good, and fast to build.
        entry = cell.model.get("class_token_depth") or 0
        small = {**cell.model, "depth": 1 + entry, "embed_dim": 24}
        with without_values():
            model = ViT(**small | {"num_heads": 2}, classes=3)
        seen.append(model.get_config())
        seen[-1] |= {"name": "", "depth": cell.model["depth"]}
    assert all(seen.count(config) == 1 for config in seen)


def test_the_paper_s_figures_are_beside_ours():
    cells = STUDIES["depth"](SCALES["imagenet"])
    assert {cell.row for cell in cells} >= PAPER.keys()
    lines = table(cells, []).splitlines()
    columns = ("Model", *(f"{blocks} blocks" for blocks in (12, 18, 24, 36)))
    assert lines[0] == f"| {' | '.join(columns)} |"
    assert "| LayerScale | (80.5) | (81.7) | (82.4) | (82.9) |" in lines
    rates = {
        (cell.row, cell.column): cell.model["drop_path_rate"] for cell in cells
    }
    assert rates["pre-norm, stochastic depth 0.05", "36 blocks"] == 0.05
    assert rates["pre-norm", "36 blocks"] == 0.25


def test_norm_and_warmup_are_left_out_together():
    cells = STUDIES["depth"](SCALES["imagenet"])
    without = [c for c in cells if not c.model.get("pre_norm", True)]
    assert {c.model["residual_scaling"] for c in without} == {
        "rezero",
        "fixup",
    }
    assert len(without) == 2 * 4
    for c in cells:
        assert c.recipe.warmup_epochs == (0.0 if c in without else 5.0)


@pytest.mark.large
def test_a_study_resumes_and_ends_with_a_table_and_a_figure(
    tiny, tmp_path, monkeypatch
):
    tiny = dataclasses.replace(
        tiny,
        recipe=dataclasses.replace(tiny.recipe, epochs=1),
        depths={1: 0.0},
    )
    cells = [of_study(tiny, row) for row in ("pre-norm", "LayerScale")]
    monkeypatch.setitem(STUDIES, "depth", lambda scale: cells)
    trained = []

    def interrupted(cell, seed, *rest):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append((cell.name, seed))
        return train(cell, seed, *rest)

    monkeypatch.setattr(trainings, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study("depth", tiny, tmp_path)
    written = {
        file: file.stat().st_mtime_ns for file in tmp_path.glob("*blocks*.json")
    }
    assert len(written) == 3
    monkeypatch.setattr(trainings, "train", train)
    results = run_study("depth", tiny, tmp_path)
    assert len(results) == 2 * 2
    for file, at in written.items():
        assert file.stat().st_mtime_ns == at
    assert json.loads((tmp_path / "results.json").read_text()) == results
    for result in results:
        assert 0 <= result["top1"] <= 1
        assert result["failed_at_step"] is None
        assert np.isfinite(result["loss"])
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    figures = [100 * r["top1"] for r in results if r["row"] == "LayerScale"]
    assert len(figures) == 2
    expected = f"{np.mean(figures):.1f} ± {np.std(figures, ddof=1):.1f}"
    (row,) = [
        line
        for line in (tmp_path / "table.md").read_text().splitlines()
        if "LayerScale" in line
    ]
    assert row.startswith(f"| LayerScale | {expected} (80.5) |")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_training_resumes(tiny, trained, tmp_path, monkeypatch):
    """To the very result of one that was not."""
    cell = of_study(tiny, "LayerScale")
    _, whole = trained
    data = trainings.training_data

    def broken(recipe, strategy, examples, step, output):
        for batch in data(recipe, strategy, examples, step, output):
            if step == 6:
                raise KeyboardInterrupt
            yield batch
            step += 1

    monkeypatch.setattr(trainings, "training_data", broken)
    with pytest.raises(KeyboardInterrupt):
        train(cell, 0, tmp_path / "broken", save_seconds=0)
    steps = []

    def noted(recipe, strategy, examples, step, output):
        steps.append(step)
        yield from data(recipe, strategy, examples, step, output)

    monkeypatch.setattr(trainings, "training_data", noted)
    rest = train(cell, 0, tmp_path / "broken")
    assert steps == [4]  # the end of the first epoch
    for key in ("top1", "raw_top1", "gammas", "loss"):
        assert rest[key] == whole[key]


def test_a_training_that_fails_is_reported_as_such(tiny, tmp_path, monkeypatch):
    data = trainings.training_data

    def spoiled(recipe, strategy, examples, step, output):
        for images, targets in data(recipe, strategy, examples, step, output):
            yield (images * np.nan if step == 2 else images), targets
            step += 1

    monkeypatch.setattr(trainings, "training_data", spoiled)
    cell = of_study(tiny, "pre-norm")
    result = train(cell, 0, tmp_path)
    assert result["failed_at_step"] == 2
    assert result["top1"] is None
    assert result["gammas"] is None
    assert "| pre-norm | † 1 of 1 |" in table([cell], [result])


def test_a_killed_training_says_what_may_help(tiny, tmp_path, monkeypatch):
    def killed(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(trainings, "train", killed)
    monkeypatch.setattr(
        trainings, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1)
    )
    with pytest.raises(ChildProcessError, match="at a time: --processes 1"):
        run_study("depth", tiny, tmp_path, processes=2)


def test_of_many_workers_the_chief_writes(tiny, tmp_path, monkeypatch):
    result = {"row": "", "column": "", "top1": 0.5, "failed_at_step": None}
    monkeypatch.setattr(trainings, "train", lambda *_: result)
    monkeypatch.setattr(studies, "is_chief", lambda _: False)
    (one, *_) = run_study(
        "depth", tiny, tmp_path, strategy=tf.distribute.get_strategy()
    )
    assert one == result
    assert not [*tmp_path.iterdir()]


def test_gammas_are_those_that_were_learned(tiny, trained):
    ((attention, mlp),) = trained[1]["gammas"]
    assert 0 < abs(attention - 0.1) < 0.1 and 0 < abs(mlp - 0.1) < 0.1
    model = stacked(ViT(**of_study(tiny, "ReZero").model, classes=3))
    model.get_layer("self_attention_block_0").layer_scale_2_gamma.assign([[-2]])
    assert trainings.gammas(model) == [[0, 2]]


def test_results_of_another_setting_are_refused(tiny, trained, monkeypatch):
    """Before anything is trained or written."""
    folder, _ = trained
    cell = of_study(tiny, "LayerScale")
    other = dataclasses.replace(
        cell, recipe=dataclasses.replace(cell.recipe, learning_rate=1.0)
    )
    monkeypatch.setitem(STUDIES, "depth", lambda _: [other])
    with pytest.raises(ValueError, match="other settings"):
        run_study("depth", tiny, folder)
    with pytest.raises(ValueError, match="of another study"):
        run_study("class-attention-depth", tiny, folder)
    assert len([*folder.iterdir()]) == 1


def test_the_command_runs_a_study(tiny, trained, tmp_path, monkeypatch, capsys):
    """Of which the only training is done."""
    output = shutil.copytree(trained[0], tmp_path / "study")
    cell = of_study(tiny, "LayerScale")
    monkeypatch.setitem(STUDIES, "depth", lambda scale: [cell])
    options = ("--output", output, "--seeds", 1, "--processes", 1)
    options += ("--strategy", "one")
    assert exit_status(studies.app, "depth", *options) == 0
    table = (output / "table.md").read_text()
    assert "| LayerScale | " in table and table in capsys.readouterr().out
    (result,) = json.loads((output / "results.json").read_text())
    assert result == trained[1]
