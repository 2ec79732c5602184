"""Contract of scripts/reproduce.py table4: what the document says is what the detectors did."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detection_folders import voc_folder

from ccnn_zoo.detection import load_detection_data, voc_evaluate
from ccnn_zoo.errors import ConfigurationError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from experiments import table4
from experiments._cells import find
from experiments._detection import kept_detections
from experiments._plans import Plan, make_plan
from experiments._running import run_cells


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    place = tmp_path_factory.mktemp("table4")
    plan = Plan("small", f"voc:{voc_folder(place / 'shapes')}", (0, 1), {"epochs": 1, "evaluate_every": 1})
    cells = [cell for cell in table4.cells(plan) if not cell.recipe.validation or cell.recipe.seed == 0]
    records = run_cells(cells, place / "cells", 1, 1)
    path = table4.report(plan, records).write(place / "out", "scripts/reproduce.py table4", len(cells))
    return plan, cells, records, path


def test_the_figures_are_those_of_the_kept_detections(finished):
    plan, cells, records, _ = finished
    data = load_detection_data(plan.data)
    for cell in cells:
        measured = records[cell].measured["test"]
        again = voc_evaluate(kept_detections(records[cell]), data.test, data.labels)
        assert measured["map_percent"] == pytest.approx(again.map_percent)
        assert measured["area"] == pytest.approx(again.area)


def test_the_document_holds_means_and_spreads(finished):
    plan, _, records, path = finished
    text = path.read_text()
    for branches in (1, 2):
        cell = table4.training(plan, "ccnn_resnet18", branches)
        seeds = [records[replace(cell, recipe=replace(cell.recipe, seed=seed))] for seed in (0, 1)]
        values = np.array([record.measured["test"]["map_percent"] for record in seeds])
        assert f"| ccnn_resnet18 | {branches} | {values.mean():.2f} ± {values.std(ddof=1):.2f} |" in text
    assert "| ccnn_resnet18 | 2 | 68.71 | 71.5 |" in text
    assert "Not the paper's experiment" in text
    assert (path.parent / "detection.png").read_bytes().startswith(b"\x89PNG")


def test_the_plain_network_has_no_noise_and_the_same_schedule(finished):
    plan, *_ = finished
    plain, calibrated = (table4.training(plan, "ccnn_resnet18", k).recipe for k in (1, 2))
    assert replace(calibrated, branches=1, noise_std=0.0) == plain


def test_finished_cells_are_found_again(finished):
    plan, cells, records, path = finished
    moved = replace(plan, data=f"voc:/elsewhere/{Path(plan.data).name}")
    for cell in cells:
        found = find(replace(cell, recipe=replace(cell.recipe, data=moved.data)), path.parents[1] / "cells")
        assert found is not None
        assert found.measured == records[cell].measured


@pytest.mark.parametrize(("size", "data"), [("full", None), ("quick", "digits"), ("full", "digits")])
def test_without_pictures_with_boxes_it_is_refused(tmp_path, size, data):
    with pytest.raises(ConfigurationError, match="--voc"):
        table4.cells(make_plan(size, data, 1, tmp_path))
